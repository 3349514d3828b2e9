//! What the instance manager of CloudNativePG's Pooler expects of `/usr/bin/pgbouncer`, item by item: how it is
//! started, what it reads, what the console says, how it ends. Nothing of the manager runs here but what it
//! does to us: its files, its environment, its user, a root that cannot be written to, its start-up packet.
//!
//! Read [`support::pod`] first. Only root can make the container.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::fs;
use std::net::TcpStream;
use std::time::Duration;
use support::message::{query, startup};
use support::pod::{ARBITRARY_USER, Cluster, PoolerPod, Specification, nobody};
use support::{Login, Raw, eventually, http};

/// The manager's tries to pause a new pooler are over after this time.
const UP_WITHIN: Duration = Duration::from_millis(300);

/// A user of the application, with the password that only PostgreSQL has a verifier of.
fn application() -> Login {
    Login::new("scram_user", "app").password("scram-secret")
}

async fn answer(console: &mut Raw, command: &str) -> String {
    let reply = console.query(command).await;
    reply.of(b'E').next().map_or_else(|| reply.words().join(" "), |error| error.field(b'M'))
}

fn parameter(name: &'static str, value: &str) -> (&'static str, String) {
    (name, value.to_owned())
}

// 1. How it is started, and how it ends

#[tokio::test]
async fn it_takes_the_ini_file_as_its_only_argument_and_stays_in_the_foreground() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut pod = PoolerPod::start(&cluster, Specification::default()).await;
    let command = fs::read(format!("/proc/{}/cmdline", pod.pid())).unwrap();
    assert_eq!(command, b"/usr/bin/pgbouncer\0/controller/configs/pgbouncer.ini\0");
    assert!(pod.runs());
    pod.signal("INT");
    assert_eq!(pod.wait().code(), Some(0));
}

// 2. What it reads

/// Every parameter that the webhook lets through, with a value that is not the default.
const PARAMETERS: &[(&str, &str)] = &[
    ("application_name_add_host", "1"),
    ("auth_type", "scram-sha-256"),
    ("autodb_idle_timeout", "1800"),
    ("cancel_wait_timeout", "5.0"),
    ("client_idle_timeout", "7200"),
    ("client_login_timeout", "30"),
    ("client_tls_ciphers", "secure"),
    ("client_tls_sslmode", "require"),
    ("client_tls13_ciphers", "TLS_AES_256_GCM_SHA384"),
    ("default_pool_size", "11"),
    ("disable_pqexec", "1"),
    ("dns_max_ttl", "10"),
    ("dns_nxdomain_ttl", "5"),
    ("idle_transaction_timeout", "60.5"),
    ("ignore_startup_parameters", "extra_float_digits,options,search_path"),
    ("listen_backlog", "256"),
    ("log_connections", "0"),
    ("log_disconnections", "0"),
    ("log_pooler_errors", "0"),
    ("log_stats", "1"),
    ("max_client_conn", "500"),
    ("max_db_connections", "90"),
    ("max_packet_size", "1073741824"),
    ("max_prepared_statements", "100"),
    ("max_user_connections", "80"),
    ("min_pool_size", "1"),
    ("pkt_buf", "8192"),
    ("query_timeout", "3600"),
    ("query_wait_timeout", "60"),
    ("reserve_pool_size", "3"),
    ("reserve_pool_timeout", "2"),
    ("sbuf_loopcnt", "10"),
    ("server_check_delay", "20"),
    ("server_check_query", "select 1"),
    ("server_connect_timeout", "10"),
    ("server_fast_close", "1"),
    ("server_idle_timeout", "300"),
    ("server_lifetime", "1200"),
    ("server_login_retry", "5"),
    ("server_reset_query", "DISCARD ALL"),
    ("server_reset_query_always", "1"),
    ("server_round_robin", "1"),
    ("server_tls_ciphers", "HIGH:!aNULL"),
    ("server_tls13_ciphers", "TLS_AES_128_GCM_SHA256"),
    ("server_tls_protocols", "tlsv1.3"),
    ("server_tls_sslmode", "require"),
    ("stats_period", "30"),
    ("suspend_timeout", "5"),
    ("tcp_defer_accept", "0"),
    ("tcp_keepalive", "1"),
    ("tcp_keepcnt", "4"),
    ("tcp_keepidle", "60"),
    ("tcp_keepintvl", "15"),
    ("tcp_socket_buffer", "65536"),
    ("tcp_user_timeout", "30000"),
    ("track_extra_parameters", "IntervalStyle,search_path"),
    ("verbose", "1"),
];

