//! sqlx through the pooler: its cache of statements, its pool, transactions, COPY, LISTEN, and migrations under
//! an advisory lock.

use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::{join_all, try_join_all};
use pgweir_driver_tests::{check, done, dsn, part};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolCopyExt, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

type Result<T = ()> = std::result::Result<T, sqlx::Error>;

fn options() -> PgConnectOptions {
    dsn().parse().expect("the test gives a good address")
}

/// Without what it asks for at the start: poolers used to refuse that.
fn plain() -> PgConnectOptions {
    options().extra_float_digits(None)
}

async fn pool(options: PgConnectOptions) -> Result<PgPool> {
    let pool = PgPoolOptions::new().max_connections(6).acquire_timeout(Duration::from_secs(20));
    pool.connect_with(options).await
}

async fn show(connection: &mut PgConnection, name: &str) -> Result<String> {
    sqlx::query_scalar(AssertSqlSafe(format!("SHOW {name}"))).fetch_one(connection).await
}

fn state<T>(result: Result<T>) -> Option<String> {
    Some(result.err()?.as_database_error()?.code()?.into_owned())
}

/// Another client is in a transaction, with the server that was used last: all others get the next one.
macro_rules! busy {
    ($other:expr, $act:expr) => {{
        let mut transaction = $other.begin().await?;
        transaction.execute("SELECT 1").await?;
        let result = $act;
        transaction.commit().await?;
        result
    }};
}

async fn statements(pool: &PgPool) -> Result {
    let clients = (0..12_i32).map(|number| async move {
        for repeat in 0..20_i32 {
            let sql = AssertSqlSafe(format!("SELECT $1 + {number}, $2"));
            let row = sqlx::query(sql).bind(repeat).bind("é").fetch_one(pool).await?;
            check(
                (row.get::<i32, _>(0), row.get::<&str, _>(1)),
                (repeat + number, "é"),
                "a cached statement",
            );
        }
        Ok::<_, sqlx::Error>(())
    });
    try_join_all(clients).await?;
    let mut one = PgConnection::connect_with(&plain().statement_cache_capacity(5)).await?;
    let mut other = PgConnection::connect_with(&plain()).await?;
    for repeat in 0..3_i32 {
        for number in 0..20_i32 {
            let sql = AssertSqlSafe(format!("SELECT $1 * {number}"));
            let got: i32 = sqlx::query_scalar(sql).bind(repeat).fetch_one(&mut one).await?;
            check(got, repeat * number, "a statement that comes back after its eviction");
        }
        let moved = busy!(other, sqlx::query_scalar("SELECT $1 + 1").bind(repeat).fetch_one(&mut one).await?);
        check::<i32, _>(moved, repeat + 1, "a statement on the other server");
        let moved: i32 = sqlx::query_scalar("SELECT $1 + 1").bind(repeat).fetch_one(&mut one).await?;
        check(moved, repeat + 1, "the same on the one server");
    }
    one.close().await?;
    other.close().await
}

async fn transactions(pool: &PgPool) -> Result {
    let mut transaction = pool.begin().await?;
    sqlx::query("INSERT INTO driver_sqlx VALUES ($1, $2)")
        .bind(2000)
        .bind("x")
        .execute(&mut *transaction)
        .await?;
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM driver_sqlx").fetch_one(pool).await?;
    check(seen, 1000, "what another client sees of it");
    let mut savepoint = transaction.begin().await?;
    let again = sqlx::query("INSERT INTO driver_sqlx VALUES ($1, $2)").bind(2000).bind("again");
    check(state(again.execute(&mut *savepoint).await).as_deref(), Some("23505"), "an error in a savepoint");
    check(state(savepoint.execute("SELECT 1").await).as_deref(), Some("25P02"), "behind the error");
    savepoint.rollback().await?;
    transaction.execute("SET LOCAL statement_timeout = 100").await?;
    let savepoint = transaction.begin().await?;
    drop(savepoint);
    check(show(&mut transaction, "statement_timeout").await?.as_str(), "100ms", "SET LOCAL");
    transaction.commit().await?;
    let mut dropped = pool.begin().await?;
    dropped.execute("DELETE FROM driver_sqlx").await?;
    // Its ROLLBACK is sent with whatever comes next.
    drop(dropped);
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM driver_sqlx").fetch_one(pool).await?;
    check(left, 1001, "after a transaction that was dropped");
    let stream = sqlx::query_scalar::<_, i32>("SELECT n FROM driver_sqlx ORDER BY n").fetch(pool);
    check(stream.try_collect::<Vec<_>>().await?.len(), 1001, "a stream of rows");
    Ok(())
}

async fn copy(pool: &PgPool) -> Result {
    let lines: String = (10_000..30_000).map(|n| format!("{n}\tword {n}\n")).collect();
    let mut sink = pool.copy_in_raw("COPY driver_sqlx FROM STDIN").await?;
    sink.send(lines.as_bytes()).await?;
    check(sink.finish().await?, 20_000, "COPY in");
    let out =
        pool.copy_out_raw("COPY (SELECT * FROM driver_sqlx WHERE n >= 10000 ORDER BY n) TO STDOUT").await?;
    let out: Vec<_> = out.try_collect().await?;
    check(out.concat() == lines.as_bytes(), true, "COPY there and back");
    let sink = pool.copy_in_raw("COPY driver_sqlx FROM STDIN").await?;
    sink.abort("the application gives up").await?;
    check(pool.fetch_one("SELECT 1").await?.get::<i32, _>(0), 1, "after a COPY that was given up");
    Ok(())
}

