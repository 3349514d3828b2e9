//! Who may log in how: the rules of `auth_hba_file`, in PostgreSQL's format as PgBouncer reads it, and
//! the maps of `auth_ident_file`. [`Hba::find`] gives the first rule that a connection matches.
//!
//! A line that does not even say for whom it is is left out with a warning, as PgBouncer does. One whose
//! method or option we do not know lets nobody in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::ldap::LdapOptions;

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
    /// The options of ldap.
    pub ldap: Option<Arc<LdapOptions>>,
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
    /// A password that a directory knows.
    Ldap,
    /// A password that the system's PAM modules accept.
    Pam,
    /// Something that we cannot ask for: nobody gets in by this rule, nor by a later one.
    Unsupported,
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
    /// Whether it asks for physical replication, which has no database whatever it names.
    pub physical: bool,
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
    /// Physical replication, of whatever database; and that matches nothing else.
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

/// A name, and whether it was quoted: a quoted keyword is a name.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            match rule(line, number, read_list, &mut warnings) {
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

    /// One rule for everybody: to ask a directory. The options are written as in a rule (`auth_ldap_options`).
    ///
    /// Fails with what is wrong with them.
    pub fn of_ldap(options: &str) -> Result<Hba, String> {
        let mut found = Vec::new();
        for field in fields(options)? {
            let option = single(&field)?;
            let pair = option.split_once('=').ok_or_else(|| format!("\"{option}\" has no \"=\""))?;
            found.push((pair.0.to_owned(), pair.1.to_owned()));
        }
        let ldap = Arc::new(ldap_options(&found)?);
        let rule = |transport| Rule {
            transport,
            databases: vec![Name::All],
            users: vec![Name::All],
            addresses: None,
            method: HbaMethod::Ldap,
            map: None,
            ldap: Some(Arc::clone(&ldap)),
            line: 0,
        };
        let rules = vec![rule(Transport::Local), rule(Transport::Host)];
        Ok(Hba { rules, maps: BTreeMap::new() })
    }

    /// The directories that rules ask.
    pub fn directories(&self) -> impl Iterator<Item = &LdapOptions> {
        self.rules.iter().filter_map(|rule| rule.ldap.as_deref())
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
        // PostgreSQL manual, "The pg_hba.conf File": `all` does not match it either.
        let is_database = |name: &Name| match name {
            Name::Replication => asking.physical,
            _ if asking.physical => false,
            Name::All => true,
            Name::SameUser => asking.database == asking.user,
            Name::Is(name) => name == asking.database,
        };
        let is_user = |name: &Name| match name {
            Name::All => true,
            Name::Is(name) => name == asking.user,
            Name::SameUser | Name::Replication => false,
        };
        transport
            && asking.address.is_none_or(near)
            && self.databases.iter().any(is_database)
            && self.users.iter().any(is_user)
    }
}

impl Network {
    /// A mapped address of IPv4 is one of IPv4, as those of clients are.
    fn parse(text: &str, mask: Option<&str>) -> Option<Network> {
        let network = Network::parse_as_written(text, mask)?;
        match (network.address.to_canonical(), network.bits.checked_sub(96)) {
            (IpAddr::V4(address), Some(bits)) if network.address.is_ipv6() => {
                Some(Network { address: address.into(), bits })
            }
            _ => Some(network),
        }
    }

