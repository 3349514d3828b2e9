//! [`Author`]: writes random scripts, the same ones from the same seed.
//!
//! Start with [`WEIGHTS`]: what a script is made of, and how often.

use super::known;
use super::script::{Request, Script, Step, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;

/// What one stretch of a script does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Simple,
    Several,
    Empty,
    Failing,
    Transaction,
    Unnamed,
    Named,
    Pipeline,
    Flushed,
    Portals,
    QueryInBatch,
    CopyIn,
    CopyOut,
    FunctionCall,
    Cursor,
    SetLocal,
    SetTracked,
    DropStatements,
    DiscardAll,
    /// From here on they need session state to follow the client.
    Set,
    SetConfig,
    RolledBackSet,
    Role,
    SearchPath,
    SqlPrepare,
    TemporaryTable,
    AdvisoryLock,
    HoldableCursor,
    Listen,
    SequenceState,
}

/// Whether session state is expected to follow the client in transaction mode.
pub const STATE: bool = true;

const fn if_state(weight: u32) -> u32 {
    if STATE { weight } else { 0 }
}

/// How often each kind is taken, out of the sum of all. 0 switches it off.
const WEIGHTS: &[(Kind, u32)] = &[
    (Kind::Simple, 8),
    (Kind::Several, 6),
    (Kind::Empty, 2),
    (Kind::Failing, 4),
    (Kind::Transaction, 14),
    (Kind::Unnamed, 8),
    (Kind::Named, 12),
    (Kind::Pipeline, 12),
    (Kind::Flushed, 6),
    (Kind::Portals, 5),
    (Kind::QueryInBatch, 2),
    (Kind::CopyIn, 7),
    (Kind::CopyOut, 3),
    (Kind::FunctionCall, 3),
    (Kind::Cursor, 3),
    (Kind::SetLocal, 3),
    (Kind::SetTracked, 4),
    (Kind::DropStatements, 2),
    (Kind::DiscardAll, 1),
    (Kind::Set, if_state(12)),
    (Kind::SetConfig, if_state(5)),
    (Kind::RolledBackSet, if_state(6)),
    (Kind::Role, if_state(4)),
    (Kind::SearchPath, if_state(5)),
    (Kind::SqlPrepare, if_state(6)),
    (Kind::TemporaryTable, if_state(4)),
    (Kind::AdvisoryLock, if_state(4)),
    (Kind::HoldableCursor, if_state(3)),
    (Kind::Listen, if_state(3)),
    // currval answers from its first use on, which docs/transaction-mode.md says.
    (Kind::SequenceState, 0),
];

/// Settings and values that can be told apart.
const SETTINGS: &[(&str, &[&str])] = &[
    ("statement_timeout", &["'50s'", "60000", "0"]),
    ("work_mem", &["'5MB'", "'6MB'", "'4MB'"]),
    ("enable_seqscan", &["on", "off", "false"]),
    ("lock_timeout", &["'51s'", "0"]),
    ("bytea_output", &["'hex'", "escape"]),
    ("extra_float_digits", &["0", "1", "3"]),
    ("client_min_messages", &["notice", "warning"]),
    ("default_transaction_isolation", &["'serializable'", "'read committed'"]),
    ("default_transaction_read_only", &["on", "off"]),
    ("app.x", &["'one'", "'two words'", "'it''s'", "''", "E'back\\\\slash'"]),
    ("app.\"Y\"", &["'one'", "two"]),
];

const TRACKED: &[(&str, &[&str])] = &[
    ("application_name", &["'one'", "'it''s'", "''"]),
    ("DateStyle", &["'ISO, DMY'", "'German'", "ISO", "'SQL, MDY'"]),
    ("TimeZone", &["'Europe/Berlin'", "'UTC'", "'America/New_York'"]),
    ("IntervalStyle", &["'postgres'", "'iso_8601'"]),
    ("standard_conforming_strings", &["on", "off"]),
];

/// Queries with parameters: the text, and the types of the parameters (`i` is int4, `t` is text).
const PARAMETRIZED: &[(&str, &str)] = &[
    ("SELECT $1::int + $2::int", "ii"),
    ("SELECT $1::text, $2::text", "tt"),
    ("SELECT n, word FROM items WHERE n >= $1 ORDER BY n", "i"),
    ("SELECT generate_series(1, $1::int)", "i"),
    ("SELECT 1/$1::int", "i"),
    ("SELECT 1/(n-2), $1::text FROM items ORDER BY n", "t"),
    ("INSERT INTO items VALUES ($1, $2)", "it"),
    ("INSERT INTO items VALUES ($1, $2) RETURNING word, n", "it"),
    ("UPDATE items SET word = $2 WHERE n = $1", "it"),
    ("DELETE FROM items WHERE n = $1 RETURNING *", "i"),
    ("SELECT noisy($1)", "t"),
];

