//! What the instances stand on: volumes, nodes, zones.

use std::collections::{BTreeMap, BTreeSet};

use super::Outcome;
use crate::command::verify::facts::{Facts, list, names};
use crate::topology::kube::inspect::{Claim, ClaimRole, Class, Instance, Seen};

/// More zones than this nobody needs.
const ZONES_MAX: usize = 3;

pub(super) fn data_volumes(facts: &Facts) -> Result<Outcome, String> {
    let claims = facts.api.claims.as_ref().map_err(Clone::clone)?;
    let instances = some_instances(facts)?;
    let mut volumes = BTreeMap::new();
    for instance in instances {
        let name = &instance.name;
        let Some((claim_name, claim)) = data_claim(instance, claims) else {
            return Ok(Outcome::fail(
                format!("{name} has no claim for its data: it is lost with the pod"),
                "give each instance a PersistentVolumeClaim",
            ));
        };
        let Some(volume) = claim.volume.as_ref().filter(|_| claim.phase == "Bound") else {
            let phase = if claim.phase.is_empty() { "of no phase" } else { &claim.phase };
            return Ok(Outcome::fail(
                format!("claim {claim_name} of {name} is {phase}, and bound to no volume"),
                "look at the claim's events: the provisioner, its quota, the zone",
            ));
        };
        if let Some(other) = volumes.insert(volume, name) {
            return Ok(Outcome::fail(
                format!("{other} and {name} share the volume {volume}"),
                "give each instance a volume of its own",
            ));
        }
    }
    Ok(Outcome::pass(format!("{} bound volumes", volumes.len())))
}

pub(super) fn wal_volumes(facts: &Facts) -> Result<Outcome, String> {
    let claims = facts.api.claims.as_ref().map_err(Clone::clone)?;
    let instances = some_instances(facts)?;
    let mut without = Vec::new();
    for instance in instances {
        let wal = of(instance, claims).find(|(_, claim)| claim.role == ClaimRole::Wal);
        match wal {
            None => without.push(instance),
            Some((_, claim)) if claim.phase == "Bound" => {}
            Some((name, claim)) => {
                return Ok(Outcome::fail(
                    format!("claim {name} of {} is {}, not Bound", instance.name, claim.phase),
                    "look at the claim's events: the provisioner, its quota, the zone",
                ));
            }
        }
    }
    if without.is_empty() {
        return Ok(Outcome::pass(format!("{} bound volumes", instances.len())));
    }
    Ok(Outcome::warn(
        format!("WAL shares the volume of the data at {}", names(without)),
        "set spec.walStorage: then WAL that cannot be archived does not fill the volume of the data",
    ))
}

pub(super) fn volume_binding(facts: &Facts) -> Result<Outcome, String> {
    let classes = classes(facts)?;
    let wrong = classes.iter().filter(|(_, class)| class.binding != "WaitForFirstConsumer");
    let wrong = list(wrong.map(|(name, class)| format!("{name} is {}", class.binding)));
    if wrong.is_empty() {
        return Ok(Outcome::pass(format!(
            "WaitForFirstConsumer ({})",
            list(classes.iter().map(|(name, _)| name))
        )));
    }
    Ok(Outcome::fail(
        format!("volumeBindingMode of {wrong}"),
        "use a StorageClass with WaitForFirstConsumer: else a volume may be in a zone where its pod cannot run",
    ))
}

pub(super) fn volume_expansion(facts: &Facts) -> Result<Outcome, String> {
    let classes = classes(facts)?;
    let wrong = list(classes.iter().filter(|(_, class)| !class.can_grow).map(|(name, _)| name));
    if wrong.is_empty() {
        return Ok(Outcome::pass(format!(
            "allowVolumeExpansion ({})",
            list(classes.iter().map(|(name, _)| name))
        )));
    }
    Ok(Outcome::fail(
        format!("StorageClass {wrong} does not allow it"),
        "set allowVolumeExpansion: true, if the provisioner can: else a full volume is a move to a new cluster",
    ))
}

