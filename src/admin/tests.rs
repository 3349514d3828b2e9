//! The console as its client sees it: a query in, messages out. Expected tables and errors are what
//! a live PgBouncer sent.

mod fixture;

use std::time::Duration;

use tokio::time::timeout;

use self::fixture::{Fake, messages};
use super::*;

async fn ask(fake: &Fake, rights: Rights, query: &str) -> Vec<String> {
    let mut out = BytesMut::new();
    let body = format!("{query}\0");
    Console::new(fake, rights, TimeZone::UTC).handle(b'Q', body.as_bytes(), &mut out).await;
    messages(out)
}

async fn check(query: &str, expected: &[&str]) {
    let fake = Fake::default();
    assert_eq!(ask(&fake, Rights::Admin, query).await, expected, "{query}");
}

async fn check_show(query: &str, columns: &str, rows: &[&str]) {
    let rows = rows.iter().map(|row| format!("D {row}"));
    let mut expected = vec![format!("T {columns}")];
    expected.extend(rows.chain(["C SHOW\0".into(), "Z I".into()]));
    let fake = Fake::default();
    assert_eq!(ask(&fake, Rights::Stats, query).await, expected, "{query}");
}

const CONNECTION: &str = "type:t user:t database:t replication:t state:t addr:t port:i local_addr:t \
    local_port:i connect_time:t request_time:t wait:i wait_us:i close_needed:i ptr:t link:t \
    remote_pid:i tls:t application_name:t prepared_statements:i id:i";

#[tokio::test]
async fn connections_are_shown_as_pgbouncer_shows_them() {
    let ends = "127.0.0.1|48202|unix|27431|2026-11-22 07:17:10 UTC|2026-11-22 07:17:11 UTC";
    let waiting = format!("C|x|p0|none|waiting|{ends}|3|6043|0|0x1f||0|||0|7");
    let idle = format!("C|x|p0|none|idle|{ends}|0|0|0|0x1f||0|||0|5");
    let server = format!("S|x|p0|none|new|{ends}|0|0|1|0x1f|0x2a|17718|||0|6");
    check_show("SHOW CLIENTS", CONNECTION, &[&waiting, &idle]).await;
    check_show("SHOW SERVERS", CONNECTION, &[&server]).await;
    let columns = format!(
        "{CONNECTION} recv_pos:i pkt_pos:i pkt_remain:i send_pos:i send_remain:i pkt_avail:i \
         send_avail:i"
    );
    let waiting = waiting.replace("waiting", "cl_waiting") + "|14|0|0|0|0|14|0";
    let idle = idle.replace("idle", "cl_active") + "|0|0|0|0|0|0|0";
    let server = server.replace("new", "sv_login") + "|0|0|0|0|0|0|0";
    let login = format!("C|(nouser)|(nodb)|none|cl_login|{ends}|0|0|0|0x1f||0|||0|8|0|0|0|0|0|0|0");
    check_show("SHOW SOCKETS", &columns, &[&waiting, &idle, &login, &server]).await;
    check_show("SHOW ACTIVE_SOCKETS", &columns, &[&waiting]).await;
}