#[tokio::test]
async fn every_parameter_that_the_operator_allows_is_read_and_has_its_value() {
    let Some(cluster) = Cluster::start().await else { return };
    let parameters = PARAMETERS.iter().map(|(name, value)| parameter(name, value)).collect();
    let pod = PoolerPod::start(&cluster, Specification { parameters, ..Specification::default() }).await;
    let config = pod.console().await.query("SHOW CONFIG").await.rows();
    let shown = |name: &str| config.iter().find(|row| row[0] == name).unwrap()[1].clone();
    for (name, value) in PARAMETERS {
        let (shown, value) = (shown(name), value.trim_end_matches(".0"));
        assert!(shown == *value || shown.replace(", ", ",") == value, "{name} = {value}: shown as {shown}");
    }
    assert_eq!(shown("auth_user"), "cnpg_pooler_pgbouncer");
    assert_eq!(shown("listen_port"), "5432");
}

#[tokio::test]
async fn a_secret_of_type_basic_auth_comes_in_a_user_list_with_doubled_quotes() {
    let Some(cluster) = Cluster::start().await else { return };
    let role = r#"CREATE ROLE asker LOGIN PASSWORD 'a "quoted" secret'"#;
    cluster.postgres.sql("postgres", role).await;
    let basic_auth = Some(("asker", r#"a "quoted" secret"#));
    let pod = PoolerPod::start(&cluster, Specification { basic_auth, ..Specification::default() }).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("SELECT current_user").await.is("T D(scram_user) C Z(I)");
    // A parameter without a value is the operator's way to say that there is none.
    let ini = fs::read_to_string(pod.file("configs/pgbouncer.ini")).unwrap();
    pod.write("pgbouncer.ini", ini.replace("auth_user = asker", "auth_user = ").as_bytes());
    assert_eq!(answer(&mut pod.console().await, "RELOAD").await, "C(RELOAD) Z(I)");
}

// 3. Where it writes

#[tokio::test]
async fn it_runs_as_an_arbitrary_user_and_writes_nothing_but_its_socket() {
    let Some(cluster) = Cluster::start().await else { return };
    let specification = Specification { user: ARBITRARY_USER, ..Specification::default() };
    let pod = PoolerPod::start(&cluster, specification).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    assert_eq!(answer(&mut pod.console().await, "RELOAD").await, "C(RELOAD) Z(I)");
    let names = |folder: &str| {
        let files = fs::read_dir(pod.file(folder)).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("."), ["configs", "run"]);
    assert_eq!(names("run"), [".s.PGSQL.5432"]);
    let help = pod.psql("SHOW HELP");
    assert!(help.status.success(), "{help:?}");
    let status = fs::read_to_string(format!("/proc/{}/status", pod.pid())).unwrap();
    assert!(status.contains("Uid:\t1000740000\t"), "{status}");
}

// 4. Where it listens, and how soon

#[tokio::test]
async fn it_listens_everywhere_within_300_ms_with_no_server_and_a_socket_of_a_dead_process() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut times = Vec::new();
    // The promise is about our work, not about a machine that is busy with other tests.
    while times.len() < 10 && times.iter().all(|time| *time > UP_WITHIN) {
        let stale = |root: &std::path::Path| {
            let socket = root.join("controller/run/.s.PGSQL.5432");
            drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
            assert!(socket.exists());
        };
        let pod = PoolerPod::start_with(&cluster, Specification::default(), nobody(), stale).await;
        times.push(pod.answered_after);
        pod.console().await;
        TcpStream::connect((pod.address(), 5432)).unwrap();
        // Port 5432 of :: in state LISTEN.
        let six = fs::read_to_string(format!("/proc/{}/net/tcp6", pod.pid())).unwrap();
        assert!(
            six.contains("00000000000000000000000000000000:1538 00000000000000000000000000000000:0000 0A"),
            "{six}"
        );
    }
    println!("answered after {times:?}");
    assert!(times.iter().any(|time| *time <= UP_WITHIN), "{times:?}");
}

// 5. The readiness probe

#[tokio::test]
async fn a_probe_that_connects_and_says_nothing_is_accepted_without_a_primary_and_leaves_no_trace() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start_with(&cluster, Specification::default(), nobody(), |_| {}).await;
    let mut console = pod.console().await;
    let before = pod.log().lines().count();
    for _ in 0..20 {
        drop(TcpStream::connect((pod.address(), 5432)).unwrap());
    }
    // A login that comes after them, so that they were all seen.
    let mut nobody = Raw::connect(&pod.tcp()).await.unwrap();
    nobody.send(startup(&[])).await;
    assert_eq!(nobody.rest().await.farewell(), "FATAL 08P01 no username supplied");
    eventually("no login is under way", async || {
        let lists = console.query("SHOW LISTS;").await.rows();
        lists.iter().any(|row| row[0] == "login_clients" && row[1] == "0")
    })
    .await;
    let log = pod.log();
    let is_other = |line: &&str| !line.contains("username") && !line.contains("connect failed");
    let since: Vec<&str> = log.lines().skip(before).filter(is_other).collect();
    assert!(since.is_empty(), "{since:#?}");
}

