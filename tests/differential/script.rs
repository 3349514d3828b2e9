//! [`Script`]: what one client sends, step by step, and how that is written.
//!
//! A step is a line: what is sent in one go, its messages separated by ` / `. `-` is the unnamed statement
//! or portal, `[5 17]` in front cuts the bytes there into several writes, `B:` is another client of the
//! pooler, whose answers nobody looks at. What a failed test prints can be pasted as a row of `rows.rs`.
//!
//! ```text
//! Login DateStyle=German
//! Parse s1(23,25) SELECT $1, $2 / Bind - s1 \x00000007 NULL -> 1 / Execute - 0 / Sync
//! B: Query BEGIN
//! [7] Query SELECT 'two writes'
//! ```

use crate::support::message;
use std::fmt;

/// One message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Query(String),
    Parse { name: String, types: Vec<u32>, sql: String },
    Bind { portal: String, statement: String, parameters: Vec<Value>, results: Vec<u16> },
    DescribeStatement(String),
    DescribePortal(String),
    Execute { portal: String, rows_max: u32 },
    CloseStatement(String),
    ClosePortal(String),
    Sync,
    Flush,
    CopyData(String),
    CopyDone,
    CopyFail(String),
    FunctionCall { oid: u32, arguments: Vec<i32> },
    Terminate,
}

/// A parameter of Bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Text(String),
    Binary(Vec<u8>),
}

/// Whose step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The client that is compared.
    Client,
    /// Another one at the pooler, who takes servers and leaves them dirty.
    Other,
}

/// What is sent in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub who: Who,
    /// Byte offsets where the bytes are cut into several writes.
    pub cuts: Vec<usize>,
    pub requests: Vec<Request>,
}

/// A client's session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Further parameters of the StartupMessage.
    pub login: Vec<(String, String)>,
    pub steps: Vec<Step>,
}

impl Request {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Request::Query(sql) => message::query(sql),
            Request::Parse { name, types, sql } => message::parse_typed(name, sql, types),
            Request::Bind { portal, statement, parameters, results } => {
                bind(portal, statement, parameters, results)
            }
            Request::DescribeStatement(name) => message::describe_statement(name),
            Request::DescribePortal(name) => message::describe_portal(name),
            Request::Execute { portal, rows_max } => message::execute(portal, *rows_max),
            Request::CloseStatement(name) => message::close_statement(name),
            Request::ClosePortal(name) => message::close_portal(name),
            Request::Sync => message::sync(),
            Request::Flush => message::flush(),
            Request::CopyData(data) => message::copy_data(data),
            Request::CopyDone => message::copy_done(),
            Request::CopyFail(reason) => message::copy_fail(reason),
            Request::FunctionCall { oid, arguments } => message::function_call(*oid, arguments),
            Request::Terminate => message::terminate(),
        }
    }

    /// Whether it may bring the server to wait for CopyData.
    pub fn starts_copy(&self) -> bool {
        match self {
            Request::Query(sql) | Request::Parse { sql, .. } => sql.contains("FROM STDIN"),
            _ => false,
        }
    }

    /// One message in the notation above.
    pub fn read(text: &str) -> Request {
        let (word, rest) = text.trim_start().split_once(' ').unwrap_or((text.trim(), ""));
        let mut words = rest.split_whitespace();
        let mut word_of = || words.next().map(named).expect("a further word");
        match word {
            "Query" => Request::Query(unescaped(rest)),
            "Parse" => parse_from(rest),
            "Bind" => bind_from(rest),
            "Describe" if word_of() == "S" => Request::DescribeStatement(word_of()),
            "Describe" => Request::DescribePortal(word_of()),
            "Close" if word_of() == "S" => Request::CloseStatement(word_of()),
            "Close" => Request::ClosePortal(word_of()),
            "Execute" => {
                let portal = word_of();
                let rows_max = words.next().map_or(0, |rows| rows.parse().expect("a number of rows"));
                Request::Execute { portal, rows_max }
            }
            "Sync" => Request::Sync,
            "Flush" => Request::Flush,
            "CopyData" => Request::CopyData(unescaped(rest)),
            "CopyDone" => Request::CopyDone,
            "Terminate" => Request::Terminate,
            "CopyFail" => Request::CopyFail(unescaped(rest)),
            "FunctionCall" => {
                let oid = word_of().parse().expect("an OID");
                let arguments = words.map(|word| word.parse().expect("an int4")).collect();
                Request::FunctionCall { oid, arguments }
            }
            _ => panic!("no message: {text}"),
        }
    }
}

/// `s1(23,25) SELECT $1, $2`
fn parse_from(text: &str) -> Request {
    let (head, sql) = text.split_once(' ').unwrap_or((text, ""));
    let (name, types) = head.split_once('(').unwrap_or((head, ""));
    let types = types.trim_end_matches(')').split(',').filter(|oid| !oid.is_empty());
    let types = types.map(|oid| oid.parse().expect("an OID")).collect();
    Request::Parse { name: named(name), types, sql: unescaped(sql) }
}

/// `- s1 7 NULL -> 1 0`
fn bind_from(text: &str) -> Request {
    let (front, results) = text.split_once("->").unwrap_or((text, ""));
    let mut words = front.split_whitespace();
    let portal = named(words.next().expect("a portal"));
    let statement = named(words.next().expect("a statement"));
    let results = results.split_whitespace().map(|word| word.parse().expect("a format")).collect();
    Request::Bind { portal, statement, parameters: words.map(Value::read).collect(), results }
}

