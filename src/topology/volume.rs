//! The volume that a server's WAL is on: how large it is, by the pod's claim ([`volumes`]), how fast the WAL grows
//! ([`Growth`]), and when the volume is full then ([`Volume::full_in`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pods;

/// Growth is that of the last ten minutes: WAL comes and goes in files of 16 MB.
const LOOKED_BACK: Duration = Duration::from_secs(600);

/// Of its sizes one in so long is enough.
const NOTED_EVERY: Duration = Duration::from_secs(10);

/// Of less than this nothing is said.
const LOOKED_AT_LEAST: Duration = Duration::from_secs(60);

/// A volume with WAL on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its size.
    pub bytes: u64,
    /// Whether nothing but WAL is on it.
    pub wal_only: bool,
}

impl Volume {
    /// How long until it is full, if the WAL goes on growing by so many bytes in a second. `None` if it does not, and
    /// where what else is on the volume is not known.
    pub fn full_in(&self, wal_bytes: u64, growth: f64) -> Option<Duration> {
        if !self.wal_only || growth <= 0.0 {
            return None;
        }
        let left = self.bytes.saturating_sub(wal_bytes) as f64;
        Duration::try_from_secs_f64(left / growth).ok()
    }
}

/// The volumes of these pods, by pod: each pod's claim for WAL, else its claim for all.
pub fn volumes(pods: &[Pod], claims: &[PersistentVolumeClaim]) -> BTreeMap<Arc<str>, Volume> {
    let size = |name: &str| {
        let claim = claims.iter().find(|claim| claim.metadata.name.as_deref() == Some(name))?;
        bytes(claim.status.as_ref()?.capacity.as_ref()?.get("storage")?)
    };
    let volume = |pod: &Pod| {
        let (claim, wal_only) = claim_of(pod)?;
        Some((Arc::from(pods::name(pod)), Volume { bytes: size(claim)?, wal_only }))
    };
    pods::running(pods).filter_map(volume).collect()
}

/// CloudNativePG's volumes are `pgdata` and `pg-wal`, Crunchy's `postgres-data` and `postgres-wal`, Zalando's `pgdata`.
fn claim_of(pod: &Pod) -> Option<(&str, bool)> {
    let claims: Vec<_> = pods::claims(pod).collect();
    let named = |word: &str| claims.iter().find(|(name, _)| name.contains(word)).map(|(_, claim)| *claim);
    let data = named("data").or_else(|| claims.first().map(|(_, claim)| *claim));
    named("wal").map(|claim| (claim, true)).or_else(|| data.map(|claim| (claim, false)))
}

/// A quantity as Kubernetes writes it: a number and a suffix of powers of 1000 or of 1024.
fn bytes(quantity: &Quantity) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 12] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("m", 1e-3),
        ("", 1.0),
    ];
    let text = quantity.0.as_str();
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
    let bytes = number.parse::<f64>().ok()? * factor;
    // A claim of 16 EiB does not come.
    (bytes.is_finite() && (0.0..1.8e19).contains(&bytes)).then_some(bytes as u64)
}

/// How the WAL of one server has grown.
#[derive(Clone, Debug, Default)]
pub struct Growth(VecDeque<(Instant, u64)>);

impl Growth {
    /// Notes its size, which may be the same as before; one in ten seconds is enough.
    pub fn note(&mut self, bytes: u64, now: Instant) {
        if self.0.back().is_some_and(|(last, _)| now.saturating_duration_since(*last) < NOTED_EVERY) {
            return;
        }
        self.0.push_back((now, bytes));
        let is_old = |(at, _): &(Instant, u64)| now.saturating_duration_since(*at) >= LOOKED_BACK;
        // The newest of the old ones is where the ten minutes begin.
        while self.0.get(1).is_some_and(is_old) {
            self.0.pop_front();
        }
    }

