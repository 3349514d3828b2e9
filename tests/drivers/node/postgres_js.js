// postgres.js through the pooler: it sends ahead in pipelines, describes first, and asks for unknown types.
"use strict";
const { Readable } = require("node:stream");
const { pipeline } = require("node:stream/promises");
const postgres = require("postgres");
const { check, checkRejects, connectionString, run } = require("./checks");

const connect = (max, options = {}) => postgres(connectionString, { max, onnotice: () => {}, ...options });

// Another client is in a transaction, with the server that was used last: all others get the next one.
const busy = (other, act) => other.begin(async (transaction) => void (await transaction`SELECT 1`, await act()));

async function pipelines(sql) {
  const work = [];
  for (let n = 0; n < 300; n += 1) {
    const query = sql`SELECT ${n}::int + 1 AS n, ${"é"}::text AS word`;
    work.push(query.then(([row]) => check(row, { n: n + 1, word: "é" }, "a pipeline")));
  }
  await Promise.all(work);
  const [good, bad] = [(n) => sql`SELECT ${n}::int AS n`, sql`SELECT 1 / ${0}::int AS n`];
  const mixed = [good(1), bad, good(3), sql`SELEKT`, good(5)];
  const results = await Promise.allSettled(mixed);
  check(
    results.map(({ value, reason }) => value?.[0].n ?? reason.code),
    [1, "22012", 3, "42601", 5],
    "errors in a pipeline",
  );
}

async function transactions(sql, other) {
  await sql`CREATE TABLE driver_postgres_js (n int PRIMARY KEY, word text)`;
  await sql.begin("isolation level repeatable read", async (transaction) => {
    await transaction`INSERT INTO driver_postgres_js ${transaction([{ n: 1, word: "a" }, { n: 2, word: "b" }])}`;
    const [{ count }] = await other`SELECT count(*)::int FROM driver_postgres_js`;
    check(count, 0, "what another client sees of an open transaction");
    await checkRejects(
      transaction.savepoint((savepoint) => savepoint`INSERT INTO driver_postgres_js VALUES (1, 'again')`),
      "23505",
      "an error in a savepoint",
    );
    // Sent together, with one answer each.
    await Promise.all([transaction`SELECT 1 AS n`, transaction`INSERT INTO driver_postgres_js VALUES (3, 'c')`]);
  });
  check((await other`SELECT n FROM driver_postgres_js ORDER BY n`).map(({ n }) => n), [1, 2, 3], "after commit");
  await checkRejects(
    sql.begin(async (transaction) => {
      await transaction`DELETE FROM driver_postgres_js`;
      await transaction`SELECT 1 / 0`;
    }),
    "22012",
    "an error in a transaction",
  );
  check((await other`SELECT count(*)::int FROM driver_postgres_js`)[0].count, 3, "after rollback");
}

async function cursorsAndCopy(sql) {
  let total = 0;
  for await (const rows of sql`SELECT n FROM generate_series(1, 1000) AS n`.cursor(70)) total += rows.length;
  check(total, 1000, "a cursor that suspends its portal");
  total = 0;
  await sql`SELECT n FROM generate_series(1, 1000) AS n`.cursor(70, (rows) => {
    total += rows.length;
    return total < 200 ? undefined : sql.CLOSE;
  });
  check(total, 210, "a cursor that is closed early");
  await sql`SELECT n FROM generate_series(1, 1000) AS n`.forEach(() => (total += 1));
  check(total, 1210, "rows as they come");
  const lines = Array.from({ length: 20000 }, (_, n) => `${n + 10}\tword ${n}\n`);
  await pipeline(Readable.from(lines), await sql`COPY driver_postgres_js FROM STDIN`.writable());
  const chunks = [];
  const out = await sql`COPY (SELECT * FROM driver_postgres_js WHERE n >= 10 ORDER BY n) TO STDOUT`.readable();
  for await (const chunk of out) chunks.push(chunk);
  check(Buffer.concat(chunks).toString() === lines.join(""), true, "COPY there and back");
}

