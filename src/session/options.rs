//! What a client asks for in its StartupMessage: parameters that follow it from server to server, and
//! libpq's `options`.

use std::sync::Arc;

use super::login::fatal;
use super::plane::Plane;
use crate::config::{Config, SessionStateMode};
use crate::error::SqlError;
use crate::log::Peer;
use crate::route::ROLE_OPTION;
use crate::wire::startup::Startup;

/// What a StartupMessage asks for.
#[derive(Debug, Default, Hash, PartialEq, Eq)]
pub struct Wanted {
    /// Tracked parameters, by their places.
    pub(super) tracked: Vec<(usize, String)>,
    /// Others, which no server reports.
    pub(super) others: Vec<(String, String)>,
}

impl Wanted {
    /// What is to be remembered, once for all who ask for the same; `None` if that is nothing.
    pub(super) fn kept(self, plane: &Plane) -> Option<Arc<Wanted>> {
        let asks_for_nothing = self.tracked.is_empty() && self.others.is_empty();
        (!asks_for_nothing).then(|| plane.shared.wanted.intern(self))
    }

    fn add(&mut self, name: &str, value: &str, plane: &Plane) {
        match plane.shared.server.tracked.index(name) {
            Some(index) => self.tracked.push((index, value.to_owned())),
            None => self.others.push((name.to_owned(), value.to_owned())),
        }
    }
}

/// The startup parameters that follow the client; an error for those that would be lost. The `options` of a
/// connection for replication are the server's business.
pub(super) fn client_parameters(
    startup: &Startup,
    config: &Config,
    plane: &Plane,
    for_replication: bool,
) -> Result<Wanted, SqlError> {
    let tracked = &plane.shared.server.tracked;
    let follows = |name: &str| follows(config) || tracked.index(name).is_some();
    let mut wanted = Wanted::default();
    for (name, value) in &startup.parameters {
        if name == "options" {
            if !for_replication {
                options(value, plane, config, &mut wanted)?;
            }
        } else if matches!(name.as_str(), "user" | "database" | "replication") || ignored(config, name) {
        } else if name.starts_with("_pq_.") {
            // Options of the protocol, which NegotiateProtocolVersion has answered.
        } else if follows(name) {
            wanted.add(name, value, plane);
        } else {
            let hint = format!(
                "Add it to ignore_startup_parameters to go on without it, or to track_extra_parameters if the server reports it: {name}"
            );
            return Err(fatal(format!("unsupported startup parameter: {name}")).hint(hint));
        }
    }
    Ok(wanted)
}

/// `-c name=value` and `--name=value`, as libpq's `options` has them; a backslash escapes. Where
/// `ignore_startup_parameters` has "options", what cannot follow the client is left out, as in PgBouncer.
fn options(text: &str, plane: &Plane, config: &Config, wanted: &mut Wanted) -> Result<(), SqlError> {
    let unsupported = || {
        fatal("unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed")
    };
    let mut words = split_options(text).into_iter();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => setting.to_owned(),
            (None, Some("")) => words.next().ok_or_else(unsupported)?,
            (None, Some(setting)) => setting.to_owned(),
            (None, None) => return Err(unsupported()),
        };
        let (name, value) = setting.split_once('=').ok_or_else(unsupported)?;
        let name = name.replace('-', "_");
        if name == ROLE_OPTION {
            continue;
        }
        if plane.shared.server.tracked.index(&name).is_some() {
            wanted.add(&name, value, plane);
        } else if ignored(config, &name) || ignored(config, "options") {
        } else if follows(config) {
            wanted.add(&name, value, plane);
        } else {
            return Err(fatal(format!("unsupported startup parameter in options: {name}")));
        }
    }
    Ok(())
}

/// Whether settings that no server reports follow the client too.
pub(super) fn follows(config: &Config) -> bool {
    config.settings.session_state != SessionStateMode::Pgbouncer
}

/// The role among the options, the last one if there are several.
pub(super) fn role_option(text: &str) -> Option<String> {
    let value = |word: &String| {
        let setting = word.strip_prefix("--").or(word.strip_prefix("-c")).unwrap_or(word);
        let (name, value) = setting.split_once('=')?;
        (name == ROLE_OPTION).then(|| value.to_owned())
    };
    split_options(text).iter().rev().find_map(value)
}

fn split_options(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.extend(characters.next()),
            space if space.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `application_name_add_host`: the client's address behind its application's name, which PgBouncer calls
/// "app" where it has none. What the application sets later is its own.
pub(super) fn add_host(startup: &mut Startup, peer: &Peer) {
    let given = startup.parameters.iter_mut().rev().find(|(name, _)| name == "application_name");
    match given {
        Some((_, name)) => *name = format!("{name} - {peer}"),
        None => startup.parameters.push(("application_name".to_owned(), format!("app - {peer}"))),
    }
}

/// Whether `ignore_startup_parameters` names it.
pub(super) fn ignored(config: &Config, name: &str) -> bool {
    config.settings.ignore_startup_parameters.iter().any(|known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_words_with_backslash_escapes() {
        assert_eq!(split_options(r" -c a=b\ c  --d=e\\"), ["-c", "a=b c", r"--d=e\"]);
        assert!(split_options("  ").is_empty());
    }
}
