//! What the console shows: PgBouncer's own readers find its columns, in order and type, and in them what
//! is there.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use support::message::{parse, run_of, sync};
use support::pooler::is_ours;
use support::{Login, Pooler, Raw, Reply, eventually};

/// Columns by name and type: t text, i int4, q int8, n numeric, b bytea.
const TABLES: &[(&str, &str)] = &[
    ("VERSION", "version:t"),
    ("STATE", "key:t value:t"),
    ("CONFIG", "key:t value:t default:t changeable:t"),
    (
        "DATABASES",
        "name:t host:t port:i database:t force_user:t pool_size:i min_pool_size:i reserve_pool_size:i \
         server_lifetime:i pool_mode:t load_balance_hosts:t max_connections:i current_connections:i \
         max_client_connections:i current_client_connections:i paused:i disabled:i",
    ),
    (
        "POOLS",
        "database:t user:t cl_active:i cl_waiting:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active:i \
         sv_active_cancel:i sv_being_canceled:i sv_idle:i sv_used:i sv_tested:i sv_login:i maxwait:i \
         maxwait_us:i pool_mode:t load_balance_hosts:t",
    ),
    ("PEER_POOLS", "peer_id:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active_cancel:i sv_login:i"),
    ("PEERS", "peer_id:i host:t port:i pool_size:i"),
    ("CLIENTS", CONNECTION),
    ("SERVERS", CONNECTION),
    ("SOCKETS", SOCKET),
    ("ACTIVE_SOCKETS", SOCKET),
    (
        "USERS",
        "name:t pool_size:t reserve_pool_size:t pool_mode:t max_user_connections:i current_connections:i \
         max_user_client_connections:i current_client_connections:i",
    ),
    ("LISTS", "list:t items:i"),
    (
        "STATS",
        "database:t total_server_assignment_count:n total_xact_count:n total_query_count:n total_received:n \
         total_sent:n total_xact_time:n total_query_time:n total_wait_time:n total_client_parse_count:n \
         total_server_parse_count:n total_bind_count:n avg_server_assignment_count:n avg_xact_count:n \
         avg_query_count:n avg_recv:n avg_sent:n avg_xact_time:n avg_query_time:n avg_wait_time:n \
         avg_client_parse_count:n avg_server_parse_count:n avg_bind_count:n",
    ),
    (
        "STATS_TOTALS",
        "database:t server_assignment_count:n xact_count:n query_count:n bytes_received:n bytes_sent:n \
         xact_time:n query_time:n wait_time:n client_parse_count:n server_parse_count:n bind_count:n",
    ),
    (
        "STATS_AVERAGES",
        "database:t server_assignment_count:n xact_count:n query_count:n bytes_received:n bytes_sent:n \
         xact_time:n query_time:n wait_time:n avg_client_parse_count:n avg_server_parse_count:n \
         avg_bind_count:n",
    ),
    ("TOTALS", "name:t value:n"),
    ("MEM", "name:t size:i used:i free:i memtotal:i"),
    ("DNS_HOSTS", "hostname:t ttl:q addrs:t"),
    ("DNS_ZONES", "zonename:t serial:q count:i"),
];

const CONNECTION: &str = "type:t user:t database:t replication:t state:t addr:t port:i local_addr:t local_port:i \
     connect_time:t request_time:t wait:i wait_us:i close_needed:i ptr:t link:t remote_pid:i tls:t \
     application_name:t prepared_statements:i id:i";
const SOCKET: &str = "type:t user:t database:t replication:t state:t addr:t port:i local_addr:t local_port:i \
     connect_time:t request_time:t wait:i wait_us:i close_needed:i ptr:t link:t remote_pid:i tls:t \
     application_name:t prepared_statements:i id:i recv_pos:i pkt_pos:i pkt_remain:i send_pos:i send_remain:i \
     pkt_avail:i send_avail:i";

/// `name:type` of each column of the RowDescription.
fn columns(reply: &Reply) -> String {
    let row = reply.of(b'T').next().expect("SHOW describes its rows");
    let mut rest = &row.body[2..];
    let mut words = Vec::new();
    for name in row.columns() {
        let fixed = &rest[name.len() + 1..];
        let kind = match u32::from_be_bytes([fixed[6], fixed[7], fixed[8], fixed[9]]) {
            25 => "t",
            23 => "i",
            20 => "q",
            1700 => "n",
            17 => "b",
            other => panic!("type {other} of {name}"),
        };
        words.push(format!("{name}:{kind}"));
        rest = &fixed[18..];
    }
    words.join(" ")
}

#[tokio::test]
async fn every_show_has_pgbouncers_columns_in_order_and_type() {
    let pooler = Pooler::config().start().await;
    let _client = pooler.client().await;
    let over_unix = Raw::login(&pooler.unix(), &Login::new("admin", "pgbouncer")).await;
    let mut consoles = [pooler.console().await, over_unix];
    let asks = TABLES.iter().flat_map(|table| ["SHOW", "show", "SELECT"].map(|verb| (verb, table)));
    for (verb, (name, expected)) in asks {
        for console in &mut consoles {
            let reply = console.query(&format!("{verb} {name}")).await;
            reply.is("T D* C(SHOW) Z(I)");
            // An older release lacks some columns.
            if is_ours() {
                assert_eq!(columns(&reply), *expected, "{name}");
            }
        }
    }
    let [mut console, _] = consoles;
    let help = console.query("SHOW HELP").await;
    help.is("N C(SHOW) Z(I)");
    assert_eq!(help.messages[0].field(b'M'), "Console usage");
    assert!(help.messages[0].field(b'D').contains("SHOW HELP|CONFIG|DATABASES|POOLS"));
}