async fn types(pool: &PgPool) -> Result {
    let sql = "SELECT $1, $2, $3, $4, $5, $6::float8";
    for _ in 0..3 {
        let query = sqlx::query(sql).bind(vec![Some(1_i32), None]).bind(&b"\x00\xff"[..]).bind(true);
        let row = query.bind(i64::MAX).bind(None::<String>).bind(0.1_f64).fetch_one(pool).await?;
        check(row.get::<Vec<Option<i32>>, _>(0), vec![Some(1), None], "an array");
        check(row.get::<Vec<u8>, _>(1), b"\x00\xff".to_vec(), "bytea");
        check((row.get::<bool, _>(2), row.get::<i64, _>(3)), (true, i64::MAX), "bool and int8");
        check(row.get::<Option<String>, _>(4), None, "NULL");
        check(row.get::<f64, _>(5), 0.1, "float8");
    }
    // Several statements in one simple query.
    let rows = sqlx::raw_sql("SELECT 1; SELECT 2; SELECT 3").fetch_all(pool).await?;
    check(
        rows.iter().map(|row| row.get::<i32, _>(0)).collect::<Vec<_>>(),
        vec![1, 2, 3],
        "several statements",
    );
    Ok(())
}

async fn migrator() -> Migrator {
    let folder = Path::new("rust/migrations/sqlx");
    Migrator::new(folder).await.expect("the migrations are in their folder")
}

async fn ordinary() -> Result {
    let pool = pool(plain()).await?;
    let mut migrator = migrator().await;
    migrator.set_locking(false);
    migrator.run(&pool).await.expect("the migrations are good");
    migrator.undo(&pool, 0).await.expect("the way back is good");
    migrator.run(&pool).await.expect("the migrations are good");
    statements(&pool).await?;
    transactions(&pool).await?;
    copy(&pool).await?;
    types(&pool).await?;
    migrator.undo(&pool, 0).await.expect("the way back is good");
    pool.close().await;
    Ok(())
}

/// Several replicas of an application start at once; each migrates, one after the other.
async fn migrations() -> Result {
    let options = options();
    let connections = try_join_all((0..4).map(|_| PgConnection::connect_with(&options))).await?;
    let migrator = &migrator().await;
    let runs = connections.into_iter().map(|mut connection| async move {
        let result = migrator.run(&mut connection).await;
        connection.close().await.expect("a good end");
        result
    });
    for result in join_all(runs).await {
        check(result.is_ok(), true, &format!("one of four migrations at once: {result:?}"));
    }
    let mut one = PgConnection::connect_with(&options).await?;
    let held = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                WHERE locktype = 'advisory' AND datname = current_database()";
    check(
        sqlx::query_scalar::<_, i64>(held).fetch_one(&mut one).await?,
        0,
        "locks that nobody has given back",
    );
    one.close().await
}

async fn session_state() -> Result {
    migrations().await?;
    let mut second = PgConnection::connect_with(&options()).await?;
    let limited = options().options([("statement_timeout", "5s"), ("geqo", "off")]);
    let mut first = PgConnection::connect_with(&limited).await?;
    for _ in 0..3 {
        let timeout = busy!(second, show(&mut first, "statement_timeout").await?);
        check(timeout.as_str(), "5s", "an option of the start");
        check(show(&mut first, "geqo").await?.as_str(), "off", "an option of the start");
        check(show(&mut second, "geqo").await?.as_str(), "on", "another client's");
    }
    first.execute("SET statement_timeout = '6s'").await?;
    let timeout = busy!(second, show(&mut first, "statement_timeout").await?);
    check(timeout.as_str(), "6s", "SET on the other server");
    first.close().await?;

    let pool = PgPoolOptions::new().max_connections(6).after_connect(|connection, _| {
        Box::pin(async move { connection.execute("SET lock_timeout = '3s'").await.map(drop) })
    });
    let pool = pool.connect_with(options()).await?;
    let clients = (0..30).map(|_| async {
        let mut transaction = pool.begin().await?;
        check(
            show(&mut transaction, "lock_timeout").await?.as_str(),
            "3s",
            "what the pool sets behind each login",
        );
        transaction.commit().await
    });
    try_join_all(clients).await?;
    check(show(&mut second, "lock_timeout").await?.as_str(), "0", "another client's");
    pool.close().await;

    let mut listener = PgListener::connect_with(&PgPoolOptions::new().connect_lazy_with(options())).await?;
    listener.listen("driver_sqlx").await?;
    for word in ["one", "two"] {
        sqlx::query("SELECT pg_notify('driver_sqlx', $1)").bind(word).execute(&mut second).await?;
        let heard =
            tokio::time::timeout(Duration::from_secs(5), listener.recv()).await.expect("a notification");
        check(heard?.payload(), word, "a notification");
    }
    drop(listener);

    let mut first = PgConnection::connect_with(&options()).await?;
    busy!(second, first.execute("CREATE TEMP TABLE driver_sqlx_temp AS SELECT 3 AS n").await?);
    let row = busy!(second, first.fetch_one("SELECT n FROM driver_sqlx_temp").await?);
    check(row.get::<i32, _>(0), 3, "a temporary table");
    first.close().await?;
    second.close().await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    match part().as_str() {
        "" => ordinary().await?,
        "session-state" => session_state().await?,
        other => panic!("no part {other}"),
    }
    done();
    Ok(())
}
