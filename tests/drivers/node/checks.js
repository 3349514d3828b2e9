// What the scripts have in common; see ../checks.py for their parts.
"use strict";
const assert = require("node:assert/strict");

let checks = 0;

function check(got, expected, what) {
  checks += 1;
  assert.deepEqual(got, expected, what);
}

async function checkRejects(promise, code, what) {
  checks += 1;
  await assert.rejects(promise, (error) => (error.parent ?? error).code === code || assert.fail(`${what}: ${error}`));
}

// Runs the part that the command line names.
function run(parts) {
  parts[process.argv[2] ?? ""]().then(
    () => console.log(`ok ${checks} checks`),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
}

module.exports = { check, checkRejects, run, connectionString: process.env.PGWEIR_DSN };
