// node-postgres through the pooler: its pool, named statements, transactions, cursors, streams, COPY, errors.
"use strict";
const { once } = require("node:events");
const { Readable } = require("node:stream");
const { pipeline } = require("node:stream/promises");
const { Client, Pool } = require("pg");
const copyStreams = require("pg-copy-streams");
const Cursor = require("pg-cursor");
const QueryStream = require("pg-query-stream");
const { check, checkRejects, connectionString, run } = require("./checks");

async function connect(count, options = {}) {
  const clients = Array.from({ length: count }, () => new Client({ connectionString, ...options }));
  await Promise.all(clients.map((client) => client.connect()));
  return clients;
}

// Another client is in a transaction, with the server that was used last: all others get the next one.
async function busy(other, act) {
  await other.query("BEGIN");
  await act();
  await other.query("COMMIT");
}

async function value(client, text, values) {
  return Object.values((await client.query(text, values)).rows[0])[0];
}

// Every client of the pool uses the same names; half of them mean something else by them.
async function namedStatements() {
  const pools = ["+", "*"].map((operator) => [operator, new Pool({ connectionString, max: 4 })]);
  const work = [];
  for (let n = 0; n < 200; n += 1) {
    for (const [operator, pool] of pools) {
      const text = `SELECT $1::int ${operator} 2 AS n`;
      const expected = operator === "+" ? n + 2 : n * 2;
      work.push(
        pool.query({ name: "calculate", text, values: [n] }).then(({ rows }) => check(rows, [{ n: expected }], text)),
      );
    }
  }
  await Promise.all(work);
  for (const [, pool] of pools) await pool.end();
}

async function transactions(client, other) {
  await client.query("CREATE TABLE driver_node (n int PRIMARY KEY)");
  await client.query("BEGIN");
  await client.query("INSERT INTO driver_node SELECT generate_series(1, $1::int)", [1000]);
  const count = async (by) => (await by.query("SELECT count(*)::int AS n FROM driver_node")).rows[0].n;
  check(await count(other), 0, "what another client sees of an open transaction");
  await client.query("COMMIT");
  check(await count(other), 1000, "what another client sees after commit");
  await checkRejects(client.query("INSERT INTO driver_node VALUES ($1)", [1]), "23505", "an error");
  await checkRejects(client.query("SELECT 1; SELECT 1 / 0; SELECT 2"), "22012", "several statements");
  check(await count(client), 1000, "after an error");
}

async function cursors(client) {
  await client.query("BEGIN");
  const cursor = client.query(new Cursor("SELECT n FROM driver_node ORDER BY n"));
  let rows;
  let total = 0;
  while ((rows = await cursor.read(99)).length > 0) total += rows.length;
  await cursor.close();
  await client.query("COMMIT");
  check(total, 1000, "a cursor that suspends its portal");
}

async function largeResult(client) {
  const { rows } = await client.query("SELECT repeat('z', 5000000) AS text");
  check(rows[0].text.length, 5000000, "a large value");
  const many = await client.query("SELECT n FROM generate_series(1, 50000) AS n");
  check(many.rows.at(-1).n, 50000, "many rows");
}

async function movedStatements(client, other) {
  const query = { name: "moved", text: "SELECT $1::int + 1 AS n" };
  for (let n = 0; n < 5; n += 1) {
    check((await client.query({ ...query, values: [n] })).rows, [{ n: n + 1 }], "on the one server");
    await busy(other, async () => {
      check((await client.query({ ...query, values: [n] })).rows, [{ n: n + 1 }], "on the other server");
    });
  }
}

async function streams(client) {
  let rows = 0;
  const text = "SELECT n FROM generate_series(1, $1::int) AS n";
  const stream = client.query(new QueryStream(text, [5000], { batchSize: 77 }));
  for await (const row of stream) rows += row.n > 0 ? 1 : 0;
  check(rows, 5000, "a stream in batches");
  const lines = Array.from({ length: 20000 }, (_, n) => `${n + 10000}\n`);
  await pipeline(Readable.from(lines), client.query(copyStreams.from("COPY driver_node FROM STDIN")));
  const chunks = [];
  const out = client.query(copyStreams.to("COPY (SELECT n FROM driver_node WHERE n >= 10000 ORDER BY n) TO STDOUT"));
  for await (const chunk of out) chunks.push(chunk);
  check(Buffer.concat(chunks).toString() === lines.join(""), true, "COPY there and back");
}

