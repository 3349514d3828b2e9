//! `pgweir status`: how a running pooler and its clusters are, as the page at its metrics address has it. Read
//! [`run`] first.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::said::complain;
use crate::admin::status::{ClusterStatus, MemberStatus, PoolStatus, Status};
use crate::config::{Config, ConfigError};

/// How long the pooler may take to answer; it gives up its own workers after 5 s.
const ANSWER_MAX: Duration = Duration::from_secs(7);

/// The largest answer that is read. One pool takes less than 300 bytes.
const LENGTH_MAX: usize = 64 * 1024 * 1024;

/// How often `--watch` looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many of a cluster's events are shown.
const EVENTS_SHOWN: usize = 5;

/// Clears a terminal, and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// The arguments of `pgweir status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArguments {
    /// The pooler's settings, which say where it is (metrics_listen_addr)
    #[arg(value_name = "CONFIG_FILE")]
    config: Option<PathBuf>,
    /// Where the pooler is, instead [default: 127.0.0.1:9127]
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "config")]
    address: Option<SocketAddr>,
    /// Look again every second, until it is interrupted
    #[arg(long)]
    watch: bool,
    /// How it is told; json is one line for each look
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Why nothing is known of the pooler.
#[derive(Debug, Error)]
pub enum StatusError {
    /// The settings cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The pooler of these settings tells nobody.
    #[error(
        "{0} has no metrics_listen_addr: set it, for example to 127.0.0.1:9127, and start the pooler anew"
    )]
    NoAddress(String),
    /// The pooler is not there, or does not answer.
    #[error("the pooler at {0} does not answer: {1}")]
    NoAnswer(SocketAddr, String),
    /// Nobody reads what is written.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// Looks, and says what it sees.
pub fn run(arguments: &StatusArguments) -> Result<(), StatusError> {
    let address = address(arguments)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(look(arguments, address))
}

fn address(arguments: &StatusArguments) -> Result<SocketAddr, StatusError> {
    let Some(file) = &arguments.config else {
        return Ok(arguments.address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9127))));
    };
    let config = Config::load(file, &|name| std::env::var(name).ok())?;
    let listens = config.settings.metrics_listen_addr;
    let listens = listens.ok_or_else(|| StatusError::NoAddress(file.display().to_string()))?;
    let ip = match listens.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    Ok(SocketAddr::new(ip, listens.port()))
}

