//! [`Difference`]: where the pooler's answers are other than PostgreSQL's, and how that is shown.

use super::script::Script;
use crate::support::Message;
use std::collections::BTreeMap;
use std::fmt;

/// What one side said to one step.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// All but ParameterStatus, which may come at another time.
    pub words: Vec<String>,
    /// The parameters that the client knows behind it. They count when ReadyForQuery is the last word.
    pub parameters: BTreeMap<String, String>,
}

/// The first step that was answered differently.
#[derive(Clone, Debug)]
pub struct Difference {
    pub step: usize,
    pub direct: Vec<Answer>,
    pub pooled: Vec<Answer>,
    /// What is not in the words: parameters, or what is left in the tables.
    pub besides: String,
}

/// How the pooler calls a statement at the server: PostgreSQL's error about a wrong number of parameters has it.
const SERVER_NAMES: &str = "PGWEIR_";

const OID_OF_FIRST_USER_OBJECT: u32 = 16_384;

/// Everything that two connections must agree on: all but process ids, keys, source lines, and the OIDs
/// of what the test has made.
pub fn word(message: &Message) -> String {
    let body = &message.body;
    let text = match message.tag {
        b'T' => columns(body),
        b't' => types(body),
        b'E' | b'N' => fields(body),
        // The process id of the sender.
        b'A' => body[4..].escape_ascii().to_string(),
        b'D' => row(body),
        b'C' | b'Z' | b'd' => String::from_utf8_lossy(body).trim_end_matches('\0').escape_debug().to_string(),
        _ => body.escape_ascii().to_string(),
    };
    let tag = char::from(message.tag);
    if text.is_empty() { tag.to_string() } else { format!("{tag}({text})") }
}

fn row(body: &[u8]) -> String {
    let mut rest = &body[2..];
    let mut values = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = usize::try_from(i32::from_be_bytes(*length));
        values.push(length.map_or("NULL".to_owned(), |length| behind[..length].escape_ascii().to_string()));
        rest = &behind[length.unwrap_or(0)..];
    }
    values.join("|")
}

fn masked(oid: u32) -> String {
    if oid >= OID_OF_FIRST_USER_OBJECT { "#".to_owned() } else { oid.to_string() }
}

fn columns(body: &[u8]) -> String {
    let mut rest = &body[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]);
        let facts = &rest[end + 1..];
        let number = |at: usize| u32::from_be_bytes([facts[at], facts[at + 1], facts[at + 2], facts[at + 3]]);
        let (table, kind, others) = (number(0), number(6), [&facts[4..6], &facts[10..18]].concat());
        columns.push(format!("{name}:{}:{}:{}", masked(table), masked(kind), others.escape_ascii()));
        rest = &facts[18..];
    }
    columns.join(", ")
}

fn types(body: &[u8]) -> String {
    let oids = body[2..].chunks_exact(4).map(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]));
    oids.map(masked).collect::<Vec<_>>().join(", ")
}

/// All fields but the source's file, line and routine; the number of a temporary schema is chance.
fn fields(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    let fields = fields.filter(|field| !b"FLRV".contains(&field[0]));
    let fields: Vec<String> = fields.map(|field| String::from_utf8_lossy(field).into_owned()).collect();
    without_digits_behind(&fields.join(" "), "pg_temp_")
}

/// Whether the pooler's word is PostgreSQL's, up to the server's name of a statement. In a failed transaction PostgreSQL
/// counts the parameters of Bind first; a server that lacks the statement is asked to prepare it before that.
pub fn is_same(expected: &str, got: &str) -> bool {
    expected == got
        || got.contains(SERVER_NAMES) && without_names(expected) == without_names(got)
        || expected.starts_with("E(SERROR C08P01 Mbind message supplies")
            && got.starts_with("E(SERROR C25P02 ")
}

/// PostgreSQL tells the types of a statement's parameters before it finds out that the statement no longer fits: what
/// it names is gone. A server that has to prepare it first finds that out at once.
pub fn skips_parameters(expected: &Answer, at: usize, got: &str) -> bool {
    let is_parameters = expected.words.get(at).is_some_and(|word| word.starts_with("t"));
    is_parameters
        && got.starts_with("E(")
        && expected.words.get(at + 1).is_some_and(|next| is_same(next, got))
}

/// The quoted word behind `prepared statement` is left out.
fn without_names(word: &str) -> String {
    let mut parts = word.split("prepared statement \"");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| whole + part.split_once('"').map_or(part, |(_, behind)| behind))
}

fn without_digits_behind(text: &str, mark: &str) -> String {
    let mut parts = text.split(mark);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| whole + mark + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

const WIDTH: usize = 72;

impl Difference {
    /// The script, with both traces side by side up to the first difference.
    pub fn shown(&self, script: &Script) -> String {
        let mut text = format!("{script}\n{:WIDTH$} | through the pooler\n", "PostgreSQL");
        let none = Answer::default();
        for at in 0..=self.step.min(self.direct.len().saturating_sub(1)) {
            let direct = self.direct.get(at).unwrap_or(&none);
            let pooled = self.pooled.get(at).unwrap_or(&none);
            let step = script.steps.get(at).map_or("the end".to_owned(), ToString::to_string);
            text += &format!("-- {step}\n");
            let lines = direct.words.len().max(pooled.words.len());
            for line in 0..lines {
                let left = direct.words.get(line).map_or("", String::as_str);
                let right = pooled.words.get(line).map_or("", String::as_str);
                let mark = if left == right { '|' } else { '!' };
                text += &format!("{:WIDTH$} {mark} {}\n", cut(left), cut(right));
            }
        }
        text + &self.besides + "\n"
    }
}

fn cut(word: &str) -> String {
    if word.chars().count() <= WIDTH {
        word.to_owned()
    } else {
        word.chars().take(WIDTH - 1).collect::<String>() + "…"
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words.join(" "))
    }
}
