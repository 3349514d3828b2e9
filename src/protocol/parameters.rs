//! Session parameters that the server reports, and the SETs that carry a client's values to its next
//! server. Start with [`ParameterSet`]; sets are interned, so that "nothing differs" is one pointer
//! comparison on the way of a query.

use std::sync::Arc;

/// Reported by every server and always tracked, as PgBouncer does. `track_extra_parameters` adds more.
const ALWAYS_TRACKED: [&str; 5] =
    ["client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name"];

/// The place of `client_encoding`.
const CLIENT_ENCODING: usize = 0;

/// The places of DateStyle, TimeZone and `standard_conforming_strings`, which say what a literal means.
const OF_LITERALS: [usize; 3] = [1, 2, 3];

/// The one reported parameter whose value is a list of names: SET takes what stands in quotes for one name.
pub const SEARCH_PATH: &str = "search_path";

/// Names of the parameters that follow a client from server to server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked(Arc<[Box<str>]>);

impl Tracked {
    /// The five that are always tracked, and `track_extra_parameters`.
    pub fn new<'a>(extra: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names: Vec<Box<str>> = ALWAYS_TRACKED.iter().map(|name| (*name).into()).collect();
        for name in extra {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name.into());
            }
        }
        Tracked(names.into())
    }

    /// The name at a place.
    pub fn name(&self, index: usize) -> &str {
        &self.0[index]
    }

    /// The place of a name, if a server with these values reports it: others do not follow a client by themselves.
    pub fn reported(&self, name: &str, values: &ParameterSet) -> Option<usize> {
        self.index(name).filter(|index| values.get(*index).is_some())
    }

    /// The place of a name; names of settings have no case.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known.eq_ignore_ascii_case(name))
    }
}

/// A value for each tracked parameter, or none where the server does not report it.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct ParameterSet(Box<[Option<Box<str>>]>);

impl ParameterSet {
    /// The value at an index of [`Tracked::index`].
    pub fn get(&self, index: usize) -> Option<&str> {
        self.0.get(index)?.as_deref()
    }

    /// The same set with one value changed.
    pub fn with(&self, index: usize, value: &str) -> ParameterSet {
        let mut values = self.0.to_vec();
        if values.len() <= index {
            values.resize(index + 1, None);
        }
        values[index] = Some(value.into());
        ParameterSet(values.into())
    }

    /// Whether text goes to and from a session with these values as it is kept here.
    pub fn is_utf8(&self) -> bool {
        self.encoding().eq_ignore_ascii_case("UTF8")
    }

    /// Whether the server may be told to answer in UTF-8: some encodings have no such conversion.
    pub fn has_utf8(&self) -> bool {
        !["SQL_ASCII", "MULE_INTERNAL"].iter().any(|other| other.eq_ignore_ascii_case(self.encoding()))
    }

    /// The SET that makes a server speak the client's own encoding.
    pub fn set_encoding(&self) -> String {
        let mut sql = "SET client_encoding=".to_owned();
        push_literal(&mut sql, self.encoding());
        sql
    }

    /// What decides what a literal in a statement means, once and for all when that is prepared.
    pub fn of_literals(&self) -> impl Iterator<Item = &str> {
        OF_LITERALS.into_iter().map(|index| self.get(index).unwrap_or_default())
    }

    /// `client_encoding`
    pub fn encoding(&self) -> &str {
        self.get(CLIENT_ENCODING).unwrap_or("UTF8")
    }