async function savepoints(client, other) {
  await client.query("BEGIN ISOLATION LEVEL REPEATABLE READ");
  await client.query("SET LOCAL statement_timeout = 200");
  await client.query("SAVEPOINT before");
  await checkRejects(client.query("SELECT pg_sleep($1)", [60]), "57014", "a statement_timeout");
  await checkRejects(client.query("SELECT 1"), "25P02", "behind an error");
  await client.query("ROLLBACK TO before");
  check(await value(client, "SHOW transaction_isolation"), "repeatable read", "behind the savepoint");
  check(await value(other, "SHOW statement_timeout"), "0", "another client's");
  await client.query("COMMIT");
  check(await value(client, "SHOW statement_timeout"), "0", "after SET LOCAL");
}

async function types(client) {
  const date = new Date(Date.UTC(2024, 1, 29, 23, 59, 59, 999));
  const values = ["9007199254740993", Buffer.from([0, 255]), date, { key: [1, null] }, ["a,b", null, '"'], null];
  const sqlTypes = ["int8", "bytea", "timestamptz", "jsonb", "text[]", "int"];
  const columns = sqlTypes.map((sqlType, n) => `$${n + 1}::${sqlType} AS c${n}`);
  const { rows } = await client.query(`SELECT ${columns.join(", ")}`, values);
  check(Object.values(rows[0]), values, "types");
}

async function ordinary() {
  await namedStatements();
  const clients = await connect(3);
  await transactions(clients[0], clients[1]);
  await cursors(clients[0]);
  await largeResult(clients[1]);
  await movedStatements(clients[0], clients[1]);
  await streams(clients[2]);
  await savepoints(clients[1], clients[2]);
  await types(clients[2]);
  await clients[0].query("DROP TABLE driver_node");
  await Promise.all(clients.map((client) => client.end()));
}

async function sessionState() {
  const [second] = await connect(1);
  // These it sends as parameters of the start.
  const [limited] = await connect(1, { statement_timeout: 5000, lock_timeout: 4000, options: "-c geqo=off" });
  for (let n = 0; n < 3; n += 1) {
    await busy(second, async () => {
      check(await value(limited, "SHOW statement_timeout"), "5s", "a parameter of the start");
      check(await value(limited, "SHOW geqo"), "off", "an option of the start");
    });
    check(await value(second, "SHOW lock_timeout"), "0", "another client's");
  }
  await limited.end();

  const onConnect = (client) => client.query("SET search_path = driver_node_side, public; SET geqo = off");
  const pool = new Pool({ connectionString, max: 6, onConnect });
  await second.query("CREATE SCHEMA driver_node_side; CREATE TABLE driver_node_side.hidden AS SELECT 7 AS n");
  const work = Array.from({ length: 60 }, async () => {
    check(await value(pool, "SELECT n FROM hidden"), 7, "what a pool sets behind each login");
  });
  await Promise.all(work);
  await checkRejects(second.query("SELECT n FROM hidden"), "42P01", "another client's search_path");
  await pool.end();

  const [first] = await connect(1);
  await first.query("LISTEN driver_node");
  const heard = once(first, "notification");
  await busy(second, () => first.query("SELECT 1"));
  await second.query("NOTIFY driver_node, 'word'");
  check((await heard)[0].payload, "word", "a notification");
  check(await value(first, "SELECT pg_try_advisory_lock(13)"), true, "an advisory lock");
  check(await value(second, "SELECT pg_try_advisory_lock(13)"), false, "the lock of another client");
  await busy(second, async () => {
    check(await value(first, "SELECT pg_advisory_unlock(13)"), true, "the lock is given back");
    await first.query("CREATE TEMP TABLE driver_node_temp AS SELECT 3 AS n");
  });
  check(await value(first, "SELECT n FROM driver_node_temp"), 3, "a temporary table");
  await first.end();
  await second.end();
}

run({ "": ordinary, "session-state": sessionState });
