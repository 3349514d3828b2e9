use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::command::verify::facts::{Certificate, More, Pooler, PoolerSaid, Pools, Said, Server, Unarchived};
use crate::topology::kube::inspect::{Backup, Claim, ClaimRole, Class, Inspection, Instance, Rights};
use crate::topology::signals::{Archiver, Signals, Standby};

/// A cluster in which everything is green.
fn green() -> Facts {
    let names = ["pg-1", "pg-2", "pg-3"];
    let instance = |name: &str| Instance {
        name: name.to_owned(),
        address: Some("10.0.0.1".to_owned()),
        ready: true,
        node: Some(format!("node-of-{name}")),
        claims: vec![name.to_owned(), format!("{name}-wal")],
    };
    let claim = |name: &str, role| {
        let volume = Some(format!("volume-of-{name}"));
        (name.to_owned(), Claim { phase: "Bound".into(), volume, class: Some("fast".into()), role })
    };
    let claims = names
        .iter()
        .flat_map(|name| [claim(name, ClaimRole::Data), claim(&format!("{name}-wal"), ClaimRole::Wal)]);
    let class = Class { binding: "WaitForFirstConsumer".into(), can_grow: true };
    let zones = names.iter().map(|name| (format!("node-of-{name}"), Ok(Some(format!("zone-of-{name}")))));
    let member = |name: &&str| {
        let says = if *name == "pg-1" { "primary" } else { "standby" };
        ((*name).to_owned(), says.to_owned())
    };
    let said =
        PoolerSaid { state: "open".into(), members: names.iter().map(member).collect(), at_primary: 8 };
    Facts {
        api: Inspection {
            phase: Ok(("Cluster in healthy state".into(), String::new())),
            instances_wanted: Ok(3),
            primary: Some("pg-1".into()),
            moving_to: None,
            synchronous_wanted: Some(1),
            anti_affinity: Ok(Some("topology.kubernetes.io/zone".into())),
            instances: names.iter().map(|name| instance(name)).collect(),
            claims: Ok(claims.collect()),
            classes: BTreeMap::from([("fast".to_owned(), Ok(class))]),
            zones: zones.collect(),
            backup: Ok(Backup {
                age: Some(Duration::from_secs(3600)),
                said_by: "Backup daily-1".into(),
                recoverable_since: Some("2026-01-01T00:00:00Z".into()),
            }),
            certificates: Ok(Vec::new()),
            rights: Ok(Rights { who: "service account pgweir".into(), granted: 4, ..Rights::default() }),
        },
        servers: Ok(names.iter().map(|name| server(name)).collect()),
        poolers: Ok(vec![Pooler { address: "10.0.0.9:5432".into(), said: Ok(said) }]),
        pools: Ok(Pools { count: 2, connections: 41, unlimited: None }),
        replicas: Ok(2),
        certificates: Ok(vec![Certificate { name: "pg-server/tls.crt".into(), left_s: Ok(80 * 86_400) }]),
        backup_age_max: Duration::from_secs(26 * 3600),
    }
}

fn server(name: &str) -> Server {
    let in_recovery = name != "pg-1";
    let standby = |name: &str| Standby {
        name: Some(name.to_owned()),
        state: Some("streaming".into()),
        sync_state: Some("quorum".into()),
        ..Standby::default()
    };
    let signals = Signals {
        reads_stats: true,
        in_recovery,
        standbys: if in_recovery { Vec::new() } else { vec![standby("pg-2"), standby("pg-3")] },
        sync_rule: "ANY 1 (*)".to_owned().into(),
        archive_mode: "on".into(),
        archiver: Archiver {
            archived: 12,
            last_archived_age: Some(Duration::from_secs(40)),
            ..Archiver::default()
        },
        connections: 14,
        connections_max: 100,
        connections_reserved: 3,
        ..Signals::default()
    };
    let more = More {
        system_id: "1".into(),
        slot_wal_max_mb: Some(1024),
        archive_timeout_s: 300,
        ..More::default()
    };
    let said = Said { signals, more, ..Said::default() };
    Server { name: name.to_owned(), said: Ok(said) }
}

fn said(facts: &mut Facts, number: usize) -> &mut Said {
    let servers = facts.servers.as_mut().expect("green() has them");
    servers[number].said.as_mut().expect("green() has it")
}

fn primary(facts: &mut Facts) -> &mut Signals {
    &mut said(facts, 0).signals
}

fn claim<'a>(facts: &'a mut Facts, name: &str) -> &'a mut Claim {
    facts.api.claims.as_mut().expect("green() has them").get_mut(name).expect("green() has it")
}

