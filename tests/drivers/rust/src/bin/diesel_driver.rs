//! diesel over libpq through the pooler: statements that it caches by name, its r2d2 pool, transactions, cursors,
//! COPY, migrations.

use std::path::Path;
use std::thread;

use diesel::connection::{DefaultLoadingMode, LoadConnection, SimpleConnection};
use diesel::pg::PgRowByRowLoadingMode;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Double, Integer, Nullable, Text};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use pgweir_driver_tests::{check, done, dsn, part};

diesel::table! {
    driver_diesel (id) {
        id -> Integer,
        word -> Text,
        tags -> Array<Text>,
        note -> Nullable<Text>,
    }
}

#[derive(QueryableByName)]
struct Shown {
    #[diesel(sql_type = Text)]
    value: String,
}

fn connect(more: &str) -> PgConnection {
    PgConnection::establish(&format!("{}{more}", dsn())).expect("a login")
}

fn show(connection: &mut PgConnection, name: &str) -> String {
    let rows = sql_query("SELECT current_setting($1) AS value")
        .bind::<Text, _>(name)
        .get_result::<Shown>(connection);
    rows.expect("a setting").value
}

/// Another client is in a transaction, with the server that was used last: all others get the next one.
fn busy<T>(other: &mut PgConnection, act: impl FnOnce() -> T) -> T {
    other
        .transaction(|other| {
            other.batch_execute("SELECT 1")?;
            Ok::<_, Error>(act())
        })
        .expect("a transaction")
}

fn migrations(connection: &mut PgConnection) {
    let all = FileBasedMigrations::from_path(Path::new("rust/migrations/diesel"))
        .expect("they are in their folder");
    for _ in 0..2 {
        check(
            connection.run_pending_migrations(all.clone()).map(|run| run.len()).ok(),
            Some(2),
            "migrations",
        );
        check(
            connection.revert_all_migrations(all.clone()).map(|run| run.len()).ok(),
            Some(2),
            "the way back",
        );
    }
    check(connection.run_pending_migrations(all).is_ok(), true, "migrations again");
}

fn statements(pool: &Pool<ConnectionManager<PgConnection>>) {
    use self::driver_diesel::dsl::*;
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let pool = pool.clone();
            thread::spawn(move || {
                for repeat in 0..20 {
                    let mut connection = pool.get().expect("a connection");
                    let mine = format!("{number} {repeat}");
                    let row = (word.eq(&mine), tags.eq(vec!["a", "b,c", "\""]));
                    diesel::insert_into(driver_diesel)
                        .values(row)
                        .execute(&mut connection)
                        .expect("an insert");
                    let found: Vec<(String, Vec<String>)> = driver_diesel
                        .select((word, tags))
                        .filter(word.eq(&mine))
                        .load(&mut connection)
                        .expect("a row");
                    check(
                        found,
                        vec![(mine, vec!["a".into(), "b,c".into(), "\"".into()])],
                        "a cached statement",
                    );
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("a thread");
    }
}

fn transactions(first: &mut PgConnection, second: &mut PgConnection) {
    use self::driver_diesel::dsl::*;
    let insert = |connection: &mut PgConnection| {
        diesel::insert_into(driver_diesel).values(word.eq("outer")).execute(connection)
    };
    let outer = first.build_transaction().repeatable_read().run(|first| {
        insert(first)?;
        let seen: i64 = driver_diesel.filter(word.eq("outer")).count().get_result(second)?;
        check(seen, 0, "what another client sees of it");
        let inner = first.transaction(insert);
        let is_duplicate = matches!(inner, Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)));
        check(is_duplicate, true, "an error in a savepoint");
        first.batch_execute("SET LOCAL statement_timeout = 100")?;
        let slow = first.transaction(|first| first.batch_execute("SELECT pg_sleep(60)"));
        check(slow.is_err(), true, "a statement_timeout");
        check(show(first, "transaction_isolation").as_str(), "repeatable read", "behind the savepoint");
        Ok::<_, Error>(())
    });
    check(outer, Ok(()), "a transaction");
    check(show(first, "statement_timeout").as_str(), "0", "after SET LOCAL");
    let seen: i64 = driver_diesel.filter(word.eq("outer")).count().get_result(second).expect("a count");
    check(seen, 1, "after commit");
    let moved = busy(second, || driver_diesel.filter(word.eq("outer")).count().get_result::<i64>(first));
    check(moved, Ok(1), "a cached statement on the other server");
    let lost = first.transaction(|first| {
        diesel::delete(driver_diesel).execute(first)?;
        sql_query("SELECT 1 / 0").execute(first)
    });
    check(lost.is_err(), true, "an error in a transaction");
}

