//! SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS: one row per connection.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::table::{Columns, Table, Value, int4, text};
use super::view::*;
use crate::log::Peer;
use crate::wire::originate::ColumnType::{Int4, Text};
use crate::wire::startup::Replication;

macro_rules! connection_columns {
    ($($more:expr),*) => {
        &[
            ("type", Text),
            ("user", Text),
            ("database", Text),
            ("replication", Text),
            ("state", Text),
            ("addr", Text),
            ("port", Int4),
            ("local_addr", Text),
            ("local_port", Int4),
            ("connect_time", Text),
            ("request_time", Text),
            ("wait", Int4),
            ("wait_us", Int4),
            ("close_needed", Int4),
            ("ptr", Text),
            ("link", Text),
            ("remote_pid", Int4),
            ("tls", Text),
            ("application_name", Text),
            ("prepared_statements", Int4),
            ("id", Int4),
            $($more),*
        ]
    };
}

const CONNECTIONS: Columns = connection_columns!();
const SOCKETS: Columns = connection_columns!(
    ("recv_pos", Int4),
    ("pkt_pos", Int4),
    ("pkt_remain", Int4),
    ("send_pos", Int4),
    ("send_remain", Int4),
    ("pkt_avail", Int4),
    ("send_avail", Int4)
);

pub(crate) fn clients(snapshot: &Snapshot, zone: &TimeZone) -> Table {
    // A client that is still logging in belongs to no pool, so PgBouncer does not list it here.
    let shown = snapshot.clients.iter().filter(|client| client.state != ClientState::Login);
    let rows = shown.map(|view| connection("C", client_state(view.state), view, zone));
    Table::new(CONNECTIONS, rows)
}

pub(crate) fn servers(snapshot: &Snapshot, zone: &TimeZone) -> Table {
    let rows = snapshot.servers.iter();
    let rows = rows.map(|view| connection("S", server_state(view.state), view, zone));
    Table::new(CONNECTIONS, rows)
}

pub(crate) fn sockets(snapshot: &Snapshot, zone: &TimeZone, shown: fn(&BufferView) -> bool) -> Table {
    let clients = snapshot.clients.iter().filter(|view| shown(&view.buffers)).map(|view| {
        let row = connection("C", client_socket_state(view.state), view, zone);
        with_buffers(row, &view.buffers)
    });
    let servers = snapshot.servers.iter().filter(|view| shown(&view.buffers)).map(|view| {
        let row = connection("S", server_socket_state(view.state), view, zone);
        with_buffers(row, &view.buffers)
    });
    Table::new(SOCKETS, clients.chain(servers))
}

fn client_state(state: ClientState) -> &'static str {
    match state {
        ClientState::Login => "login",
        ClientState::Active => "active",
        ClientState::Idle => "idle",
        ClientState::Waiting => "waiting",
        ClientState::ActiveCancelRequest => "active_cancel_req",
        ClientState::WaitingCancelRequest => "waiting_cancel_req",
    }
}

fn client_socket_state(state: ClientState) -> &'static str {
    match state {
        ClientState::Login => "cl_login",
        ClientState::Active | ClientState::Idle => "cl_active",
        ClientState::Waiting => "cl_waiting",
        ClientState::ActiveCancelRequest => "cl_active_cancel_req",
        ClientState::WaitingCancelRequest => "cl_waiting_cancel_req",
    }
}

fn server_state(state: ServerState) -> &'static str {
    match state {
        ServerState::New => "new",
        ServerState::Active => "active",
        ServerState::Idle => "idle",
        ServerState::Used => "used",
        ServerState::Tested => "tested",
        ServerState::ActiveCancel => "active_cancel",
        ServerState::BeingCanceled => "being_canceled",
    }
}

fn server_socket_state(state: ServerState) -> &'static str {
    match state {
        ServerState::New => "sv_login",
        ServerState::Active => "sv_active",
        ServerState::Idle => "sv_idle",
        ServerState::Used => "sv_used",
        ServerState::Tested => "sv_tested",
        ServerState::ActiveCancel => "sv_active_cancel",
        ServerState::BeingCanceled => "sv_being_canceled",
    }
}

fn connection<S>(kind: &str, state: &str, view: &ConnectionView<S>, zone: &TimeZone) -> Vec<Value> {
    let replication = match view.replication {
        Replication::None => "none",
        Replication::Logical => "logical",
        Replication::Physical => "physical",
    };
    vec![
        text(kind),
        text(view.user.as_deref().unwrap_or("(nouser)")),
        text(view.database.as_deref().unwrap_or("(nodb)")),
        text(replication),
        text(state),
        address(&view.peer),
        int4(view.peer.port()),
        address(&view.local),
        int4(view.local.port()),
        time(view.connect_time_us, zone),
        time(view.request_time_us, zone),
        int4(view.wait_us / 1_000_000),
        int4(view.wait_us % 1_000_000),
        int4(view.close_needed),
        text(format!("{:#x}", view.pointer)),
        text(view.link.map(|link| format!("{link:#x}")).unwrap_or_default()),
        int4(view.remote_pid),
        text(&view.tls),
        text(&view.application_name),
        int4(view.prepared_statements),
        int4(view.id),
    ]
}

fn with_buffers(mut row: Vec<Value>, buffers: &BufferView) -> Vec<Value> {
    row.extend([
        int4(buffers.recv_pos),
        int4(buffers.pkt_pos),
        int4(buffers.pkt_remain),
        int4(buffers.send_pos),
        int4(buffers.send_remain),
        int4(buffers.pkt_avail),
        int4(buffers.send_avail),
    ]);
    row
}

fn address(peer: &Peer) -> Value {
    match peer {
        Peer::Tcp(address) => text(address.ip().to_string()),
        Peer::Unix { .. } => text("unix"),
    }
}

pub(super) fn time(unix_us: i64, zone: &TimeZone) -> Value {
    let timestamp = Timestamp::from_microsecond(unix_us).unwrap_or(Timestamp::UNIX_EPOCH);
    text(timestamp.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string())
}
