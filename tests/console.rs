//! The console: PgBouncer's own readers find its columns, in order and type, and its commands do what they
//! say while clients work.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;
use support::message::{cancel_request, extended, parse, query, run_of, sync};
use support::pooler::is_ours;
use support::{Gate, Login, Pooler, Raw, Reply, eventually};

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

/// The error of a command that leaves the console as it was.
async fn error(console: &mut Raw, command: &str) -> String {
    let reply = console.query(command).await;
    reply.is("E Z(I)");
    let error = &reply.messages[0];
    format!("{} {}", error.field(b'C'), error.field(b'M'))
}

async fn done(console: &mut Raw, command: &str) {
    let tag = command.split(' ').next().unwrap();
    console.query(command).await.is(&format!("C({tag}) Z(I)"));
}

#[tokio::test]
async fn every_show_has_pgbouncers_columns_in_order_and_type() {
    let pooler = Pooler::config().start().await;
    let _client = pooler.client().await;
    let mut console = pooler.console().await;
    for (name, expected) in TABLES {
        for verb in ["SHOW", "show", "SELECT"] {
            let reply = console.query(&format!("{verb} {name}")).await;
            reply.is("T D* C(SHOW) Z(I)");
            // An older release lacks some columns.
            if is_ours() {
                assert_eq!(columns(&reply), *expected, "{name}");
            }
        }
    }
    let help = console.query("SHOW HELP").await;
    help.is("N C(SHOW) Z(I)");
    assert_eq!(help.messages[0].field(b'M'), "Console usage");
    assert!(help.messages[0].field(b'D').contains("SHOW HELP|CONFIG|DATABASES|POOLS"));
}

