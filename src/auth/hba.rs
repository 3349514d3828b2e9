//! Who may log in how: the rules of `auth_hba_file`, in PostgreSQL's format as PgBouncer reads it, and
//! the maps of `auth_ident_file`. [`Hba::find`] gives the first rule that a connection matches.
//!
//! A line that makes no sense is left out with a warning, as PgBouncer does. Mind that a `reject` that is
//! left out rejects nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The rules in their order, and the maps that they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hba {
    rules: Vec<Rule>,
    maps: BTreeMap<String, Vec<Mapping>>,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    transport: Transport,
    databases: Vec<Name>,
    users: Vec<Name>,
    addresses: Option<Network>,
    /// What the client must show.
    pub method: HbaMethod,
    /// `map=`: how names of the system or of a certificate become users.
    pub map: Option<String>,
    /// Its line in the file.
    pub line: usize,
}

/// What the client must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HbaMethod {
    /// Nothing.
    Trust,
    /// Nothing will do.
    Reject,
    /// A password in plain text.
    Password,
    /// A password, by MD5 or SCRAM after the stored secret.
    Md5,
    /// A password, by SCRAM.
    ScramSha256,
    /// A certificate for the user.
    Cert,
    /// That the process at the other end of the Unix socket is the user's.
    Peer,
}

/// How a connection came, and what it wants.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Its address; `None` on a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The database.
    pub database: &'a str,
    /// The user.
    pub user: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

/// One name of a rule's list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    All,
    SameUser,
    /// A replication connection, of whatever database.
    Replication,
    Is(String),
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

/// One line of `auth_ident_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    system: String,
    /// `None` is every user.
    user: Option<String>,
}

/// A word of a line, and whether it was quoted: a quoted keyword is a name.
#[derive(Debug)]
struct Word {
    text: String,
    quoted: bool,
}

/// What `@file` stands for: reads a file that lies beside the rules.
pub type ReadList<'a> = &'a dyn Fn(&str) -> Result<String, String>;

impl Hba {
    /// Reads the rules and the maps. The second value has a warning for each line that is left out.
    pub fn parse(rules: &str, maps: &str, read_list: ReadList<'_>) -> (Hba, Vec<String>) {
        let (mut hba, mut warnings) = (Hba::default(), Vec::new());
        for (number, line) in (1..).zip(rules.lines()) {
            match rule(line, number, read_list) {
                Ok(rule) => hba.rules.extend(rule),
                Err(wrong) => {
                    warnings.push(format!("auth_hba_file line {number}: {wrong}: the line is left out"))
                }
            }
        }
        for (number, line) in (1..).zip(maps.lines()) {
            match mapping(line) {
                Ok(Some((name, mapping))) => hba.maps.entry(name).or_default().push(mapping),
                Ok(None) => {}
                Err(wrong) => {
                    warnings.push(format!("auth_ident_file line {number}: {wrong}: the line is left out"))
                }
            }
        }
        for rule in &hba.rules {
            if let Some(map) = rule.map.as_ref().filter(|map| !hba.maps.contains_key(*map)) {
                warnings.push(format!(
                    "auth_hba_file line {}: there is no map \"{map}\": nobody matches",
                    rule.line
                ));
            }
        }
        (hba, warnings)
    }

    /// The first rule that the connection matches.
    pub fn find(&self, asking: &Asking<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.matches(asking))
    }

    /// Whether someone of this name, to the system or in a certificate, may log in as the user.
    pub fn maps(&self, rule_map: Option<&str>, system: &str, user: &str) -> bool {
        match rule_map {
            None => system == user,
            Some(map) => self.maps.get(map).is_some_and(|lines| {
                let fits = |line: &Mapping| {
                    line.system == system && line.user.as_deref().is_none_or(|is| is == user)
                };
                lines.iter().any(fits)
            }),
        }
    }
}

impl Rule {
    fn matches(&self, asking: &Asking<'_>) -> bool {
        let transport = match (self.transport, asking.address) {
            (Transport::Local, address) => address.is_none(),
            (Transport::Host, address) => address.is_some(),
            (Transport::HostSsl, address) => address.is_some() && asking.encrypted,
            (Transport::HostNoSsl, address) => address.is_some() && !asking.encrypted,
        };
        let near = |address| self.addresses.is_none_or(|network| network.has(address));
        let is = |name: &Name, wanted: &str| match name {
            Name::All => true,
            Name::SameUser => asking.database == asking.user,
            Name::Replication => false,
            Name::Is(name) => name == wanted,
        };
        transport
            && asking.address.is_none_or(near)
            && self.databases.iter().any(|name| is(name, asking.database))
            && self.users.iter().any(|name| is(name, asking.user))
    }
}

