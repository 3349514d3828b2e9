//! What one client and its server may do to each other, and to nobody else: half messages, late
//! data, unread answers, silence.

use crate::support;

use std::time::Duration;
use support::message::{close_statement, copy_data, copy_done, extended, flush, parse, query, run_of, sync};
use support::proxy::Impostor;
use support::{Pooler, Raw};
use tokio::time::{Instant, timeout};

// ---- half messages from the server ----

/// How many bytes of the DataRow are missing: one, the end of a long value, and most of its header.
const MISSING: [usize; 4] = [1, 40, 300, 306];

/// A server whose answer ends within its DataRow, and then its connection or not.
async fn cut(missing: usize, ends: bool) -> Impostor {
    let row = [&b"\0\x01\0\0\x01\x2c"[..], &[b'x'; 300]].concat();
    let column = b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    let mut answer = run_of([support::message::message(b'T', column), support::message::message(b'D', &row)]);
    answer.truncate(answer.len() - missing);
    Impostor::answering(answer, ends).await
}

/// The client has got RowDescription, and all that there is of the row.
async fn within_a_row(pooler: &Pooler) -> Raw {
    let mut client = pooler.client().await;
    client.send(query("SELECT x")).await;
    client.until(b'T').await.is("T");
    client
}

#[tokio::test]
async fn a_server_that_dies_within_a_row_leaves_it_cut_off_and_nothing_behind_it() {
    for missing in MISSING {
        let server = cut(missing, true).await;
        let pooler = Pooler::config().server(server.address).start().await;
        let mut client = within_a_row(&pooler).await;
        client.rest().await.is("EOF");
    }
}

#[tokio::test]
async fn a_query_timeout_within_a_row_leaves_it_cut_off_and_nothing_behind_it() {
    for missing in MISSING {
        let server = cut(missing, false).await;
        let pooler = Pooler::config().server(server.address).setting("query_timeout", "0.3").start().await;
        let mut client = within_a_row(&pooler).await;
        client.rest().await.is("EOF");
    }
}

#[tokio::test]
async fn a_kill_within_a_row_leaves_it_cut_off_and_nothing_behind_it() {
    for missing in MISSING {
        let server = cut(missing, false).await;
        let pooler = Pooler::config().server(server.address).start().await;
        let mut client = within_a_row(&pooler).await;
        pooler.admin("KILL app").await;
        client.rest().await.is("EOF");
    }
}

// ---- late data of a COPY ----

const COPY: &str = "COPY items FROM STDIN";

async fn with_items() -> Pooler {
    let pooler = Pooler::config().start().await;
    pooler.sql("CREATE TABLE items (n int); GRANT ALL ON items TO app").await;
    pooler
}

