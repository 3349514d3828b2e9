//! What the wrong-answer detector's clients ask, and what a wrong answer is: [`judge`].

#![allow(unreachable_pub, missing_docs)]

use crate::support::Reply;
use crate::support::message::{
    bind, copy_data, copy_done, describe_portal, describe_statement, execute, extended, flush, parse, query,
    run_of, sync,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// All clients use this name, each for a different statement.
const STATEMENT: &str = "shared_name";

const DIVISION_BY_ZERO: &str = "22012";

/// What a client sends in one go, and what it must be told.
pub struct Request {
    /// Each part is sent when the answer to the one before has come, up to this type of message.
    pub parts: Vec<(Vec<u8>, u8)>,
    /// The values of all rows, in order.
    pub values: Vec<String>,
    /// How many ReadyForQuery.
    pub ready: usize,
    /// How many divisions by zero are a part of it.
    pub refusals: usize,
}

impl Request {
    pub fn new(bytes: Vec<u8>, values: Vec<String>, ready: usize) -> Request {
        Request { parts: vec![(bytes, b'Z')], values, ready, refusals: 0 }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect()
    }
}

/// Compares what a client was told with what it asked. A fault is a sentence.
pub fn judge(request: &Request, reply: &Reply) -> Result<(), String> {
    let mut told = Vec::new();
    for message in &reply.messages {
        match message.tag {
            b'D' => told.extend(message.values()),
            b'd' => told.push(String::from_utf8_lossy(&message.body).trim_end().to_owned()),
            b'E' if request.refusals > 0 && message.field(b'C') == DIVISION_BY_ZERO => {}
            b'E' => allowed_error(&message.field(b'C'), &message.field(b'M'))?,
            b'A' | b'V' | b'R' | b'K' => return Err(format!("unasked {message:?}")),
            _ => {}
        }
    }
    let mut expected = request.values.iter();
    for value in &told {
        // After an error values may be missing; none may be strange, doubled or out of order.
        if !expected.any(|asked| asked == value) {
            return Err(format!("told {value:.60}, asked {:.200?}", request.values));
        }
    }
    let disturbed = reply.closed || reply.count(b'E') > request.refusals;
    if told.len() != request.values.len() && !disturbed {
        return Err(format!("told {} of {} values without an error", told.len(), request.values.len()));
    }
    let ready = reply.count(b'Z');
    if ready > request.ready || (ready < request.ready && !reply.closed) {
        return Err(format!("{ready} ReadyForQuery of {}", request.ready));
    }
    Ok(())
}

/// What terminated and cancelled servers may cost a client: never a missing statement or a wrong message.
fn allowed_error(code: &str, text: &str) -> Result<(), String> {
    let further = std::env::var("PGWEIR_DETECTOR_ALLOW").unwrap_or_default();
    let allowed = code.starts_with("08")
        || ["57014", "57P01", "57P05", "25P02"].contains(&code)
        || further.split(',').any(|further| further == code);
    // 08P01 is also PostgreSQL's word for a stream of messages that somebody has mixed up.
    let mixed = ["invalid message", "insufficient data", "invalid string", "bind message"];
    if !allowed || mixed.iter().any(|start| text.contains(start)) {
        return Err(format!("error {code}: {text}"));
    }
    Ok(())
}

/// Makes requests with tokens that no other client has.
pub struct Author {
    pub chance: StdRng,
    pub client: u64,
    tokens: u64,
}

impl Author {
    pub fn new(seed: u64, client: u64) -> Author {
        let chance = StdRng::seed_from_u64(seed.wrapping_add(client.wrapping_mul(7919)));
        Author { chance, client, tokens: 0 }
    }

    /// A token, and behind it dots up to a random length: answers end at any byte of any buffer.
    fn token(&mut self) -> String {
        self.tokens += 1;
        let dots = match self.chance.random_range(0..20) {
            0 => self.chance.random_range(0..60_000),
            1..=5 => self.chance.random_range(0..5_000),
            _ => self.chance.random_range(0..40),
        };
        format!("token-{}-{}-{}", self.client, self.tokens, ".".repeat(dots))
    }

    /// This client's own text of the statement whose name all share.
    pub fn statement(&self) -> Vec<u8> {
        let sql = format!("SELECT 'own-{}-' || $1::text", self.client);
        parse(STATEMENT, &sql)
    }

    fn own(&self, token: &str) -> String {
        format!("own-{}-{token}", self.client)
    }

    pub fn any(&mut self) -> Request {
        match self.chance.random_range(0..10) {
            0 => self.simple(),
            1 => self.several_statements(),
            2 => self.unnamed(),
            3 | 4 => self.named(),
            5 | 6 => self.pipeline(),
            7 => self.flushed(),
            8 => self.copy_out(),
            _ => self.suspended(),
        }
    }

    pub fn simple(&mut self) -> Request {
        let token = self.token();
        let bytes = query(&format!("SELECT '{token}'"));
        Request::new(bytes, vec![token], 1)
    }

    fn several_statements(&mut self) -> Request {
        let values: Vec<String> = (0..3).map(|_| self.token()).collect();
        let sql: Vec<String> = values.iter().map(|value| format!("SELECT '{value}'")).collect();
        Request::new(query(&sql.join("; ")), values, 1)
    }

    fn unnamed(&mut self) -> Request {
        let token = self.token();
        let bytes = run_of([extended("SELECT $1::text", &[&token]), sync()]);
        Request::new(bytes, vec![token], 1)
    }

    fn named(&mut self) -> Request {
        let token = self.token();
        let bytes = run_of([bind("", STATEMENT, &[&token]), execute("", 0), sync()]);
        Request::new(bytes, vec![self.own(&token)], 1)
    }

    /// Several segments with a Sync each, in one write.
    fn pipeline(&mut self) -> Request {
        let segments = self.chance.random_range(2..8);
        let mut whole = Request::new(Vec::new(), Vec::new(), 0);
        for _ in 0..segments {
            let one = match self.chance.random_range(0..5) {
                0 => self.simple(),
                1 => self.unnamed(),
                2 => self.described(),
                _ => self.named(),
            };
            whole.parts[0].0.extend(one.bytes());
            whole.values.extend(one.values);
            whole.ready += one.ready;
        }
        whole
    }

    /// Two executions and a Describe before one Sync.
    fn described(&mut self) -> Request {
        let (first, second) = (self.token(), self.token());
        let bytes = run_of([
            describe_statement(STATEMENT),
            bind("", STATEMENT, &[&first]),
            describe_portal(""),
            execute("", 0),
            parse("", "SELECT $1::text"),
            bind("", "", &[&second]),
            execute("", 0),
            sync(),
        ]);
        Request::new(bytes, vec![self.own(&first), second], 1)
    }

    /// Flush, and Sync only when the answer is there.
    fn flushed(&mut self) -> Request {
        let token = self.token();
        let first = run_of([extended("SELECT $1::text", &[&token]), flush()]);
        let parts = vec![(first, b'C'), (sync(), b'Z')];
        Request { parts, values: vec![token], ready: 1, refusals: 0 }
    }

    /// An error told after Flush; Sync and further questions follow it in one write.
    pub fn refused(&mut self) -> Request {
        let first = run_of([extended("SELECT 1/$1::int", &["0"]), flush()]);
        let next = self.pipeline();
        Request {
            ready: next.ready + 1,
            parts: vec![(first, b'C'), (run_of([sync(), next.bytes()]), b'Z')],
            values: next.values,
            refusals: 1,
        }
    }

    fn copy_out(&mut self) -> Request {
        let token = self.token();
        let bytes = query(&format!("COPY (SELECT '{token}') TO STDOUT"));
        Request::new(bytes, vec![token], 1)
    }

    /// A portal that is fetched in three steps.
    fn suspended(&mut self) -> Request {
        let values: Vec<String> = (0..3).map(|_| self.token()).collect();
        let parameters: Vec<&str> = values.iter().map(String::as_str).collect();
        let sql = "SELECT * FROM (VALUES ($1::text), ($2::text), ($3::text)) AS three";
        let bytes = run_of([
            parse("", sql),
            bind("", "", &parameters),
            execute("", 1),
            execute("", 1),
            execute("", 0),
            sync(),
        ]);
        Request::new(bytes, values, 1)
    }

    /// COPY in, read back and rolled back: only inside a transaction.
    pub fn copy_in(&mut self) -> Request {
        let token = self.token();
        let bytes = run_of([
            query("CREATE TEMP TABLE inbox (token text) ON COMMIT DROP"),
            query("COPY inbox FROM STDIN"),
            copy_data(&format!("{token}\n")),
            copy_done(),
            query("SELECT token FROM inbox"),
        ]);
        Request::new(bytes, vec![token], 3)
    }
}