const READING: &[&str] = &[
    "SELECT id, word FROM t ORDER BY id",
    "SELECT n, word FROM items ORDER BY n",
    "SELECT count(*) FROM items",
    "SELECT generate_series(1, 30)",
    "VALUES (1, 'a'), (2, NULL)",
    "SELECT 'x'::text, NULL::int, true, 1.50::numeric, '\\xdead'::bytea, ARRAY[1,2], 0.1::float8",
    "SELECT repeat('x', 3000) FROM generate_series(1, 9)",
    "SELECT repeat('y', 70000)",
    "SELECT current_user, session_user",
    "SELECT noisy('hello')",
    "EXPLAIN (COSTS OFF) SELECT * FROM items",
    "SHOW server_version",
    "SELECT",
    "SELECT '1/2/2026'::date - '2026-01-01'::date",
    "SELECT extract(epoch FROM '2026-07-01 12:00'::timestamptz)",
    "SELECT '2026-02-01'::date, '1 day 2 hours'::interval, timestamptz '2026-02-01 12:00 UTC'",
];

const WRITING: &[&str] = &[
    "INSERT INTO log VALUES ('x') RETURNING word",
    "INSERT INTO items SELECT n + 10, 'more' FROM items",
    "UPDATE items SET word = coalesce(word, '') || '!'",
    "DELETE FROM items WHERE n > 3",
    "INSERT INTO child VALUES (1)",
    "INSERT INTO child VALUES (99)",
    "SELECT nextval('numbers')",
    "DO $$ BEGIN RAISE NOTICE 'done'; INSERT INTO log VALUES ('do'); END $$",
    "CREATE TABLE IF NOT EXISTS t (id int)",
];

const FAILING: &[&str] = &[
    "SELECT 1/0",
    "SELECT 'x'::int",
    "SELEC 1",
    "SELECT * FROM nowhere",
    "INSERT INTO items VALUES (1, 'double')",
    "SELECT 1/(n-3) FROM items ORDER BY n",
    "INSERT INTO log SELECT noisy('n'), 1/0",
    "SELECT $1",
    "CLOSE nothing",
    "SELECT 'open",
];

const BLOCK: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "END",
    "ABORT",
    "SAVEPOINT a",
    "SAVEPOINT b",
    "ROLLBACK TO a",
    "ROLLBACK TO SAVEPOINT b",
    "RELEASE a",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "SET TRANSACTION READ ONLY",
    "BEGIN; SELECT 1; COMMIT",
    "BEGIN; INSERT INTO log VALUES ('b'); SELECT 1/0",
    "COMMIT; SELECT 2",
    "COMMIT; BEGIN",
    "INSERT INTO log VALUES ('i'); COMMIT; SELECT 1/0",
];

const NAMES: &[&str] = &["s0", "s1", "s2"];

/// Writes one script.
pub struct Author {
    chance: StdRng,
    steps: Vec<Step>,
    /// The parameters of the statements that were prepared last under these names.
    statements: HashMap<String, &'static str>,
    /// The other client is in a transaction, and so keeps a server.
    other_holds: bool,
}

/// The script of this seed and number.
pub fn write(seed: u64, number: u64) -> Script {
    let chance = StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number);
    let author = Author { chance, steps: Vec::new(), statements: HashMap::new(), other_holds: false };
    author.script()
}

impl Author {
    fn script(mut self) -> Script {
        let mut script = Script::default();
        if STATE && self.one_in(4) {
            script.login = self.login();
        }
        let stretches = self.chance.random_range(2..9);
        for _ in 0..stretches {
            self.other();
            let kind = self.kind();
            self.stretch(kind);
        }
        if self.one_in(10) {
            self.query("INSERT INTO log VALUES ('last')");
            self.steps.last_mut().expect("just written").requests.push(Request::Terminate);
        }
        known::settle(&mut self.steps);
        self.cut();
        script.steps = self.steps;
        if known::resets_what_the_login_set(&script) {
            script.login.clear();
        }
        if known::notifies_and_unlistens(&script.steps) {
            script.steps.truncate(1);
        }
        script
    }

    fn stretch(&mut self, kind: Kind) {
        match kind {
            Kind::Simple => self.simple(),
            Kind::Several => self.several(),
            Kind::Empty => {
                let sql = self.pick(&["", ";", "  ", "-- nothing", "/* nothing */;", ";;"]);
                self.query(sql);
            }
            Kind::Failing => {
                let sql = self.pick(FAILING);
                self.query(sql);
            }
            Kind::Transaction => self.transaction(),
            Kind::Unnamed => self.unnamed(),
            Kind::Named => self.named(),
            Kind::Pipeline => self.pipeline(),
            Kind::Flushed => self.flushed(),
            Kind::Portals => self.portals(),
            Kind::QueryInBatch => self.query_in_batch(),
            Kind::CopyIn => self.copy_in(),
            Kind::CopyOut => self.copy_out(),
            Kind::FunctionCall => self.function_call(),
            Kind::Cursor => self.cursor(),
            Kind::SetLocal => self.set_local(),
            Kind::SetTracked => self.set(TRACKED),
            Kind::DropStatements => self.drop_statements(),
            Kind::DiscardAll => self.either_way("DISCARD ALL"),
            Kind::Set => self.set(SETTINGS),
            Kind::SetConfig => self.set_config(),
            Kind::RolledBackSet => self.rolled_back_set(),
            Kind::Role => self.role(),
            Kind::SearchPath => self.search_path(),
            Kind::SqlPrepare => self.sql_prepare(),
            Kind::TemporaryTable => self.temporary_table(),
            Kind::AdvisoryLock => self.advisory_lock(),
            Kind::HoldableCursor => self.holdable_cursor(),
            Kind::Listen => self.listen(),
            Kind::SequenceState => self.sequence_state(),
        }
    }