    fn parse_as_written(text: &str, mask: Option<&str>) -> Option<Network> {
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

fn rule(
    line: &str,
    number: usize,
    read_list: ReadList<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Rule>, String> {
    let mut fields = fields(line)?.into_iter();
    let Some(kind) = fields.next() else { return Ok(None) };
    let transport = match single(&kind)? {
        "local" => Transport::Local,
        "host" => Transport::Host,
        "hostssl" => Transport::HostSsl,
        "hostnossl" => Transport::HostNoSsl,
        other => return Err(format!("\"{other}\" must be local, host, hostssl or hostnossl")),
    };
    let mut next = |what: &str| fields.next().ok_or_else(|| format!("there is no {what}"));
    let databases = names(next("database")?, Names::Databases, read_list)?;
    let users = names(next("user")?, Names::Users, read_list)?;
    let (addresses, method) = match transport {
        Transport::Local => (None, next("method")?),
        Transport::Host | Transport::HostSsl | Transport::HostNoSsl => {
            let (address, after) = (next("address")?, next("method")?);
            match single(&address)? {
                "all" if !address[0].quoted => (None, after),
                text => {
                    let mask = single(&after)?;
                    let has_mask = !text.contains('/') && mask.parse::<IpAddr>().is_ok();
                    let network = Network::parse(text, has_mask.then_some(mask));
                    let network = network.ok_or_else(|| format!("\"{text}\" is no address"))?;
                    (Some(network), if has_mask { next("method")? } else { after })
                }
            }
        }
    };
    let mut unsupported = |wrong: String| {
        warnings.push(format!("auth_hba_file line {number}: {wrong}: nobody gets in by this line"));
        HbaMethod::Unsupported
    };
    let mut method = method_of(single(&method)?, transport).unwrap_or_else(&mut unsupported);
    let (mut map, mut of_ldap) = (None, Vec::new());
    for option in fields {
        let option = single(&option)?.to_owned();
        match (option.split_once('='), method) {
            (Some(("map", name)), HbaMethod::Cert | HbaMethod::Peer) => map = Some(name.to_owned()),
            (Some((name, value)), HbaMethod::Ldap) => of_ldap.push((name.to_owned(), value.to_owned())),
            (_, HbaMethod::Unsupported) => {}
            _ => method = unsupported(format!("the option \"{option}\" is not supported")),
        }
    }
    let mut ldap = None;
    if method == HbaMethod::Ldap {
        match ldap_options(&of_ldap) {
            Ok(options) => ldap = Some(Arc::new(options)),
            Err(wrong) => method = unsupported(wrong),
        }
    }
    Ok(Some(Rule { transport, databases, users, addresses, method, map, ldap, line: number }))
}

fn method_of(name: &str, transport: Transport) -> Result<HbaMethod, String> {
    match (name, transport) {
        ("trust", _) => Ok(HbaMethod::Trust),
        ("reject", _) => Ok(HbaMethod::Reject),
        ("password", _) => Ok(HbaMethod::Password),
        ("md5", _) => Ok(HbaMethod::Md5),
        ("scram-sha-256", _) => Ok(HbaMethod::ScramSha256),
        ("cert", Transport::HostSsl) => Ok(HbaMethod::Cert),
        ("cert", _) => Err("cert is for hostssl only".into()),
        ("peer", Transport::Local) => Ok(HbaMethod::Peer),
        ("peer", _) => Err("peer is for local only".into()),
        ("ldap", _) => Ok(HbaMethod::Ldap),
        ("pam", _) => Ok(HbaMethod::Pam),
        (other, _) => Err(format!("the method \"{other}\" is not supported")),
    }
}

fn ldap_options(options: &[(String, String)]) -> Result<LdapOptions, String> {
    LdapOptions::parse(options.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Databases,
    Users,
}

fn names(field: Vec<Word>, of: Names, read_list: ReadList<'_>) -> Result<Vec<Name>, String> {
    let mut names = Vec::new();
    for word in field {
        match word.text.strip_prefix('@').filter(|_| !word.quoted) {
            None => names.push(name(word, of)),
            Some(file) => {
                for line in read_list(file)?.lines() {
                    names.extend(fields(line)?.into_iter().flatten().map(|word| name(word, of)));
                }
            }
        }
    }
    Ok(names)
}

fn name(word: Word, of: Names) -> Name {
    match (word.text.as_str(), of) {
        _ if word.quoted => Name::Is(word.text),
        ("all", _) => Name::All,
        ("sameuser", Names::Databases) => Name::SameUser,
        ("replication", Names::Databases) => Name::Replication,
        _ => Name::Is(word.text),
    }
}

/// The one word of a field that is no list.
fn single(field: &[Word]) -> Result<&str, String> {
    match field {
        [word] => Ok(&word.text),
        _ => Err("there is a list where one word is wanted".into()),
    }
}

fn mapping(line: &str) -> Result<Option<(String, Mapping)>, String> {
    let fields = fields(line)?;
    match fields.as_slice() {
        [] => Ok(None),
        [map, system, user] => {
            let is_all = user.iter().all(|word| !word.quoted && word.text == "all");
            let user = (!is_all).then(|| single(user).map(str::to_owned)).transpose()?;
            Ok(Some((single(map)?.to_owned(), Mapping { system: single(system)?.to_owned(), user })))
        }
        other => Err(format!("it has {} words: map, system user and user are wanted", other.len())),
    }
}

/// The fields of a line, up to a comment. Words with a comma between them are one field, whatever space
/// there is (PostgreSQL manual, "The pg_hba.conf File").
fn fields(line: &str) -> Result<Vec<Vec<Word>>, String> {
    let mut fields: Vec<Vec<Word>> = Vec::new();
    let mut goes_on = false;
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, after) = word(rest)?;
        let listed = after.starts_with(',');
        match fields.last_mut().filter(|_| goes_on) {
            Some(field) => field.extend(word),
            None => fields.push(word.into_iter().collect()),
        }
        goes_on = listed;
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
        // Space before a comma is space between two fields to PostgreSQL; there is no field without a name.
        if !goes_on && rest.starts_with(',') {
            return Err("a comma has no name before it".into());
        }
    }
    match fields.iter().any(Vec::is_empty) {
        true => Err("a comma has no name before it".into()),
        false => Ok(fields),
    }
}

/// Splits off the first word; `None` when there is nothing before the comma. A doubled quote within quotes
/// stands for one.
fn word(text: &str) -> Result<(Option<Word>, &str), String> {
    let (mut word, mut in_quotes) = (String::new(), false);
    let mut characters = text.char_indices().peekable();
    let end = loop {
        match characters.next() {
            None if in_quotes => return Err("a quote is not closed".into()),
            None => break text.len(),
            Some((_, '"')) if in_quotes && characters.next_if(|(_, next)| *next == '"').is_some() => {
                word.push('"')
            }
            Some((_, '"')) => in_quotes = !in_quotes,
            Some((at, c)) if !in_quotes && (c.is_whitespace() || c == ',' || c == '#') => break at,
            Some((_, c)) => word.push(c),
        }
    };
    let quoted = text.starts_with('"');
    let found = (quoted || end > 0).then_some(Word { text: word, quoted });
    Ok((found, &text[end..]))
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
        hba.find(&Asking { address, encrypted, database, user, physical: false }).map(|rule| rule.method)
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
    fn physical_replication_matches_its_keyword_alone_and_the_keyword_nothing_else() {
        let found = |rules: &str, physical| {
            let (hba, _) = Hba::parse(rules, "", &no_list);
            let asking = Asking { address: None, encrypted: false, database: "app", user: "app", physical };
            hba.find(&asking).map(|rule| rule.line)
        };
        let rules = "local replication all trust\nlocal all all reject\n";
        assert_eq!((found(rules, true), found(rules, false)), (Some(1), Some(2)));
        for others in ["all", "app", "sameuser", "\"replication\"", "all,app"] {
            assert_eq!(found(&format!("local {others} all trust"), true), None, "{others}");
        }
        assert_eq!(found("local app,replication all trust", true), Some(1));
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
        check("::ffff:10.0.0.0/104", "10.9.9.9", true);
    }

    #[test]
    fn a_quoted_keyword_is_a_name_and_a_file_is_a_list() {
        let list = |name: &str| match name {
            "staff" => Ok("alice\n\"bob b\" # both\n".to_owned()),
            _ => no_list(name),
        };
        let (hba, warnings) = Hba::parse("local \"all\" @staff trust\nlocal all @none trust\n", "", &list);
        assert_eq!(warnings, ["auth_hba_file line 2: there is no file: the line is left out"]);
        let asks = |database, user| {
            hba.find(&Asking { address: None, encrypted: false, database, user, physical: false }).is_some()
        };
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
            ("local \"all all trust", "a quote is not closed"),
            ("local all ,alice trust", "a comma has no name before it"),
            ("local all alice , bob trust", "a comma has no name before it"),
            ("local,host all all trust", "there is a list where one word is wanted"),
        ] {
            let (hba, warnings) = Hba::parse(line, "", &no_list);
            assert_eq!(warnings, [format!("auth_hba_file line 1: {wrong}: the line is left out")]);
            assert_eq!(hba, Hba::default());
        }
    }

    #[test]
    fn a_rule_that_asks_for_what_we_cannot_check_lets_nobody_in() {
        for (line, wrong) in [
            ("host all all all pam pamservice=x", "the option \"pamservice=x\" is not supported"),
            ("host all all all gss", "the method \"gss\" is not supported"),
            ("host all all all ldap", "ldap requires ldapserver to be set"),
            ("host all all all ldap ldapserver=a ldapprefix=x map=y", "the option \"map\" is not supported"),
            ("host all all all ldap ldapserver=a tls", "the option \"tls\" is not supported"),
            ("host all all all cert", "cert is for hostssl only"),
            ("host all all all peer", "peer is for local only"),
            ("host all all all trust map=x", "the option \"map=x\" is not supported"),
        ] {
            let (hba, warnings) = Hba::parse(&format!("{line}\nhost all all all trust\n"), "", &no_list);
            assert_eq!(warnings, [format!("auth_hba_file line 1: {wrong}: nobody gets in by this line")]);
            let asking = Asking {
                address: "1.2.3.4".parse().ok(),
                encrypted: false,
                database: "a",
                user: "b",
                physical: false,
            };
            assert_eq!(hba.find(&asking).unwrap().method, HbaMethod::Unsupported, "{line}");
        }
    }

    #[test]
    fn a_list_may_have_spaces_and_quotes() {
        for users in ["alice,bob", "alice, bob", "\"alice\",bob", "alice,\"bob\"", "@staff,bob", "alice,,bob"]
        {
            let list = |_: &str| Ok("# staff\nalice, carol\n".to_owned());
            let (hba, warnings) = Hba::parse(&format!("local db1, db2 {users} reject"), "", &list);
            assert_eq!(warnings, Vec::<String>::new(), "{users}");
            for user in ["alice", "bob"] {
                let asking =
                    Asking { address: None, encrypted: false, database: "db2", user, physical: false };
                assert!(hba.find(&asking).is_some(), "{users}: {user}");
            }
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
