//! The servers themselves say who the primary is: for a StatefulSet without an operator, and for any
//! set of hosts. Pure; the follower asks them by SQL.

use std::sync::Arc;

use super::{Identity, Member, Named, Observation, Place};
use crate::config::{Cluster, Host};

/// The members of a cluster whose hosts are in the settings.
pub fn members(cluster: &Cluster) -> Vec<Member> {
    let member = |host: &Host| Member {
        name: host.to_string().into(),
        place: Place { uid: None, host: host.clone(), port: cluster.port },
        zone: None,
        ready: true,
        terminating: false,
        fenced: None,
    };
    cluster.hosts.iter().map(member).collect()
}

/// A cluster whose first host is the primary, because the settings say so.
pub fn fixed(cluster: &Cluster) -> Observation {
    let members = members(cluster);
    let primary = members.first().map(|first| Named::Member(Arc::clone(&first.name)));
    Observation {
        incarnation: None,
        primary: primary.unwrap_or_else(|| Named::Nobody("the cluster has no hosts".into())),
        members,
        system_id: None,
        timeline: None,
        phase: None,
    }
}

/// What the members' newest answers mean: the primary is the one that is not in recovery, on the highest
/// timeline. Two of them there, or on systems that differ, are two that claim to be it.
pub fn observe(answers: &[(Member, Option<Identity>)]) -> Observation {
    let writers = answers.iter().filter_map(|(member, answer)| {
        let identity = (*answer)?;
        (!identity.in_recovery).then_some((member, identity))
    });
    let writers: Vec<_> = writers.collect();
    let highest = writers.iter().map(|(_, identity)| identity.timeline).max();
    let leading = writers.iter().filter(|(_, identity)| Some(identity.timeline) == highest);
    let leading: Vec<_> = leading.collect();
    let same_system = writers.iter().all(|(_, identity)| identity.system_id == writers[0].1.system_id);
    let names = |of: &[&(&Member, Identity)]| of.iter().map(|(member, _)| Arc::clone(&member.name)).collect();
    let primary = match leading.as_slice() {
        [] => Named::Nobody("no server says that it is the primary".into()),
        [(member, _)] if same_system => Named::Member(Arc::clone(&member.name)),
        [_] => Named::Several(writers.iter().map(|(member, _)| Arc::clone(&member.name)).collect()),
        several => Named::Several(names(several)),
    };
    Observation {
        incarnation: None,
        members: answers.iter().map(|(member, _)| member.clone()).collect(),
        primary,
        system_id: None,
        timeline: None,
        phase: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answers: &[Option<(bool, u64, u32)>], expected: Named) {
        let hosts = ["a", "b", "c"].map(|name| Host::Tcp(name.into()));
        let cluster = Cluster { hosts: hosts.to_vec(), ..Cluster::new("x".into()) };
        let identity = |(in_recovery, system_id, timeline)| Identity { in_recovery, system_id, timeline };
        let answers = answers.iter().map(|answer| answer.map(identity));
        let answers: Vec<_> = members(&cluster).into_iter().zip(answers).collect();
        assert_eq!(observe(&answers).primary, expected);
    }

    #[test]
    fn the_primary_is_the_one_that_writes_on_the_highest_timeline() {
        let standby = Some((true, 7, 1));
        check(&[Some((false, 7, 1)), standby, None], Named::Member("a".into()));
        check(&[Some((false, 7, 1)), Some((false, 7, 2)), standby], Named::Member("b".into()));
        check(&[None, standby, standby], Named::Nobody("no server says that it is the primary".into()));
    }

    #[test]
    fn two_on_one_timeline_or_of_two_systems_are_nobody() {
        let both = Named::Several(vec!["a".into(), "b".into()]);
        check(&[Some((false, 7, 2)), Some((false, 7, 2)), None], both.clone());
        check(&[Some((false, 7, 2)), Some((false, 8, 1)), None], both);
    }
}
