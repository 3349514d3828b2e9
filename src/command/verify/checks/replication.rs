//! The cluster itself: its instances, its primary, who has its WAL, and whether it can be restored.

use super::Outcome;
use crate::command::verify::facts::{Facts, Said, Server, list, names, span};
use crate::topology::cnpg::HEALTHY;

/// A file of WAL that waits longer than this for the archive is not just on its way. Seconds.
const UNARCHIVED_MAX_S: u64 = 300;

/// What an archiver may need beyond `archive_timeout`. Seconds.
const ARCHIVE_GRACE_S: u64 = 60;

/// With fewer a lost standby leaves nobody to wait for, or nobody to fail over to.
const INSTANCES_MIN: usize = 3;

pub(super) fn cluster_phase(facts: &Facts) -> Result<Outcome, String> {
    let (phase, reason) = facts.api.phase.as_ref().map_err(Clone::clone)?;
    if phase == HEALTHY {
        return Ok(Outcome::pass(phase));
    }
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let found = match phase.as_str() {
        "" => "the operator has not reported a phase".to_owned(),
        phase => format!("{phase}{reason}"),
    };
    Ok(Outcome::fail(found, "wait until the operator has done what it does; if that lasts, look at its log"))
}

pub(super) fn instances_ready(facts: &Facts) -> Result<Outcome, String> {
    let instances = &facts.api.instances;
    let wanted = facts.instances_wanted();
    let ready = instances.iter().filter(|instance| instance.ready).count();
    let found = format!("{ready} of {wanted}");
    if ready == wanted && ready > 0 {
        return Ok(Outcome::pass(found));
    }
    let unready: Vec<_> = instances.iter().filter(|instance| !instance.ready).collect();
    let found = match (unready.is_empty(), instances.len() > wanted) {
        (false, _) => format!("{found}; not ready: {}", names(unready)),
        (true, false) => format!("{found}; there are only {} pods", instances.len()),
        (true, true) => format!("{found}: there are more than asked for"),
    };
    Ok(Outcome::fail(found, "look at the pods' events and logs, and at the operator's"))
}

pub(super) fn primary_confirmed(facts: &Facts) -> Result<Outcome, String> {
    let remedy =
        "look at the operator and at the servers' logs; do not promote by hand while the operator may";
    let Some(primary) = &facts.api.primary else {
        return Ok(Outcome::fail("the operator names no primary", remedy));
    };
    if let Some(to) = &facts.api.moving_to {
        let found = format!("the operator names {primary}, and is moving to {to}");
        return Ok(Outcome::fail(found, "wait until the move is over"));
    }
    let servers = facts.servers.as_ref().map_err(Clone::clone)?;
    let silent = servers.iter().filter_map(|server| Some((server, server.said.as_ref().err()?)));
    let silent = list(silent.map(|(server, reason)| format!("{} ({reason})", server.name)));
    if !silent.is_empty() {
        let remedy = "start them, or run this where the pooler runs, with a login that they accept";
        return Ok(Outcome::fail(format!("not asked: {silent}"), remedy));
    }
    let said: Vec<(&Server, &Said)> =
        servers.iter().filter_map(|server| Some((server, server.said.as_ref().ok()?))).collect();
    let writable = said.iter().filter(|(_, said)| !said.signals.in_recovery);
    let writable: Vec<&str> = writable.map(|(server, _)| server.name.as_str()).collect();
    if writable != [primary] {
        let by_sql = if writable.is_empty() { "none".to_owned() } else { list(writable) };
        return Ok(Outcome::fail(format!("the operator names {primary}; not in recovery: {by_sql}"), remedy));
    }
    let system = |wanted: &str| said.iter().find(|(_, said)| said.more.system_id != wanted);
    let first = said.first().map(|(_, said)| said.more.system_id.as_str()).unwrap_or_default();
    if let Some((other, _)) = system(first) {
        let found = format!("{} has another system identifier: it is another cluster's", other.name);
        return Ok(Outcome::fail(found, "look at where that pod's volume comes from"));
    }
    Ok(Outcome::pass(format!("{primary}; the other {} are in recovery", said.len() - 1)))
}