fn psql(pooler: &Pooler, user: &str, command: &str) -> (String, String) {
    let Login { database, .. } = Login::new(user, "pgbouncer");
    let mut psql = support::clients::psql();
    psql.args(["-X", "-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", user, "-d", &database]);
    psql.args(["-A", "-c", command]);
    let output = psql.output().expect("psql is installed");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a11_psql_reads_every_table() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    for (name, columns) in TABLES {
        let (out, errors) = psql(&pooler, "admin", &format!("SHOW {name}"));
        assert_eq!(errors, "", "{name}");
        if is_ours() {
            let names: Vec<_> = columns.split(' ').map(|column| column.split_once(':').unwrap().0).collect();
            assert_eq!(out.lines().next().unwrap(), names.join("|"), "{name}");
        }
        assert!(out.lines().last().unwrap().ends_with(" rows)") || out.contains("(1 row)"), "{out}");
    }
    let (out, _) = psql(&pooler, "admin", "SHOW POOLS");
    assert!(out.contains("\napp|app|1|0|0|0|0|0|0|1|0|0|0|0|0|transaction|"), "{out}");
    let (out, _) = psql(&pooler, "admin", "SHOW VERSION");
    assert!(out.starts_with("version\nPgBouncer 1."), "{out}");
    let (_, errors) = psql(&pooler, "admin", "SHOW NONSENSE");
    assert!(errors.contains("invalid command 'SHOW NONSENSE', use SHOW HELP;"), "{errors}");
}

#[tokio::test]
async fn show_tables_tell_what_is_there() {
    let pooler = Pooler::config().pool_size(2).database_option("max_db_connections=7").start().await;
    let login = Login::new("app", "app").option("application_name", "tester");
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let backend = client.query("SELECT pg_backend_pid()").await.value();
    let clients = pooler.admin("SHOW CLIENTS").await;
    let row = clients.iter().find(|row| row["database"] == "app").unwrap();
    let servers = pooler.admin("SHOW SERVERS").await;
    assert_eq!(servers.len(), 1);
    let server = &servers[0];
    for (column, value) in
        [("type", "C"), ("user", "app"), ("state", "active"), ("application_name", "tester")]
    {
        assert_eq!(row[column], value, "{column}");
    }
    assert_eq!((&row["link"], &server["link"]), (&server["ptr"], &row["ptr"]));
    let port = pooler.postgres.port.to_string();
    for (column, value) in [
        ("type", "S"),
        ("state", "active"),
        ("remote_pid", backend.as_str()),
        ("addr", "127.0.0.1"),
        ("port", port.as_str()),
        ("application_name", "tester"),
    ] {
        assert_eq!(server[column], value, "{column}");
    }
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    let databases = pooler.admin("SHOW DATABASES").await;
    let names: Vec<_> = databases.iter().map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["app", "pgbouncer"]);
    assert_eq!((&*databases[0]["max_connections"], &*databases[0]["current_connections"]), ("7", "1"));
    assert_eq!((&*databases[1]["pool_size"], &*databases[1]["pool_mode"]), ("2", "statement"));
    // The consoles of the commands before may be still on their way out.
    eventually("one client and this console are there", async || pooler.list("used_clients").await == 2)
        .await;
    if is_ours() {
        assert_eq!(pooler.list("free_servers").await + pooler.list("used_servers").await, 1);
    }
    let users = pooler.admin("SHOW USERS").await;
    assert!(users.iter().any(|row| row["name"] == "app" && row["current_client_connections"] == "1"));
}

#[tokio::test]
async fn stats_count_transactions_queries_bytes_and_statements() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    client.query("SELECT 1").await.is("T D(1) C Z(T)");
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    client.ask(run_of([parse("name", "SELECT 2"), sync()])).await.is("1 Z(I)");
    for _ in 0..2 {
        let run = run_of([support::message::bind("", "name", &[]), support::message::execute("", 0), sync()]);
        client.ask(run).await.is("2 D(2) C Z(I)");
    }
    let stats = pooler.admin("SHOW STATS").await;
    let row = stats.iter().find(|row| row["database"] == "app").unwrap();
    let number = |column: &str| row[column].parse::<u64>().unwrap();
    for (column, expected) in [
        ("total_xact_count", 4),
        ("total_query_count", 6),
        ("total_client_parse_count", 1),
        ("total_server_parse_count", 1),
        ("total_bind_count", 2),
    ] {
        assert_eq!(number(column), expected, "{column}");
    }
    assert!(number("total_received") > 100 && number("total_sent") > 100);
    assert!(number("total_query_time") > 0 && number("total_xact_time") >= number("total_query_time"));
    let totals = pooler.admin("SHOW TOTALS").await;
    assert!(totals.iter().any(|row| row["name"] == "total_query_count"));
}