// 6. What the manager asks the console, and how it reads the answers

#[tokio::test]
async fn the_managers_driver_is_told_what_it_demands_of_a_session() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start(&cluster, Specification::default()).await;
    // Its two pools of connections log in anew for each command, and at the same time.
    let mut consoles = Vec::new();
    for _ in 0..6 {
        consoles.push(pod.console().await);
    }
    for console in &mut consoles {
        for (name, value) in [
            ("standard_conforming_strings", "on"),
            ("client_encoding", "UTF8"),
            ("server_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "GMT"),
            ("is_superuser", "on"),
            ("server_version", "1.25.2/bouncer"),
        ] {
            assert_eq!(console.parameters.get(name).map(String::as_str), Some(value), "{name}");
        }
        console.query("SHOW LISTS;").await.is("T D* C(SHOW) Z(I)");
    }
    // Another user on the same socket, and the same name over TCP, have no such right.
    for login in [Login::new("pgbouncer", "pgbouncer"), Login::new("app", "pgbouncer")] {
        let refused = Raw::try_login(&pod.tcp(), &login).await.err().unwrap();
        assert!(refused.contains("FATAL"), "{refused}");
    }
}

#[tokio::test]
async fn show_lists_has_the_twelve_rows_that_the_manager_knows() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start(&cluster, Specification::default()).await;
    let rows = pod.console().await.query("SHOW LISTS;").await.rows();
    let names: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let known = "databases users pools free_clients used_clients login_clients free_servers used_servers \
         dns_names dns_zones dns_queries dns_pending";
    assert_eq!(names.join(" "), known);
    assert!(rows.iter().all(|row| row.len() == 2 && row[1].parse::<i64>().is_ok()), "{rows:?}");
}

/// As Go's `Scan` reads a row: this column is text, that one NULL, all others are whole numbers.
fn scan(row: &[String], texts: &[usize], nulls: &[usize]) {
    for (at, value) in row.iter().enumerate() {
        let right = match (texts.contains(&at), nulls.contains(&at)) {
            (true, _) => value != "NULL",
            (_, true) => value == "NULL",
            _ => value.parse::<i64>().is_ok(),
        };
        assert!(right, "column {at} of {row:?}");
    }
}

#[tokio::test]
async fn show_pools_and_show_stats_have_columns_in_the_number_and_form_that_are_scanned() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    let mut console = pod.console().await;
    let pools = console.query("SHOW POOLS;").await.rows();
    for row in &pools {
        assert_eq!(row.len(), 17);
        scan(row, &[0, 1, 15], &[16]);
        assert!(["session", "transaction", "statement"].contains(&row[15].as_str()), "{row:?}");
    }
    let mut names: Vec<(&str, &str)> = pools.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    names.sort_unstable();
    let expected = [("app", "scram_user"), ("pgbouncer", "pgbouncer"), ("postgres", "cnpg_pooler_pgbouncer")];
    assert_eq!(names, expected);
    let stats = console.query("SHOW STATS;").await.rows();
    for row in &stats {
        assert_eq!(row.len(), 23);
        scan(row, &[0], &[]);
    }
    let mut names: Vec<&str> = stats.iter().map(|row| row[0].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["app", "pgbouncer", "postgres"]);
}

// 7. TLS