#[tokio::test]
async fn pools_databases_and_users_are_shown_as_pgbouncer_shows_them() {
    check_show(
        "SHOW POOLS",
        "database:t user:t cl_active:i cl_waiting:i cl_active_cancel_req:i \
         cl_waiting_cancel_req:i sv_active:i sv_active_cancel:i sv_being_canceled:i sv_idle:i \
         sv_used:i sv_tested:i sv_login:i maxwait:i maxwait_us:i pool_mode:t load_balance_hosts:t",
        &[
            "p0|postgres|1|1|0|0|1|0|0|0|0|0|0|3|314|transaction|NULL",
            "pgbouncer|pgbouncer|1|0|0|0|0|0|0|0|0|0|0|0|0|statement|NULL",
        ],
    )
    .await;
    check_show(
        "SHOW DATABASES",
        "name:t host:t port:i database:t force_user:t pool_size:i min_pool_size:i \
         reserve_pool_size:i server_lifetime:i pool_mode:t load_balance_hosts:t max_connections:i \
         current_connections:i max_client_connections:i current_client_connections:i paused:i \
         disabled:i",
        &[
            "lb|127.0.0.1,127.0.0.2|15999|lb|NULL|20|0|0|3600|NULL|round-robin|0|0|0|0|0|0",
            "pgbouncer|NULL|27431|pgbouncer|pgbouncer|2|0|0|3600|statement|NULL|0|0|0|1|0|0",
        ],
    )
    .await;
    check_show(
        "SHOW USERS",
        "name:t pool_size:t reserve_pool_size:t pool_mode:t max_user_connections:i \
         current_connections:i max_user_client_connections:i current_client_connections:i",
        &["bob|        5|        7|transaction|3|0|0|0", "x|||NULL|0|0|0|1"],
    )
    .await;
}

#[tokio::test]
async fn stats_are_shown_as_pgbouncer_shows_them() {
    check_show(
        "SHOW STATS",
        "database:t total_server_assignment_count:n total_xact_count:n total_query_count:n \
         total_received:n total_sent:n total_xact_time:n total_query_time:n total_wait_time:n \
         total_client_parse_count:n total_server_parse_count:n total_bind_count:n \
         avg_server_assignment_count:n avg_xact_count:n avg_query_count:n avg_recv:n avg_sent:n \
         avg_xact_time:n avg_query_time:n avg_wait_time:n avg_client_parse_count:n \
         avg_server_parse_count:n avg_bind_count:n",
        &[
            "p0|2|2|3|37|167|6016075|3008384|3016285|0|0|0|0|0|0|2|10|3008037|1002794|1508142|0|0|0",
            "pgbouncer|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
        ],
    )
    .await;
    let counters = "server_assignment_count:n xact_count:n query_count:n bytes_received:n \
        bytes_sent:n xact_time:n query_time:n wait_time:n";
    check_show(
        "SHOW STATS_TOTALS",
        &format!("database:t {counters} client_parse_count:n server_parse_count:n bind_count:n"),
        &["p0|2|2|3|37|167|6016075|3008384|3016285|0|0|0", "pgbouncer|0|1|1|0|0|0|0|0|0|0|0"],
    )
    .await;
    check_show(
        "SHOW STATS_AVERAGES",
        &format!(
            "database:t {counters} avg_client_parse_count:n avg_server_parse_count:n \
             avg_bind_count:n"
        ),
        &["p0|0|0|0|2|10|3008037|1002794|1508142|0|0|0", "pgbouncer|0|0|0|0|0|0|0|0|0|0|0"],
    )
    .await;
    let totals = [
        ("server_assignment_count", 2, 0),
        ("xact_count", 3, 0),
        ("query_count", 4, 0),
        ("client_bytes", 37, 2),
        ("server_bytes", 167, 10),
        ("xact_time", 6_016_075, 2_005_358),
        ("query_time", 3_008_384, 752_096),
        ("wait_time", 3_016_285, 1_508_142),
        ("ps_client_parse_count", 0, 0),
        ("ps_server_parse_count", 0, 0),
        ("ps_bind_count", 0, 0),
    ];
    let total = totals.iter().map(|(name, total, _)| format!("total_{name}|{total}"));
    let average = totals.iter().map(|(name, _, average)| format!("avg_{name}|{average}"));
    let rows: Vec<String> = total.chain(average).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    check_show("SHOW TOTALS", "name:t value:n", &rows).await;
}