fn streams(connection: &mut PgConnection) {
    let numbers = || sql_query("SELECT n::text AS value FROM generate_series(1, 3000) AS n");
    let rows = LoadConnection::<PgRowByRowLoadingMode>::load(connection, numbers()).expect("rows").count();
    check(rows, 3000, "row by row");
    let rows = LoadConnection::<DefaultLoadingMode>::load(connection, numbers()).expect("rows").count();
    check(rows, 3000, "all at once");
    let lines: String = (0..20_000).map(|n| format!("copied {n}\tnote\n")).collect();
    let copied = diesel::copy_from(driver_diesel::table)
        .from_raw_data((driver_diesel::word, driver_diesel::note), |to| {
            to.write_all(lines.as_bytes()).map_err(|error| Error::SerializationError(error.into()))
        })
        .execute(connection);
    check(copied, Ok(20_000), "COPY in");
    let out = diesel::copy_to(driver_diesel::table).load_raw(connection);
    let text = std::io::read_to_string(out.expect("COPY out")).expect("COPY out");
    check(text.matches("copied ").count(), 20_000, "COPY out");
}

fn types(connection: &mut PgConnection) {
    #[derive(QueryableByName, Debug, PartialEq)]
    struct All {
        #[diesel(sql_type = Array<Nullable<Integer>>)]
        a: Vec<Option<i32>>,
        #[diesel(sql_type = Binary)]
        b: Vec<u8>,
        #[diesel(sql_type = Bool)]
        c: bool,
        #[diesel(sql_type = BigInt)]
        d: i64,
        #[diesel(sql_type = Nullable<Text>)]
        e: Option<String>,
        #[diesel(sql_type = Double)]
        f: f64,
    }
    for _ in 0..3 {
        let expected = All { a: vec![Some(1), None], b: vec![0, 255], c: true, d: i64::MAX, e: None, f: 0.1 };
        let query = sql_query("SELECT $1 AS a, $2 AS b, $3 AS c, $4 AS d, $5 AS e, $6 AS f")
            .bind::<Array<Nullable<Integer>>, _>(expected.a.clone())
            .bind::<Binary, _>(expected.b.clone())
            .bind::<Bool, _>(expected.c)
            .bind::<BigInt, _>(expected.d)
            .bind::<Nullable<Text>, _>(expected.e.clone())
            .bind::<Double, _>(expected.f);
        check(query.get_result::<All>(connection), Ok(expected), "types");
    }
}

fn ordinary() {
    let (mut first, mut second) = (connect(""), connect(""));
    migrations(&mut first);
    let pool = Pool::builder().max_size(6).build(ConnectionManager::new(dsn())).expect("a pool");
    statements(&pool);
    transactions(&mut first, &mut second);
    streams(&mut first);
    types(&mut second);
    first.batch_execute("DROP TABLE driver_diesel; DROP TABLE __diesel_schema_migrations").expect("the end");
}

fn session_state() {
    let mut second = connect("");
    let mut first = connect("?options=-c%20statement_timeout%3D5s%20-c%20geqo%3Doff");
    for _ in 0..3 {
        let timeout = busy(&mut second, || show(&mut first, "statement_timeout"));
        check(timeout.as_str(), "5s", "an option of the start");
        check(show(&mut first, "geqo").as_str(), "off", "an option of the start");
        check(show(&mut second, "geqo").as_str(), "on", "another client's");
    }
    first.batch_execute("SET statement_timeout = '6s'; SET lock_timeout = 4000").expect("SET");
    for _ in 0..3 {
        let timeout = busy(&mut second, || show(&mut first, "statement_timeout"));
        check(timeout.as_str(), "6s", "SET on the other server");
        check(show(&mut first, "lock_timeout").as_str(), "4s", "SET on the one server");
        check(show(&mut second, "lock_timeout").as_str(), "0", "another client's");
    }
    first.batch_execute("CREATE TEMP TABLE driver_diesel_temp AS SELECT 'three' AS value").expect("a table");
    let read = busy(&mut second, || sql_query("TABLE driver_diesel_temp").get_result::<Shown>(&mut first));
    check(read.map(|row| row.value), Ok("three".to_owned()), "a temporary table");
    let take = || sql_query("SELECT pg_try_advisory_lock(17)::text AS value");
    check(take().get_result::<Shown>(&mut first).map(|row| row.value), Ok("true".into()), "an advisory lock");
    check(
        take().get_result::<Shown>(&mut second).map(|row| row.value),
        Ok("false".into()),
        "the lock of another",
    );
    drop(first);
    second
        .batch_execute("SET lock_timeout = '5s'; SELECT pg_advisory_lock(17)")
        .expect("the lock of one that has gone");
}

fn main() {
    match part().as_str() {
        "" => ordinary(),
        "session-state" => session_state(),
        other => panic!("no part {other}"),
    }
    done();
}
