//! What a directory is asked about a user: [`LdapOptions`], as `auth_ldap_options` or a rule of
//! `auth_hba_file` has them, with PostgreSQL's names and meanings.
//!
//! A simple bind makes the user's entry of the name itself; search and bind looks for it first.

mod filter;

pub use filter::Filter;

use super::secret::Password;

/// Where directories listen.
const PORT: u16 = 389;
const PORT_TLS: u16 = 636;

/// What PostgreSQL, which puts the name into the filter's text, lets nobody be called.
const NEVER_IN_A_SEARCH: [char; 5] = ['*', '(', ')', '\\', '/'];

/// Which directory is asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LdapOptions {
    /// `ldapserver`: names or addresses, tried in this order.
    pub servers: Vec<String>,
    /// `ldapport`; default 389, with ldaps 636.
    pub port: u16,
    /// `ldaptls` and `ldapscheme`.
    pub transport: LdapTransport,
    /// How the user's entry is found.
    pub entry: LdapEntry,
}

/// What protects the password on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LdapTransport {
    /// Nothing.
    Plain,
    /// TLS, begun by StartTLS: `ldaptls=1`.
    StartTls,
    /// TLS from the first byte: `ldapscheme=ldaps`.
    Tls,
}

/// How the user's entry is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LdapEntry {
    /// It is called so: the name between `ldapprefix` and `ldapsuffix`.
    Named {
        /// `ldapprefix`
        prefix: String,
        /// `ldapsuffix`
        suffix: String,
    },
    /// It is looked for.
    Sought(LdapSearch),
}

/// How an entry is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LdapSearch {
    /// `ldapbasedn`
    pub base: String,
    /// `ldapbinddn`, as whom it is looked for; empty is nobody.
    pub bind_name: String,
    /// `ldapbindpasswd`
    pub bind_password: Password,
    /// Of `ldapurl`; default the whole tree below the base.
    pub scope: LdapScope,
    /// `ldapsearchfilter`, or one made of `ldapsearchattribute`; default `(uid=$username)`.
    pub filter: Filter,
}

/// Which entries are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LdapScope {
    /// The base alone.
    Base,
    /// Those right below it.
    One,
    /// Itself, and all below it.
    Subtree,
}

/// The options as they stand there.
#[derive(Default)]
struct Given {
    servers: Option<String>,
    port: Option<u16>,
    tls: bool,
    ldaps: bool,
    prefix: Option<String>,
    suffix: Option<String>,
    base: Option<String>,
    bind_name: Option<String>,
    bind_password: Option<String>,
    attribute: Option<String>,
    filter: Option<String>,
    scope: Option<LdapScope>,
}

impl LdapOptions {
    /// Reads options, each a name and its value. Fails with what is wrong with them; no value is in that text.
    pub fn parse<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut given = Given::default();
        for (name, value) in options {
            given.take(name, value)?;
        }
        given.finish()
    }

    /// Whether there is a certificate to be checked.
    pub fn has_tls(&self) -> bool {
        self.transport != LdapTransport::Plain
    }
}

impl LdapEntry {
    /// Whether a user of this name can be asked about.
    pub fn allows(&self, user: &str) -> bool {
        match self {
            LdapEntry::Named { .. } => true,
            LdapEntry::Sought(_) => !user.contains(NEVER_IN_A_SEARCH),
        }
    }
}