pub(super) fn standbys_streaming(facts: &Facts) -> Result<Outcome, String> {
    let (primary, said) = facts.primary()?;
    let wanted = facts.instances_wanted().saturating_sub(1);
    if said.signals.standbys.iter().any(|standby| standby.streams().is_none()) {
        return Err("their states are hidden: the login needs pg_monitor".to_owned());
    }
    let streaming = said.signals.standbys.iter().filter(|standby| standby.streams() == Some(true)).count();
    let found = format!("{streaming} of {wanted} stream from {primary}");
    if streaming >= wanted {
        return Ok(Outcome::pass(found));
    }
    let states = said.signals.standbys.iter().filter(|standby| standby.streams() != Some(true));
    let state = |standby: &crate::topology::signals::Standby| {
        let name = standby.name.clone().unwrap_or_default();
        format!("{name} is {}", standby.state.as_deref().unwrap_or_default())
    };
    let others = list(states.map(state));
    let found = if others.is_empty() { found } else { format!("{found}; {others}") };
    let remedy =
        "look at the logs of the standbys that do not: a lost slot, WAL that is gone, or the network";
    Ok(Outcome::fail(found, remedy))
}

pub(super) fn standbys_synchronous(facts: &Facts) -> Result<Outcome, String> {
    let (primary, said) = facts.primary()?;
    let rule = &said.signals.sync_rule;
    let wanted = facts.api.synchronous_wanted.unwrap_or(0);
    if rule.required < wanted {
        let found = format!(
            "the Cluster asks for {wanted}, {primary} requires {} (synchronous_standby_names = {})",
            rule.required, rule.text
        );
        return Ok(Outcome::fail(
            found,
            "look at why the operator has not set it, or has lowered it (dataDurability: preferred)",
        ));
    }
    if rule.required == 0 {
        let found = format!("{primary} waits for none (synchronous_standby_names is empty)");
        let remedy = "set spec.postgresql.synchronous (or Patroni's synchronous_mode): else a failover may lose \
                      what was committed";
        return Ok(Outcome::warn(found, remedy));
    }
    if said.signals.standbys.iter().any(|standby| standby.is_synchronous().is_none()) {
        return Err("their states are hidden: the login needs pg_monitor".to_owned());
    }
    let synchronous = said.signals.standbys.iter();
    let count =
        synchronous.filter(|one| one.is_synchronous() == Some(true) && one.streams() == Some(true)).count();
    let found =
        format!("{count} there, {} required (synchronous_standby_names = {})", rule.required, rule.text);
    if count >= rule.required as usize {
        return Ok(Outcome::pass(found));
    }
    Ok(Outcome::fail(
        format!("{found}: commits wait"),
        "bring a standby back; do not lower the quorum: that discards the guarantee",
    ))
}

pub(super) fn quorum_instances(facts: &Facts) -> Result<Outcome, String> {
    let instances = facts.instances_wanted();
    let by_sql = facts.primary().map(|(_, said)| said.signals.sync_rule.required).ok();
    let asked_for = facts.api.synchronous_wanted.max(by_sql);
    let required = asked_for.ok_or("it is not known how many standbys a commit waits for")? as usize;
    // The primary, those that a commit waits for, and one that may be lost.
    let least = INSTANCES_MIN.max(required + 2);
    let found = format!("{instances} instances, a commit waits for {required} of {}", instances.max(1) - 1);
    let remedy = format!("have at least {least} instances");
    Ok(match (instances >= least, required) {
        (true, _) => Outcome::pass(found),
        (false, 0) => Outcome::warn(found, remedy),
        (false, _) => Outcome::fail(format!("{found}: without one standby all commits wait"), remedy),
    })
}

