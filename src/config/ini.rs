//! `pgbouncer.ini` and `userlist.txt`, read as PgBouncer reads them. [`read`] and [`read_users`] turn
//! text into calls; what a setting means is not known here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::entry::{Entry, Section};
use super::error::{ConfigError, Problem};
use super::loader::Loader;

/// How deep `%include` may nest, as in PgBouncer.
const INCLUDE_DEPTH_MAX: usize = 10;

/// Files from this size on are refused: a user list of a million users is smaller.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The longest user name of a user list, in bytes.
const USER_BYTES_MAX: usize = 127;

/// The longest secret of a user list, in bytes.
const SECRET_BYTES_MAX: usize = 65_530;

/// The whole file as text.
pub(super) fn read_file(path: &Path) -> Result<String, ConfigError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Err(error) => return Err(Problem::Unreadable(error.to_string()).in_file(path)),
        Ok(bytes) if bytes as u64 == FILE_BYTES_MAX => {
            let reason = format!("it has {FILE_BYTES_MAX} bytes or more");
            return Err(Problem::Unreadable(reason).in_file(path));
        }
        Ok(_) => {}
    }
    String::from_utf8(bytes).map_err(|error| {
        let right = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        Problem::Syntax("the file is not UTF-8".into()).at(path, line_after(right))
    })
}

fn line_after(bytes: &[u8]) -> usize {
    1 + bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Reads the text of one file, and of those it includes, into the loader.
pub(super) fn read(loader: &mut Loader, path: &Path, text: &str) -> Result<(), ConfigError> {
    let mut section = None;
    read_nested(loader, path, text, &mut section, 0)
}

fn read_nested(
    loader: &mut Loader,
    path: &Path,
    text: &str,
    section: &mut Option<Section>,
    depth: usize,
) -> Result<(), ConfigError> {
    let mut scanner = Scanner { text, line: 1 };
    loop {
        scanner.skip_blank();
        let line = scanner.line;
        match scanner.item().map_err(|problem| problem.at(path, line))? {
            Item::End => return Ok(()),
            Item::Include(_) if depth == INCLUDE_DEPTH_MAX => {
                let text = format!("%include may nest {INCLUDE_DEPTH_MAX} deep");
                return Err(Problem::NotAllowed(text).at(path, line));
            }
            Item::Include(name) => {
                let text = read_file(Path::new(name))?;
                read_nested(loader, Path::new(name), &text, section, depth + 1)?;
            }
            Item::Section(name) => {
                let begun = loader.begin(name).map_err(|problem| problem.at(path, line))?;
                *section = Some(begun);
            }
            Item::Pair { key, value } => {
                pair(loader, *section, &key, value).map_err(|problem| problem.at(path, line))?;
            }
        }
    }
}

fn pair(loader: &mut Loader, section: Option<Section>, key: &str, value: &str) -> Result<(), Problem> {
    match section {
        None => Err(Problem::Syntax(format!("{key} stands before the first [section]"))),
        Some(Section::Settings) => loader.setting(key, value),
        Some(section) => {
            let mut entry = Entry::new(section, key)?;
            read_connect_string(&mut entry, value)?;
            entry.insert(&mut loader.config)
        }
    }
}

/// Reads `key=value key='it''s'` into the entry.
pub(super) fn read_connect_string(entry: &mut Entry, text: &str) -> Result<(), Problem> {
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=').ok_or_else(|| {
            // The text itself may hold a password.
            Problem::Syntax("a connect string is key=value, separated by spaces".into())
        })?;
        let key = key.trim_end_matches(is_space);
        let behind = behind.trim_start_matches(is_space);
        if key.is_empty() || key.contains(is_space) {
            return Err(Problem::Syntax("a connect string's key is one word before a =".into()));
        }
        let (value, behind) = match behind.strip_prefix('\'') {
            Some(quoted) => quoted_value(quoted, key)?,
            None => {
                let end = behind.find(is_space).unwrap_or(behind.len());
                (behind[..end].to_owned(), &behind[end..])
            }
        };
        if value.is_empty() {
            return Err(Problem::Syntax(format!("{key} has no value")));
        }
        entry.set(key, &value)?;
        rest = behind.trim_start_matches(is_space);
    }
    Ok(())
}

/// The value up to its closing quote, and what is behind it.
fn quoted_value<'a>(text: &'a str, key: &str) -> Result<(String, &'a str), Problem> {
    let Some((value, rest)) = unquote(text, '\'') else {
        return Err(Problem::Syntax(format!("the value of {key} has no closing quote")));
    };
    match rest.is_empty() || rest.starts_with(is_space) {
        true => Ok((value, rest)),
        false => Err(Problem::Syntax(format!("the value of {key} needs a space behind its quote"))),
    }
}