#[tokio::test]
async fn the_small_tables_are_shown_as_pgbouncer_shows_them() {
    let version = concat!("PgBouncer 1.25.2 (pgweir ", env!("CARGO_PKG_VERSION"), ")");
    check_show("SHOW VERSION", "version:t", &[version]).await;
    let state = ["active|yes", "paused|no", "suspended|no"];
    check_show("SHOW STATE", "key:t value:t", &state).await;
    let config = "key:t value:t default:t changeable:t";
    check_show("SHOW CONFIG", config, &["auth_user|NULL|NULL|yes"]).await;
    let memory = "name:t size:i used:i free:i memtotal:i";
    check_show("SHOW MEM", memory, &["user_cache|2368|7|43|118400"]).await;
    let names = "databases users peers pools peer_pools free_clients used_clients login_clients \
        free_servers used_servers dns_names dns_zones dns_queries dns_pending";
    let lists: Vec<String> = names.split(' ').map(|name| format!("{name}|0")).collect();
    let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
    check_show("SHOW LISTS", "list:t items:i", &lists).await;
    check_show("SHOW PEERS", "peer_id:i host:t port:i pool_size:i", &[]).await;
    let peer_pools = "peer_id:i cl_active_cancel_req:i cl_waiting_cancel_req:i \
        sv_active_cancel:i sv_login:i";
    check_show("SHOW PEER_POOLS", peer_pools, &[]).await;
    check_show("SHOW DNS_HOSTS", "hostname:t ttl:q addrs:t", &[]).await;
    check_show("SHOW DNS_ZONES", "zonename:t serial:q count:i", &[]).await;
    check_show("SHOW Client_Encoding", "client_encoding:t", &["UTF-8"]).await;
    let isolation = "default_transaction_isolation:t";
    check_show("SHOW default_transaction_isolation", isolation, &["read committed"]).await;
    check_show("SHOW timezone", "timezone:t", &["GMT"]).await;
    let help = ask(&Fake::default(), Rights::Stats, "SHOW HELP").await;
    assert!(help[0].starts_with("N SNOTICE C00000 MConsole usage D\n\tSHOW HELP|CONFIG"), "{help:?}");
    assert_eq!(help[1..], ["C SHOW\0", "Z I"]);
}

#[tokio::test]
async fn commands_reach_the_pooler_and_answer_with_their_tag() {
    for (query, told, tag) in [
        ("RELOAD", "reload", "RELOAD"),
        ("PAUSE", "pause None", "PAUSE"),
        ("PAUSE p0", "pause Some(\"p0\")", "PAUSE"),
        ("RESUME", "resume None", "RESUME"),
        ("SUSPEND", "suspend", "SUSPEND"),
        ("KILL", "kill None", "KILL"),
        ("KILL p0", "kill Some(\"p0\")", "KILL"),
        ("KILL_CLIENT 12", "kill_client 12", "KILL_CLIENT"),
        ("RECONNECT p0", "reconnect Some(\"p0\")", "RECONNECT"),
        ("WAIT_CLOSE", "wait_close None", "WAIT_CLOSE"),
        ("DISABLE p0", "disable p0", "DISABLE"),
        ("ENABLE p0", "enable p0", "ENABLE"),
        ("SET stats_period = '61'", "set stats_period=61", "SET stats_period=61"),
        ("SHUTDOWN WAIT_FOR_CLIENTS", "SHUTDOWN WAIT_FOR_CLIENTS", "SHUTDOWN"),
    ] {
        let fake = Fake::default();
        let expected = [format!("C {tag}\0"), "Z I".to_owned()];
        assert_eq!(ask(&fake, Rights::Admin, query).await, expected, "{query}");
        assert_eq!(*fake.told.borrow(), [told], "{query}");

        let fake = Fake::default();
        let expected = ["E SERROR C08P01 Madmin access needed", "Z I"];
        assert_eq!(ask(&fake, Rights::Stats, query).await, expected, "{query}");
        assert!(fake.told.borrow().is_empty(), "{query}");
    }
}