    /// Bytes in a second; negative when files have gone. `None` while it was not looked for long enough.
    pub fn rate(&self) -> Option<f64> {
        let ((first, was), (last, is)) = (self.0.front()?, self.0.back()?);
        let time = last.saturating_duration_since(*first);
        (time >= LOOKED_AT_LEAST).then(|| (*is as f64 - *was as f64) / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pods::tests::pod;
    use super::*;

    fn claim(name: &str, size: &str) -> PersistentVolumeClaim {
        let object = json!({ "metadata": { "name": name }, "status": { "capacity": { "storage": size } } });
        serde_json::from_value(object).expect("a claim")
    }

    fn pod_with(name: &str, volumes: &[(&str, &str)]) -> Pod {
        let volumes: Vec<_> = volumes
            .iter()
            .map(|(name, claim)| json!({ "name": name, "persistentVolumeClaim": { "claimName": claim } }))
            .chain([json!({ "name": "scratch-data", "emptyDir": {} })])
            .collect();
        pod(name, json!({}), json!({ "spec": { "containers": [], "volumes": volumes } }))
    }

    #[test]
    fn a_volume_of_its_own_for_wal_comes_before_that_of_the_data() {
        let pods = [
            pod_with("pg-1", &[("pgdata", "pg-1"), ("pg-wal", "pg-1-wal")]),
            pod_with("pg-2", &[("postgres-data", "pg-2")]),
            pod_with("pg-3", &[("anything", "pg-3")]),
            pod_with("pg-4", &[("pgdata", "gone")]),
            pod_with("pg-5", &[]),
        ];
        let claims =
            [claim("pg-1", "10Gi"), claim("pg-1-wal", "2Gi"), claim("pg-2", "1500M"), claim("pg-3", "1e9")];
        let found = volumes(&pods, &claims);
        let volume = |bytes, wal_only| Volume { bytes, wal_only };
        assert_eq!(
            found,
            [
                (Arc::from("pg-1"), volume(2 << 30, true)),
                (Arc::from("pg-2"), volume(1_500_000_000, false)),
                (Arc::from("pg-3"), volume(1_000_000_000, false)),
            ]
            .into()
        );
    }

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, size) in [
            ("1Ki", Some(1024)),
            ("1.5Gi", Some(3 << 29)),
            ("20G", Some(20_000_000_000)),
            ("128974848", Some(128_974_848)),
            ("129e6", Some(129_000_000)),
            ("5000m", Some(5)),
            ("1Zi", None),
            ("-1", None),
            ("", None),
            ("Gi", None),
        ] {
            assert_eq!(bytes(&Quantity(text.to_owned())), size, "{text}");
        }
    }

    #[test]
    fn growth_is_that_of_the_last_ten_minutes() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut growth = Growth::default();
        growth.note(100, at(0));
        growth.note(4000, at(30));
        assert_eq!(growth.rate(), None, "half a minute says nothing");
        growth.note(6100, at(60));
        assert_eq!(growth.rate(), Some(100.0));
        for minute in 2..=30 {
            growth.note(6100, at(60 * minute));
        }
        assert_eq!(growth.rate(), Some(0.0), "what was half an hour ago is forgotten");
        assert!(growth.0.len() <= 12, "{}", growth.0.len());
        growth.note(100, at(60 * 30 + 10));
        assert!(growth.rate().is_some_and(|rate| rate < 0.0));
    }

    #[test]
    fn when_a_volume_is_full_is_said_where_it_has_nothing_but_wal_and_that_grows() {
        let own = Volume { bytes: 1000, wal_only: true };
        assert_eq!(own.full_in(400, 6.0), Some(Duration::from_secs(100)));
        assert_eq!(own.full_in(1400, 6.0), Some(Duration::ZERO));
        assert_eq!(own.full_in(400, 0.0), None);
        assert_eq!(own.full_in(400, -6.0), None);
        assert_eq!(Volume { wal_only: false, ..own }.full_in(400, 6.0), None);
    }
}