fn class(facts: &mut Facts) -> &mut Class {
    facts.api.classes.get_mut("fast").expect("green() has it").as_mut().expect("green() has it")
}

fn pooler(facts: &mut Facts) -> &mut PoolerSaid {
    facts.poolers.as_mut().expect("green() has it")[0].said.as_mut().expect("green() has it")
}

fn zone(facts: &mut Facts, number: usize, zone: Option<&str>) {
    facts.api.zones.insert(format!("node-of-pg-{number}"), Ok(zone.map(str::to_owned)));
}

fn last_certificate(facts: &mut Facts, days: i64) {
    facts.certificates = Ok(vec![Certificate { name: "pg-ca/ca.crt".into(), left_s: Ok(days * 86_400) }]);
}

/// A change of the green facts: the line, how it comes out, and what its finding and its remedy say.
type Row = (&'static str, fn(&mut Facts), Verdict, &'static str, &'static str);

use Verdict::{Fail, Pass, Skipped, Warn};

const ROWS: &[Row] = &[
    ("cluster_phase", |_| {}, Pass, "Cluster in healthy state", ""),
    (
        "cluster_phase",
        |f| f.api.phase = Ok(("Failing over".into(), "pg-1 is gone".into())),
        Fail,
        "Failing over: pg-1 is gone",
        "look at its log",
    ),
    ("cluster_phase", |f| f.api.phase = Ok(Default::default()), Fail, "has not reported", "wait"),
    ("cluster_phase", |f| f.api.phase = Err("has none".into()), Skipped, "has none", ""),
    ("instances_ready", |_| {}, Pass, "3 of 3", ""),
    (
        "instances_ready",
        |f| f.api.instances[1].ready = false,
        Fail,
        "2 of 3; not ready: pg-2",
        "pods' events",
    ),
    ("instances_ready", |f| drop(f.api.instances.pop()), Fail, "2 of 3; there are only 2 pods", "events"),
    ("instances_ready", |f| f.api.instances_wanted = Ok(2), Fail, "3 of 2: there are more", "events"),
    ("instances_ready", |f| f.api.instances_wanted = Err("unsaid".into()), Pass, "3 of 3", ""),
    ("primary_confirmed", |_| {}, Pass, "pg-1; the other 2 are in recovery", ""),
    ("primary_confirmed", |f| f.api.primary = None, Fail, "names no primary", "do not promote by hand"),
    ("primary_confirmed", |f| f.api.moving_to = Some("pg-2".into()), Fail, "is moving to pg-2", "wait"),
    (
        "primary_confirmed",
        |f| primary(f).in_recovery = true,
        Fail,
        "the operator names pg-1; not in recovery: none",
        "look at the operator",
    ),
    (
        "primary_confirmed",
        |f| said(f, 2).signals.in_recovery = false,
        Fail,
        "not in recovery: pg-1, pg-3",
        "look at the operator",
    ),
    (
        "primary_confirmed",
        |f| f.servers.as_mut().expect("servers")[1].said = Err("connect failed".into()),
        Fail,
        "not asked: pg-2 (connect failed)",
        "run this where the pooler runs",
    ),
    ("primary_confirmed", |f| said(f, 1).more.system_id = "2".into(), Fail, "another cluster's", "volume"),
    ("primary_confirmed", |f| f.servers = Err("no login".into()), Skipped, "no login", ""),
    ("standbys_streaming", |_| {}, Pass, "2 of 2 stream from pg-1", ""),
    ("standbys_streaming", |f| drop(primary(f).standbys.pop()), Fail, "1 of 2", "logs of the standbys"),
    (
        "standbys_streaming",
        |f| primary(f).standbys[0].state = Some("catchup".into()),
        Fail,
        "1 of 2 stream from pg-1; pg-2 is catchup",
        "logs of the standbys",
    ),
    ("standbys_streaming", |f| primary(f).standbys[0].state = None, Skipped, "needs pg_monitor", ""),
    (
        "standbys_streaming",
        |f| f.servers.as_mut().expect("servers")[0].said = Err("connect failed".into()),
        Skipped,
        "the primary pg-1 was not asked: connect failed",
        "",
    ),
    ("standbys_synchronous", |_| {}, Pass, "2 there, 1 required (synchronous_standby_names = ANY 1 (*))", ""),
    (
        "standbys_synchronous",
        |f| primary(f).standbys.clear(),
        Fail,
        "0 there, 1 required",
        "do not lower the quorum",
    ),
    (
        "standbys_synchronous",
        |f| f.api.synchronous_wanted = Some(2),
        Fail,
        "the Cluster asks for 2, pg-1 requires 1",
        "why the operator has not set it",
    ),
    (
        "standbys_synchronous",
        |f| {
            f.api.synchronous_wanted = None;
            primary(f).sync_rule = String::new().into();
        },
        Warn,
        "pg-1 waits for none",
        "spec.postgresql.synchronous",
    ),
    ("quorum_instances", |_| {}, Pass, "3 instances, a commit waits for 1 of 2", ""),
    (
        "quorum_instances",
        |f| f.api.instances_wanted = Ok(2),
        Fail,
        "without one standby all commits wait",
        "at least 3 instances",
    ),
    ("quorum_instances", |f| f.api.synchronous_wanted = Some(2), Fail, "waits for 2 of 2", "at least 4"),
    (
        "quorum_instances",
        |f| {
            f.api.instances_wanted = Ok(1);
            f.api.synchronous_wanted = None;
            primary(f).sync_rule = String::new().into();
        },
        Warn,
        "1 instances, a commit waits for 0 of 0",
        "at least 3 instances",
    ),
    ("wal_archiving", |_| {}, Pass, "12 files, the last 40 s ago", ""),
    (
        "wal_archiving",
        |f| primary(f).archive_mode = "off".into(),
        Fail,
        "archive_mode is off",
        "set up archiving",
    ),
    (
        "wal_archiving",
        |f| {
            primary(f).archiver.failures = 7;
            primary(f).archiver.last_failed_wal = Some("0001".into());
            primary(f).archiver.last_failed_age = Some(Duration::from_secs(3));
        },
        Fail,
        "0001 could not be archived 3 s ago, 7 failures",
        "mend archive_command",
    ),
    (
        "wal_archiving",
        |f| {
            primary(f).archiver.failures = 7;
            primary(f).archiver.last_failed_age = Some(Duration::from_secs(50));
        },
        Pass,
        "7 failures before",
        "",
    ),
    (
        "wal_archiving",
        |f| primary(f).archiver.last_archived_age = None,
        Fail,
        "nothing was archived yet",
        "pg_switch_wal()",
    ),
    (
        "wal_archiving",
        |f| said(f, 0).unarchived = Some(Unarchived { count: 9, oldest_s: Some(400) }),
        Fail,
        "9 files wait for the archive, the first for 6 min",
        "mend archive_command",
    ),
    (
        "wal_archiving",
        |f| said(f, 0).unarchived = Some(Unarchived { count: 1, oldest_s: Some(2) }),
        Pass,
        "12 files",
        "",
    ),
    (
        "wal_archiving",
        |f| said(f, 0).more.archive_timeout_s = 0,
        Warn,
        "archive_timeout is 0",
        "set archive_timeout",
    ),
    (
        "wal_archiving",
        |f| primary(f).archiver.last_archived_age = Some(Duration::from_secs(661)),
        Warn,
        "the last 11 min ago; archive_timeout is 5 min",
        "pg_switch_wal()",
    ),
    ("base_backup", |_| {}, Pass, "60 min ago (Backup daily-1); recoverable since 2026-01-01", ""),
    ("base_backup", |f| f.api.backup = Ok(Backup::default()), Fail, "there is none", "ScheduledBackup"),
    (
        "base_backup",
        |f| f.backup_age_max = Duration::from_secs(60),
        Fail,
        "60 min ago (Backup daily-1); recoverable since 2026-01-01T00:00:00Z; at most 60 s is wanted",
        "status.error",
    ),
    ("base_backup", |f| f.api.backup = Err("forbidden".into()), Skipped, "forbidden", ""),
    ("slot_wal_limit", |_| {}, Pass, "max_slot_wal_keep_size is 1024 MB", ""),
    (
        "slot_wal_limit",
        |f| said(f, 1).more.slot_wal_max_mb = Some(-1),
        Fail,
        "is -1 at pg-2",
        "set max_slot_wal_keep_size",
    ),
    ("data_volumes", |_| {}, Pass, "3 bound volumes", ""),
    (
        "data_volumes",
        |f| claim(f, "pg-2").phase = "Pending".into(),
        Fail,
        "pg-2 of pg-2 is Pending",
        "events",
    ),
    (
        "data_volumes",
        |f| claim(f, "pg-2").volume = Some("volume-of-pg-1".into()),
        Fail,
        "pg-1 and pg-2 share the volume volume-of-pg-1",
        "a volume of its own",
    ),
    (
        "data_volumes",
        |f| f.api.instances[2].claims.clear(),
        Fail,
        "pg-3 has no claim for its data",
        "PersistentVolumeClaim",
    ),
    ("data_volumes", |f| f.api.claims = Err("forbidden".into()), Skipped, "forbidden", ""),
    ("data_volumes", |f| f.api.instances.clear(), Skipped, "there are no pods", ""),
    ("wal_volumes", |_| {}, Pass, "3 bound volumes", ""),
    (
        "wal_volumes",
        |f| drop(f.api.instances[1].claims.pop()),
        Warn,
        "WAL shares the volume of the data at pg-2",
        "spec.walStorage",
    ),
    ("wal_volumes", |f| claim(f, "pg-3-wal").phase = "Lost".into(), Fail, "is Lost, not Bound", "events"),
    ("volume_binding", |_| {}, Pass, "WaitForFirstConsumer (fast)", ""),
    (
        "volume_binding",
        |f| class(f).binding = "Immediate".into(),
        Fail,
        "volumeBindingMode of fast is Immediate",
        "WaitForFirstConsumer",
    ),
    (
        "volume_binding",
        |f| drop(f.api.classes.insert("fast".into(), Err("forbidden".into()))),
        Skipped,
        "StorageClass fast was not seen: forbidden",
        "",
    ),
    ("volume_expansion", |_| {}, Pass, "allowVolumeExpansion (fast)", ""),
    (
        "volume_expansion",
        |f| class(f).can_grow = false,
        Fail,
        "fast does not allow it",
        "allowVolumeExpansion: true",
    ),
    ("volume_expansion", |f| f.api.classes.clear(), Skipped, "names a StorageClass", ""),
    ("different_nodes", |_| {}, Pass, "3 nodes", ""),
    (
        "different_nodes",
        |f| f.api.instances[2].node = Some("node-of-pg-2".into()),
        Fail,
        "pg-2, pg-3 on node-of-pg-2",
        "anti-affinity",
    ),
    ("different_nodes", |f| f.api.instances[2].node = None, Skipped, "pg-3 is on no node yet", ""),
    ("different_zones", |_| {}, Pass, "1 in zone-of-pg-1, 1 in zone-of-pg-2, 1 in zone-of-pg-3", ""),
    (
        "different_zones",
        |f| (1..=3).for_each(|number| zone(f, number, Some("a"))),
        Fail,
        "3 in a: one lost zone is the end of all",
        "anti-affinity",
    ),
    ("different_zones", |f| zone(f, 3, Some("zone-of-pg-1")), Warn, "2 in zone-of-pg-1", "anti-affinity"),
    (
        "different_zones",
        |f| zone(f, 3, None),
        Warn,
        "without topology.kubernetes.io/zone: node-of-pg-3",
        "label",
    ),
    (
        "different_zones",
        |f| drop(f.api.zones.insert("node-of-pg-3".into(), Err("forbidden".into()))),
        Skipped,
        "forbidden",
        "",
    ),
    ("anti_affinity", |_| {}, Pass, "required, by topology.kubernetes.io/zone", ""),
    (
        "anti_affinity",
        |f| f.api.anti_affinity = Ok(None),
        Fail,
        "it is not required",
        "podAntiAffinityType: required",
    ),
    (
        "connection_budget",
        |_| {},
        Pass,
        "82 (2 poolers with 2 pools, 41 each) and 4 of others, of 97 at pg-1 (max_connections = 100, 3 reserved)",
        "",
    ),
    ("connection_budget", |f| f.replicas = Ok(3), Fail, "123 (3 poolers", "raise max_connections"),
    (
        "connection_budget",
        |f| primary(f).connections = 26,
        Fail,
        "and 16 of others",
        "lower default_pool_size",
    ),
    ("connection_budget", |f| primary(f).connections = 25, Pass, "and 15 of others", ""),
    ("connection_budget", |f| f.poolers = Err("--no-pooler".into()), Pass, "and 13 of others", ""),
    (
        "connection_budget",
        |f| f.pools = Ok(Pools { unlimited: Some(("app".into(), "me".into())), ..Pools::default() }),
        Fail,
        "the pool of database \"app\" for user \"me\" has no limit",
        "set pool_size",
    ),
    ("connection_budget", |f| f.pools = Err("--config".into()), Skipped, "--config", ""),
    ("connection_budget", |f| f.replicas = Err("--replicas".into()), Skipped, "--replicas", ""),
    ("pooler_reaches", |_| {}, Pass, "1 poolers, 3 instances each", ""),
    (
        "pooler_reaches",
        |f| pooler(f).members[1].1 = "unknown".into(),
        Fail,
        "10.0.0.9:5432: pg-2 is unknown",
        "NetworkPolicy",
    ),
    ("pooler_reaches", |f| drop(pooler(f).members.pop()), Fail, "pg-3 is not known", "SHOW MEMBERS"),
    (
        "pooler_reaches",
        |f| pooler(f).state = "draining, held".into(),
        Fail,
        "10.0.0.9:5432: its clients wait: draining, held",
        "HOLD",
    ),
    (
        "pooler_reaches",
        |f| f.poolers.as_mut().expect("poolers")[0].said = Err("connect failed".into()),
        Fail,
        "10.0.0.9:5432: connect failed",
        "SHOW CLUSTERS",
    ),
    ("pooler_reaches", |f| f.poolers = Ok(Vec::new()), Fail, "no pooler is there", "--service or --pooler"),
    ("pooler_reaches", |f| f.poolers = Err("--no-pooler".into()), Skipped, "--no-pooler", ""),
    ("pooler_rights", |_| {}, Pass, "service account pgweir may list and watch all 4", ""),
    (
        "pooler_rights",
        |f| f.api.rights.as_mut().expect("rights").missing.push("watch pods".into()),
        Fail,
        "service account pgweir may not watch pods",
        "config/kubernetes/base/rbac",
    ),
    (
        "pooler_rights",
        |f| f.api.rights.as_mut().expect("rights").wanting.push("list leases/pg".into()),
        Warn,
        "may not list leases/pg",
        "a move is seen later",
    ),
    ("pooler_rights", |f| f.api.rights = Err("forbidden".into()), Skipped, "forbidden", ""),
    ("certificates", |_| {}, Pass, "1 seen; the first ends in 80 days: pg-server/tls.crt", ""),
    ("certificates", |f| last_certificate(f, 6), Warn, "pg-ca/ca.crt ends in 6 days", "renew"),
    ("certificates", |f| last_certificate(f, 2), Fail, "pg-ca/ca.crt ends in 2 days", "renew"),
    ("certificates", |f| last_certificate(f, -1), Fail, "pg-ca/ca.crt has ended 24 h ago", "renew"),
    ("certificates", |f| f.certificates = Ok(Vec::new()), Skipped, "there are none", ""),
    (
        "certificates",
        |f| f.certificates = Ok(vec![Certificate { name: "a".into(), left_s: Err("forbidden".into()) }]),
        Skipped,
        "forbidden",
        "",
    ),
];

#[test]
fn each_line_says_what_it_has_found_and_what_to_do() {
    for (id, change, verdict, found, remedy) in ROWS {
        let mut facts = green();
        change(&mut facts);
        let all = lines(&facts);
        let line = all.iter().find(|line| line.id == *id).unwrap_or_else(|| panic!("no line {id}"));
        assert_eq!(line.verdict, *verdict, "{line:#?}");
        assert!(line.found.contains(found), "{line:#?}\nhas not {found:?}");
        let said = line.remedy.as_deref().unwrap_or_default();
        assert!(said.contains(remedy), "{line:#?}\nhas not {remedy:?}");
        assert_eq!(line.remedy.is_some(), matches!(verdict, Warn | Fail), "{line:#?}");
    }
}

#[test]
fn each_line_has_a_row_both_ways() {
    let ids = |wanted: &[Verdict]| -> BTreeSet<&str> {
        ROWS.iter().filter(|row| wanted.contains(&row.2)).map(|row| row.0).collect()
    };
    let all: BTreeSet<&str> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(all.len(), CHECKS.len(), "two lines have the same id");
    assert_eq!(ids(&[Pass]), all);
    assert_eq!(ids(&[Fail, Warn]), all);
}

#[test]
fn each_line_has_its_section_on_the_page() {
    let page = include_str!("../../../../docs/verify.md");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(sections, CHECKS.iter().map(|check| check.id).collect::<Vec<_>>());
}

#[test]
fn warnings_fail_only_when_they_are_told_to() {
    let mut facts = green();
    assert!(!fails(&lines(&facts), true));
    zone(&mut facts, 3, None);
    assert!(!fails(&lines(&facts), false));
    assert!(fails(&lines(&facts), true));
    facts.api.anti_affinity = Ok(None);
    assert!(fails(&lines(&facts), false));
}

#[test]
fn what_could_not_be_seen_does_not_fail() {
    let mut facts = green();
    facts.servers = Err("no login".into());
    facts.api.claims = Err("forbidden".into());
    assert!(!fails(&lines(&facts), true));
}