#[tokio::test]
async fn the_rest_of_a_copy_data_behind_the_error_does_not_keep_the_server() {
    let pooler = with_items().await;
    let half = copy_data(&"1\n".repeat(50));
    for cut in [1, 3, 5, 40, half.len() - 1] {
        let mut a = pooler.client().await;
        a.ask_until(query(COPY), b'G').await.is("G");
        let begun = run_of([copy_data("x\n"), half[..cut].to_vec()]);
        a.ask(begun).await.is("E(22P02) Z(I)");
        a.send(run_of([half[cut..].to_vec(), copy_done()])).await;
        pooler.is_clean().await;
        a.query("SELECT 'a'").await.is("T D(a) C(SELECT 1) Z(I)");
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn the_megabytes_of_a_copy_behind_the_error_do_not_keep_the_server() {
    let pooler = with_items().await;
    let mut a = pooler.client().await;
    a.ask_until(query(COPY), b'G').await.is("G");
    let block = copy_data(&"1\n".repeat(30_000));
    let mut writer = a.writer;
    let writing = tokio::spawn(async move {
        writer.send(copy_data("x\n")).await;
        for _ in 0..334 {
            writer.send(&block).await;
        }
        writer
    });
    a.writer = {
        let told = a.reader.until(b'Z', 1).await;
        told.is("E(22P02) Z(I)");
        writing.await.unwrap()
    };
    pooler.is_clean().await;
    a.send(copy_done()).await;
    pooler.is_clean().await;
    a.query("SELECT 'a'").await.is("T D(a) C(SELECT 1) Z(I)");
    assert_eq!(pooler.number("SELECT count(*) FROM items").await, 0);
}

// ---- answers that nobody reads ----

/// Sends until the pooler takes no more for a second, and returns how much that was.
async fn fill(client: &mut Raw, block: &[u8]) -> usize {
    let mut sent = 0;
    while sent < 64_000_000 {
        if timeout(Duration::from_secs(1), client.send(block)).await.is_err() {
            return sent;
        }
        sent += block.len();
    }
    panic!("took {sent} bytes of requests without their answers being read");
}

#[tokio::test]
async fn answers_of_our_own_that_are_not_read_take_bounded_memory() {
    let pair = run_of([close_statement("s"), parse("s", "")]);
    let with_server = run_of([parse("s", ""), flush()]);
    let without_server = run_of([close_statement("s"), sync()]);
    for (first, one) in [(with_server, pair), (sync(), without_server), (sync(), sync())] {
        let pooler = Pooler::config().start().await;
        let mut client = pooler.client().await;
        client.shrink_receive_buffer();
        client.send(first).await;
        assert!(client.hears_within(support::PATIENCE).await);
        let before = pooler.memory_bytes();
        fill(&mut client, &one.repeat(20_000)).await;
        let grown = pooler.memory_peak_bytes().saturating_sub(before);
        assert!(grown < 8_000_000, "grew by {grown} bytes for one client");
        drop(client);
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn requests_behind_a_statement_that_must_wait_take_bounded_memory() {
    let pooler = Pooler::config().start().await;
    let mut client = pooler.client().await;
    // Whether the name is free is known when the query is over, which may drop all statements.
    client.send(run_of([query("SELECT pg_sleep(60)"), parse("s", "SELECT 1")])).await;
    let before = pooler.memory_bytes();
    fill(&mut client, &sync().repeat(20_000)).await;
    let grown = pooler.memory_peak_bytes().saturating_sub(before);
    assert!(grown < 8_000_000, "grew by {grown} bytes for one client");
}

// ---- limits of time ----

async fn is_let_alone(client: &mut Raw) {
    let said = client.hears_within(Duration::from_millis(350)).await;
    assert!(!said, "it is told: {}", client.rest().await);
    client.query("SELECT 'here'").await.is("T D(here) C Z(I)");
}

#[tokio::test]
async fn client_idle_timeout_does_not_hit_a_busy_client() {
    for mode in ["session", "transaction"] {
        let pooler = Pooler::config().mode(mode).setting("client_idle_timeout", "0.7").start().await;
        let mut client = pooler.client().await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1800) {
            is_let_alone(&mut client).await;
        }
        // One query that lasts longer than the limit, and one such transaction.
        client.query("SELECT pg_sleep(1.2)").await.is("T D() C Z(I)");
        is_let_alone(&mut client).await;
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        for _ in 0..4 {
            client.query("SELECT pg_sleep(0.3)").await.is("T D() C Z(T)");
        }
        client.query("COMMIT").await.is("C(COMMIT) Z(I)");
        is_let_alone(&mut client).await;
        // Silence inside a transaction is another limit's.
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        let said = client.hears_within(Duration::from_millis(1200)).await;
        assert!(!said, "{}", client.rest().await);
        client.query("COMMIT").await.is("C(COMMIT) Z(I)");
        is_let_alone(&mut client).await;
    }
}

#[tokio::test]
async fn transaction_timeout_does_not_count_the_silence_before_begin() {
    for mode in ["session", "transaction"] {
        let pooler = Pooler::config().mode(mode).setting("transaction_timeout", "0.8").start().await;
        let mut client = pooler.client().await;
        client.query("SELECT 1").await.is("T D(1) C Z(I)");
        assert!(!client.hears_within(Duration::from_millis(1200)).await);
        client.query("BEGIN").await.is("C(BEGIN) Z(T)");
        assert!(!client.hears_within(Duration::from_millis(350)).await);
        client.query("COMMIT").await.is("C(COMMIT) Z(I)");
        assert!(!client.hears_within(Duration::from_millis(1200)).await);
        let batch = run_of([extended("BEGIN", &[]), sync()]);
        client.ask(batch).await.is("1 2 n C(BEGIN) Z(T)");
        assert!(!client.hears_within(Duration::from_millis(350)).await);
        let reply = client.rest().await;
        reply.is("E(08P01) EOF");
        assert_eq!(reply.messages[0].field(b'M'), "transaction timeout");
        pooler.is_clean().await;
    }
}

#[tokio::test]
async fn idle_transaction_timeout_counts_with_an_open_batch_too() {
    for mode in ["session", "transaction"] {
        for (begun, answer) in [
            (parse("", "SELECT 1"), "1"),
            (extended("SELECT 1", &[]), "1 2 T D(1) C(SELECT 1)"),
            (run_of([parse("", "SELEC 1")]), "E(42601)"),
        ] {
            let pooler = Pooler::config().mode(mode).setting("idle_transaction_timeout", "0.5").start().await;
            let mut client = pooler.client().await;
            client.send(run_of([begun, flush()])).await;
            let reply = client.rest().await;
            reply.is(&format!("{answer} E(08P01) EOF"));
            assert_eq!(reply.messages.last().unwrap().field(b'M'), "idle transaction timeout");
            pooler.is_clean().await;
        }
    }
}

#[tokio::test]
async fn idle_transaction_timeout_does_not_hit_a_client_that_only_flushes() {
    let pooler = Pooler::config().setting("idle_transaction_timeout", "0.7").start().await;
    let mut client = pooler.client().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1800) {
        client.ask_until(run_of([parse("", "SELECT 1"), flush()]), b'1').await.is("1");
        assert!(!client.hears_within(Duration::from_millis(250)).await);
    }
    client.ask(sync()).await.is("Z(I)");
}

#[tokio::test]
async fn a_batch_without_any_request_for_the_server_is_not_idle_in_a_transaction() {
    let pooler = Pooler::config().setting("idle_transaction_timeout", "0.3").start().await;
    let mut client = pooler.client().await;
    client.send(run_of([close_statement("none"), flush()])).await;
    client.until(b'3').await.is("3");
    assert!(!client.hears_within(Duration::from_millis(800)).await);
    client.ask(sync()).await.is("Z(I)");
}

#[tokio::test]
async fn a_servers_farewell_behind_its_last_answer_is_not_the_clients() {
    let complete = support::message::message(b'C', b"SELECT 1\0");
    let ready = support::message::message(b'Z', b"I");
    let farewell = support::message::message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
    // All in one write, as a server does that is terminated between its answer and the next question.
    let server = Impostor::answering(run_of([complete, ready, farewell]), true).await;
    let pooler = Pooler::config().server(server.address).start().await;
    let mut client = pooler.client().await;
    for _ in 0..3 {
        client.query("SELECT").await.is("C(SELECT 1) Z(I)");
    }
}