fn psql(pooler: &Pooler, user: &str, command: &str) -> (String, String) {
    let Login { database, .. } = Login::new(user, "pgbouncer");
    let mut psql = Command::new("psql");
    psql.args(["-X", "-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", user, "-d", &database]);
    psql.args(["-A", "-c", command]).stdin(Stdio::null());
    let output = psql.output().expect("psql is installed");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn psql_reads_every_table() {
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
async fn what_is_no_command_is_named_and_leaves_the_console_open() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    for command in ["", ";", "SHOW POOLS; SHOW POOLS", "SELECT 1 + 1", "DROP TABLE x", "PAUSE a b"] {
        let expected = format!("08P01 invalid command '{command}', use SHOW HELP;");
        assert_eq!(error(&mut console, command).await, expected);
    }
    console.query("  show\tversion ; ").await.is("T D C(SHOW) Z(I)");
    console.send(run_of([parse("", "SHOW POOLS"), sync()])).await;
    let reply = console.rest().await;
    assert!(reply.closed, "{reply}");
    let message = reply.messages[0].field(b'M');
    assert_eq!(message, "extended query protocol not supported by admin console");
}

#[tokio::test]
async fn the_greeting_of_the_console_and_its_session_parameters_are_fixed() {
    let pooler = Pooler::config().start().await;
    let mut console = pooler.console().await;
    let version = &console.parameters["server_version"];
    assert!(version.ends_with("/bouncer"), "{version}");
    assert_eq!(console.parameters["client_encoding"], "UTF8");
    console.query("SHOW client_encoding").await.is("T D(UTF-8) C(SHOW) Z(I)");
    console.query("SHOW timezone").await.is("T D(GMT) C(SHOW) Z(I)");
    let reply = console.query("SET client_encoding = 'UTF8'").await;
    reply.is("N C(SET) Z(I)");
    assert_eq!(reply.messages[0].field(b'M'), "SET ignored");
}

#[tokio::test]
async fn admin_users_command_stats_users_look_and_others_stay_outside() {
    let pooler = Pooler::config().setting("stats_users", "scram_user").start().await;
    let login = |user: &str| Login::new(user, "pgbouncer");
    let mut stats = Raw::login(&pooler.tcp(), &login("scram_user")).await;
    stats.query("SHOW POOLS").await.is("T D* C(SHOW) Z(I)");
    for command in
        ["PAUSE", "RESUME", "RELOAD", "RECONNECT", "KILL app", "DISABLE app", "SET verbose = 1", "SHUTDOWN"]
    {
        assert_eq!(error(&mut stats, command).await, "08P01 admin access needed", "{command}");
    }
    assert_eq!(pooler.refuses(&login("app")).await, "E(08P01) FATAL not allowed");

    let pooler = Pooler::config().setting("auth_type", "any").start().await;
    let mut anybody = Raw::login(&pooler.tcp(), &login("anybody")).await;
    anybody.query("SHOW POOLS").await.is("T D* C(SHOW) Z(I)");
    assert_eq!(error(&mut anybody, "PAUSE").await, "08P01 admin access needed");

    let pooler = Pooler::config().setting("auth_type", "scram-sha-256").start().await;
    let wrong = login("admin").password("wrong");
    let refusal = pooler.refuses(&wrong).await;
    assert!(refusal.ends_with("FATAL SASL authentication failed"), "{refusal}");
    Raw::login(&pooler.tcp(), &login("admin").password("admin-secret")).await;
}

/// Clients that keep asking until they are told to stop, and report what went wrong.
struct Load {
    stop: tokio::sync::watch::Sender<bool>,
    clients: Vec<tokio::task::JoinHandle<u32>>,
}

impl Load {
    async fn start(pooler: &Pooler, count: u32) -> Load {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut clients = Vec::new();
        for number in 0..count {
            let (mut client, stopped) = (pooler.client().await, stopped.clone());
            clients.push(tokio::spawn(async move {
                let mut served = 0;
                while !*stopped.borrow() {
                    let text = format!("{number}-{served}");
                    let request = match served % 2 {
                        0 => query(&format!("SELECT '{text}'")),
                        _ => run_of([extended("SELECT $1::text", &[&text]), sync()]),
                    };
                    assert_eq!(client.ask(request).await.value(), text);
                    served += 1;
                }
                served
            }));
        }
        Load { stop, clients }
    }

    async fn end(self) -> u32 {
        self.stop.send(true).unwrap();
        let mut served = 0;
        for client in self.clients {
            served += client.await.expect("no client saw an error");
        }
        served
    }
}

async fn queries(pooler: &Pooler) -> u64 {
    let stats = pooler.admin("SHOW STATS").await;
    let ours = stats.iter().find(|row| row["database"] == "app");
    ours.map_or(0, |row| row["total_query_count"].parse().unwrap())
}

async fn goes_on(pooler: &Pooler) {
    let before = queries(pooler).await;
    eventually("queries go on", async || queries(pooler).await > before + 20).await;
}

#[tokio::test]
async fn pause_waits_for_the_running_and_resume_lets_the_waiting_go_on() {
    for database in ["", " app"] {
        let pooler = Pooler::config().pool_size(3).start().await;
        let load = Load::start(&pooler, 6).await;
        let mut console = pooler.console().await;
        let mut inside = pooler.client().await;
        inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
        console.send(query(&format!("PAUSE{database}"))).await;
        pooler.clients_wait(6).await;
        assert!(!console.hears_within(Duration::from_millis(200)).await, "a transaction is open");
        inside.query("SELECT 1").await.is("T D(1) C Z(T)");
        inside.query("COMMIT").await.is("C(COMMIT) Z(I)");
        console.ready(1).await.is("C(PAUSE) Z(I)");
        let servers = "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'app'";
        eventually("no server is left", async || pooler.number(servers).await == 0).await;
        let state = pooler.admin("SHOW STATE").await;
        let paused = state.iter().find(|row| row["key"] == "paused").unwrap();
        assert_eq!(paused["value"], if database.is_empty() { "yes" } else { "no" });
        if database.is_empty() {
            assert_eq!(error(&mut console, "PAUSE").await, "08P01 already suspended/paused");
        }
        done(&mut console, &format!("RESUME{database}")).await;
        goes_on(&pooler).await;
        assert!(load.end().await > 20);
    }
}

#[tokio::test]
async fn pause_and_resume_of_what_is_not_there_say_so() {
    let pooler = Pooler::config().start().await;
    let _client = pooler.client().await;
    let mut console = pooler.console().await;
    for (command, message) in [
        ("PAUSE nowhere", "no such database: nowhere"),
        ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
        ("RESUME", "pooler is not paused/suspended"),
        ("RESUME app", "database app is not paused"),
        ("KILL_CLIENT 999999", "client not found"),
        ("KILL_CLIENT x", "invalid client pointer supplied"),
        ("DISABLE", "a database is required"),
        ("ENABLE", "a database is required"),
        ("SET no_such_setting = 1", "SET failed"),
        ("SET pool_mode = sometimes", "SET failed"),
    ] {
        assert_eq!(error(&mut console, command).await, format!("08P01 {message}"), "{command}");
    }
}

#[tokio::test]
async fn a_cancel_request_of_a_waiting_pause_resumes() {
    if !is_ours() {
        return; // PgBouncer resumes, but does not answer the PAUSE.
    }
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let mut console = pooler.console().await;
    console.send(query("PAUSE")).await;
    eventually("the pooler is paused", async || {
        pooler.admin("SHOW STATE").await.iter().any(|row| row["key"] == "paused" && row["value"] == "yes")
    })
    .await;
    let mut canceller = Raw::connect(&pooler.tcp()).await.unwrap();
    canceller.send(cancel_request(&console.key)).await;
    console.ready(1).await.is("E Z(I)");
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn reconnect_replaces_every_server_and_no_client_notices() {
    let pooler = Pooler::config().pool_size(3).start().await;
    let mut held = pooler.client().await;
    held.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let load = Load::start(&pooler, 5).await;
    goes_on(&pooler).await;
    let pids = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'";
    let before = pooler.sql(pids).await;
    let mut console = pooler.console().await;
    done(&mut console, "RECONNECT").await;
    // The server inside a transaction is still there, and WAIT_CLOSE waits for it.
    console.send(query("WAIT_CLOSE")).await;
    assert!(!console.hears_within(Duration::from_millis(200)).await, "a transaction is open");
    held.query("COMMIT").await.is("C(COMMIT) Z(I)");
    console.ready(1).await.is("C(WAIT_CLOSE) Z(I)");
    eventually("all servers are new", async || {
        let now = pooler.sql(pids).await;
        !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
    })
    .await;
    goes_on(&pooler).await;
    load.end().await;
    done(&mut console, "RECONNECT app").await;
    done(&mut console, "WAIT_CLOSE app").await;
}

#[tokio::test]
async fn kill_ends_clients_and_servers_and_the_database_needs_a_resume() {
    let pooler =
        Pooler::config().pool_size(2).database_line("other = {server} dbname={database}").start().await;
    let mut other = Raw::login(&pooler.tcp(), &Login::new("app", "other")).await;
    let (mut idle, mut inside, mut busy) =
        (pooler.client().await, pooler.client().await, pooler.client().await);
    inside.query("BEGIN").await.is("C(BEGIN) Z(T)");
    busy.send(query("SELECT pg_sleep(60)")).await;
    eventually("both are in use", async || pooler.pool("sv_active").await == 2).await;
    let mut console = pooler.console().await;
    done(&mut console, "KILL app").await;
    for client in [&mut idle, &mut inside, &mut busy] {
        let reply = client.rest().await;
        reply.is("E(08P01) EOF");
        assert_eq!(reply.messages[0].field(b'M'), "database removed");
    }
    other.query("SELECT 1").await.is("T D(1) C Z(I)");
    done(&mut console, "RESUME app").await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    if !is_ours() {
        return; // KILL without a database is new in 1.25.
    }
    done(&mut console, "KILL").await;
    other.rest().await.is("E(08P01) EOF");
    done(&mut console, "RESUME").await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn kill_client_ends_the_one_that_show_clients_names() {
    let pooler = Pooler::config().start().await;
    let login = |name: &str| Login::new("app", "app").option("application_name", name);
    let mut victim = Raw::login(&pooler.tcp(), &login("victim")).await;
    let mut bystander = Raw::login(&pooler.tcp(), &login("bystander")).await;
    let clients = pooler.admin("SHOW CLIENTS").await;
    let row = clients.iter().find(|client| client["application_name"] == "victim").unwrap();
    pooler.admin(&format!("KILL_CLIENT {}", row["id"])).await;
    let reply = victim.rest().await;
    reply.is("E(08P01) EOF");
    assert_eq!(reply.messages[0].field(b'M'), "admin forced disconnect");
    bystander.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn a_disabled_database_refuses_new_clients_and_keeps_the_old() {
    let pooler = Pooler::config().start().await;
    let mut old = pooler.client().await;
    let mut console = pooler.console().await;
    done(&mut console, "DISABLE app").await;
    let refusal = pooler.refuses(&Login::new("app", "app")).await;
    assert!(refusal.ends_with("database \"app\" is disabled"), "{refusal}");
    old.query("SELECT 1").await.is("T D(1) C Z(I)");
    done(&mut console, "ENABLE app").await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn set_changes_a_setting_at_once_and_reload_brings_the_file_back() {
    let pooler = Pooler::config().pool_size(1).start().await;
    let mut console = pooler.console().await;
    let (mut a, mut b) = (pooler.client().await, pooler.client().await);
    let mut gate = Gate::close(&pooler).await;
    a.send(query(&gate.sql("a"))).await;
    b.send(query(&gate.sql("b"))).await;
    gate.is_reached_by(1).await;
    pooler.clients_wait(1).await;
    console.query("SET default_pool_size = 2").await.is("C(SET default_pool_size=2) Z(I)");
    // The waiting client gets its server without asking again.
    gate.is_reached_by(2).await;
    gate.open().await;
    a.ready(1).await.is("T D(a) C Z(I)");
    b.ready(1).await.is("T D(b) C Z(I)");
    let value = async || {
        let config = pooler.admin("SHOW CONFIG").await;
        config.iter().find(|row| row["key"] == "default_pool_size").unwrap()["value"].clone()
    };
    assert_eq!(value().await, "2");
    done(&mut console, "RELOAD").await;
    assert_eq!(value().await, "1");
}

#[tokio::test]
async fn reload_changes_pools_and_databases_under_load() {
    let pooler = Pooler::config().pool_size(1).start().await;
    let load = Load::start(&pooler, 4).await;
    pooler.edit("default_pool_size = 1", "default_pool_size = 3");
    let line = format!("app = host=127.0.0.1 port={} dbname={}", pooler.postgres.port, pooler.database);
    let more = line.replace("app = ", "more = ");
    pooler.edit(&line, &format!("{line}\n{more}"));
    let mut console = pooler.console().await;
    done(&mut console, "RELOAD").await;
    let mut more = Raw::login(&pooler.tcp(), &Login::new("app", "more")).await;
    more.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut gate = Gate::close(&pooler).await;
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut client = pooler.client().await;
        client.send(query(&gate.sql("done"))).await;
        busy.push(client);
    }
    gate.is_reached_by(3).await;
    gate.open().await;
    load.end().await;
    // A database that leaves the file takes its clients with it.
    pooler.edit("more = ", "; more = ");
    done(&mut console, "RELOAD").await;
    let reply = more.rest().await;
    reply.is("E(08P01) EOF");
    assert_eq!(reply.messages[0].field(b'M'), "database removed");
    let refusal = pooler.refuses(&Login::new("app", "more")).await;
    assert!(refusal.ends_with("no such database: more"), "{refusal}");
}

#[tokio::test]
async fn reload_moves_the_servers_of_a_database_that_points_elsewhere_and_no_client_notices() {
    if !is_ours() {
        return; // PgBouncer ends the clients that have asked for a server.
    }
    let pooler = Pooler::config().pool_size(2).start().await;
    let target = pooler.postgres.new_database().await;
    let load = Load::start(&pooler, 4).await;
    let mut client = pooler.client().await;
    assert_eq!(client.query("SELECT current_database()").await.value(), pooler.database);
    pooler.edit(&format!("dbname={}\n", pooler.database), &format!("dbname={target}\n"));
    pooler.admin("RELOAD").await;
    eventually("the client is in the new database", async || {
        client.query("SELECT current_database()").await.value() == target
    })
    .await;
    load.end().await;
}

#[tokio::test]
async fn a_reload_of_a_bad_file_says_so_names_the_line_in_the_log_and_changes_nothing() {
    let pooler = Pooler::config().start().await;
    let load = Load::start(&pooler, 2).await;
    pooler.edit("max_client_conn = 1000", "max_client_conn = many");
    let mut console = pooler.console().await;
    if is_ours() {
        // New in 1.25.
        let expected = "F0000 RELOAD failed, see logs for additional details";
        assert_eq!(error(&mut console, "RELOAD").await, expected);
        pooler.logs("pooler.ini:").await;
        assert!(pooler.log().contains("max_client_conn is many: it must be"), "{}", pooler.log());
    }
    goes_on(&pooler).await;
    pooler.edit("max_client_conn = many", "max_client_conn = 1000");
    done(&mut console, "RELOAD").await;
    goes_on(&pooler).await;
    load.end().await;
}

#[tokio::test]
async fn reload_reads_the_auth_file_again() {
    let pooler = Pooler::config().setting("auth_type", "scram-sha-256").start().await;
    let login = Login::new("app", "app");
    Raw::login(&pooler.tcp(), &login.clone().password("app-secret")).await;
    let users = pooler.directory().join("users.txt");
    std::fs::write(users, "\"app\" \"changed\"\n\"admin\" \"admin-secret\"\n").unwrap();
    let console = Login::new("admin", "pgbouncer").password("admin-secret");
    let mut console = Raw::login(&pooler.tcp(), &console).await;
    done(&mut console, "RELOAD").await;
    let refusal = pooler.refuses(&login.clone().password("app-secret")).await;
    assert!(refusal.ends_with("FATAL SASL authentication failed"), "{refusal}");
    Raw::login(&pooler.tcp(), &login.password("changed")).await;
}

#[tokio::test]
async fn shutdown_ends_at_once() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let mut console = pooler.console().await;
    console.send(query("SHUTDOWN")).await;
    assert!(console.rest().await.closed);
    assert!(pooler.wait().success());
    assert!(client.rest().await.closed);
}

#[tokio::test]
async fn shutdown_wait_for_clients_serves_who_is_there_and_ends_when_the_last_has_left() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    let mut console = pooler.console().await;
    done(&mut console, "SHUTDOWN WAIT_FOR_CLIENTS").await;
    eventually("new clients are refused", async || {
        Raw::try_login(&pooler.tcp(), &Login::new("app", "app")).await.is_err()
    })
    .await;
    if !is_ours() {
        return; // Before 1.25 the Unix socket closes too.
    }
    let on_unix = Raw::try_login(&pooler.unix(), &Login::new("app", "app")).await.err().unwrap();
    assert!(on_unix.ends_with("pooler is shutting down"), "{on_unix}");
    let mut second = Raw::login(&pooler.unix(), &Login::new("admin", "pgbouncer")).await;
    second.query("SHOW POOLS").await.is("T D* C Z(I)");
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert!(pooler.runs());
    drop((client, console, second));
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn shutdown_wait_for_servers_ends_when_the_last_transaction_has_ended() {
    let mut pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    let mut idle = pooler.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let mut console = pooler.console().await;
    done(&mut console, "SHUTDOWN WAIT_FOR_SERVERS").await;
    client.query("SELECT 1").await.is("T D(1) C Z(T)");
    assert!(pooler.runs());
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert!(pooler.wait().success());
    assert!(idle.rest().await.closed);
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
    assert_eq!(pooler.list("used_clients").await, 2);
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

#[tokio::test]
async fn a_killed_database_refuses_to_serve_until_resume() {
    let pooler = Pooler::config().start().await;
    pooler.client().await.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut console = pooler.console().await;
    done(&mut console, "KILL app").await;
    let databases = pooler.admin("SHOW DATABASES").await;
    assert_eq!(databases.iter().find(|row| row["name"] == "app").unwrap()["paused"], "1");
    let late = tokio::spawn(Raw::login_owned(pooler.tcp(), Login::new("app", "app")));
    assert!(!late.is_finished());
    done(&mut console, "RESUME app").await;
    late.await.unwrap().query("SELECT 1").await.is("T D(1) C Z(I)");
}
