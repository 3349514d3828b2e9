//! A pooler that only pretends, what it would show, and a reader of the console's messages.

use std::cell::RefCell;
use std::future::pending;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::admin::*;
use crate::log::Peer;

/// A pooler that remembers what it was told, and answers with `failure` or for ever not.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) told: RefCell<Vec<String>>,
    pub(super) failure: Option<ConsoleError>,
    pub(super) waits: bool,
    pub(super) tls_not_applied: bool,
    pub(super) state: StateView,
}

impl Fake {
    async fn tell(&self, what: String) -> Result<(), ConsoleError> {
        let waits = self.waits && !what.starts_with("resume");
        self.told.borrow_mut().push(what);
        if waits {
            pending::<()>().await;
        }
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Pooler for &Fake {
    async fn snapshot(&self, _: View) -> Snapshot {
        Snapshot { state: self.state, ..snapshot() }
    }
    async fn set(&self, key: &str, value: &str) -> Result<SetOutcome, ConsoleError> {
        self.tell(format!("set {key}={value}")).await?;
        Ok(if self.tls_not_applied { SetOutcome::TlsNotApplied } else { SetOutcome::Done })
    }
    async fn reload(&self) -> Result<(), ConsoleError> {
        self.tell("reload".into()).await
    }
    async fn pause(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        self.tell(format!("pause {database:?}")).await
    }
    async fn resume(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        self.tell(format!("resume {database:?}")).await
    }
    async fn suspend(&self) -> Result<(), ConsoleError> {
        self.tell("suspend".into()).await
    }
    async fn kill(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        self.tell(format!("kill {database:?}")).await
    }
    async fn kill_client(&self, id: u64) -> Result<(), ConsoleError> {
        self.tell(format!("kill_client {id}")).await
    }
    async fn reconnect(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        self.tell(format!("reconnect {database:?}")).await
    }
    async fn wait_close(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        self.tell(format!("wait_close {database:?}")).await
    }
    async fn disable(&self, database: &str) -> Result<(), ConsoleError> {
        self.tell(format!("disable {database}")).await
    }
    async fn enable(&self, database: &str) -> Result<(), ConsoleError> {
        self.tell(format!("enable {database}")).await
    }
    async fn hold(&self, cluster: &str, seconds: u32) -> Result<(), ConsoleError> {
        self.tell(format!("hold {cluster} {seconds}")).await
    }
    async fn release(&self, cluster: &str) -> Result<(), ConsoleError> {
        self.tell(format!("release {cluster}")).await
    }
    async fn reroute(&self, database: &str, cluster: &str) -> Result<(), ConsoleError> {
        self.tell(format!("reroute {database} {cluster}")).await
    }
    async fn shutdown(&self, mode: Shutdown) -> Result<(), ConsoleError> {
        self.tell(format!("{mode}")).await
    }
}

fn connection<State>(state: State, id: u64) -> ConnectionView<State> {
    ConnectionView {
        user: Some("x".into()),
        database: Some("p0".into()),
        replication: crate::wire::startup::Replication::None,
        state,
        peer: Peer::Tcp("127.0.0.1:48202".parse().unwrap()),
        local: Peer::Unix { pid: None, port: 27431 },
        connect_time_us: 1_795_331_830_000_000,
        request_time_us: 1_795_331_831_999_999,
        wait_us: 0,
        close_needed: false,
        pointer: 0x1f,
        link: None,
        remote_pid: 0,
        tls: String::new(),
        application_name: String::new(),
        prepared_statements: 0,
        id,
        buffers: BufferView::default(),
    }
}

fn snapshot() -> Snapshot {
    let waiting = ConnectionView {
        wait_us: 3_006_043,
        buffers: BufferView { recv_pos: 14, pkt_avail: 14, ..BufferView::default() },
        ..connection(ClientState::Waiting, 7)
    };
    let login = ConnectionView { user: None, database: None, ..connection(ClientState::Login, 8) };
    let server = ConnectionView {
        link: Some(0x2a),
        remote_pid: 17718,
        close_needed: true,
        ..connection(ServerState::New, 6)
    };
    let totals = Stats {
        server_assignment_count: 2,
        xact_count: 2,
        query_count: 3,
        bytes_received: 37,
        bytes_sent: 167,
        xact_time_us: 6_016_075,
        query_time_us: 3_008_384,
        wait_time_us: 3_016_285,
        ..Stats::default()
    };
    let console = Stats { xact_count: 1, query_count: 1, ..Stats::default() };
    let stats =
        |database: &str, totals| StatsView { database: database.into(), totals, older: Stats::default() };
    Snapshot {
        lists: ListsView { peers: Some(0), peer_pools: Some(0), ..ListsView::default() },
        clients: vec![waiting, connection(ClientState::Idle, 5), login],
        servers: vec![server],
        pools: vec![
            PoolView {
                database: "p0".into(),
                user: "postgres".into(),
                clients_active: 1,
                clients_waiting: 1,
                servers_active: 1,
                maxwait_us: 3_000_314,
                pool_mode: "transaction",
                ..PoolView::default()
            },
            PoolView::console(1),
        ],
        databases: vec![
            DatabaseView::console(27431, 3600, 1, 0),
            DatabaseView {
                name: "lb".into(),
                host: Some("127.0.0.1,127.0.0.2".into()),
                port: 15999,
                database: "lb".into(),
                pool_size: 20,
                server_lifetime_s: 3600,
                load_balance_hosts: Some("round-robin"),
                ..DatabaseView::default()
            },
        ],
        users: vec![
            UserView { name: "x".into(), current_client_connections: 1, ..UserView::default() },
            UserView {
                name: "bob".into(),
                pool_size: Some(5),
                reserve_pool_size: Some(7),
                pool_mode: Some("transaction"),
                max_user_connections: 3,
                ..UserView::default()
            },
        ],
        stats: vec![stats("pgbouncer", console), stats("p0", totals)],
        stats_elapsed: Duration::from_secs(16),
        settings: vec![SettingView { key: "auth_user".into(), value: None, default: None, changeable: true }],
        memory: vec![MemView { name: "user_cache", size: 2368, used: 7, free: 43, memory_total: 118_400 }],
        ..Snapshot::default()
    }
}

/// The messages in `out`, one line each.
pub(super) fn messages(out: BytesMut) -> Vec<String> {
    let mut rest = out.freeze();
    let mut lines = Vec::new();
    while rest.has_remaining() {
        let tag = rest.get_u8();
        let length = usize::try_from(rest.get_u32()).unwrap();
        let body = rest.split_to(length - 4);
        lines.push(match tag {
            b'T' => format!("T {}", columns(body)),
            b'D' => format!("D {}", row(body)),
            b'E' | b'N' => format!("{} {}", char::from(tag), fields(&body)),
            _ => format!("{} {}", char::from(tag), String::from_utf8_lossy(&body)),
        });
    }
    lines
}

fn string(body: &mut Bytes) -> String {
    let end = body.iter().position(|byte| *byte == 0).unwrap();
    let text = String::from_utf8(body.split_to(end).to_vec()).unwrap();
    body.advance(1);
    text
}

fn columns(mut body: Bytes) -> String {
    let mut names = Vec::new();
    for _ in 0..body.get_u16() {
        let name = string(&mut body);
        body.advance(6);
        let short = match body.get_u32() {
            25 => "t",
            23 => "i",
            20 => "q",
            1700 => "n",
            oid => panic!("type {oid} of {name}"),
        };
        body.advance(8);
        names.push(format!("{name}:{short}"));
    }
    names.join(" ")
}

fn row(mut body: Bytes) -> String {
    let values = (0..body.get_u16()).map(|_| match usize::try_from(body.get_i32()) {
        Err(_) => "NULL".to_owned(),
        Ok(length) => String::from_utf8(body.split_to(length).to_vec()).unwrap(),
    });
    values.collect::<Vec<_>>().join("|")
}

fn fields(body: &[u8]) -> String {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let fields: Vec<_> = text.split('\0').filter(|f| !f.is_empty() && !f.starts_with('V')).collect();
    fields.join(" ")
}