pub(super) fn different_nodes(facts: &Facts) -> Result<Outcome, String> {
    let instances = some_instances(facts)?;
    let mut by_node: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for instance in instances {
        let node = instance.node.as_deref().filter(|node| !node.is_empty());
        let node = node.ok_or_else(|| format!("{} is on no node yet", instance.name))?;
        by_node.entry(node).or_default().push(instance);
    }
    let shared = by_node.iter().filter(|(_, here)| here.len() > 1);
    let shared = list(shared.map(|(node, here)| format!("{} on {node}", names(here.iter().copied()))));
    if shared.is_empty() {
        return Ok(Outcome::pass(format!("{} nodes", by_node.len())));
    }
    let remedy = "require anti-affinity, and move one of them: one lost node must not take two instances";
    Ok(Outcome::fail(shared, remedy))
}

pub(super) fn different_zones(facts: &Facts) -> Result<Outcome, String> {
    let instances = some_instances(facts)?;
    let (mut zones, mut unlabelled) = (BTreeMap::<&str, usize>::new(), BTreeSet::new());
    for instance in instances {
        let node = instance.node.as_deref().unwrap_or_default();
        let zone = facts.api.zones.get(node).ok_or_else(|| format!("{} is on no node yet", instance.name))?;
        match zone.as_ref().map_err(Clone::clone)? {
            Some(zone) => *zones.entry(zone).or_default() += 1,
            None => drop(unlabelled.insert(node)),
        }
    }
    if !unlabelled.is_empty() {
        return Ok(Outcome::warn(
            format!("without topology.kubernetes.io/zone: {}", list(unlabelled)),
            "label the nodes with their zones: else nothing tells whether one failure takes several instances",
        ));
    }
    let wanted = instances.len().min(ZONES_MAX);
    let found = list(zones.iter().map(|(zone, count)| format!("{count} in {zone}")));
    if zones.len() >= wanted {
        return Ok(Outcome::pass(found));
    }
    let remedy = "spread them with required anti-affinity on topology.kubernetes.io/zone";
    Ok(match zones.len() {
        0 | 1 => Outcome::fail(format!("{found}: one lost zone is the end of all"), remedy),
        _ => Outcome::warn(format!("{found}: one lost zone takes several"), remedy),
    })
}

pub(super) fn anti_affinity(facts: &Facts) -> Result<Outcome, String> {
    match facts.api.anti_affinity.as_ref().map_err(Clone::clone)? {
        Some(key) => Ok(Outcome::pass(format!("required, by {key}"))),
        None => Ok(Outcome::fail(
            "it is not required: two instances may come to the same node",
            "set spec.affinity.podAntiAffinityType: required (with Patroni requiredDuringScheduling... in the pods)",
        )),
    }
}

fn some_instances(facts: &Facts) -> Result<&[Instance], String> {
    match facts.api.instances.as_slice() {
        [] => Err("there are no pods".to_owned()),
        some => Ok(some),
    }
}

/// What an instance mounts.
fn of<'a>(
    instance: &'a Instance,
    claims: &'a BTreeMap<String, Claim>,
) -> impl Iterator<Item = (&'a String, &'a Claim)> {
    instance.claims.iter().filter_map(|name| claims.get_key_value(name))
}

/// The claim that is said to be for the data; where nobody says so, the first.
fn data_claim<'a>(
    instance: &'a Instance,
    claims: &'a BTreeMap<String, Claim>,
) -> Option<(&'a String, &'a Claim)> {
    let said = of(instance, claims).find(|(_, claim)| claim.role == ClaimRole::Data);
    said.or_else(|| of(instance, claims).find(|(_, claim)| claim.role == ClaimRole::Unsaid))
}

fn classes(facts: &Facts) -> Result<Vec<(&String, &Class)>, String> {
    facts.api.claims.as_ref().map_err(Clone::clone)?;
    if facts.api.classes.is_empty() {
        return Err("no claim of an instance names a StorageClass".to_owned());
    }
    let class = |(name, seen): (&'_ String, &'_ Seen<Class>)| match seen {
        Ok(_) => Ok(()),
        Err(reason) => Err(format!("StorageClass {name} was not seen: {reason}")),
    };
    facts.api.classes.iter().try_for_each(class)?;
    Ok(facts.api.classes.iter().filter_map(|(name, seen)| Some((name, seen.as_ref().ok()?))).collect())
}
