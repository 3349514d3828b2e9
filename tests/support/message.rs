//! Messages of the PostgreSQL protocol: to build what a client sends, and to read what it is told.
//!
//! Read [`Reply`] first: a list of messages with a compact notation that tests assert on.
//! `1 2 T D(7) C(SELECT 1) Z(I)` is ParseComplete, BindComplete, RowDescription, one DataRow with the
//! value `7`, CommandComplete and ReadyForQuery (idle).

use std::fmt;

/// One message from a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// The columns of a DataRow as text; `NULL` for null.
    pub fn values(&self) -> Vec<String> {
        let mut rest = &self.body[2..];
        let mut values = Vec::new();
        while rest.len() >= 4 {
            let length = i32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
            rest = &rest[4..];
            let Ok(length) = usize::try_from(length) else {
                values.push("NULL".to_owned());
                continue;
            };
            values.push(String::from_utf8_lossy(&rest[..length]).into_owned());
            rest = &rest[length..];
        }
        values
    }

    /// The column names of a RowDescription.
    pub fn columns(&self) -> Vec<String> {
        let mut rest = &self.body[2..];
        let mut names = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
            rest = &rest[end + 1 + 18..];
        }
        names
    }

    /// A field of an ErrorResponse or NoticeResponse: `C` is the SQLSTATE, `M` the message, `V` the severity.
    pub fn field(&self, code: u8) -> String {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    }

    /// The zero-terminated strings of the body.
    pub fn strings(&self) -> Vec<String> {
        let body = self.body.strip_suffix(b"\0").unwrap_or(&self.body);
        body.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    fn detail(&self) -> Option<String> {
        Some(match self.tag {
            b'C' => self.strings().concat(),
            b'D' => self.values().join("|"),
            b'd' | b'Z' => String::from_utf8_lossy(&self.body).trim_end().to_owned(),
            b'E' | b'N' => self.field(b'C'),
            b'S' => self.strings().join("="),
            // A notification starts with the process id of its sender, which no test can know.
            b'A' => {
                let text = String::from_utf8_lossy(&self.body[4..]).replace('\0', " ");
                text.trim_end().to_owned()
            }
            _ => return None,
        })
    }

    /// Everything two servers must agree on: all but process ids, keys and source lines.
    pub fn masked(&self) -> String {
        let body = match self.tag {
            b'K' => String::new(),
            b'E' | b'N' => b"SVCMDHPsctdn"
                .iter()
                .map(|code| format!("{}={} ", char::from(*code), self.field(*code)))
                .collect(),
            b'A' => self.detail().unwrap_or_default(),
            _ => self.body.escape_ascii().to_string(),
        };
        format!("{}({})", char::from(self.tag), shorten(&body, 2000))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail() {
            Some(detail) => write!(formatter, "{}({})", char::from(self.tag), shorten(&detail, 60)),
            None => write!(formatter, "{}", char::from(self.tag)),
        }
    }
}

fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let start: String = text.chars().take(limit).collect();
    format!("{start}...")
}

/// What a client was told, in order. ParameterStatus is left out of the trace unless it is asked for.
#[derive(Clone, Default, Debug)]
pub struct Reply {
    pub messages: Vec<Message>,
    /// The server closed the connection after the last message.
    pub closed: bool,
}

impl Reply {
    /// All DataRows.
    pub fn rows(&self) -> Vec<Vec<String>> {
        self.of(b'D').map(Message::values).collect()
    }

    /// The first column of the only row.
    pub fn value(&self) -> String {
        let rows = self.rows();
        assert_eq!(rows.len(), 1, "one row expected in: {self}");
        rows[0][0].clone()
    }

    /// The messages of one type.
    pub fn of(&self, tag: u8) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(move |message| message.tag == tag)
    }

    pub fn count(&self, tag: u8) -> usize {
        self.of(tag).count()
    }

    /// Panics with the server's message if there is an error.
    #[track_caller]
    pub fn succeeds(&self, request: &str) {
        if let Some(error) = self.of(b'E').next() {
            panic!("{request}: {}", error.field(b'M'));
        }
    }

    /// The error that ended the connection: severity, SQLSTATE and message.
    #[track_caller]
    pub fn farewell(&self) -> String {
        assert!(self.closed, "the connection is still open: {self}");
        let error = self.messages.last().expect("an error comes before the end");
        format!("{} {} {}", error.field(b'S'), error.field(b'C'), error.field(b'M'))
    }

    /// The words of the trace: one per message, and `EOF` at the end of a closed connection.
    pub fn words(&self) -> Vec<String> {
        let shown = self.messages.iter().filter(|message| message.tag != b'S');
        let mut words: Vec<String> = shown.map(|message| format!("{message:?}")).collect();
        if self.closed {
            words.push("EOF".to_owned());
        }
        words
    }

    /// Asserts on the trace. A word without detail stands for any: `D` matches `D(7)`. A word with `*`
    /// stands for any number of such messages, and `x12` behind a word repeats it.
    #[track_caller]
    pub fn is(&self, expected: &str) -> &Reply {
        let words = self.words();
        assert!(matches(&expand(expected), &words), "\nexpected {expected}\n     got {self}\n");
        self
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.words();
        if words.len() <= 60 {
            return formatter.write_str(&words.join(" "));
        }
        let last = &words[words.len() - 20..];
        write!(formatter, "{} ... {} ({} messages)", words[..40].join(" "), last.join(" "), words.len())
    }
}

