// node-postgres through the pooler: its pool, named statements, transactions, cursors, errors.
"use strict";
const assert = require("node:assert/strict");
const { Client, Pool } = require("pg");
const Cursor = require("pg-cursor");

const connectionString = process.env.PGWEIR_DSN;
let checks = 0;

function check(got, expected, what) {
  checks += 1;
  assert.deepEqual(got, expected, what);
}

async function checkRejects(promise, code, what) {
  checks += 1;
  await assert.rejects(promise, { code }, what);
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

async function main() {
  await namedStatements();
  const clients = [new Client({ connectionString }), new Client({ connectionString })];
  await Promise.all(clients.map((client) => client.connect()));
  await transactions(...clients);
  await cursors(clients[0]);
  await largeResult(clients[1]);
  await clients[0].query("DROP TABLE driver_node");
  await Promise.all(clients.map((client) => client.end()));
  console.log(`ok ${checks} checks`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