impl Given {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned());
        match name {
            "ldapserver" => self.servers = text(),
            "ldapport" => self.port = Some(port(value).ok_or("ldapport must be 1 to 65535")?),
            "ldapscheme" => self.ldaps = is_ldaps(value).ok_or("ldapscheme must be ldap or ldaps")?,
            "ldaptls" => self.tls = value == "1",
            "ldapprefix" => self.prefix = text(),
            "ldapsuffix" => self.suffix = text(),
            "ldapbasedn" => self.base = text(),
            "ldapbinddn" => self.bind_name = text(),
            "ldapbindpasswd" => self.bind_password = text(),
            "ldapsearchattribute" => self.attribute = text(),
            "ldapsearchfilter" => self.filter = text(),
            "ldapurl" => self.take_url(value)?,
            other => return Err(format!("the option \"{other}\" is not supported")),
        }
        Ok(())
    }

    /// `ldap[s]://host[:port]/base[?[attribute][?[scope][?[filter]]]]` (RFC 4516), as PostgreSQL takes it.
    fn take_url(&mut self, url: &str) -> Result<(), String> {
        const FORM: &str = "ldapurl must be like ldap://host:port/base?attribute?scope?filter";
        let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
        self.ldaps = is_ldaps(scheme).ok_or(FORM)?;
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, number) = match place.rsplit_once(':') {
            Some((host, number)) if !number.contains(']') => (host, Some(port(number).ok_or(FORM)?)),
            _ => (place, None),
        };
        self.port = number.or(self.port);
        self.servers = filled(host.trim_start_matches('[').trim_end_matches(']')).or(self.servers.take());
        let parts: Option<Vec<String>> = path.split('?').map(percent_decoded).collect();
        let mut parts = parts.ok_or(FORM)?.into_iter();
        let mut next = || parts.next().filter(|part| !part.is_empty());
        self.base = next().or(self.base.take());
        self.attribute = next().or(self.attribute.take());
        self.scope = match next().as_deref() {
            None => self.scope,
            Some("base") => Some(LdapScope::Base),
            Some("one") => Some(LdapScope::One),
            Some("sub") => Some(LdapScope::Subtree),
            Some(_) => return Err("the scope of ldapurl must be base, one or sub".into()),
        };
        self.filter = next().or(self.filter.take());
        Ok(())
    }

    fn finish(self) -> Result<LdapOptions, String> {
        let servers: Vec<String> =
            self.servers.iter().flat_map(|list| list.split_whitespace()).map(str::to_owned).collect();
        if servers.is_empty() {
            return Err("ldap requires ldapserver to be set".into());
        }
        let transport = match (self.ldaps, self.tls) {
            (true, true) => return Err("ldaptls is for ldapscheme ldap: ldaps has TLS already".into()),
            (true, false) => LdapTransport::Tls,
            (false, true) => LdapTransport::StartTls,
            (false, false) => LdapTransport::Plain,
        };
        let port = self.port.unwrap_or(if self.ldaps { PORT_TLS } else { PORT });
        Ok(LdapOptions { servers, port, transport, entry: self.entry()? })
    }

    fn entry(self) -> Result<LdapEntry, String> {
        let names = self.prefix.is_some() || self.suffix.is_some();
        let seeks = self.base.is_some()
            || self.bind_name.is_some()
            || self.bind_password.is_some()
            || self.attribute.is_some()
            || self.filter.is_some();
        if names && seeks {
            return Err("ldapprefix and ldapsuffix cannot be used together with ldapbasedn, ldapbinddn, \
                 ldapbindpasswd, ldapsearchattribute, ldapsearchfilter, or ldapurl"
                .into());
        }
        if names {
            let (prefix, suffix) = (self.prefix.unwrap_or_default(), self.suffix.unwrap_or_default());
            return Ok(LdapEntry::Named { prefix, suffix });
        }
        let base = self.base.ok_or("ldap requires ldapbasedn, ldapprefix, or ldapsuffix to be set")?;
        let filter = match (self.filter, self.attribute) {
            (Some(_), Some(_)) => {
                return Err("ldapsearchattribute cannot be used together with ldapsearchfilter".into());
            }
            (Some(filter), None) => {
                Filter::parse(&filter).map_err(|wrong| format!("ldapsearchfilter: {wrong}"))?
            }
            (None, attribute) => Filter::of_attribute(attribute.as_deref().unwrap_or("uid")),
        };
        Ok(LdapEntry::Sought(LdapSearch {
            base,
            bind_name: self.bind_name.unwrap_or_default(),
            bind_password: Password::new(self.bind_password.unwrap_or_default()),
            scope: self.scope.unwrap_or(LdapScope::Subtree),
            filter,
        }))
    }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port > 0)
}

fn is_ldaps(scheme: &str) -> Option<bool> {
    match scheme {
        "ldap" => Some(false),
        "ldaps" => Some(true),
        _ => None,
    }
}