impl Network {
    fn parse(text: &str, mask: Option<&str>) -> Option<Network> {
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let bits: u8 = bits.parse().ok()?;
            return (bits <= width(address)).then_some(Network { address, bits });
        }
        let address: IpAddr = text.parse().ok()?;
        let Some(mask) = mask else {
            return Some(Network { address, bits: width(address) });
        };
        let mask: IpAddr = mask.parse().ok()?;
        let ones = number(mask).leading_ones();
        let whole = ones == number(mask).count_ones() && mask.is_ipv4() == address.is_ipv4();
        whole.then_some(Network { address, bits: u8::try_from(ones).ok()? })
    }

    fn has(self, address: IpAddr) -> bool {
        // A client of IPv4 may come over an IPv6 socket.
        let address = address.to_canonical();
        let differ = number(self.address) ^ number(address);
        self.address.is_ipv4() == address.is_ipv4() && differ.leading_zeros() >= u32::from(self.bits)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address's bits, from the left.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn rule(line: &str, number: usize, read_list: ReadList<'_>) -> Result<Option<Rule>, String> {
    let mut words = words(line)?.into_iter();
    let Some(kind) = words.next() else { return Ok(None) };
    let transport = match kind.text.as_str() {
        "local" => Transport::Local,
        "host" => Transport::Host,
        "hostssl" => Transport::HostSsl,
        "hostnossl" => Transport::HostNoSsl,
        other => return Err(format!("\"{other}\" must be local, host, hostssl or hostnossl")),
    };
    let mut next = |what: &str| words.next().ok_or_else(|| format!("there is no {what}"));
    let databases = names(&next("database")?, Names::Databases, read_list)?;
    let users = names(&next("user")?, Names::Users, read_list)?;
    let (addresses, method) = match transport {
        Transport::Local => (None, next("method")?),
        Transport::Host | Transport::HostSsl | Transport::HostNoSsl => {
            let address = next("address")?;
            let after = next("method")?;
            match address.text.as_str() {
                "all" if !address.quoted => (None, after),
                text => {
                    let has_mask = !text.contains('/') && after.text.parse::<IpAddr>().is_ok();
                    let network = Network::parse(text, has_mask.then_some(&after.text));
                    let network = network.ok_or_else(|| format!("\"{text}\" is no address"))?;
                    (Some(network), if has_mask { next("method")? } else { after })
                }
            }
        }
    };
    let method = match (method.text.as_str(), transport) {
        ("trust", _) => HbaMethod::Trust,
        ("reject", _) => HbaMethod::Reject,
        ("password", _) => HbaMethod::Password,
        ("md5", _) => HbaMethod::Md5,
        ("scram-sha-256", _) => HbaMethod::ScramSha256,
        ("cert", Transport::HostSsl) => HbaMethod::Cert,
        ("cert", _) => return Err("cert is for hostssl only".into()),
        ("peer", Transport::Local) => HbaMethod::Peer,
        ("peer", _) => return Err("peer is for local only".into()),
        (other, _) => return Err(format!("the method \"{other}\" is not supported")),
    };
    let mut map = None;
    for option in words {
        match option.text.split_once('=') {
            Some(("map", name)) if matches!(method, HbaMethod::Cert | HbaMethod::Peer) => {
                map = Some(name.to_owned())
            }
            _ => return Err(format!("the option \"{}\" is not supported", option.text)),
        }
    }
    Ok(Some(Rule { transport, databases, users, addresses, method, map, line: number }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Databases,
    Users,
}

fn names(word: &Word, of: Names, read_list: ReadList<'_>) -> Result<Vec<Name>, String> {
    if word.quoted {
        return Ok(vec![Name::Is(word.text.clone())]);
    }
    let mut names = Vec::new();
    for name in word.text.split(',').filter(|name| !name.is_empty()) {
        match (name, of) {
            ("all", _) => names.push(Name::All),
            ("sameuser", Names::Databases) => names.push(Name::SameUser),
            ("replication", Names::Databases) => names.push(Name::Replication),
            (name, _) if name.starts_with('@') => {
                let text = read_list(&name[1..])?;
                let listed = text.lines().map(words).collect::<Result<Vec<_>, _>>()?;
                names.extend(listed.into_iter().flatten().map(|word| Name::Is(word.text)));
            }
            (name, _) => names.push(Name::Is(name.to_owned())),
        }
    }
    Ok(names)
}

fn mapping(line: &str) -> Result<Option<(String, Mapping)>, String> {
    let words = words(line)?;
    match <[Word; 3]>::try_from(words) {
        Ok([name, system, user]) => {
            let user = (user.quoted || user.text != "all").then_some(user.text);
            Ok(Some((name.text, Mapping { system: system.text, user })))
        }
        Err(words) if words.is_empty() => Ok(None),
        Err(words) => Err(format!("it has {} words: map, system user and user are wanted", words.len())),
    }
}

/// The words of a line, up to a comment.
fn words(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '#' => break,
            '"' => {
                let end = rest[1..].find('"').ok_or("a quote is not closed")?;
                words.push(Word { text: rest[1..=end].to_owned(), quoted: true });
                rest = &rest[end + 2..];
            }
            _ => {
                let end = rest.find([' ', '\t', '#', '\r']).unwrap_or(rest.len());
                words.push(Word { text: rest[..end].to_owned(), quoted: false });
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_list(_: &str) -> Result<String, String> {
        Err("there is no file".into())
    }

    fn method(
        rules: &str,
        address: Option<&str>,
        encrypted: bool,
        database: &str,
        user: &str,
    ) -> Option<HbaMethod> {
        let (hba, warnings) = Hba::parse(rules, "", &no_list);
        assert_eq!(warnings, Vec::<String>::new(), "{rules}");
        let address = address.map(|address| address.parse().unwrap());
        hba.find(&Asking { address, encrypted, database, user }).map(|rule| rule.method)
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = "# comment\n\nlocal pgbouncer pgbouncer peer\nhost all all 10.0.0.0/8 trust # near\n\
            hostssl app alice,bob 0.0.0.0/0 scram-sha-256\nhost sameuser all ::/0 md5\nhost all all all reject\n";
        let check = |address, encrypted, database, user, wanted| {
            assert_eq!(
                method(rules, address, encrypted, database, user),
                wanted,
                "{address:?} {database} {user}"
            );
        };
        check(None, false, "pgbouncer", "pgbouncer", Some(HbaMethod::Peer));
        check(None, false, "app", "pgbouncer", None);
        check(Some("10.1.2.3"), false, "app", "carol", Some(HbaMethod::Trust));
        check(Some("::ffff:10.1.2.3"), false, "app", "carol", Some(HbaMethod::Trust));
        check(Some("11.1.2.3"), true, "app", "bob", Some(HbaMethod::ScramSha256));
        check(Some("11.1.2.3"), false, "app", "bob", Some(HbaMethod::Reject));
        check(Some("fd00::1"), false, "carol", "carol", Some(HbaMethod::Md5));
        check(Some("fd00::1"), false, "app", "carol", Some(HbaMethod::Reject));
    }

    #[test]
    fn a_network_is_a_prefix_a_mask_or_one_address() {
        let check = |network: &str, address: &str, wanted| {
            let found = method(&format!("host all all {network} trust"), Some(address), false, "a", "b");
            assert_eq!(found.is_some(), wanted, "{network} {address}");
        };
        check("192.168.0.0 255.255.0.0", "192.168.9.9", true);
        check("192.168.0.0 255.255.0.0", "192.169.9.9", false);
        check("192.168.0.1", "192.168.0.1", true);
        check("192.168.0.1", "192.168.0.2", false);
        check("0.0.0.0/0", "::1", false);
        check("fd00::/8", "fdff::1", true);
        check("fd00:: ffff::", "fd01::1", false);
        check("all", "::1", true);
    }

    #[test]
    fn a_quoted_keyword_is_a_name_and_a_file_is_a_list() {
        let list = |name: &str| match name {
            "staff" => Ok("alice\n\"bob b\" # both\n".to_owned()),
            _ => no_list(name),
        };
        let (hba, warnings) = Hba::parse("local \"all\" @staff trust\nlocal all @none trust\n", "", &list);
        assert_eq!(warnings, ["auth_hba_file line 2: there is no file: the line is left out"]);
        let asks =
            |database, user| hba.find(&Asking { address: None, encrypted: false, database, user }).is_some();
        assert!(asks("all", "alice") && asks("all", "bob b"));
        assert!(!asks("app", "alice") && !asks("all", "carol"));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_left_out_and_named() {
        for (line, wrong) in [
            ("hosts all all all trust", "\"hosts\" must be local, host, hostssl or hostnossl"),
            ("host all all", "there is no address"),
            ("host all all all", "there is no method"),
            ("host all all 1.2.3 trust", "\"1.2.3\" is no address"),
            ("host all all 1.2.3.4/33 trust", "\"1.2.3.4/33\" is no address"),
            ("host all all 1.2.3.4 255.0.255.0 trust", "\"1.2.3.4\" is no address"),
            ("host all all all gss", "the method \"gss\" is not supported"),
            ("host all all all cert", "cert is for hostssl only"),
            ("host all all all peer", "peer is for local only"),
            ("local all all trust map=x", "the option \"map=x\" is not supported"),
            ("local \"all all trust", "a quote is not closed"),
        ] {
            let (hba, warnings) = Hba::parse(line, "", &no_list);
            assert_eq!(warnings, [format!("auth_hba_file line 1: {wrong}: the line is left out")]);
            assert_eq!(hba, Hba::default());
        }
    }

    #[test]
    fn maps_say_who_may_be_whom() {
        let maps = "ops root postgres\nops deploy all\n# none\nbad line\n";
        let (hba, warnings) =
            Hba::parse("local all all peer map=ops\nlocal all all peer map=none\n", maps, &no_list);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(hba.maps(Some("ops"), "root", "postgres") && hba.maps(Some("ops"), "deploy", "anyone"));
        assert!(!hba.maps(Some("ops"), "root", "app") && !hba.maps(Some("none"), "a", "a"));
        assert!(hba.maps(None, "app", "app") && !hba.maps(None, "app", "postgres"));
    }
}