impl Value {
    fn read(word: &str) -> Value {
        let digit = |pair: &str| u8::from_str_radix(pair, 16).expect("hexadecimal digits");
        match word.strip_prefix("\\x") {
            _ if word == "NULL" => Value::Null,
            None => Value::Text(word.to_owned()),
            Some(digits) => {
                Value::Binary((0..digits.len() / 2).map(|at| digit(&digits[2 * at..2 * at + 2])).collect())
            }
        }
    }

    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Null => None,
            Value::Text(text) => Some(text.as_bytes()),
            Value::Binary(bytes) => Some(bytes),
        }
    }
}

fn bind(portal: &str, statement: &str, parameters: &[Value], results: &[u16]) -> Vec<u8> {
    let count = |length: usize| u16::try_from(length).expect("few parameters").to_be_bytes();
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0"].concat();
    body.extend(count(parameters.len()));
    for parameter in parameters {
        body.extend(u16::from(matches!(parameter, Value::Binary(_))).to_be_bytes());
    }
    body.extend(count(parameters.len()));
    for parameter in parameters {
        let bytes = parameter.bytes();
        let length = bytes.map_or(-1, |bytes| i32::try_from(bytes.len()).expect("a short value"));
        body.extend(length.to_be_bytes());
        body.extend(bytes.unwrap_or_default());
    }
    body.extend(count(results.len()));
    body.extend(results.iter().flat_map(|format| format.to_be_bytes()));
    message::message(b'B', &body)
}

fn named(word: &str) -> String {
    if word == "-" { String::new() } else { word.to_owned() }
}

fn shown(name: &str) -> &str {
    if name.is_empty() { "-" } else { name }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}

fn unescaped(text: &str) -> String {
    let mut letters = text.chars();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '\\' => match letters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                other => other.unwrap_or('\\'),
            },
            other => other,
        });
    }
    plain
}

fn joined<T: ToString>(parts: &[T], separator: &str) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => formatter.write_str("NULL"),
            Value::Text(text) => formatter.write_str(text),
            Value::Binary(bytes) => {
                formatter.write_str("\\x")?;
                bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Query(sql) => write!(formatter, "Query {}", escaped(sql)),
            Request::Parse { name, types, sql } => {
                let types =
                    if types.is_empty() { String::new() } else { format!("({})", joined(types, ",")) };
                write!(formatter, "Parse {}{types} {}", shown(name), escaped(sql))
            }
            Request::Bind { portal, statement, parameters, results } => {
                write!(formatter, "Bind {} {}", shown(portal), shown(statement))?;
                parameters.iter().try_for_each(|value| write!(formatter, " {value}"))?;
                if results.is_empty() { Ok(()) } else { write!(formatter, " -> {}", joined(results, " ")) }
            }
            Request::DescribeStatement(name) => write!(formatter, "Describe S {}", shown(name)),
            Request::DescribePortal(name) => write!(formatter, "Describe P {}", shown(name)),
            Request::Execute { portal, rows_max } => {
                write!(formatter, "Execute {} {rows_max}", shown(portal))
            }
            Request::CloseStatement(name) => write!(formatter, "Close S {}", shown(name)),
            Request::ClosePortal(name) => write!(formatter, "Close P {}", shown(name)),
            Request::Sync => formatter.write_str("Sync"),
            Request::Flush => formatter.write_str("Flush"),
            Request::CopyData(data) => write!(formatter, "CopyData {}", escaped(data)),
            Request::CopyDone => formatter.write_str("CopyDone"),
            Request::Terminate => formatter.write_str("Terminate"),
            Request::CopyFail(reason) => write!(formatter, "CopyFail {}", escaped(reason)),
            Request::FunctionCall { oid, arguments } => {
                write!(formatter, "FunctionCall {oid} {}", joined(arguments, " "))
            }
        }
    }
}

impl Step {
    pub fn new(requests: Vec<Request>) -> Step {
        Step { who: Who::Client, cuts: Vec::new(), requests }
    }

    pub fn other(requests: Vec<Request>) -> Step {
        Step { who: Who::Other, cuts: Vec::new(), requests }
    }

    pub fn read(line: &str) -> Step {
        let (who, line) = match line.strip_prefix("B: ") {
            Some(rest) => (Who::Other, rest),
            None => (Who::Client, line),
        };
        let (cuts, line) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((cuts, rest)) => (cuts.split_whitespace(), rest),
            None => ("".split_whitespace(), line),
        };
        let cuts = cuts.map(|cut| cut.parse().expect("a byte offset")).collect();
        Step { who, cuts, requests: line.split(" / ").map(Request::read).collect() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.requests.iter().flat_map(Request::bytes).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.who == Who::Other {
            formatter.write_str("B: ")?;
        }
        if !self.cuts.is_empty() {
            write!(formatter, "[{}] ", joined(&self.cuts, " "))?;
        }
        formatter.write_str(&joined(&self.requests, " / "))
    }
}

impl Script {
    pub fn read(text: &str) -> Script {
        let mut script = Script::default();
        for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
            match line.strip_prefix("Login ") {
                Some(options) => script.login.extend(options.split_whitespace().map(|option| {
                    let (name, value) = option.split_once('=').expect("name=value");
                    (name.to_owned(), value.replace('~', " "))
                })),
                None => script.steps.push(Step::read(line)),
            }
        }
        script
    }
}

impl fmt::Display for Script {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.login.is_empty() {
            let option = |(name, value): &(String, String)| format!("{name}={}", value.replace(' ', "~"));
            let options: Vec<String> = self.login.iter().map(option).collect();
            writeln!(formatter, "Login {}", options.join(" "))?;
        }
        self.steps.iter().try_for_each(|step| writeln!(formatter, "{step}"))
    }
}