    fn kind(&mut self) -> Kind {
        let sum: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut left = self.chance.random_range(0..sum);
        for (kind, weight) in WEIGHTS {
            if left < *weight {
                return *kind;
            }
            left -= weight;
        }
        unreachable!("less than the sum was taken")
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.chance.random_ratio(1, times)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.chance.random_range(0..choices.len())]
    }

    fn push(&mut self, requests: Vec<Request>) {
        self.steps.push(Step::new(requests));
    }

    fn query(&mut self, sql: &str) {
        self.push(vec![simple(sql)]);
    }

    /// As a simple Query, or as the unnamed or a named statement.
    fn either_way(&mut self, sql: &str) {
        let mut batch = match self.chance.random_range(0..4) {
            0 => self.run("", sql, ""),
            1 => {
                let name = self.name();
                vec![Request::CloseStatement(name.clone())]
                    .into_iter()
                    .chain(self.run(&name, sql, ""))
                    .collect()
            }
            _ => return self.query(sql),
        };
        batch.push(Request::Sync);
        self.push(batch);
    }

    /// Not as a named statement: a server that has prepared that for somebody else does not look at it again, and
    /// only Bind fails when its table is gone.
    fn unshared(&mut self, sql: &str) {
        if self.one_in(3) {
            let batch = self.run("", sql, "");
            return self.push(batch.into_iter().chain([Request::Sync]).collect());
        }
        self.query(sql);
    }

    fn login(&mut self) -> Vec<(String, String)> {
        let reported = [
            ("DateStyle", "German, DMY"),
            ("TimeZone", "Europe/Berlin"),
            ("application_name", "it's"),
            ("IntervalStyle", "iso_8601"),
        ];
        let options = [
            ("options", "-c search_path=a"),
            ("options", "-c work_mem=5MB -c statement_timeout=50s"),
            ("options", "--search_path=b,a"),
            ("options", "-c app.x=one"),
            ("extra_float_digits", "0"),
            ("search_path", "b"),
        ];
        let table = if self.one_in(2) { &reported[..] } else { &options[..] };
        let (name, value) = self.pick(table);
        vec![(name.to_owned(), value.to_owned())]
    }

    /// Cuts some steps into several writes.
    fn cut(&mut self) {
        for at in 0..self.steps.len() {
            if self.one_in(4) {
                let length = self.steps[at].bytes().len();
                let count = self.chance.random_range(1..4);
                let mut cuts: Vec<usize> = (0..count).map(|_| self.chance.random_range(1..=length)).collect();
                cuts.sort_unstable();
                self.steps[at].cuts = cuts;
            }
        }
    }

    /// The other client takes a server, leaves something on it, or lets it go.
    fn other(&mut self) {
        if !self.one_in(2) {
            return;
        }
        let mut requests = Vec::new();
        if self.other_holds {
            let end = self.pick(&["COMMIT", "ROLLBACK"]);
            requests.push(simple(end));
        } else if self.one_in(2) {
            requests.push(simple("BEGIN"));
            requests.extend(self.dirt());
        } else {
            requests.extend(self.dirt());
            self.steps.push(Step::other(requests));
            return;
        }
        self.other_holds = !self.other_holds;
        self.steps.push(Step::other(requests));
    }

    fn dirt(&mut self) -> Vec<Request> {
        let secret = "SELECT 'of the other'";
        match self.chance.random_range(0..if STATE { 8 } else { 6 }) {
            0 => vec![simple("SELECT 1")],
            1 => run("", secret, &[], Vec::new()).into_iter().chain([Request::Sync]).collect(),
            2 => {
                let name = self.name();
                let close = Request::CloseStatement(name.clone());
                [close]
                    .into_iter()
                    .chain(run(&name, secret, &[], Vec::new()))
                    .chain([Request::Sync])
                    .collect()
            }
            3 => {
                let (name, values) = self.pick(TRACKED);
                let value = self.pick(values);
                vec![simple(&format!("SET {name} = {value}"))]
            }
            4 => vec![simple("SELECT 1/0")],
            5 => vec![simple("SET LOCAL work_mem = '7MB'")],
            6 => {
                let (name, values) = self.pick(SETTINGS);
                let value = self.pick(values);
                vec![simple(&format!("SET {name} = {value}"))]
            }
            _ => {
                let sql = self.pick(&[
                    "SET ROLE differential_role",
                    "SET search_path = b",
                    "SELECT set_config('search_path', '', false)",
                    "PREPARE q0 AS SELECT 'of the other'",
                    "SELECT set_config('app.x', 'of the other', false)",
                    "RESET ALL",
                    "DISCARD ALL",
                ]);
                vec![simple(sql)]
            }
        }
    }

    /// A statement without parameters.
    fn sql(&mut self) -> &'static str {
        match self.chance.random_range(0..10) {
            0..6 => self.pick(READING),
            6..9 => self.pick(WRITING),
            _ => self.pick(FAILING),
        }
    }

    fn simple(&mut self) {
        let sql = self.sql();
        self.query(sql);
    }

    fn several(&mut self) {
        if self.one_in(3) {
            // Several messages in one write.
            let count = self.chance.random_range(2..8);
            let queries = (0..count).map(|_| simple(self.sql())).collect();
            return self.push(queries);
        }
        let count = self.chance.random_range(2..5);
        let statements: Vec<&str> =
            (0..count).map(|_| if self.one_in(5) { self.pick(BLOCK) } else { self.sql() }).collect();
        let sql = statements.join("; ");
        self.query(&sql);
    }

    fn transaction(&mut self) {
        if self.one_in(2) {
            let sql = self.pick(BLOCK);
            return self.either_way(sql);
        }
        let begin = self.pick(&["BEGIN", "BEGIN", "BEGIN READ WRITE"]);
        self.query(begin);
        for _ in 0..self.chance.random_range(1..6) {
            match self.chance.random_range(0..8) {
                0..3 => self.simple(),
                3 => self.unnamed(),
                4 => self.named(),
                5 => self.query("SAVEPOINT a"),
                6 => self.query("ROLLBACK TO a"),
                _ => {
                    let kind = self.kind();
                    if kind != Kind::Transaction {
                        self.stretch(kind);
                    }
                }
            }
        }
        let end = self.pick(&["COMMIT", "ROLLBACK", "END"]);
        self.query(end);
    }

    fn name(&mut self) -> String {
        self.pick(NAMES).to_owned()
    }

    fn value(&mut self, kind: char) -> Value {
        if self.one_in(10) {
            return Value::Null;
        }
        let number = self.chance.random_range(0..6_i32);
        match (kind, self.one_in(3)) {
            ('i', true) => Value::Binary(number.to_be_bytes().to_vec()),
            ('i', false) if self.one_in(12) => Value::Text("seven".to_owned()),
            ('i', false) => Value::Text(number.to_string()),
            (_, true) => Value::Binary(b"bin".to_vec()),
            (_, false) if self.one_in(20) => Value::Text("z".repeat(9000)),
            (_, false) => Value::Text(format!("w{number}")),
        }
    }

    fn values(&mut self, kinds: &str) -> Vec<Value> {
        let mut values: Vec<Value> = kinds.chars().map(|kind| self.value(kind)).collect();
        if self.one_in(25) {
            values.pop();
        }
        values
    }

    /// Types as the client may say them: not at all, some, or all.
    fn types(&mut self, kinds: &str) -> Vec<u32> {
        if self.one_in(2) {
            return Vec::new();
        }
        let oids = kinds.chars().map(|kind| if kind == 'i' { 23 } else { 25 });
        oids.map(|oid| if self.one_in(4) { 0 } else { oid }).collect()
    }

    fn parameters_of(&self, name: &str) -> &'static str {
        self.statements.get(name).copied().unwrap_or_default()
    }

    fn parse(&mut self, name: &str) -> Request {
        let (sql, kinds) = match self.chance.random_range(0..12) {
            0..7 => self.pick(PARAMETRIZED),
            7 => (self.pick(&["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "", "ROLLBACK TO a"]), ""),
            8 => (self.pick(FAILING), ""),
            _ => (self.sql(), ""),
        };
        self.statements.insert(name.to_owned(), kinds);
        let types = self.types(kinds);
        Request::Parse { name: name.to_owned(), types, sql: sql.to_owned() }
    }

    fn bind(&mut self, portal: &str, statement: &str) -> Request {
        let parameters = self.values(self.parameters_of(statement));
        let results = self.pick(&[&[][..], &[], &[0], &[1]]).to_vec();
        Request::Bind { portal: portal.to_owned(), statement: statement.to_owned(), parameters, results }
    }

    /// Parse, Bind, Execute.
    fn run(&mut self, name: &str, sql: &str, kinds: &'static str) -> Vec<Request> {
        self.statements.insert(name.to_owned(), kinds);
        let values = self.values(kinds);
        run(name, sql, &self.types(kinds), values)
    }

    /// Bind and Execute, with what drivers put around them.
    fn use_of(&mut self, statement: &str) -> Vec<Request> {
        let mut batch = Vec::new();
        if self.one_in(3) {
            batch.push(Request::DescribeStatement(statement.to_owned()));
        }
        let portal = self.pick(&["", "", "", "p0"]);
        batch.push(self.bind(portal, statement));
        if self.one_in(2) {
            batch.push(Request::DescribePortal(portal.to_owned()));
        }
        for rows_max in self.pick(&[&[0][..], &[0], &[0], &[1, 0], &[2, 2, 2], &[100]]) {
            batch.push(execute(portal, *rows_max));
        }
        if !portal.is_empty() {
            batch.push(Request::ClosePortal(portal.to_owned()));
        }
        batch
    }

    /// Some messages of the extended protocol that belong together, without Sync.
    fn fragment(&mut self) -> Vec<Request> {
        let name = if self.one_in(3) { String::new() } else { self.name() };
        match self.chance.random_range(0..12) {
            0..3 => {
                let mut batch =
                    if name.is_empty() { vec![] } else { vec![Request::CloseStatement(name.clone())] };
                batch.push(self.parse(&name));
                batch.extend(self.use_of(&name));
                batch
            }
            3 => vec![self.parse(&name)],
            4..8 => self.use_of(&name),
            8 => vec![Request::CloseStatement(name)],
            9 => vec![Request::DescribeStatement(name)],
            10 => vec![Request::ClosePortal("p0".to_owned()), Request::CloseStatement("none".to_owned())],
            _ => {
                let sql = self.sql();
                self.run("", sql, "")
            }
        }
    }

    fn unnamed(&mut self) {
        let mut batch = if self.one_in(4) { vec![] } else { vec![self.parse("")] };
        batch.extend(self.use_of(""));
        batch.push(Request::Sync);
        self.push(batch);
    }

    fn named(&mut self) {
        let name = self.name();
        let mut batch = Vec::new();
        match self.chance.random_range(0..8) {
            0 => batch.push(Request::CloseStatement(name.clone())),
            1..3 => batch.extend([Request::CloseStatement(name.clone()), self.parse(&name)]),
            3 => batch.push(self.parse(&name)),
            4 => {
                batch.extend([Request::CloseStatement(name.clone()), self.parse(&name)]);
                batch.push(Request::DescribeStatement(name.clone()));
                batch.push(Request::Sync);
                self.push(std::mem::take(&mut batch));
                self.other();
            }
            _ => {}
        }
        batch.extend(self.use_of(&name));
        batch.push(Request::Sync);
        self.push(batch);
    }

    fn pipeline(&mut self) {
        let mut requests = Vec::new();
        for _ in 0..self.chance.random_range(2..10) {
            requests.extend(self.fragment());
            match self.chance.random_range(0..8) {
                0..3 => requests.push(Request::Sync),
                3 => {
                    requests.push(Request::Sync);
                    requests.push(simple(self.sql()));
                }
                4 => requests.push(Request::Flush),
                _ => {}
            }
        }
        requests.push(Request::Sync);
        self.push(requests);
    }

    /// Batches that are answered before their Sync, or sent in pieces.
    fn flushed(&mut self) {
        for _ in 0..self.chance.random_range(1..4) {
            let mut requests = self.fragment();
            if !self.one_in(4) {
                requests.push(Request::Flush);
            }
            self.push(requests);
        }
        let mut last = if self.one_in(2) { self.fragment() } else { Vec::new() };
        last.push(Request::Sync);
        self.push(last);
    }

    /// Portals that live as long as their transaction.
    fn portals(&mut self) {
        self.query("BEGIN");
        let series = "SELECT n, repeat('r', n) FROM generate_series(1, 7) AS n";
        self.push(vec![
            Request::CloseStatement("s0".to_owned()),
            Request::Parse { name: "s0".to_owned(), types: vec![], sql: series.to_owned() },
            bound("p0", "s0"),
            bound("p1", "s0"),
            execute("p0", 2),
            Request::Sync,
        ]);
        self.statements.insert("s0".to_owned(), "");
        for _ in 0..self.chance.random_range(1..6) {
            let portal = self.pick(&["p0", "p1", "p2"]);
            let rows_max = self.chance.random_range(0..4);
            match self.chance.random_range(0..6) {
                0 => self.push(vec![Request::ClosePortal(portal.to_owned()), Request::Sync]),
                1 => self.push(vec![Request::CloseStatement("s0".to_owned()), Request::Sync]),
                2 => self.push(vec![bound(portal, "s0"), execute(portal, rows_max), Request::Flush]),
                3 => self.query("FETCH 2 FROM p0"),
                _ => self.push(vec![execute(portal, rows_max), execute(portal, rows_max), Request::Sync]),
            }
        }
        let end = self.pick(&["COMMIT", "ROLLBACK"]);
        self.push(vec![Request::Sync, simple(end), execute("p0", 1), Request::Sync]);
    }

    fn query_in_batch(&mut self) {
        let mut requests = self.fragment();
        requests.push(if self.one_in(4) { add(3, 4) } else { simple(self.sql()) });
        requests.extend(self.fragment());
        requests.push(Request::Sync);
        if self.one_in(2) {
            requests.extend(self.fragment());
            requests.push(Request::Sync);
        }
        self.push(requests);
    }

    fn copy_in(&mut self) {
        let sql = self.pick(&[
            "COPY items FROM STDIN",
            "COPY items FROM STDIN",
            "COPY log FROM STDIN",
            "COPY nowhere FROM STDIN",
            "COPY items (n) FROM STDIN (FORMAT csv)",
            "SELECT 1; COPY log FROM STDIN; SELECT 2",
            "COPY items FROM STDIN (FORMAT binary)",
        ]);
        let extended = self.one_in(2);
        let mut data = self.copy_data();
        // Behind bad data nobody but the server knows which Syncs are answered.
        let misplaced = self.one_in(5);
        if misplaced {
            data.insert(0, self.pick(&[&Request::Sync, &Request::Flush]).clone());
        }
        let mut start = match (extended, self.one_in(3)) {
            (false, _) => vec![simple(sql)],
            (true, true) => run("c0", sql, &[], vec![]),
            (true, false) => run("", sql, &[], vec![]),
        };
        if let Some(Request::Parse { name, .. }) = start.first()
            && !name.is_empty()
        {
            start.insert(0, Request::CloseStatement(name.clone()));
        }
        if self.one_in(2) {
            // The data comes when the server has asked for it, or has refused.
            if extended {
                start.push(Request::Flush);
            }
            self.push(std::mem::take(&mut start));
            if !misplaced && self.one_in(2) {
                let first = data.remove(0);
                if matches!(first, Request::CopyData(_)) {
                    self.push(vec![first]);
                } else {
                    data.insert(0, first);
                }
            }
        }
        start.extend(data);
        if extended {
            start.push(Request::Sync);
        }
        if self.one_in(4) {
            start.push(simple("SELECT 'behind the copy'"));
        }
        self.push(start);
    }

    fn copy_data(&mut self) -> Vec<Request> {
        let mut data = Vec::new();
        for _ in 0..self.chance.random_range(0..4) {
            let number = self.chance.random_range(1..40);
            data.push(Request::CopyData(match self.chance.random_range(0..8) {
                0 => "bad\n".to_owned(),
                1 => format!("{number}"),
                2 => format!("\tw{number}\n{}\tw\n", number + 100),
                3 => format!("{number}\t\\N\n\\.\n"),
                4 => (0..400).map(|row| format!("{}\t{}\n", row + 1000 * number, "l".repeat(30))).collect(),
                5 => format!("{number}\n"),
                _ => format!("{number}\tw{number}\n"),
            }));
        }
        data.push(if self.one_in(4) { Request::CopyFail("enough".to_owned()) } else { Request::CopyDone });
        data
    }

    fn copy_out(&mut self) {
        let sql = self.pick(&[
            "COPY items TO STDOUT",
            "COPY (SELECT generate_series(1, 50)) TO STDOUT",
            "COPY (SELECT 1/(n-3) FROM items ORDER BY n) TO STDOUT",
            "COPY t TO STDOUT (FORMAT binary)",
            "COPY items TO STDOUT (FORMAT csv, HEADER)",
            "COPY items TO STDOUT; SELECT 1",
            "COPY nowhere TO STDOUT",
        ]);
        self.either_way(sql);
    }

    fn function_call(&mut self) {
        // int4pl, int4div, sqrt of a wrong length, and nothing of that number.
        let call = match self.chance.random_range(0..6) {
            0 => Request::FunctionCall { oid: 154, arguments: vec![3, 0] },
            1 => Request::FunctionCall { oid: 1344, arguments: vec![3] },
            2 => Request::FunctionCall { oid: 99_999_999, arguments: vec![] },
            _ => add(3, 4),
        };
        let mut requests = vec![call];
        if self.one_in(3) {
            requests.push(simple(self.sql()));
        }
        self.push(requests);
    }

    /// A FETCH that is prepared knows for ever whether there was such a cursor then: it is never a named statement,
    /// which another client may have prepared at another time.
    fn cursor(&mut self) {
        self.either_way("BEGIN");
        self.query("DECLARE c SCROLL CURSOR FOR SELECT n FROM generate_series(1, 9) AS n");
        let choices = ["FETCH 2 FROM c", "MOVE 1 IN c", "FETCH BACKWARD 1 FROM c", "CLOSE c", "FETCH ALL c"];
        for _ in 0..self.chance.random_range(1..4) {
            let sql = self.pick(&choices);
            self.query(sql);
        }
        let end = self.pick(&["COMMIT", "ROLLBACK"]);
        self.either_way(end);
    }

    fn set_local(&mut self) {
        self.query("BEGIN");
        for _ in 0..self.chance.random_range(1..4) {
            let table = self.pick(&[SETTINGS, TRACKED]);
            let (name, values) = self.pick(table);
            let value = self.pick(values);
            self.either_way(&format!("SET LOCAL {name} = {value}"));
            self.shows(name);
        }
        let end = self.pick(&["COMMIT", "ROLLBACK"]);
        self.either_way(end);
        let (name, _) = self.pick(SETTINGS);
        self.shows(name);
    }

    /// A custom setting that once was set is there ever after, with an empty value.
    fn shows(&mut self, name: &str) {
        if let Some(custom) = name.strip_prefix("app.") {
            let custom = custom.trim_matches('"');
            let sql = format!("SELECT coalesce(nullif(current_setting('app.{custom}', true), ''), 'none')");
            return self.either_way(&sql);
        }
        let sql = match self.chance.random_range(0..3) {
            0 => format!("SELECT current_setting('{name}')"),
            _ => format!("SHOW {name}"),
        };
        self.either_way(&sql);
    }

    fn setting(&mut self, table: &[(&'static str, &[&'static str])]) -> (String, &'static str) {
        let (name, values) = self.pick(table);
        let value = self.pick(values);
        let sql = match self.chance.random_range(0..14) {
            0 => format!("SET {name} TO {value}"),
            1 => format!("SET SESSION {name} = {value}"),
            2 => format!("set {} to {value};", name.to_lowercase().replace("\"y\"", "\"Y\"")),
            3 => format!("/* why */ SET {name}={value} -- because"),
            4 => format!("RESET {name}"),
            5 => format!("SET {name} TO DEFAULT"),
            6 => "RESET ALL".to_owned(),
            7 => format!("SET {name} = {value}; SHOW server_version"),
            8 => format!("SET {name} = {value}; SELECT 1/0"),
            9 => format!("SET {name} = 'wrong value' 7"),
            _ => format!("SET {name} = {value}"),
        };
        (sql, name)
    }

    fn set(&mut self, table: &[(&'static str, &[&'static str])]) {
        for _ in 0..self.chance.random_range(1..3) {
            let (sql, name) = self.setting(table);
            self.either_way(&sql);
            self.other();
            self.shows(name);
        }
        self.other();
        let (name, _) = self.pick(table);
        self.shows(name);
    }

    fn set_config(&mut self) {
        let (name, values) = self.pick(SETTINGS);
        let value = self.pick(values);
        let value = if value.contains('\'') { value.to_owned() } else { format!("'{value}'") };
        let name = name.replace('"', "");
        let local = self.pick(&["false", "false", "true"]);
        self.either_way(&format!("SELECT set_config('{name}', {value}, {local})"));
        self.other();
        self.shows(&name);
    }

    fn rolled_back_set(&mut self) {
        let name = self.pick(SETTINGS).0;
        self.query("BEGIN");
        for _ in 0..self.chance.random_range(1..6) {
            match self.chance.random_range(0..8) {
                0 => self.query("SAVEPOINT a"),
                1 => self.query("ROLLBACK TO a"),
                2 => self.query("RELEASE a"),
                3 => self.shows(name),
                4 => self.query(&format!("RESET {name}")),
                5 => self.query("SELECT 1/0"),
                _ => {
                    let (sql, _) = self.setting(SETTINGS);
                    self.either_way(&sql);
                }
            }
        }
        let end = self.pick(&["COMMIT", "ROLLBACK", "COMMIT AND CHAIN; ROLLBACK"]);
        self.either_way(end);
        self.other();
        for _ in 0..2 {
            let (name, _) = self.pick(SETTINGS);
            self.shows(name);
        }
    }

    fn role(&mut self) {
        let sql = self.pick(&[
            "SET ROLE differential_role",
            "SET SESSION ROLE differential_role",
            "SET ROLE NONE",
            "RESET ROLE",
            "SET LOCAL ROLE differential_role",
            "BEGIN; SET ROLE differential_role; ROLLBACK",
            "SELECT set_config('role', 'differential_role', false)",
            "SET ROLE nobody",
            "SET SESSION AUTHORIZATION app",
            "RESET SESSION AUTHORIZATION",
        ]);
        self.either_way(sql);
        self.other();
        self.either_way("SELECT current_user, session_user");
    }

    fn search_path(&mut self) {
        let sql = self.pick(&[
            "SET search_path = a",
            "SET search_path TO b, public",
            "SET search_path TO ''",
            "SET SCHEMA 'b'",
            "RESET search_path",
            "SELECT set_config('search_path', 'b', false)",
            "SELECT set_config('search_path', '', false)",
            "SELECT pg_catalog.set_config('search_path', 'a', false);",
            "BEGIN; SET LOCAL search_path = a; COMMIT",
            "BEGIN; SET search_path = a; ROLLBACK",
            "SET search_path = \"$user\", a",
        ]);
        self.either_way(sql);
        self.other();
        let look = self.pick(&[
            "SELECT * FROM t",
            "SHOW search_path",
            "SELECT current_schemas(false)",
            "SELECT count(*) FROM t",
        ]);
        self.query(look);
        if self.one_in(2) {
            let run = self.run("", "SELECT * FROM t", "");
            self.push(run.into_iter().chain([Request::Sync]).collect());
        }
    }

    fn sql_prepare(&mut self) {
        for _ in 0..self.chance.random_range(1..5) {
            let sql = self.pick(&[
                "PREPARE q0 AS SELECT n, word FROM items ORDER BY n",
                "PREPARE q0 (int) AS SELECT $1 + 1",
                "PREPARE q1 AS SELECT 'q1'",
                "EXECUTE q0",
                "EXECUTE q0(7)",
                "EXECUTE q1",
                "DEALLOCATE q0",
                "DEALLOCATE PREPARE q1",
                "DEALLOCATE ALL",
                "deallocate s0",
                "EXECUTE s0",
                "BEGIN; PREPARE q1 AS SELECT 'in a transaction'; ROLLBACK",
                "PREPARE q0 AS SELECT 1; SELECT 1/0",
            ]);
            self.query(sql);
            self.other();
        }
        if self.one_in(2) {
            let name = self.pick(&["q0", "q1"]);
            let batch = vec![
                Request::DescribeStatement(name.to_owned()),
                bound("", name),
                execute("", 0),
                Request::Sync,
            ];
            self.push(batch);
        }
    }

    fn temporary_table(&mut self) {
        for _ in 0..self.chance.random_range(2..6) {
            let sql = self.pick(&[
                "CREATE TEMP TABLE temporary (n int, word text)",
                "CREATE TEMPORARY TABLE IF NOT EXISTS temporary AS SELECT 1 AS n, 'as' AS word",
                "SELECT 1 AS n, 'into' AS word INTO TEMP temporary",
                "INSERT INTO temporary VALUES (1, 'x')",
                "SELECT n, word FROM temporary",
                "SELECT n, word FROM temporary",
                "DROP TABLE temporary",
                "DISCARD TEMP",
                "BEGIN; CREATE TEMP TABLE temporary (n int, word text) ON COMMIT DROP; INSERT INTO temporary VALUES (2); COMMIT",
                "BEGIN; CREATE TEMP TABLE temporary (n int, word text); ROLLBACK",
                "CREATE TEMP VIEW viewed AS SELECT 1",
                "CREATE TEMP SEQUENCE counted",
                "SELECT nextval('counted')",
                "CREATE TABLE pg_temp.temporary (n int, word text)",
            ]);
            self.unshared(sql);
            self.other();
        }
    }

    fn advisory_lock(&mut self) {
        for _ in 0..self.chance.random_range(1..5) {
            let sql = self.pick(&[
                "SELECT pg_advisory_lock(1)",
                "SELECT pg_try_advisory_lock(2)",
                "SELECT pg_advisory_lock_shared(3)",
                "SELECT pg_advisory_unlock(1)",
                "SELECT pg_advisory_unlock(2)",
                "SELECT pg_advisory_unlock_all()",
                "SELECT pg_advisory_xact_lock(4)",
                "BEGIN; SELECT pg_advisory_lock(1); ROLLBACK",
                "SELECT pg_advisory_lock(1), 1/0",
            ]);
            self.either_way(sql);
            self.other();
        }
        self.query(
            "SELECT objid, mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1, 2",
        );
    }

    fn holdable_cursor(&mut self) {
        let sql = self.pick(&[
            "DECLARE h CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 9) AS n",
            "BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 9) AS n; COMMIT",
            "BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 9) AS n; ROLLBACK",
            "DECLARE h BINARY SCROLL CURSOR WITH HOLD FOR SELECT n FROM items ORDER BY n",
        ]);
        self.either_way(sql);
        for _ in 0..self.chance.random_range(1..4) {
            self.other();
            let sql = self.pick(&["FETCH 2 FROM h", "FETCH NEXT h", "CLOSE h", "CLOSE ALL", "MOVE 1 IN h"]);
            self.query(sql);
        }
    }

    fn listen(&mut self) {
        for _ in 0..self.chance.random_range(1..5) {
            let sql = self.pick(&[
                "LISTEN news",
                "LISTEN other",
                "NOTIFY news, 'hello'",
                "NOTIFY other",
                "SELECT pg_notify('news', 'by function')",
                "UNLISTEN news",
                "UNLISTEN *",
                "BEGIN; LISTEN news; ROLLBACK",
                "BEGIN; NOTIFY news; COMMIT",
            ]);
            self.either_way(sql);
            self.other();
        }
        self.query("SELECT * FROM pg_listening_channels() ORDER BY 1");
    }

    fn sequence_state(&mut self) {
        let sql = self.pick(&["SELECT nextval('numbers')", "SELECT currval('numbers')", "SELECT lastval()"]);
        self.either_way(sql);
        self.other();
        self.either_way("SELECT currval('numbers')");
    }

    fn drop_statements(&mut self) {
        let sql = self.pick(&["DEALLOCATE ALL", "DEALLOCATE ALL", "DEALLOCATE nothing"]);
        self.either_way(sql);
    }
}

fn simple(sql: &str) -> Request {
    Request::Query(sql.to_owned())
}

fn execute(portal: &str, rows_max: u32) -> Request {
    Request::Execute { portal: portal.to_owned(), rows_max }
}

fn bound(portal: &str, statement: &str) -> Request {
    let (portal, statement) = (portal.to_owned(), statement.to_owned());
    Request::Bind { portal, statement, parameters: Vec::new(), results: Vec::new() }
}

/// int4pl
fn add(first: i32, second: i32) -> Request {
    Request::FunctionCall { oid: 177, arguments: vec![first, second] }
}

fn run(name: &str, sql: &str, types: &[u32], parameters: Vec<Value>) -> Vec<Request> {
    vec![
        Request::Parse { name: name.to_owned(), types: types.to_vec(), sql: sql.to_owned() },
        Request::Bind { portal: String::new(), statement: name.to_owned(), parameters, results: Vec::new() },
        execute("", 0),
    ]
}