#[tokio::test]
async fn refusals_have_pgbouncers_words() {
    for (query, message) in [
        ("", "invalid command '', use SHOW HELP;"),
        ("shöw", "invalid command 'shöw', use SHOW HELP;"),
        ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
        ("KILL pgbouncer", "cannot kill admin db: pgbouncer"),
        ("RECONNECT pgbouncer", "cannot reconnect admin db: pgbouncer"),
        ("WAIT_CLOSE pgbouncer", "cannot wait in admin db: pgbouncer"),
        ("DISABLE pgbouncer", "cannot disable admin db: pgbouncer"),
        ("ENABLE pgbouncer", "cannot disable admin db: pgbouncer"),
        ("RESUME pgbouncer", "database pgbouncer is not paused"),
        ("DISABLE", "a database is required"),
        ("ENABLE \"\"", "a database is required"),
        ("KILL_CLIENT", "invalid client pointer supplied"),
        ("KILL_CLIENT abc", "invalid client pointer supplied"),
    ] {
        check(query, &[&format!("E SERROR C08P01 M{message}"), "Z I"]).await;
    }
    let long = format!("PAUSE \"{}\"", "a".repeat(62));
    check(&long, &["E SERROR C08P01 Mbad arguments", "Z I"]).await;
    check("SET timezone = x", &["N SNOTICE C00000 MSET ignored", "C SET\0", "Z I"]).await;

    let name = || "x".to_owned();
    for (failure, message) in [
        (ConsoleError::AlreadyPaused, "C08P01 Malready suspended/paused"),
        (ConsoleError::NotPaused, "C08P01 Mpooler is not paused/suspended"),
        (ConsoleError::DatabaseNotPaused(name()), "C08P01 Mdatabase x is not paused"),
        (ConsoleError::NoSuchDatabase(name()), "C08P01 Mno such database: x"),
        (ConsoleError::PausedDatabases, "C08P01 Mcannot suspend with paused databases"),
        (ConsoleError::ShuttingDown, "C08P01 Mpooler is shutting down"),
        (ConsoleError::ClientNotFound, "C08P01 Mclient not found"),
        (ConsoleError::SetFailed, "C08P01 MSET failed"),
        (ConsoleError::ReloadFailed, "CF0000 MRELOAD failed, see logs for additional details"),
    ] {
        let fake = Fake { failure: Some(failure), ..Fake::default() };
        let expected = [format!("E SERROR {message}"), "Z I".to_owned()];
        assert_eq!(ask(&fake, Rights::Admin, "RELOAD").await, expected);
    }
}

#[tokio::test]
async fn a_set_of_tls_that_does_not_work_is_noticed() {
    let fake = Fake { tls_not_applied: true, ..Fake::default() };
    let expected = [
        "N SNOTICE C00000 MTLS settings could not be applied, still using old configuration",
        "C SET client_tls_sslmode=require\0",
        "Z I",
    ];
    assert_eq!(ask(&fake, Rights::Admin, "SET client_tls_sslmode=require").await, expected);
}

#[tokio::test]
async fn show_fds_is_for_administrators_and_not_supported() {
    let fake = Fake::default();
    let expected = ["E SERROR C08P01 Madmin access needed", "Z I"];
    assert_eq!(ask(&fake, Rights::Stats, "SHOW FDS").await, expected);
    let answer = ask(&fake, Rights::Admin, "SHOW FDS").await;
    assert!(answer[0].starts_with("E SERROR C0A000 MSHOW FDS is not supported"), "{answer:?}");
}

