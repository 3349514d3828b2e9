//! Clients in, servers out: who may log in, what is said to those who may not, and how the pooler
//! itself logs in to PostgreSQL.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use postgres_protocol::password;
use std::net::SocketAddr;
use std::time::Duration;
use support::message::{startup, untagged};
use support::pooler::{Config, is_ours};
use support::{Address, Gate, Login, PATIENCE, Pooler, Postgres, Raw, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// One user for each kind of secret. The password is always `right`.
fn secrets() -> String {
    let md5 = password::md5(b"right", "has_md5");
    let scram = password::scram_sha_256(b"right");
    format!(
        "\"has_plain\" \"right\"\n\"has_md5\" \"{md5}\"\n\"has_scram\" \"{scram}\"\n\"admin\" \"right\"\n"
    )
}

/// Clients check in with their own names, and reach PostgreSQL as `app`, which it trusts.
fn front_door(method: &str) -> Config {
    Pooler::config().users(&secrets()).setting("auth_type", method).database_option("user=app")
}

/// PgBouncer has its words, but no SQLSTATE of its own for them.
fn denied(method: &str) -> String {
    let code = if is_ours() { "28P01" } else { "08P01" };
    format!("E({code}) FATAL {method} authentication failed")
}

async fn asks(pooler: &Pooler, user: &str, password: &str) -> String {
    let login = Login::new(user, "app").password(password);
    match Raw::try_login(&pooler.tcp(), &login).await {
        Ok(mut client) => client.query("SELECT 'in'").await.value(),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn a_right_password_opens_every_method_that_can_check_the_secret() {
    for method in ["any", "trust", "plain", "md5", "scram-sha-256"] {
        let pooler = front_door(method).start().await;
        for user in ["has_plain", "has_md5", "has_scram"] {
            // An MD5 hash cannot answer a SCRAM exchange: neither side knows the other's secret.
            let impossible = (method, user) == ("scram-sha-256", "has_md5");
            let expected = if impossible { denied("SASL") } else { "in".to_owned() };
            assert_eq!(asks(&pooler, user, "right").await, expected, "{method} {user}");
        }
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_told_the_same() {
    for (method, message) in
        [("plain", denied("password")), ("md5", denied("password")), ("scram-sha-256", denied("SASL"))]
    {
        let pooler = front_door(method).start().await;
        for user in ["has_plain", "has_scram", "nobody"] {
            // With auth_type md5, a SCRAM secret is asked for by SCRAM.
            let scram = (method, user) == ("md5", "has_scram");
            let message = if scram { denied("SASL") } else { message.clone() };
            assert_eq!(asks(&pooler, user, "wrong").await, message, "{method} {user}");
        }
    }
}

#[tokio::test]
async fn an_unknown_user_is_let_in_by_any_and_refused_by_trust() {
    let pooler = front_door("any").start().await;
    assert_eq!(asks(&pooler, "nobody", "").await, "in");
    let pooler = front_door("trust").start().await;
    let refusal = asks(&pooler, "nobody", "").await;
    assert!(refusal.starts_with("E(") && refusal.contains("FATAL"), "{refusal}");
}

#[tokio::test]
async fn the_pooler_answers_a_server_that_trusts_or_asks_for_password_md5_or_scram() {
    let md5 = password::md5(b"md5-secret", "md5_user");
    let users = format!(
        "\"app\" \"\"\n\"plain_user\" \"plain-secret\"\n\"md5_user\" \"{md5}\"\n\"scram_user\" \"scram-secret\"\n"
    );
    let pooler = Pooler::config().users(&users).start().await;
    for user in ["app", "plain_user", "md5_user", "scram_user"] {
        let mut client = Raw::login(&pooler.tcp(), &Login::new(user, "app")).await;
        assert_eq!(client.query("SELECT user").await.value(), user);
    }
}

#[tokio::test]
async fn the_password_of_the_database_line_goes_before_the_auth_file() {
    let pooler = Pooler::config().database_option("user=scram_user password=scram-secret").start().await;
    let mut client = pooler.client().await;
    assert_eq!(client.query("SELECT user").await.value(), "scram_user");
}

#[tokio::test]
async fn a_scram_secret_without_a_password_serves_the_server_with_the_key_that_the_client_proved() {
    let postgres = Postgres::shared().await;
    let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_user'";
    let secret = postgres.sql("postgres", sql).await.remove(0).remove(0);
    let users = format!("\"scram_user\" \"{secret}\"\n\"admin\" \"admin-secret\"\n");
    let pooler = Pooler::config().users(&users).setting("auth_type", "scram-sha-256").start().await;
    let login = Login::new("scram_user", "app").password("scram-secret");
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(client.query("SELECT user").await.value(), "scram_user");
    // Later servers of the pool are opened with the same key.
    let kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
         WHERE usename = 'scram_user' AND datname = current_database()";
    pooler.sql(kill).await;
    let mut second = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(second.query("SELECT user").await.value(), "scram_user");
    let wrong = Login::new("scram_user", "app").password("wrong");
    assert_eq!(pooler.refuses(&wrong).await, denied("SASL"));
}

#[tokio::test]
async fn the_servers_refusal_of_the_poolers_password_is_passed_on_with_its_sqlstate() {
    let pooler = Pooler::config().users("\"scram_user\" \"not-it\"\n").start().await;
    let login = Login::new("scram_user", "app");
    let expected = "E(28P01) FATAL password authentication failed for user \"scram_user\"";
    assert_eq!(pooler.refuses(&login).await, expected);
    let cached = "server login has been failing, cached error: \
         password authentication failed for user \"scram_user\" (server_login_retry)";
    let refusal = pooler.refuses(&login).await;
    // PgBouncer may try again first.
    if is_ours() {
        assert_eq!(refusal, format!("E(28P01) FATAL {cached}"));
    }
}

#[tokio::test]
async fn a_database_that_the_server_does_not_have_is_named_by_the_server() {
    let pooler = Pooler::config().database_line("ghost = {server} dbname=ghost").start().await;
    let refusal = pooler.refuses(&Login::new("app", "ghost")).await;
    assert_eq!(refusal, "E(3D000) FATAL database \"ghost\" does not exist");
}

#[tokio::test]
async fn a1_a_newer_protocol_is_negotiated_down_and_unknown_options_are_named() {
    let pooler = Pooler::config().start().await;
    let mut body = startup(&[("user", "app"), ("_pq_.wish", "1"), ("database", "app"), ("_pq_.more", "2")]);
    body.drain(..8);
    let check = async |version: u32, expected: &str| {
        let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
        client.send(untagged(version, &body)).await;
        let reply = client.ready(1).await;
        let first = &reply.messages[0];
        assert_eq!(first.body.escape_ascii().to_string(), expected);
        assert_eq!(first.tag, b'v');
        assert_eq!(reply.words()[1..], ["R", "K", "Z(I)"]);
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
    };
    // PgBouncer knows 3.0 alone.
    let newest = if is_ours() { 2 } else { 0 };
    for (asked, spoken) in [(0, 0), (2, newest), (9999, newest)] {
        let options = format!(r"\x00\x03\x00\x0{spoken}\x00\x00\x00\x02_pq_.wish\x00_pq_.more\x00");
        check((3 << 16) + asked, &options).await;
    }

    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    let mut body = startup(&[("user", "app"), ("database", "app")]);
    body.drain(..8);
    client.send(untagged((3 << 16) + 9999, &body)).await;
    let first = client.ready(1).await.messages.remove(0);
    assert_eq!((first.tag, &first.body[..]), (b'v', &[0, 3, 0, newest, 0, 0, 0, 0][..]));
}

#[tokio::test]
async fn other_major_protocols_are_refused() {
    let pooler = Pooler::config().start().await;
    for (major, words) in [(2_u32, "old V2 protocol not supported"), (4, "unsupported frontend protocol 4.0")]
    {
        let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
        client.send(untagged(major << 16, b"user\0app\0\0")).await;
        let told = client.rest().await;
        told.is("E(08P01) EOF");
        let message = told.messages[0].field(b'M');
        // PgBouncer takes a protocol that does not exist for a broken packet.
        assert!(message.starts_with(words) || major == 4 && !is_ours(), "{message}");
    }
}

const OPTIONS: &str = "E(08P01) FATAL unsupported options startup parameter: \
     only '-c config=val' and '--config=val' are allowed";
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// Sends requests for encryption, reads one byte for each, and then logs in.
async fn asks_for_encryption(address: SocketAddr, requests: &[u32]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for request in requests {
        stream.write_all(&untagged(*request, b"")).await.unwrap();
        let mut answer = [0];
        match stream.read(&mut answer).await {
            Ok(1) => assert_eq!(answer, *b"N", "{requests:?}"),
            _ => return "closed".to_owned(),
        }
    }
    stream.write_all(&startup(&[("user", "app"), ("database", "app")])).await.unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).await.unwrap();
    char::from(answer[0]).to_string()
}

#[tokio::test]
async fn a2_requests_for_encryption_are_declined_and_the_login_goes_on() {
    let pooler = Pooler::config().start().await;
    let address = SocketAddr::from(([127, 0, 0, 1], pooler.port));
    for requests in [
        &[][..],
        &[SSL_REQUEST],
        &[GSSENC_REQUEST],
        &[GSSENC_REQUEST, SSL_REQUEST],
        &[SSL_REQUEST, GSSENC_REQUEST],
    ] {
        assert_eq!(asks_for_encryption(address, requests).await, "R", "{requests:?}");
    }
    if is_ours() {
        assert_eq!(asks_for_encryption(address, &[SSL_REQUEST, SSL_REQUEST]).await, "closed");
    }
}

/// Passes connections from `[::1]` on to PostgreSQL.
async fn ipv6_server(postgres: &Postgres, tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.expect("the machine has IPv6 on lo");
    let port = listener.local_addr().unwrap().port();
    let server = SocketAddr::from(([127, 0, 0, 1], postgres.port));
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn clients_and_servers_use_ipv4_ipv6_and_unix_sockets() {
    let postgres = Postgres::shared().await;
    let mut tasks = JoinSet::new();
    let port = ipv6_server(&postgres, &mut tasks).await;
    let folder = postgres.socket_directory().display().to_string();
    let pooler = Pooler::config()
        .setting("listen_addr", "127.0.0.1, ::1")
        .database_line(&format!("six = host=::1 port={port} dbname={{database}}"))
        .database_line(&format!("unix = host={folder} port={} dbname={{database}}", postgres.port))
        .start()
        .await;
    let six = Address::Tcp(format!("[::1]:{}", pooler.port).parse().unwrap());
    for address in [pooler.tcp(), six, pooler.unix()] {
        for database in ["app", "six", "unix"] {
            let mut client = Raw::login(&address, &Login::new("app", database)).await;
            let sql = "SELECT coalesce(host(inet_client_addr()), 'unix')";
            let expected = if database == "unix" { "unix" } else { "127.0.0.1" };
            assert_eq!(client.query(sql).await.value(), expected, "{address:?} {database}");
        }
    }
    let log = pooler.log();
    for peer in ["app/app@127.0.0.1:", "app/app@[::1]:", "app/app@unix"] {
        assert!(log.contains(peer), "{peer} in {log}");
    }
}

#[tokio::test]
async fn a_startup_parameter_that_cannot_be_kept_is_refused_unless_it_is_ignored() {
    let pooler = Pooler::config()
        .setting("ignore_startup_parameters", "extra_float_digits, search_path")
        .environment("PGWEIR_SESSION_STATE", "pgbouncer")
        .start()
        .await;
    let login = Login::new("app", "app");
    let refusal = pooler.refuses(&login.clone().option("work_mem", "1MB")).await;
    assert_eq!(refusal, "E(08P01) FATAL unsupported startup parameter: work_mem");
    let refusal = pooler.refuses(&login.clone().option("options", "-c work_mem=1MB")).await;
    assert_eq!(refusal, "E(08P01) FATAL unsupported startup parameter in options: work_mem");
    for options in ["-x", "-c", "work_mem=1MB", "-c work_mem", "--work_mem", "-B 5"] {
        let refusal = pooler.refuses(&login.clone().option("options", options)).await;
        assert_eq!(refusal, OPTIONS, "{options}");
    }
    let ignored = login.option("extra_float_digits", "3").option("options", "-c search_path=nowhere");
    let mut client = Raw::login(&pooler.tcp(), &ignored).await;
    client.query("SHOW search_path").await.is("T D(\"$user\", public) C Z(I)");
}

#[tokio::test]
async fn where_options_are_ignored_those_that_cannot_be_kept_are_left_out_and_the_others_count() {
    let pooler = Pooler::config()
        .setting("ignore_startup_parameters", "options, geqo")
        .environment("PGWEIR_SESSION_STATE", "pgbouncer")
        .start()
        .await;
    let login = Login::new("app", "app").option("geqo", "off");
    let options = "-c work_mem=1MB --datestyle=German -c search_path=nowhere";
    let mut client = Raw::login(&pooler.tcp(), &login.clone().option("options", options)).await;
    client.query("SHOW work_mem").await.is("T D(4MB) C Z(I)");
    client.query("SHOW search_path").await.is("T D(\"$user\", public) C Z(I)");
    client.query("SHOW datestyle").await.is("T D(German, DMY) C Z(I)");
    assert_eq!(pooler.refuses(&login.clone().option("options", "-x")).await, OPTIONS);
    let refusal = pooler.refuses(&login.option("enable_sort", "off")).await;
    assert_eq!(refusal, "E(08P01) FATAL unsupported startup parameter: enable_sort");
}

#[tokio::test]
async fn options_set_what_the_server_reports_and_the_client_is_told_so() {
    let pooler = Pooler::config().start().await;
    let login = Login::new("app", "app")
        .option("options", r"-c DateStyle=German --intervalstyle=iso_8601 -capplication_name=my\ app");
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(client.parameters["application_name"], "my app");
    assert_eq!(client.query("SELECT '2026-11-22'::date").await.value(), "22.11.2026");
    assert_eq!(client.query("SELECT '1 hour'::interval").await.value(), "PT1H");
    assert_eq!(client.query("SHOW application_name").await.value(), "my app");
}

#[tokio::test]
async fn a_client_is_told_the_parameters_of_its_server_with_its_own_in_place() {
    let pooler = Pooler::config().start().await;
    let direct = pooler.direct().await;
    let login = Login::new("app", "app").option("TimeZone", "Asia/Tokyo");
    let mut expected = direct.parameters.clone();
    expected.insert("TimeZone".to_owned(), "Asia/Tokyo".to_owned());
    let client = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(client.parameters, expected);
}

#[tokio::test]
async fn a7_a_login_without_a_user_and_one_without_a_database_are_as_in_postgresql() {
    let pooler = Pooler::config().start().await;
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    client.send(startup(&[("database", "app")])).await;
    client.rest().await.is("E(08P01) EOF");
    let mut client = Raw::connect(&pooler.tcp()).await.unwrap();
    client.send(startup(&[("user", "app")])).await;
    client.ready(1).await.is("R K Z(I)");
}

#[tokio::test]
async fn client_limits_refuse_the_one_too_many_and_admit_the_next_when_one_leaves() {
    let all = ("max_client_conn", "no more connections allowed (max_client_conn)");
    let database = ("max_db_client_connections", "client connections exceeded (max_db_client_connections)");
    let user = ("max_user_client_connections", "client connections exceeded (max_user_client_connections)");
    for (setting, message) in [all, database, user] {
        let config = Pooler::config().database_line("other = {server} dbname={database}");
        let pooler = config.setting(setting, "2").start().await;
        let (first, second) = (pooler.client().await, pooler.client().await);
        let refusal = pooler.refuses(&Login::new("app", "app")).await;
        assert_eq!(refusal, format!("E(08P01) FATAL {message}"));
        let elsewhere = Raw::try_login(&pooler.tcp(), &Login::new("app", "other")).await;
        assert_eq!(elsewhere.is_ok(), setting == "max_db_client_connections", "{setting}");
        let others = Raw::try_login(&pooler.tcp(), &Login::new("scram_user", "app")).await;
        assert_eq!(others.is_ok(), setting == "max_user_client_connections", "{setting}");
        drop((second, elsewhere, others));
        let login = Login::new("app", "app");
        eventually("a place is free", async || Raw::try_login(&pooler.tcp(), &login).await.is_ok()).await;
        // The console is never too full.
        pooler.admin("SHOW POOLS").await;
        drop(first);
    }
}

#[tokio::test]
async fn limits_of_the_users_section_and_the_database_line_go_before_the_global_ones() {
    let pooler = Pooler::config()
        .setting("max_user_client_connections", "1")
        .setting("max_db_client_connections", "5")
        .database_option("max_db_client_connections=2")
        .sections("[users]\napp = max_user_client_connections=3\n")
        .start()
        .await;
    let _clients = (pooler.client().await, pooler.client().await);
    let refusal = pooler.refuses(&Login::new("app", "app")).await;
    assert!(refusal.ends_with("(max_db_client_connections)"), "{refusal}");
}

#[tokio::test]
async fn a_database_that_nobody_configured_is_no_such_database_after_the_password_and_a_secret_before() {
    let pooler = Pooler::config().setting("auth_type", "scram-sha-256").start().await;
    let login = Login::new("app", "nowhere");
    let right = pooler.refuses(&login.clone().password("app-secret")).await;
    assert!(right.ends_with("FATAL no such database: nowhere"), "{right}");
    let wrong = pooler.refuses(&login.password("wrong")).await;
    assert_eq!(wrong, denied("SASL"));
}

#[tokio::test]
async fn the_star_database_takes_every_name() {
    let pooler = Pooler::config().database_line("* = {server}").start().await;
    let login = Login::new("app", &pooler.database);
    let mut client = Raw::login(&pooler.tcp(), &login).await;
    assert_eq!(client.query("SELECT current_database()").await.value(), pooler.database);
}

#[tokio::test]
async fn a_client_that_does_not_log_in_in_time_is_told_and_closed() {
    let pooler = Pooler::config().setting("client_login_timeout", "0.3").start().await;
    let mut silent = Raw::connect(&pooler.tcp()).await.unwrap();
    let reply = silent.rest().await;
    reply.is("E(08P01) EOF");
    assert_eq!(reply.messages[0].field(b'M'), "client_login_timeout");
    let mut half = Raw::connect(&pooler.tcp()).await.unwrap();
    half.send(&startup(&[("user", "app")])[..7]).await;
    half.rest().await.is("E(08P01) EOF");
}

#[tokio::test]
async fn a_client_that_logs_in_while_the_server_is_down_waits_until_client_login_timeout() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let pooler = Pooler::config().server(address).setting("client_login_timeout", "0.3").start().await;
    let refusal = pooler.refuses(&Login::new("app", "app")).await;
    assert_eq!(refusal, "E(08P01) FATAL client_login_timeout (server down)");
}

#[tokio::test]
async fn a_login_waits_for_a_server_that_comes_up_meanwhile() {
    let postgres = Postgres::shared().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let pooler = Pooler::config().server(address).setting("server_login_retry", "0.2").start().await;
    let login = Login::new("app", "app");
    let mut waiting = Raw::connect(&pooler.tcp()).await.unwrap();
    waiting.send(startup(&[("user", "app"), ("database", "app")])).await;
    pooler.logs("closing because: ").await;
    let listener = TcpListener::bind(address).await.unwrap();
    let server = SocketAddr::from(([127, 0, 0, 1], postgres.port));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(server).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
    });
    waiting.ready(1).await.is("R K Z(I)");
    let mut second = timeout(PATIENCE, Raw::login(&pooler.tcp(), &login)).await.unwrap();
    second.query("SELECT 1").await.is("T D(1) C Z(I)");
}

#[tokio::test]
async fn a_server_that_is_full_tells_the_client_and_then_lets_it_in() {
    let settings = ["max_connections=5", "superuser_reserved_connections=3"];
    let postgres = std::sync::Arc::new(Postgres::start(&settings).await);
    let pooler =
        Pooler::config().postgres(postgres.clone()).setting("server_login_retry", "0.2").start().await;
    let login = Login::new("app", "app");
    let mut hogs = Vec::new();
    // The places of those who made the test's database are free a moment later.
    eventually("two take its places", async || {
        hogs.extend(Raw::try_login(&postgres.tcp(), &login).await);
        hogs.len() == 2
    })
    .await;
    let refusal = pooler.refuses(&login).await;
    assert!(refusal.starts_with("E(53300) FATAL remaining connection slots"), "{refusal}");
    drop(hogs);
    eventually("the server has room again", async || Raw::try_login(&pooler.tcp(), &login).await.is_ok())
        .await;
}

#[tokio::test]
async fn a_client_whose_server_answers_the_login_with_nonsense_is_not_let_in() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut server, _)) = listener.accept().await {
            let _ = server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let pooler = Pooler::config().server(address).setting("client_login_timeout", "0.5").start().await;
    let refusal = pooler.refuses(&Login::new("app", "app")).await;
    assert!(refusal.starts_with("E(08P01) FATAL"), "{refusal}");
}

#[tokio::test]
async fn a_new_client_is_welcome_while_all_servers_are_busy() {
    let pooler = Pooler::config().start().await;
    let mut busy = pooler.client().await;
    let mut gate = Gate::close(&pooler).await;
    busy.send(support::message::query(&gate.sql("done"))).await;
    gate.is_reached_by(1).await;
    let login = Raw::login_owned(pooler.tcp(), Login::new("app", "app"));
    let mut second = timeout(Duration::from_secs(3), login).await.expect("a login needs no server here");
    gate.open().await;
    busy.ready(1).await.is("T D(done) C Z(I)");
    second.query("SELECT 2").await.is("T D(2) C Z(I)");
}
