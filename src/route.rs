//! Which role of a database's cluster a client is sent to: it may say so in the database's name
//! (`x@ro`), by the port that it comes to (`listen_port_ro`), or by `options=-c pgweir.role=ro`. Each role is
//! a database of its own name with pools of its own; [`database_name`] gives that name.

use std::fmt;

use crate::config::{Config, Role};

/// The option by which a client chooses its role. It is never sent to a server.
pub const ROLE_OPTION: &str = "pgweir.role";

/// Why a client cannot have the role that it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// No role of this name.
    NoSuchRole(String),
    /// The database belongs to no cluster, so there is nothing to choose from.
    NoCluster(String),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::NoSuchRole(name) => {
                write!(f, "there is no role \"{name}\"; there are rw, ro, r and prefer-standby")
            }
            RouteError::NoCluster(database) => {
                write!(f, "database \"{database}\" belongs to no cluster, so it has no role to choose")
            }
        }
    }
}

/// The role that is meant by the value of [`ROLE_OPTION`].
pub fn role(value: &str) -> Result<Role, RouteError> {
    Role::from_name(value).ok_or_else(|| RouteError::NoSuchRole(value.to_owned()))
}

/// The database that a client gets who asks for `asked`, and for a role by its options or its port.
///
/// A role in the name goes first, then that of the options, then that of the port.
pub fn database_name(
    config: &Config,
    asked: &str,
    by_option: Option<Role>,
    by_port: Option<Role>,
) -> Result<String, RouteError> {
    let Some(wanted) = by_option.or(by_port) else { return Ok(asked.to_owned()) };
    let Some(database) = config.database(asked) else { return Ok(asked.to_owned()) };
    let named = database.cluster.is_some() && asked.contains('@') && !config.databases.contains_key(asked);
    if named {
        return Ok(asked.to_owned());
    }
    match config.cluster(&database) {
        None => Err(RouteError::NoCluster(asked.to_owned())),
        Some((_, role)) if role == wanted => Ok(asked.to_owned()),
        Some(_) => Ok(format!("{asked}@{wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(asked: &str, by_option: Option<Role>, by_port: Option<Role>, expected: Result<&str, &str>) {
        let text = "[clusters]\nc = source=static hosts=a,b\n[databases]\nx = cluster=c\nplain = host=h\n[pgbouncer]\n";
        let config = Config::from_text(Path::new("t.ini"), text, &|_| None).expect("right settings");
        let found = database_name(&config, asked, by_option, by_port).map_err(|error| error.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{asked}");
    }

    #[test]
    fn the_name_goes_before_the_options_and_they_before_the_port() {
        use Role::{Read, ReadOnly, ReadWrite};
        check("x", None, None, Ok("x"));
        check("x@ro", None, None, Ok("x@ro"));
        check("x", Some(ReadOnly), None, Ok("x@ro"));
        check("x", None, Some(ReadOnly), Ok("x@ro"));
        check("x", Some(Read), Some(ReadOnly), Ok("x@r"));
        check("x", Some(ReadWrite), Some(ReadOnly), Ok("x"));
        check("x@rw", Some(ReadOnly), None, Ok("x@rw"));
        check("plain", None, None, Ok("plain"));
        check("unknown", Some(ReadOnly), None, Ok("unknown"));
        let error = "database \"plain\" belongs to no cluster, so it has no role to choose";
        check("plain", Some(ReadOnly), None, Err(error));
    }

    #[test]
    fn an_unknown_role_is_named() {
        assert_eq!(role("ro"), Ok(Role::ReadOnly));
        let error = role("readonly").expect_err("no role");
        assert_eq!(
            error.to_string(),
            "there is no role \"readonly\"; there are rw, ro, r and prefer-standby"
        );
    }
}