async fn look(arguments: &StatusArguments, address: SocketAddr) -> Result<(), StatusError> {
    let mut stdout = std::io::stdout();
    loop {
        let answer = timeout(ANSWER_MAX, fetch(address)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("nothing came for {} s", ANSWER_MAX.as_secs())));
        let told = answer.and_then(|json| match arguments.output {
            Output::Json => Ok(json + "\n"),
            Output::Text => read(&json).map(|status| text(&status)),
        });
        match told {
            Ok(told) if arguments.watch && arguments.output == Output::Text => {
                write!(stdout, "{CLEAR}{told}")?;
            }
            Ok(told) => write!(stdout, "{told}")?,
            // Who watches wants to see it come back.
            Err(error) if arguments.watch => complain(&StatusError::NoAnswer(address, error).to_string()),
            Err(error) => return Err(StatusError::NoAnswer(address, error)),
        }
        stdout.flush()?;
        if !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read(json: &str) -> Result<Status, String> {
    serde_json::from_str(json).map_err(|error| format!("what it says is no status of this version: {error}"))
}

async fn fetch(address: SocketAddr) -> Result<String, String> {
    let words = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| words(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
    let driving = tokio::spawn(connection);
    let request = Request::get("/status.json").header(HOST, address.to_string());
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| words(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| words(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LENGTH_MAX).collect().await;
    driving.abort();
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok(body),
        status => Err(format!("{status}: {}", body.trim())),
    }
}

// ---- for people ----

fn text(status: &Status) -> String {
    let mut text = format!("pgweir {} {}\n", status.version, status.state);
    status.clusters.iter().for_each(|one| cluster(one, &mut text));
    if !status.pools.is_empty() {
        text.push('\n');
        let head = ["pool", "in use", "free", "clients", "waiting", "longest wait"];
        text.push_str(&columns(&head, status.pools.iter().map(pool)));
    }
    text
}

fn cluster(cluster: &ClusterStatus, text: &mut String) {
    let word = cluster.health.as_ref().map_or_else(
        || "nothing is known yet".to_owned(),
        |health| format!("{} for {}", health.state, time(health.since_ms)),
    );
    text.push_str(&format!("\ncluster {}: {word}\n", cluster.name));
    if let Some(health) = &cluster.health {
        for words in [&health.evidence, &health.advice].into_iter().filter(|words| !words.is_empty()) {
            text.push_str(&format!("  {words}\n"));
        }
    }
    text.push_str(&format!("  {}\n", primary(cluster)));
    let head = ["  server", "says", "zone", "gets", "behind", "sync", "ours", "all", "of"];
    let writes = cluster.primary.as_deref().filter(|_| cluster.state == "open");
    text.push_str(&columns(&head, cluster.members.iter().map(|one| member(one, writes))));
    for event in cluster.events.iter().take(EVENTS_SHOWN) {
        text.push_str(&format!("  {} ago: {}\n", time(event.ago_ms), event.text));
    }
}

fn primary(cluster: &ClusterStatus) -> String {
    let since = time(cluster.since_ms);
    match (&cluster.detail, &cluster.primary) {
        (Some(detail), _) => format!("clients that write wait for {since}: {detail}"),
        (None, None) => "there is no primary".to_owned(),
        (None, Some(name)) => {
            let named = match cluster.named_by.as_deref() {
                Some("probe") => "found by asking every server".to_owned(),
                Some(source) => format!("named by {source}"),
                None => "of the settings".to_owned(),
            };
            let line = cluster.timeline.map_or_else(String::new, |line| format!(", timeline {line}"));
            format!("{name} is the primary for {since}: {named}{line}")
        }
    }
}

fn member(member: &MemberStatus, writes: Option<&str>) -> Vec<String> {
    let some = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let gets = match (writes == Some(&*member.name), member.serves_reads) {
        (true, _) => "writes",
        (false, true) => "reads",
        (false, false) => "-",
    };
    vec![
        format!("  {}", member.name),
        member.says.clone(),
        some(member.zone.clone()),
        gets.to_owned(),
        some(member.lag_ms.map(time)),
        some(member.sync_state.clone()),
        member.connections.to_string(),
        some(member.all_connections.map(|count| count.to_string())),
        some(member.connections_usable.map(|count| count.to_string())),
    ]
}

fn pool(pool: &PoolStatus) -> Vec<String> {
    let limit = if pool.size == 0 { "no limit".to_owned() } else { pool.size.to_string() };
    vec![
        format!("{}/{}", pool.database, pool.user),
        format!("{} of {limit}", pool.in_use),
        pool.free.to_string(),
        pool.clients.to_string(),
        pool.waiting.to_string(),
        if pool.waiting == 0 { "-".to_owned() } else { time(pool.longest_wait_us / 1000) },
    ]
}

/// Each column as wide as its widest cell.
fn columns(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let count = lines[0].len();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn time(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{EventStatus, HealthStatus};

    #[test]
    fn a_stranger_can_read_how_a_cluster_is() {
        let member = |name: &str, says: &str, lag: Option<u64>, sync: Option<&str>| MemberStatus {
            name: name.into(),
            says: says.into(),
            serves_reads: says == "standby",
            lag_ms: lag,
            sync_state: sync.map(str::to_owned),
            connections: 5,
            all_connections: Some(12),
            connections_usable: Some(97),
            ..MemberStatus::default()
        };
        let status = Status {
            version: "1.2.3".into(),
            state: "active".into(),
            clusters: vec![ClusterStatus {
                name: "pg".into(),
                state: "open".into(),
                since_ms: 7_300_000,
                primary: Some("pg-1".into()),
                timeline: Some(3),
                named_by: Some("cnpg".into()),
                health: Some(HealthStatus {
                    state: "archiving_broken".into(),
                    since_ms: 61_000,
                    evidence: "the last attempt failed".into(),
                    advice: "Mend archive_command.".into(),
                }),
                members: vec![
                    member("pg-1", "primary", None, None),
                    member("pg-2", "standby", Some(40), Some("quorum")),
                ],
                events: vec![EventStatus { ago_ms: 61_000, kind: "health".into(), text: "it broke".into() }],
                ..ClusterStatus::default()
            }],
            pools: vec![PoolStatus {
                database: "app".into(),
                user: "web".into(),
                size: 20,
                in_use: 20,
                waiting: 3,
                longest_wait_us: 2_500_000,
                ..PoolStatus::default()
            }],
            databases: Vec::new(),
        };
        let expected = "\
pgweir 1.2.3 active

cluster pg: archiving_broken for 1 min 1 s
  the last attempt failed
  Mend archive_command.
  pg-1 is the primary for 2 h 1 min: named by cnpg, timeline 3
  server  says     zone  gets    behind  sync    ours  all  of
  pg-1    primary  -     writes  -       -       5     12   97
  pg-2    standby  -     reads   40 ms   quorum  5     12   97
  1 min 1 s ago: it broke

pool     in use    free  clients  waiting  longest wait
app/web  20 of 20  0     0        3        2.5 s
";
        assert_eq!(text(&status), expected);
        assert_eq!(read(&status.json()), Ok(status));
    }
}