/// Of two hex digits, and nothing else that the number's own parser takes.
fn hex_byte(digits: &str) -> Option<u8> {
    let digits = Some(digits).filter(|digits| !digits.starts_with('+'))?;
    u8::from_str_radix(digits, 16).ok()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(hex_byte(digits)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// A name as the value of an attribute in a distinguished name (RFC 4514, 2.4).
pub fn escaped_for_name(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.char_indices().next_back().map_or(0, |(at, _)| at);
    for (at, c) in text.char_indices() {
        let special = matches!(c, '"' | '+' | ',' | ';' | '<' | '=' | '>' | '\\')
            || at == 0 && matches!(c, ' ' | '#')
            || at == last && c == ' ';
        if special {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LdapOptions, String> {
        LdapOptions::parse(text.split(' ').map(|option| option.split_once('=').unwrap()))
    }

    #[test]
    fn a_simple_bind_and_a_search_are_told_apart() {
        let options = parse("ldapserver=a ldapprefix=cn= ldapsuffix=,dc=x").unwrap();
        assert_eq!((options.port, options.transport), (389, LdapTransport::Plain));
        let named = LdapEntry::Named { prefix: "cn=".into(), suffix: ",dc=x".into() };
        assert_eq!(options.entry, named);
        let options =
            parse("ldapserver=a ldapbasedn=dc=x ldapbinddn=cn=m ldapbindpasswd=p ldapsearchattribute=mail")
                .unwrap();
        let LdapEntry::Sought(search) = &options.entry else { panic!("{options:?}") };
        assert_eq!((search.base.as_str(), search.bind_name.as_str()), ("dc=x", "cn=m"));
        assert_eq!(search.filter, Filter::of_attribute("mail"));
        assert!(!format!("{options:?}").contains("\"p\""), "a password is not printed");
    }

    #[test]
    fn several_servers_and_both_kinds_of_tls_are_taken() {
        let options = LdapOptions::parse([("ldapserver", "a b  c"), ("ldapprefix", ""), ("ldaptls", "1")]);
        let options = options.unwrap();
        assert_eq!(options.servers, ["a", "b", "c"]);
        assert_eq!(options.transport, LdapTransport::StartTls);
        let options = parse("ldapserver=a ldapscheme=ldaps ldapprefix=").unwrap();
        assert_eq!((options.port, options.transport), (636, LdapTransport::Tls));
        assert_eq!(parse("ldapserver=a ldapscheme=ldaps ldapport=7 ldapprefix=").unwrap().port, 7);
    }

    #[test]
    fn a_url_says_the_same_in_one_word() {
        let by_url = parse("ldapurl=ldaps://h:12345/dc=ex%20ample,dc=net?cn?one").unwrap();
        assert_eq!((by_url.servers.as_slice(), by_url.port), (&["h".to_owned()][..], 12345));
        assert_eq!(by_url.transport, LdapTransport::Tls);
        let LdapEntry::Sought(search) = by_url.entry else { panic!("a URL is for a search") };
        assert_eq!((search.base.as_str(), search.scope), ("dc=ex ample,dc=net", LdapScope::One));
        assert_eq!(search.filter, Filter::of_attribute("cn"));
        let by_filter = parse("ldapurl=ldap://[::1]/dc=x??sub?(cn=$username)").unwrap();
        assert_eq!((by_filter.servers.as_slice(), by_filter.port), (&["::1".to_owned()][..], 389));
        let LdapEntry::Sought(search) = by_filter.entry else { panic!("a URL is for a search") };
        assert_eq!((search.filter, search.scope), (Filter::of_attribute("cn"), LdapScope::Subtree));
    }

    #[test]
    fn what_cannot_be_is_told_in_postgresqls_words() {
        let check = |text: &str, wanted: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        };
        check("ldapprefix=cn=", "requires ldapserver");
        check("ldapserver=a", "requires ldapbasedn, ldapprefix, or ldapsuffix");
        check("ldapserver=a ldapprefix=cn= ldapbasedn=dc=x", "cannot be used together");
        check("ldapserver=a ldapbasedn=x ldapsearchattribute=a ldapsearchfilter=(a=b)", "cannot be used");
        check("ldapserver=a ldapbasedn=x ldapsearchfilter=nonsense", "ldapsearchfilter: ");
        check("ldapserver=a ldapprefix= ldapport=0", "ldapport must be");
        check("ldapserver=a ldapprefix= ldapport=x", "ldapport must be");
        check("ldapserver=a ldapprefix= ldapscheme=http", "ldapscheme must be");
        check("ldapserver=a ldapprefix= ldaptls=1 ldapscheme=ldaps", "has TLS already");
        check("ldapserver=a ldapcolour=red", "ldapcolour");
        check("ldapurl=http://a/dc=x", "must be like");
        check("ldapurl=ldap://a:x/dc=x", "must be like");
        check("ldapurl=ldap://a/%zz", "must be like");
        check("ldapurl=ldap://a/%+f", "must be like");
        check("ldapurl=ldap://a/dc=x?uid?all", "scope");
    }

    #[test]
    fn a_name_stays_one_value_in_a_distinguished_name() {
        for (name, escaped) in [
            ("alice", "alice"),
            ("a,ou=admins", r"a\,ou\=admins"),
            ("#a b ", r"\#a b\ "),
            (" ", r"\ "),
            (r#"a"+;<>\"#, r#"a\"\+\;\<\>\\"#),
            ("", ""),
        ] {
            assert_eq!(escaped_for_name(name), escaped, "{name}");
        }
        let search = parse("ldapserver=a ldapbasedn=x").unwrap().entry;
        assert!(search.allows("alice") && !search.allows("*") && !search.allows("a)(b"));
    }
}