    /// Name, value here and value there of what is otherwise in `other`.
    pub fn changes<'a>(
        &'a self,
        other: &'a ParameterSet,
        tracked: &'a Tracked,
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        let named = tracked.0.iter().enumerate();
        named
            .filter_map(|(index, name)| Some((&**name, self.get(index)?, other.get(index)?)))
            .filter(|(_, here, there)| here != there)
    }

    /// The SETs that turn a server's values into `wanted`; empty when nothing differs. Values are
    /// compared without case, as PgBouncer does: `utf8` and `UTF8` are one encoding.
    pub fn sets_toward(&self, wanted: &ParameterSet, tracked: &Tracked) -> String {
        let mut sql = String::new();
        for (index, name) in tracked.0.iter().enumerate() {
            let (Some(have), Some(want)) = (self.get(index), wanted.get(index)) else {
                continue;
            };
            if !have.eq_ignore_ascii_case(want) && name.eq_ignore_ascii_case(SEARCH_PATH) {
                push_setting(&mut sql, name, Some(want));
            } else if !have.eq_ignore_ascii_case(want) {
                sql.push_str("SET ");
                sql.push_str(name);
                sql.push('=');
                push_literal(&mut sql, want);
                sql.push(';');
            }
        }
        sql
    }
}

/// `set_config` takes the value of a list as it is shown, which SET does not; NULL is the default.
pub(super) fn push_setting(sql: &mut String, name: &str, value: Option<&str>) {
    sql.push_str("SELECT pg_catalog.set_config(");
    push_literal(sql, name);
    sql.push(',');
    match value {
        Some(value) => push_literal(sql, value),
        None => sql.push_str("NULL"),
    }
    sql.push_str(",false);");
}

/// The name, quoted.
pub(super) fn push_identifier(sql: &mut String, name: &str) {
    sql.push('"');
    sql.push_str(&name.replace('"', "\"\""));
    sql.push('"');
}

/// A string literal that means the same whatever standard_conforming_strings is.
pub(super) fn push_literal(sql: &mut String, value: &str) {
    if value.contains('\\') {
        sql.push('E');
    }
    sql.push('\'');
    for character in value.chars() {
        match character {
            '\'' => sql.push_str("''"),
            '\\' => sql.push_str("\\\\"),
            other => sql.push(other),
        }
    }
    sql.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(tracked: &Tracked, values: &[(&str, &str)]) -> ParameterSet {
        values
            .iter()
            .fold(ParameterSet::default(), |set, (name, value)| set.with(tracked.index(name).unwrap(), value))
    }

    fn check(server: &[(&str, &str)], client: &[(&str, &str)], expected: &str) {
        let tracked = Tracked::new(["IntervalStyle", "search_path"]);
        assert_eq!(set(&tracked, server).sets_toward(&set(&tracked, client), &tracked), expected);
    }

    #[test]
    fn only_what_differs_is_set() {
        check(&[("TimeZone", "UTC")], &[("TimeZone", "UTC")], "");
        check(&[("client_encoding", "UTF8")], &[("client_encoding", "utf8")], "");
        check(&[("timezone", "UTC")], &[("TimeZone", "GMT")], "SET TimeZone='GMT';");
        check(
            &[("TimeZone", "UTC"), ("application_name", "")],
            &[("TimeZone", "GMT"), ("application_name", "x")],
            "SET TimeZone='GMT';SET application_name='x';",
        );
    }

    #[test]
    fn what_a_server_reports_is_what_it_has_a_value_for() {
        let tracked = Tracked::new(["search_path"]);
        let values = set(&tracked, &[("timezone", "UTC")]);
        assert_eq!(tracked.reported("TIMEZONE", &values), tracked.index("TimeZone"));
        assert_eq!(tracked.reported("search_path", &values), None);
        assert_eq!(tracked.reported("work_mem", &values), None);
    }

    #[test]
    fn a_list_of_names_is_set_as_it_is_shown() {
        check(
            &[("search_path", "")],
            &[("search_path", "\"$user\", public")],
            "SELECT pg_catalog.set_config('search_path','\"$user\", public',false);",
        );
    }

    #[test]
    fn what_one_side_does_not_know_is_left_alone() {
        check(&[], &[("search_path", "a")], "");
        check(&[("search_path", "a")], &[], "");
    }

    #[test]
    fn a_value_cannot_break_out_of_its_quotes() {
        check(
            &[("application_name", "")],
            &[("application_name", "x'; DROP TABLE t; --")],
            "SET application_name='x''; DROP TABLE t; --';",
        );
        check(&[("application_name", "")], &[("application_name", r"\'")], r"SET application_name=E'\\''';");
    }
}
