//! The pooler: whether its connections fit, whom it reaches, what it may read, and how long the certificates last.

use super::Outcome;
use crate::command::verify::facts::{Facts, Pooler, PoolerSaid, list, span};

const DAY_S: i64 = 86_400;

/// CloudNativePG renews a certificate when 7 days are left: one that has less was not renewed. Seconds.
const CERTIFICATE_WARN_S: i64 = 7 * DAY_S;

/// Less than this leaves no weekend. Seconds.
const CERTIFICATE_FAIL_S: i64 = 3 * DAY_S;

pub(super) fn connection_budget(facts: &Facts) -> Result<Outcome, String> {
    let pools = facts.pools.as_ref().map_err(Clone::clone)?;
    let replicas = *facts.replicas.as_ref().map_err(Clone::clone)?;
    let (primary, said) = facts.primary()?;
    let signals = &said.signals;
    if let Some((database, user)) = &pools.unlimited {
        return Ok(Outcome::fail(
            format!("the pool of database \"{database}\" for user \"{user}\" has no limit"),
            "set pool_size or default_pool_size, or max_db_connections",
        ));
    }
    let ours = pools.connections.saturating_mul(replicas);
    let others = others(facts, signals.connections);
    let usable = signals.connections_usable();
    let found = format!(
        "{ours} ({replicas} poolers with {} pools, {} each) and {others} of others, of {usable} at {primary} \
         (max_connections = {}, {} reserved)",
        pools.count, pools.connections, signals.connections_max, signals.connections_reserved
    );
    if ours.saturating_add(others) <= usable {
        return Ok(Outcome::pass(found));
    }
    Ok(Outcome::fail(
        found,
        "lower default_pool_size or max_db_connections, have fewer poolers, or raise max_connections",
    ))
}

/// Connections that are neither the poolers' nor the one that asked. What an unseen pooler has counts as others'.
fn others(facts: &Facts, all: u32) -> u32 {
    let poolers = facts.poolers.iter().flatten().filter_map(|pooler| pooler.said.as_ref().ok());
    // Each pooler's monitor has one too.
    let ours: u32 = poolers.map(|said| said.at_primary + 1).sum();
    all.saturating_sub(ours + 1)
}

pub(super) fn pooler_reaches(facts: &Facts) -> Result<Outcome, String> {
    let poolers = facts.poolers.as_ref().map_err(Clone::clone)?;
    if poolers.is_empty() {
        return Ok(Outcome::fail(
            "no pooler is there",
            "name the poolers with --service or --pooler; with --no-pooler this is not looked at",
        ));
    }
    let wrong = poolers.iter().filter_map(|pooler| Some((pooler, trouble(facts, pooler)?)));
    let wrong = list(wrong.map(|(pooler, trouble)| format!("{}: {trouble}", pooler.address)));
    if wrong.is_empty() {
        let members = facts.api.instances.len();
        return Ok(Outcome::pass(format!("{} poolers, {members} instances each", poolers.len())));
    }
    let remedy = "look at SHOW CLUSTERS and SHOW MEMBERS there: NetworkPolicy, the monitor's login, a HOLD";
    Ok(Outcome::fail(wrong, remedy))
}

/// What a pooler does not reach, or why nobody knows.
fn trouble(facts: &Facts, pooler: &Pooler) -> Option<String> {
    let PoolerSaid { state, members, .. } = match &pooler.said {
        Ok(said) => said,
        Err(reason) => return Some(reason.clone()),
    };
    if state != "open" {
        return Some(format!("its clients wait: {state}"));
    }
    let unlike = facts.api.instances.iter().filter_map(|instance| {
        let is_primary = facts.api.primary.as_ref() == Some(&instance.name);
        let expected = if is_primary { "primary" } else { "standby" };
        let says = members.iter().find(|(name, _)| *name == instance.name).map(|(_, says)| says.as_str());
        (says != Some(expected)).then(|| format!("{} is {}", instance.name, says.unwrap_or("not known")))
    });
    let unlike = list(unlike);
    (!unlike.is_empty()).then_some(unlike)
}

pub(super) fn pooler_rights(facts: &Facts) -> Result<Outcome, String> {
    let rights = facts.api.rights.as_ref().map_err(Clone::clone)?;
    let who = &rights.who;
    if !rights.missing.is_empty() {
        return Ok(Outcome::fail(
            format!("{who} may not {}", list(&rights.missing)),
            "bind the Role of config/kubernetes/base/rbac to the pooler's service account",
        ));
    }
    if !rights.wanting.is_empty() {
        return Ok(Outcome::warn(
            format!("{who} may not {}", list(&rights.wanting)),
            "grant that too: without it no zones are known, and a move is seen later",
        ));
    }
    Ok(Outcome::pass(format!("{who} may list and watch all {}", rights.granted)))
}

pub(super) fn certificates(facts: &Facts) -> Result<Outcome, String> {
    let certificates = facts.certificates.as_ref().map_err(Clone::clone)?;
    let seen = certificates.iter().filter_map(|one| Some((*one.left_s.as_ref().ok()?, one.name.as_str())));
    let Some((left, first)) = seen.clone().min() else {
        let reasons = certificates.iter().filter_map(|one| one.left_s.as_ref().err());
        let reasons = list(reasons);
        return Err(if reasons.is_empty() { "there are none".to_owned() } else { reasons });
    };
    let remedy =
        "renew it; CloudNativePG does so by itself when 7 days are left, if the certificate is its own";
    let days = |seconds: i64| span(u64::try_from(seconds).unwrap_or(0));
    Ok(match left {
        left if left <= 0 => Outcome::fail(format!("{first} has ended {} ago", days(-left)), remedy),
        left if left < CERTIFICATE_FAIL_S => Outcome::fail(format!("{first} ends in {}", days(left)), remedy),
        left if left < CERTIFICATE_WARN_S => Outcome::warn(format!("{first} ends in {}", days(left)), remedy),
        left => Outcome::pass(format!("{} seen; the first ends in {}: {first}", seen.count(), days(left))),
    })
}