/// The text up to the closing quote, where a doubled quote is one, and what is behind it.
fn unquote(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find(quote)?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix(quote) {
            Some(behind) => {
                value.push(quote);
                rest = behind;
            }
            None => return Some((value, rest)),
        }
    }
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// What a file of settings consists of.
enum Item<'a> {
    Include(&'a str),
    Section(&'a str),
    Pair { key: String, value: &'a str },
    End,
}

/// What is left of the text, and the line where it begins.
struct Scanner<'a> {
    text: &'a str,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.text.split_at(bytes);
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count();
        self.text = rest;
        taken
    }

    /// Takes all that `wanted` wants.
    fn skip(&mut self, wanted: fn(char) -> bool) -> &'a str {
        let end = self.text.find(|c| !wanted(c)).unwrap_or(self.text.len());
        self.take(end)
    }

    /// The rest of the line, without the space at its end.
    fn line_rest(&mut self) -> &'a str {
        self.skip(|c| c != '\n').trim_end_matches(is_space)
    }

    /// Skips space, empty lines and comments.
    fn skip_blank(&mut self) {
        self.skip(is_space);
        while self.text.starts_with([';', '#']) {
            self.skip(|c| c != '\n');
            self.skip(is_space);
        }
    }

    fn item(&mut self) -> Result<Item<'a>, Problem> {
        if self.text.is_empty() {
            return Ok(Item::End);
        }
        if self.text.starts_with("%include ") || self.text.starts_with("%include\t") {
            self.take("%include".len());
            self.skip(|c| c == ' ' || c == '\t');
            return Ok(Item::Include(self.line_rest()));
        }
        if self.text.starts_with('[') {
            self.take(1);
            let name = self.skip(|c| c != ']' && c != '\n');
            if !self.text.starts_with(']') {
                return Err(Problem::Syntax("a [section] has no closing bracket".into()));
            }
            self.take(1);
            return Ok(Item::Section(name));
        }
        self.pair()
    }

    fn pair(&mut self) -> Result<Item<'a>, Problem> {
        let key = self.key()?;
        self.skip(|c| c == ' ' || c == '\t');
        if !self.text.starts_with('=') {
            // The line itself may hold a password.
            return Err(Problem::Syntax(
                "a line is key = value, [section], %include file, or a comment behind ; or #".into(),
            ));
        }
        self.take(1);
        self.skip(|c| c == ' ' || c == '\t');
        Ok(Item::Pair { key, value: self.line_rest() })
    }

    fn key(&mut self) -> Result<String, Problem> {
        let Some(quoted) = self.text.strip_prefix('\'') else {
            let bare = self.skip(|c| c.is_ascii_alphanumeric() || "_.-*".contains(c));
            return Ok(bare.to_owned());
        };
        match unquote(quoted, '\'') {
            Some((key, rest)) if !key.contains('\n') => {
                self.take(self.text.len() - rest.len());
                Ok(key)
            }
            _ => Err(Problem::Syntax("a key has no closing quote".into())),
        }
    }
}

/// The users of a `userlist.txt`, up to the first broken line, and what is wrong there.
pub(super) fn read_users(path: &Path, text: &str) -> (BTreeMap<String, String>, Option<ConfigError>) {
    let mut users = BTreeMap::new();
    let mut scanner = Scanner { text, line: 1 };
    loop {
        scanner.skip(is_space);
        let line = scanner.line;
        match scanner.user() {
            Ok(Some((name, secret))) => users.insert(name, secret),
            Ok(None) if scanner.text.is_empty() => return (users, None),
            Ok(None) => continue,
            Err(problem) => return (users, Some(problem.at(path, line))),
        };
    }
}

impl Scanner<'_> {
    /// The user of this line; `None` for a comment and at the end.
    fn user(&mut self) -> Result<Option<(String, String)>, Problem> {
        if self.text.is_empty() || self.text.starts_with(';') {
            self.line_rest();
            return Ok(None);
        }
        let name = self.quoted()?;
        self.skip(|c| c == ' ' || c == '\t');
        let secret = self.quoted()?;
        self.line_rest();
        if name.is_empty() || name.len() > USER_BYTES_MAX {
            return Err(Problem::NotAllowed(format!("a user name has 1 to {USER_BYTES_MAX} bytes")));
        }
        if secret.len() > SECRET_BYTES_MAX {
            return Err(Problem::NotAllowed(format!("a secret has 0 to {SECRET_BYTES_MAX} bytes")));
        }
        Ok(Some((name, secret)))
    }

    fn quoted(&mut self) -> Result<String, Problem> {
        let expected = || Problem::Syntax("a line of the user list is \"user\" \"secret\"".into());
        let quoted = self.text.strip_prefix('"').ok_or_else(expected)?;
        let (text, rest) = unquote(quoted, '"').ok_or_else(expected)?;
        if text.contains('\0') {
            return Err(Problem::NotAllowed("a zero byte in a user list".into()));
        }
        self.take(self.text.len() - rest.len());
        Ok(text)
    }
}