#[tokio::test]
async fn other_messages_end_the_connection() {
    let extended = "E SERROR C08P01 Mextended query protocol not supported by admin console";
    let fatal = |reason| format!("E SFATAL C08P01 M{reason}");
    for (tag, body, reason, first) in [
        (b'P', &b"\0\0"[..], "bad packet", Some(extended)),
        (b'B', b"\0\0", "bad packet", Some(extended)),
        (b'E', b"\0\0", "bad packet", Some(extended)),
        (b'S', b"", "bad packet", Some("E SERROR C08P01 Munsupported packet type for admin console: 83")),
        (b'p', b"x\0", "unknown pkt", None),
        (b'~', b"", "unknown pkt", None),
        (b'Q', b"abc", "incomplete query", None),
        (b'Q', b"", "incomplete query", None),
    ] {
        let fake = Fake::default();
        let mut out = BytesMut::new();
        let mut console = Console::new(&fake, Rights::Admin, TimeZone::UTC);
        let outcome = console.handle(tag, body, &mut out).await;
        let mut expected: Vec<String> = Vec::new();
        expected.extend(first.into_iter().flat_map(|e| [e.to_owned(), "Z I".to_owned()]));
        expected.push(fatal(reason));
        assert_eq!(messages(out), expected, "{}", char::from(tag));
        assert_eq!(outcome.close, Some(reason));
    }
    let fake = Fake::default();
    let mut out = BytesMut::new();
    let mut console = Console::new(&fake, Rights::Admin, TimeZone::UTC);
    let outcome = console.handle(b'X', b"", &mut out).await;
    assert_eq!((outcome.close, out.len()), (Some("client close request"), 0));
    let outcome = console.handle(b'Q', b"SHUTDOWN\0", &mut out).await;
    assert_eq!((outcome.close, out.len()), (Some("shutdown"), 0), "it just closes");
}

/// Gives a command up while it waits.
async fn give_up(console: &mut Console<&Fake>, query: &[u8]) {
    let mut out = BytesMut::new();
    let waited = timeout(Duration::ZERO, console.handle(b'Q', query, &mut out)).await;
    assert!(waited.is_err() && out.is_empty(), "{}", String::from_utf8_lossy(query));
}

#[tokio::test]
async fn a_cancel_undoes_the_pause_that_waits() {
    for (query, resumed) in [
        (&b"PAUSE\0"[..], Some("resume None")),
        (b"PAUSE p0\0", Some("resume Some(\"p0\")")),
        (b"SUSPEND\0", Some("resume None")),
        (b"WAIT_CLOSE\0", None),
    ] {
        let fake = Fake { waits: true, ..Fake::default() };
        let mut console = Console::new(&fake, Rights::Admin, TimeZone::UTC);
        give_up(&mut console, query).await;
        let mut out = BytesMut::new();
        console.cancel(&mut out).await;
        let error = "E SERROR C57014 Mcanceling statement due to user request";
        assert_eq!(messages(out), [error, "Z I"]);
        assert_eq!(fake.told.borrow().get(1).map(String::as_str), resumed);
        let mut out = BytesMut::new();
        console.cancel(&mut out).await;
        assert!(out.is_empty(), "nothing waits any more");
    }
}

#[tokio::test]
async fn a_client_that_goes_takes_its_suspend_along_but_not_its_pause() {
    for (query, waits, state, resumes) in [
        (&b"SUSPEND\0"[..], true, StateView::Suspended, true),
        (b"SUSPEND\0", false, StateView::Suspended, true),
        (b"SUSPEND\0", false, StateView::Paused, false),
        (b"PAUSE\0", true, StateView::Paused, false),
        (b"SHOW STATE\0", false, StateView::Suspended, false),
    ] {
        let fake = Fake { waits, state, ..Fake::default() };
        let mut console = Console::new(&fake, Rights::Admin, TimeZone::UTC);
        if waits {
            give_up(&mut console, query).await;
        } else {
            console.handle(b'Q', query, &mut BytesMut::new()).await;
        }
        console.disconnected().await;
        let resumed = fake.told.borrow().iter().any(|told| told.starts_with("resume"));
        assert_eq!(resumed, resumes, "{} in {state:?}", String::from_utf8_lossy(query));
    }
}

#[test]
fn the_greeting_is_pgbouncers() {
    let mut out = BytesMut::new();
    greeting(1, 2, &mut out);
    let expected = [
        "S server_version\u{0}1.25.2/bouncer\0",
        "S client_encoding\0UTF8\0",
        "S server_encoding\0UTF8\0",
        "S DateStyle\0ISO\0",
        "S TimeZone\0GMT\0",
        "S standard_conforming_strings\0on\0",
        "S is_superuser\0on\0",
        "K \0\0\0\u{1}\0\0\0\u{2}",
        "Z I",
    ];
    assert_eq!(messages(out), expected);
}