pub(super) fn wal_archiving(facts: &Facts) -> Result<Outcome, String> {
    let (primary, said) = facts.primary()?;
    let archiver = &said.signals.archiver;
    let mend = "mend archive_command or the store behind it: until then nothing newer can be restored";
    if said.signals.archive_mode == "off" {
        let remedy = "set up archiving (spec.plugins or spec.backup of the Cluster): without it there is no \
                      point-in-time recovery";
        return Ok(Outcome::fail(format!("archive_mode is off at {primary}"), remedy));
    }
    if said.signals.archiving_fails() {
        let wal = archiver.last_failed_wal.as_deref().unwrap_or("WAL");
        let ago = archiver.last_failed_age.unwrap_or_default().as_secs();
        let found = format!("{wal} could not be archived {} ago, {} failures", span(ago), archiver.failures);
        return Ok(Outcome::fail(found, mend));
    }
    let Some(age) = archiver.last_archived_age else {
        return Ok(Outcome::fail(
            "nothing was archived yet",
            "SELECT pg_switch_wal() at the primary, and look at whether it is archived",
        ));
    };
    let mut found = format!("{} files, the last {} ago", archiver.archived, span(age.as_secs()));
    if let Some(oldest) = said.unarchived.and_then(|waiting| waiting.oldest_s)
        && oldest > UNARCHIVED_MAX_S
    {
        let count = said.unarchived.map_or(0, |waiting| waiting.count);
        let found = format!("{count} files wait for the archive, the first for {}", span(oldest));
        return Ok(Outcome::fail(found, mend));
    }
    let timeout = u64::from(said.more.archive_timeout_s);
    if timeout == 0 {
        return Ok(Outcome::warn(
            format!("{found}; archive_timeout is 0"),
            "set archive_timeout: else the last writes are not in the archive until a file is full",
        ));
    }
    if age.as_secs() > 2 * timeout + ARCHIVE_GRACE_S {
        return Ok(Outcome::warn(
            format!("{found}; archive_timeout is {}", span(timeout)),
            "on an idle primary that is well: SELECT pg_switch_wal(), and look again",
        ));
    }
    if archiver.failures > 0 {
        found = format!("{found}; {} failures before", archiver.failures);
    }
    Ok(Outcome::pass(found))
}

pub(super) fn base_backup(facts: &Facts) -> Result<Outcome, String> {
    let backup = facts.api.backup.as_ref().map_err(Clone::clone)?;
    let Some(age) = backup.age else {
        return Ok(Outcome::fail(
            "there is none: no Backup is completed, status.lastSuccessfulBackup is empty",
            "make one (a Backup object, kubectl cnpg backup), and a ScheduledBackup for the next ones",
        ));
    };
    let since = backup.recoverable_since.as_ref();
    let since = since.map(|since| format!("; recoverable since {since}")).unwrap_or_default();
    let found = format!("{} ago ({}){since}", span(age.as_secs()), backup.said_by);
    if age <= facts.backup_age_max {
        return Ok(Outcome::pass(found));
    }
    let found = format!("{found}; at most {} is wanted", span(facts.backup_age_max.as_secs()));
    Ok(Outcome::fail(found, "look at the ScheduledBackup and at its last Backup's status.error"))
}

pub(super) fn slot_wal_limit(facts: &Facts) -> Result<Outcome, String> {
    let servers = facts.servers.as_ref().map_err(Clone::clone)?;
    let said = servers.iter().filter_map(|server| Some((server, server.said.as_ref().ok()?)));
    let said: Vec<_> = said.collect();
    if said.is_empty() {
        return Err("no server was asked".to_owned());
    }
    let without = said.iter().filter(|(_, said)| said.more.slot_wal_max_mb.is_none_or(|limit| limit < 0));
    let without = list(without.map(|(server, _)| &server.name));
    if without.is_empty() {
        let limits = said.iter().filter_map(|(_, said)| said.more.slot_wal_max_mb);
        return Ok(Outcome::pass(format!("max_slot_wal_keep_size is {} MB", limits.min().unwrap_or(0))));
    }
    Ok(Outcome::fail(
        format!("max_slot_wal_keep_size is -1 at {without}"),
        "set max_slot_wal_keep_size below the size of the volume of WAL: else the slot of one lost standby fills it",
    ))
}
