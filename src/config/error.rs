//! What is wrong with the settings, and where: [`ConfigError`] names the file, the line, the
//! setting, its value and what is allowed. It never holds a password.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

/// Why the settings could not be read; its `Display` is one line for the operator.
///
/// `pgweir.toml:14: listen_port is 70000: it must be 0 to 65535 (TCP port for clients; 0 is off)`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as its name was given; `None` for the environment and the console's SET.
    pub file: Option<PathBuf>,
    /// The line in that file, counted from 1.
    pub line: Option<usize>,
    /// What is wrong there.
    pub problem: Box<Problem>,
}

/// What is wrong with a file or a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The file could not be read; the system's reason.
    Unreadable(String),
    /// The file's form is broken; what was expected.
    Syntax(String),
    /// No such setting.
    UnknownSetting {
        /// The name, and of what: `pool_sise of database "app"`.
        setting: String,
        /// The nearest known name.
        suggestion: Option<&'static str>,
    },
    /// The setting exists, its value is wrong.
    BadValue {
        /// The name, and of what: `port of database "app"`.
        setting: String,
        /// The value as it was given.
        value: String,
        /// What the value must be: `0 to 65535`.
        allowed: String,
        /// What the setting is for.
        meaning: &'static str,
    },
    /// Settings that contradict each other, or a name that is not allowed.
    NotAllowed(String),
}

impl Problem {
    /// The problem with the place where it was found.
    pub(super) fn at(self, file: &Path, line: usize) -> ConfigError {
        ConfigError { file: Some(file.to_owned()), line: Some(line), problem: Box::new(self) }
    }

    /// The problem of a file as a whole.
    pub(super) fn in_file(self, file: &Path) -> ConfigError {
        ConfigError { file: Some(file.to_owned()), line: None, problem: Box::new(self) }
    }

    /// A problem that did not come from a file.
    pub(super) fn without_file(self) -> ConfigError {
        ConfigError { file: None, line: None, problem: Box::new(self) }
    }

    /// An unknown name, with the nearest of the `known` ones.
    pub(super) fn unknown(setting: String, name: &str, known: impl Iterator<Item = &'static str>) -> Problem {
        Problem::UnknownSetting { setting, suggestion: nearest(name, known) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            write!(f, " ")?;
        }
        // A key or a value with a line end must not become a second line of the log.
        for c in self.problem.to_string().chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreadable(reason) => write!(f, "cannot be read: {reason}"),
            Problem::Syntax(expected) => write!(f, "syntax error: {expected}"),
            Problem::UnknownSetting { setting, suggestion: None } => {
                write!(f, "there is no setting {setting}")
            }
            Problem::UnknownSetting { setting, suggestion: Some(name) } => {
                write!(f, "there is no setting {setting}; did you mean {name}?")
            }
            Problem::BadValue { setting, value, allowed, meaning } => {
                let value = if value.is_empty() { "empty" } else { value };
                write!(f, "{setting} is {value}: it must be {allowed} ({meaning})")
            }
            Problem::NotAllowed(text) => f.write_str(text),
        }
    }
}

/// The known name that is at most a third of its letters away.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // No known name is longer than 30 bytes; a longer one has nothing near, and costs time.
    if name.len() > 64 {
        return None;
    }
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many bytes must be inserted, deleted or replaced to make `left` into `right`.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(!l.eq_ignore_ascii_case(&r));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_name_is_suggested() {
        let known = ["pool_mode", "pool_size", "listen_port"];
        let check = |name, wanted| assert_eq!(nearest(name, known.into_iter()), wanted, "{name}");
        check("pool_sise", Some("pool_size"));
        check("POOL_MODE", Some("pool_mode"));
        check("poolmode", Some("pool_mode"));
        check("listenport", Some("listen_port"));
        check("something_else", None);
        check("", None);
        check(&"x".repeat(100), None);
    }

    #[test]
    fn the_distance_counts_edits() {
        let check = |left, right, wanted| assert_eq!(distance(left, right), wanted);
        check("", "", 0);
        check("abc", "abc", 0);
        check("", "abc", 3);
        check("kitten", "sitting", 3);
        check("é", "e", 2);
    }
}