/// psql over TCP as the application; what it prints, or its error.
async fn psql(pod: &PoolerPod, options: &str, sql: &str) -> String {
    let target = format!("host={} port=5432 user=scram_user dbname=app {options}", pod.address());
    let mut psql = tokio::process::Command::from(support::clients::psql());
    psql.args(["-XAt", "-c", sql, &target]).env("PGPASSWORD", "scram-secret");
    let output = psql.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[tokio::test]
async fn servers_are_asked_for_tls_and_shown_the_poolers_certificate() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start(&cluster, Specification::default()).await;
    assert_eq!(psql(&pod, "sslmode=require", "SELECT 'in'").await, "in");
    let sql = "SELECT DISTINCT usename, ssl, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
        WHERE client_addr IS NOT NULL ORDER BY 1";
    let connections = cluster.postgres.sql("postgres", sql).await;
    let shown = "/CN=cnpg_pooler_pgbouncer";
    assert_eq!(connections, [["cnpg_pooler_pgbouncer", "t", shown], ["scram_user", "t", shown]]);
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_believed() {
    let Some(cluster) = Cluster::start().await else { return };
    let parameters = vec![parameter("query_wait_timeout", "1"), parameter("server_login_retry", "1")];
    let pod = PoolerPod::start(&cluster, Specification { parameters, ..Specification::default() }).await;
    pod.write("server-tls/ca.crt", &fs::read(cluster.client_ca.certificate()).unwrap());
    assert_eq!(answer(&mut pod.console().await, "RELOAD").await, "C(RELOAD) Z(I)");
    let refused = psql(&pod, "sslmode=require", "SELECT 'in'").await;
    assert!(refused.contains("FATAL:"), "{refused}");
    pod.logs("TLS handshake failed").await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_after_reload_and_no_client_is_dropped() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start(&cluster, Specification::default()).await;
    let checked = |authority: &support::certificates::Authority| {
        format!("sslmode=verify-ca sslrootcert={}", authority.certificate().display())
    };
    assert_eq!(psql(&pod, &checked(&cluster.server_ca), "SELECT 'in'").await, "in");
    let mut old = Raw::login(&pod.tcp(), &application()).await;
    let renewed = support::certificates::Authority::new();
    pod.show(&renewed.issue("pooler", "DNS:pooler"));
    assert_eq!(answer(&mut pod.console().await, "RELOAD").await, "C(RELOAD) Z(I)");
    assert_eq!(psql(&pod, &checked(&renewed), "SELECT 'in'").await, "in");
    let refused = psql(&pod, &checked(&cluster.server_ca), "SELECT 'in'").await;
    assert!(refused.contains("certificate verify failed"), "{refused}");
    old.query("SELECT 'still'").await.is("T D(still) C Z(I)");

    // Half a set, or nonsense, changes nothing.
    pod.write("client-tls/tls.key", b"nonsense");
    let error = answer(&mut pod.console().await, "RELOAD").await;
    assert_eq!(error, "RELOAD failed, see logs for additional details");
    assert_eq!(psql(&pod, &checked(&renewed), "SELECT 'in'").await, "in");
}

#[tokio::test]
async fn a_client_certificate_of_the_clusters_ca_is_asked_for_where_the_user_says_so() {
    let Some(cluster) = Cluster::start().await else { return };
    let parameters = vec![parameter("client_tls_sslmode", "verify-full")];
    let pod = PoolerPod::start(&cluster, Specification { parameters, ..Specification::default() }).await;
    let refused = psql(&pod, "sslmode=require", "SELECT 'in'").await;
    assert!(refused.contains("certificate required"), "{refused}");
    let own = cluster.client_ca.issue_without_alternatives("scram_user");
    let options =
        format!("sslmode=require sslcert={} sslkey={}", own.certificate.display(), own.key.display());
    // libpq wants the key to be that of the user who runs it.
    fs::copy(&own.key, own.key.with_extension("own")).unwrap();
    let options = options.replace(".key", ".own");
    assert_eq!(psql(&pod, &options, "SELECT 'in'").await, "in");
}

// 8. Who may

#[tokio::test]
async fn users_log_in_with_the_verifier_that_postgresql_has_and_no_password_is_anywhere() {
    let Some(cluster) = Cluster::start().await else { return };
    let pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    let mut console = pod.console().await;
    for _ in 0..3 {
        client.query("SELECT current_user").await.is("T D(scram_user) C Z(I)");
        // The proven key opens the next server too.
        console.query("RECONNECT").await.succeeds("RECONNECT");
    }
    let wrong = Raw::try_login(&pod.tcp(), &application().password("wrong")).await.err().unwrap();
    assert_eq!(wrong, "E(28P01) FATAL SASL authentication failed");
    let stranger =
        Raw::try_login(&pod.tcp(), &Login::new("stranger", "app").password("x")).await.err().unwrap();
    assert!(stranger.starts_with("E(28P01) FATAL "), "{stranger}");
}

#[tokio::test]
async fn the_users_rules_stand_before_those_of_the_operator() {
    let Some(cluster) = Cluster::start().await else { return };
    let hba =
        vec!["host all plain_user all reject", "hostssl all scram_user all cert", "host all app all trust"];
    let pod = PoolerPod::start(&cluster, Specification { hba, ..Specification::default() }).await;
    let login = Login::new("plain_user", "app").password("plain-secret");
    let refused = Raw::try_login(&pod.tcp(), &login).await.err().unwrap();
    assert!(refused.ends_with("FATAL login rejected"), "{refused}");
    let refused = psql(&pod, "sslmode=require", "SELECT 'in'").await;
    assert!(refused.contains("FATAL:"), "{refused}");
    // Without TLS the next rule that fits is the operator's.
    assert_eq!(psql(&pod, "sslmode=disable", "SELECT 'in'").await, "in");
}

#[tokio::test]
async fn a_login_waits_while_there_is_no_primary_to_ask() {
    let Some(cluster) = Cluster::start().await else { return };
    let parameters = vec![parameter("server_login_retry", "0.1")];
    let specification = Specification { parameters, ..Specification::default() };
    let pod = PoolerPod::start_with(&cluster, specification, nobody(), |_| {}).await;
    let mut client = Raw::connect(&pod.tcp()).await.unwrap();
    client.send(startup(&[("user", "scram_user"), ("database", "app")])).await;
    let mut console = pod.console().await;
    eventually("the login is under way", async || {
        let lists = console.query("SHOW LISTS;").await.rows();
        lists.iter().any(|row| row[0] == "login_clients" && row[1] == "1")
    })
    .await;
    pod.logs("closing because: connect failed").await;
    pod.lead_to(Some(&cluster));
    // AuthenticationSASL, and not an error.
    assert_eq!(client.until(b'R').await.messages[0].tag, b'R');
}

// 9. Commands and signals

#[tokio::test]
async fn pause_returns_when_no_server_is_held_and_reload_works_meanwhile() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("BEGIN").await.is("C Z(T)");
    let mut console = pod.console().await;
    assert_eq!(answer(&mut console, "RESUME").await, "pooler is not paused/suspended");
    console.send(query("PAUSE")).await;
    assert!(!console.hears_within(Duration::from_millis(100)).await, "a transaction is open");
    client.query("COMMIT").await.is("C Z(I)");
    console.ready(1).await.is("C(PAUSE) Z(I)");
    assert_eq!(answer(&mut pod.console().await, "PAUSE").await, "already suspended/paused");
    pod.specify(|specification| specification.parameters.push(parameter("default_pool_size", "7")));
    pod.write_files(&cluster);
    assert_eq!(answer(&mut pod.console().await, "RELOAD").await, "C(RELOAD) Z(I)");
    // A client that is there waits with its query, a new one with its login, which needs auth_query.
    client.send(query("SELECT 'served'")).await;
    let other = tokio::spawn(Raw::login_owned(pod.tcp(), application()));
    assert!(!client.hears_within(Duration::from_millis(100)).await, "the pooler is paused");
    assert!(!other.is_finished(), "the pooler is paused");
    assert_eq!(answer(&mut pod.console().await, "RESUME").await, "C(RESUME) Z(I)");
    client.ready(1).await.is("T D(served) C Z(I)");
    other.await.unwrap().query("SELECT 'too'").await.is("T D(too) C Z(I)");
    let config = pod.console().await.query("SHOW CONFIG").await.rows();
    assert!(config.iter().any(|row| row[0] == "default_pool_size" && row[1] == "7"));
}