async function types(sql) {
  const value = { key: [1, null, "é"] };
  const time = new Date(0);
  const [row] = await sql`SELECT ${sql.json(value)}::jsonb AS json, ${sql.array([1, 2])}::int[] AS list, ${time}::timestamptz AS time`;
  check(row, { json: value, list: [1, 2], time }, "types");
  const described = await sql`SELECT $1::int + length($2) AS n`.describe();
  check([described.types, described.columns.map(({ name }) => name)], [[23, 25], ["n"]], "a description");
  const several = await sql`SELECT 1 AS n; SELECT 2 AS n`.simple();
  check(several.map(([{ n }]) => n), [1, 2], "several statements");
}

async function cancel(sql, other) {
  const query = sql`SELECT pg_sleep(60)`;
  const waits = checkRejects(query, "57014", "a cancelled query");
  await new Promise((resolve) => setTimeout(resolve, 200));
  query.cancel();
  await waits;
  check((await sql`SELECT 4 AS n`)[0].n, 4, "after a cancel");
  check((await other`SELECT 5 AS n`)[0].n, 5, "another client after a cancel");
}

async function reserved(sql) {
  const connection = await sql.reserve();
  for (let n = 0; n < 5; n += 1) check((await connection`SELECT ${n}::int AS n`)[0].n, n, "a reserved connection");
  connection.release();
}

async function ordinary() {
  const [sql, other, one] = [connect(6), connect(1), connect(1, { prepare: false })];
  await pipelines(sql);
  await pipelines(one);
  await transactions(one, other);
  await cursorsAndCopy(sql);
  await types(sql);
  await cancel(one, other);
  await reserved(sql);
  await sql`DROP TABLE driver_postgres_js`;
  await Promise.all([sql, other, one].map((each) => each.end()));
}

async function sessionState() {
  const other = connect(1);
  // It sends these as parameters of the start.
  const limited = connect(1, { connection: { statement_timeout: 5000, search_path: "pg_catalog", geqo: "off" } });
  for (let n = 0; n < 3; n += 1) {
    await busy(other, async () => {
      check((await limited`SHOW statement_timeout`)[0].statement_timeout, "5s", "a parameter of the start");
      check((await limited`SHOW geqo`)[0].geqo, "off", "a parameter of the start");
    });
    check((await other`SHOW statement_timeout`)[0].statement_timeout, "0", "another client's");
  }
  await limited`SET statement_timeout = '6s'`;
  await busy(other, async () => check((await limited`SHOW statement_timeout`)[0].statement_timeout, "6s", "SET"));
  await limited.end();

  // A connection of its own for LISTEN.
  const sql = connect(1);
  let tell;
  const heard = new Promise((resolve) => (tell = resolve));
  const { unlisten } = await sql.listen("driver_postgres_js", tell);
  await other.notify("driver_postgres_js", "word");
  check(await heard, "word", "a notification");
  await unlisten();
  await sql.end();

  const first = connect(1);
  await first`CREATE TEMP TABLE driver_postgres_js_temp AS SELECT 3 AS n`;
  await busy(other, async () => {
    check((await first`SELECT n FROM driver_postgres_js_temp`)[0].n, 3, "a temporary table");
  });
  check((await first`SELECT pg_try_advisory_lock(14) AS got`)[0].got, true, "an advisory lock");
  check((await other`SELECT pg_try_advisory_lock(14) AS got`)[0].got, false, "the lock of another client");
  await busy(other, async () => {
    check((await first`SELECT pg_advisory_unlock(14) AS got`)[0].got, true, "it is given back");
  });
  await first.end();
  await other.end();
}

// Its statements are kept by their text; when a plan's result has changed, it prepares the next one anew.
async function schemaChange() {
  const [sql, other] = [connect(1), connect(1)];
  await sql`CREATE TABLE driver_postgres_js_plan AS SELECT 1 AS n`;
  const read = () => sql`SELECT * FROM driver_postgres_js_plan`.then(([row]) => ({ ...row }));
  for (let n = 0; n < 2; n += 1) {
    check(await read(), { n: 1 }, "a plan on the one server");
    await busy(other, async () => check(await read(), { n: 1 }, "a plan on the other server"));
  }
  await other`ALTER TABLE driver_postgres_js_plan ADD COLUMN word text DEFAULT 'new'`;
  for (let n = 0; n < 2; n += 1) {
    check(await read(), { n: 1, word: "new" }, "a plan whose result has changed");
    await busy(other, async () => check(await read(), { n: 1, word: "new" }, "the same on the other server"));
  }
  await Promise.all([sql.end(), other.end()]);
}

run({ "": ordinary, "session-state": sessionState, "schema-change": schemaChange });
