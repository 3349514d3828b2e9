//! The pooler's pages: metrics as numbers.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use super::eventually;
use super::http::get;
use super::pooler::{Config, Pooler};
use super::process::free_port;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Starts a pooler that serves pages, and says where.
pub async fn with_pages(config: Config) -> (Pooler, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let pooler = config.setting("metrics_listen_addr", &address.to_string()).start().await;
    // The kernel takes clients' connections from an earlier moment on.
    eventually("the pages are served", async || TcpStream::connect(address).await.is_ok()).await;
    (pooler, address)
}

/// Every sample by its name and labels. Panics where the text is not Prometheus' format.
pub async fn samples(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, page) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(types.contains_key(name) || base.is_some_and(|base| types.contains_key(base)), "{line}");
            assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "{key} twice");
        }
    }
    samples
}