#[tokio::test]
async fn a_signal_of_the_manager_lets_running_transactions_end_and_then_ends_with_zero() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    let mut other = Raw::login(&pod.tcp(), &application()).await;
    client.query("BEGIN").await.is("C Z(T)");
    pod.signal("INT");
    pod.logs("got SIGINT, shutting down, waiting for all servers connections to be released").await;
    eventually("nobody listens", async || TcpStream::connect((pod.address(), 5432)).is_err()).await;
    other.send(query("SELECT 1")).await;
    client.query("SELECT 1").await.is("T D(1) C Z(T)");
    assert!(pod.runs());
    client.query("COMMIT").await.is("C Z(I)");
    assert_eq!(pod.wait().code(), Some(0));
    assert_eq!(other.rest().await.farewell(), "FATAL 08P01 server shutting down");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("BEGIN").await.is("C Z(T)");
    pod.signal("INT");
    pod.logs("got SIGINT, shutting down").await;
    pod.signal("INT");
    assert_eq!(pod.wait().code(), Some(0));
}

#[tokio::test]
async fn the_hook_before_the_stop_waits_for_the_clients() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    let shut = pod.psql("SHUTDOWN WAIT_FOR_CLIENTS");
    assert!(shut.status.success(), "{shut:?}");
    client.query("SELECT 'still'").await.is("T D(still) C Z(I)");
    assert!(pod.runs());
    drop(client);
    assert_eq!(pod.wait().code(), Some(0));
}