/// Splits at spaces outside parentheses and unfolds `Zx3` to three `Z`.
fn expand(expected: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut depth = 0;
    let mut word = String::new();
    for letter in expected.chars().chain([' ']) {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if letter == ' ' && depth == 0 {
            words.extend(repeated(&std::mem::take(&mut word)));
        } else {
            word.push(letter);
        }
    }
    words
}

fn repeated(word: &str) -> Vec<String> {
    if word.is_empty() {
        return Vec::new();
    }
    if let Some((start, count)) = word.rsplit_once('x')
        && let Ok(count) = count.parse::<usize>()
    {
        return vec![start.to_owned(); count];
    }
    vec![word.to_owned()]
}

fn matches(expected: &[String], words: &[String]) -> bool {
    let Some((first, rest)) = expected.split_first() else {
        return words.is_empty();
    };
    if let Some(letter) = first.strip_suffix('*') {
        let most = words.iter().take_while(|word| is_word(letter, word)).count();
        return (0..=most).rev().any(|taken| matches(rest, &words[taken..]));
    }
    words.split_first().is_some_and(|(word, following)| is_word(first, word) && matches(rest, following))
}

fn is_word(expected: &str, word: &str) -> bool {
    expected == word || (expected.len() == 1 && word.starts_with(&format!("{expected}(")))
}

/// One tagged message with its length.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("test messages are below 4 GB");
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Several messages as one run of bytes.
pub fn run_of(messages: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    messages.into_iter().flatten().collect()
}

fn zero_terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn count(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("test messages have few parameters").to_be_bytes()
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &zero_terminated(sql))
}

pub fn parse(statement: &str, sql: &str) -> Vec<u8> {
    parse_typed(statement, sql, &[])
}

pub fn parse_typed(statement: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = [zero_terminated(statement), zero_terminated(sql)].concat();
    body.extend(count(types.len()));
    body.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
    message(b'P', &body)
}

/// Bind with text parameters and text results.
pub fn bind(portal: &str, statement: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = [zero_terminated(portal), zero_terminated(statement)].concat();
    body.extend(count(0));
    body.extend(count(parameters.len()));
    for parameter in parameters {
        let length = u32::try_from(parameter.len()).expect("test parameters are below 4 GB");
        body.extend(length.to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend(count(0));
    message(b'B', &body)
}

pub fn describe_statement(name: &str) -> Vec<u8> {
    message(b'D', &[b"S", &zero_terminated(name)[..]].concat())
}

pub fn describe_portal(name: &str) -> Vec<u8> {
    message(b'D', &[b"P", &zero_terminated(name)[..]].concat())
}

pub fn close_statement(name: &str) -> Vec<u8> {
    message(b'C', &[b"S", &zero_terminated(name)[..]].concat())
}

pub fn close_portal(name: &str) -> Vec<u8> {
    message(b'C', &[b"P", &zero_terminated(name)[..]].concat())
}

/// Execute; 0 rows means all.
pub fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    let body = [&zero_terminated(portal)[..], &rows_max.to_be_bytes()].concat();
    message(b'E', &body)
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

pub fn copy_data(data: &str) -> Vec<u8> {
    message(b'd', data.as_bytes())
}

pub fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

pub fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &zero_terminated(reason))
}

/// Parse, Bind, Describe and Execute of the unnamed statement, without Sync.
pub fn extended(sql: &str, parameters: &[&str]) -> Vec<u8> {
    run_of([parse("", sql), bind("", "", parameters), describe_portal(""), execute("", 0)])
}

/// FunctionCall with binary int4 arguments and a binary result.
pub fn function_call(oid: u32, arguments: &[i32]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend(count(1));
    body.extend(1_u16.to_be_bytes());
    body.extend(count(arguments.len()));
    for argument in arguments {
        body.extend(4_u32.to_be_bytes());
        body.extend(argument.to_be_bytes());
    }
    body.extend(1_u16.to_be_bytes());
    message(b'F', &body)
}

/// An untagged packet: length, code, rest.
pub fn untagged(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(rest.len() + 8).expect("test packets are below 4 GB");
    [&length.to_be_bytes()[..], &code.to_be_bytes()[..], rest].concat()
}

/// StartupMessage of protocol 3.0.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend(zero_terminated(name));
        body.extend(zero_terminated(value));
    }
    body.push(0);
    untagged(3 << 16, &body)
}

pub fn ssl_request() -> Vec<u8> {
    untagged(80_877_103, b"")
}

/// CancelRequest with the body of a BackendKeyData.
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    untagged(80_877_102, key)
}