// 10. The log

/// `(?s)(?P<Timestamp>^.*) \[(?P<Pid>[0-9]+)\] (?P<Level>[A-Z]+) (?P<Msg>.+)$`
fn matches_the_managers_expression(line: &str) -> bool {
    let Some((_, rest)) = line.split_once(" [") else { return false };
    let Some((pid, rest)) = rest.split_once("] ") else { return false };
    let Some((level, message)) = rest.split_once(' ') else { return false };
    let is_level = !level.is_empty() && level.bytes().all(|letter| letter.is_ascii_uppercase());
    pid.parse::<u32>().is_ok() && is_level && !message.is_empty()
}

#[tokio::test]
async fn each_line_of_the_log_is_one_that_the_manager_can_take_apart() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut pod = PoolerPod::start(&cluster, Specification::default()).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    let wrong = application().password("wrong");
    Raw::try_login(&pod.tcp(), &wrong).await.err().unwrap();
    let two_lines = Login::new("two\nlines", "app");
    Raw::try_login(&pod.tcp(), &two_lines).await.err().unwrap();
    drop(client);
    pod.signal("INT");
    pod.wait();
    let log = pod.log();
    for line in log.lines() {
        assert!(line.starts_with('\t') || matches_the_managers_expression(line), "{line:?}");
    }
    assert!(log.contains(" LOG C-"), "{log}");
    assert_eq!(fs::read_to_string(pod.file("../out")).unwrap(), "", "nothing goes to standard output");
}

// 11. Open files

#[tokio::test]
async fn more_clients_than_open_files_is_a_warning_and_no_end() {
    let Some(cluster) = Cluster::start().await else { return };
    let parameters = vec![parameter("max_client_conn", "5000")];
    let specification = Specification { parameters, files_max: 512, ..Specification::default() };
    let pod = PoolerPod::start(&cluster, specification).await;
    pod.logs("LOG kernel file descriptor limit: 512; max_client_conn: 5000, max expected fd use: ").await;
    pod.logs("WARNING max_client_conn=5000 and the pools may need ").await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
}

// 12. Metrics of our own

#[tokio::test]
async fn our_metrics_have_a_port_of_their_own_beside_the_managers() {
    let Some(cluster) = Cluster::start().await else { return };
    let environment = vec![("PGWEIR_METRICS_LISTEN_ADDR", "0.0.0.0:9128")];
    let pod = PoolerPod::start(&cluster, Specification { environment, ..Specification::default() }).await;
    let (_, text) = http::get((pod.address(), 9128), "/metrics").await;
    assert!(text.contains("pgweir_"), "{text}");
    assert!(TcpStream::connect((pod.address(), 9127)).is_err(), "9127 is the manager's");
}

// 13. Without rights in Kubernetes

#[tokio::test]
async fn without_a_topology_a_primary_that_is_away_means_waiting_and_no_error() {
    let Some(cluster) = Cluster::start().await else { return };
    let parameters = vec![parameter("server_login_retry", "0.1")];
    let pod = PoolerPod::start(&cluster, Specification { parameters, ..Specification::default() }).await;
    let mut client = Raw::login(&pod.tcp(), &application()).await;
    client.query("SELECT 1").await.is("T D(1) C Z(I)");
    // As when the Service has no endpoints; the connections of before end with the primary.
    pod.lead_to(None);
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE client_addr IS NOT NULL";
    cluster.postgres.sql("postgres", end).await;
    let both = async || pod.log().matches("idle server got dirty").count() == 2;
    eventually("the pooler has noticed", both).await;
    client.send(query("SELECT 'after'")).await;
    pod.logs("closing because: connect failed").await;
    assert!(!client.hears_within(Duration::from_millis(100)).await, "it waits");
    pod.lead_to(Some(&cluster));
    client.ready(1).await.is("T D(after) C Z(I)");
}
