//! A search filter as people write it (RFC 4515), with `$username` in its values: [`Filter`].
//!
//! The name is put into the filter that was read, not into its text, so no name can change what is asked.

use ldap3_proto::proto::{LdapFilter, LdapMatchingRuleAssertion, LdapSubstringFilter};

/// Stands for the user who logs in.
const USER: &str = "$username";

/// How deep filters may lie in each other.
const DEPTH_MAX: usize = 32;

/// A filter with places for the user's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(LdapFilter);

impl Filter {
    /// `(attribute=$username)`
    pub(super) fn of_attribute(attribute: &str) -> Filter {
        Filter(LdapFilter::Equality(attribute.to_owned(), USER.to_owned()))
    }

    /// Reads one. Fails with what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Filter, String> {
        let (filter, rest) = parse(text.trim(), DEPTH_MAX)?;
        match rest.is_empty() {
            true => Ok(Filter(filter)),
            false => Err(format!("\"{rest}\" is behind the filter's end")),
        }
    }

    /// The filter for this user.
    pub fn for_user(&self, user: &str) -> LdapFilter {
        fill(&self.0, user)
    }
}

fn fill(filter: &LdapFilter, user: &str) -> LdapFilter {
    let name = String::clone;
    let value = |text: &String| text.replace(USER, user);
    match filter {
        LdapFilter::And(all) => LdapFilter::And(all.iter().map(|one| fill(one, user)).collect()),
        LdapFilter::Or(all) => LdapFilter::Or(all.iter().map(|one| fill(one, user)).collect()),
        LdapFilter::Not(one) => LdapFilter::Not(Box::new(fill(one, user))),
        LdapFilter::Equality(attribute, text) => LdapFilter::Equality(name(attribute), value(text)),
        LdapFilter::Substring(attribute, parts) => {
            let parts = LdapSubstringFilter {
                initial: parts.initial.as_ref().map(value),
                any: parts.any.iter().map(value).collect(),
                final_: parts.final_.as_ref().map(value),
            };
            LdapFilter::Substring(name(attribute), parts)
        }
        LdapFilter::GreaterOrEqual(attribute, text) => {
            LdapFilter::GreaterOrEqual(name(attribute), value(text))
        }
        LdapFilter::LessOrEqual(attribute, text) => LdapFilter::LessOrEqual(name(attribute), value(text)),
        LdapFilter::Present(attribute) => LdapFilter::Present(name(attribute)),
        LdapFilter::Approx(attribute, text) => LdapFilter::Approx(name(attribute), value(text)),
        LdapFilter::Extensible(rule) => {
            let match_value = value(&rule.match_value);
            LdapFilter::Extensible(LdapMatchingRuleAssertion { match_value, ..rule.clone() })
        }
    }
}

/// The filter in parentheses that the text begins with, and what follows it.
fn parse(text: &str, depth: usize) -> Result<(LdapFilter, &str), String> {
    let depth = depth.checked_sub(1).ok_or("filters lie too deep in each other")?;
    let inner = text.strip_prefix('(').ok_or_else(|| format!("\"(\" is wanted at \"{text}\""))?;
    let (filter, rest) = match inner.as_bytes().first() {
        Some(b'&') => {
            let (all, rest) = list(&inner[1..], depth)?;
            (LdapFilter::And(all), rest)
        }
        Some(b'|') => {
            let (all, rest) = list(&inner[1..], depth)?;
            (LdapFilter::Or(all), rest)
        }
        Some(b'!') => {
            let (one, rest) = parse(&inner[1..], depth)?;
            (LdapFilter::Not(Box::new(one)), rest)
        }
        _ => {
            let end = inner.find(['(', ')']).unwrap_or(inner.len());
            (item(&inner[..end])?, &inner[end..])
        }
    };
    let rest = rest.strip_prefix(')').ok_or_else(|| format!("\")\" is wanted at \"{rest}\""))?;
    Ok((filter, rest))
}

fn list(mut text: &str, depth: usize) -> Result<(Vec<LdapFilter>, &str), String> {
    let mut all = Vec::new();
    while text.starts_with('(') {
        let (one, rest) = parse(text, depth)?;
        all.push(one);
        text = rest;
    }
    match all.is_empty() {
        true => Err("\"&\" and \"|\" need a filter behind them".into()),
        false => Ok((all, text)),
    }
}

fn item(text: &str) -> Result<LdapFilter, String> {
    let (left, value) = text.split_once('=').ok_or_else(|| format!("\"{text}\" has no \"=\""))?;
    let attribute = |name: &str| match is_attribute(name) {
        true => Ok(name.to_owned()),
        false => Err(format!("\"{name}\" is no attribute")),
    };
    if let Some(left) = left.strip_suffix('>') {
        return Ok(LdapFilter::GreaterOrEqual(attribute(left)?, unescape(value)?));
    }
    if let Some(left) = left.strip_suffix('<') {
        return Ok(LdapFilter::LessOrEqual(attribute(left)?, unescape(value)?));
    }
    if let Some(left) = left.strip_suffix('~') {
        return Ok(LdapFilter::Approx(attribute(left)?, unescape(value)?));
    }
    if let Some(left) = left.strip_suffix(':') {
        return extensible(left, unescape(value)?);
    }
    let left = attribute(left)?;
    if value == "*" {
        return Ok(LdapFilter::Present(left));
    }
    let parts = value.split('*').map(unescape).collect::<Result<Vec<_>, _>>()?;
    match <[String; 1]>::try_from(parts) {
        Ok([whole]) => Ok(LdapFilter::Equality(left, whole)),
        Err(parts) => {
            let (first, between, last) = match parts.as_slice() {
                [first, between @ .., last] => (first, between, last),
                _ => unreachable!("split() gives one part or more, and one was the case above"),
            };
            let end = |part: &String| (!part.is_empty()).then(|| part.clone());
            let any = between.iter().filter(|part| !part.is_empty()).cloned().collect();
            let parts = LdapSubstringFilter { initial: end(first), any, final_: end(last) };
            Ok(LdapFilter::Substring(left, parts))
        }
    }
}

/// `attribute:dn:rule`, of which each may be missing, but not the first and the last.
fn extensible(left: &str, match_value: String) -> Result<LdapFilter, String> {
    let mut parts = left.split(':');
    let type_ = parts.next().filter(|name| !name.is_empty()).map(str::to_owned);
    let (mut dn_attributes, mut matching_rule) = (false, None);
    for part in parts {
        match part {
            "dn" if !dn_attributes && matching_rule.is_none() => dn_attributes = true,
            rule if matching_rule.is_none() && is_attribute(rule) => matching_rule = Some(rule.to_owned()),
            other => return Err(format!("\"{other}\" is no matching rule")),
        }
    }
    let named = type_.as_deref().is_none_or(is_attribute);
    match named && (type_.is_some() || matching_rule.is_some()) {
        true => {
            let rule = LdapMatchingRuleAssertion { matching_rule, type_, match_value, dn_attributes };
            Ok(LdapFilter::Extensible(rule))
        }
        false => Err(format!("\"{left}\" names neither attribute nor matching rule")),
    }
}

/// A name or an object identifier, with options.
fn is_attribute(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ';' | '_');
    !name.is_empty() && name.chars().all(fits)
}

/// A backslash and two hex digits stand for a byte (RFC 4515, 3).
fn unescape(value: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(super::hex_byte);
        bytes.push(escaped.ok_or_else(|| format!("\"\\\" needs two hex digits behind it in \"{value}\""))?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("\"{value}\" is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_any_kind_is_read_and_gets_the_name_in_its_values() {
        let check = |text: &str, shown: &str| {
            let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(format!("{:?}", filter.for_user("x*)(y")), shown, "{text}");
        };
        check("(uid=$username)", r#"Equality("uid", "x*)(y")"#);
        check(
            "(&(uid=$username)(memberOf=cn=dba,dc=x))",
            r#"And([Equality("uid", "x*)(y"), Equality("memberOf", "cn=dba,dc=x")])"#,
        );
        check("(|(a=1)(!(b=2)))", r#"Or([Equality("a", "1"), Not(Equality("b", "2"))])"#);
        check("(a>=1)", r#"GreaterOrEqual("a", "1")"#);
        check("(a<=1)", r#"LessOrEqual("a", "1")"#);
        check("(a~=1)", r#"Approx("a", "1")"#);
        check("(objectClass=*)", r#"Present("objectClass")"#);
        check(
            r"(a=$username*b\2a**c)",
            r#"Substring("a", LdapSubstringFilter { initial: Some("x*)(y"), any: ["b*"], final_: Some("c") })"#,
        );
        check(r"(a=\c3\a4)", r#"Equality("a", "ä")"#);
        check("(a=)", r#"Equality("a", "")"#);
        let nested = r#"Extensible(LdapMatchingRuleAssertion { matching_rule: Some("1.2.840.113556.1.4.1941"), type_: Some("memberOf"), match_value: "cn=x", dn_attributes: false })"#;
        check("(memberOf:1.2.840.113556.1.4.1941:=cn=x)", nested);
        let by_dn = r#"Extensible(LdapMatchingRuleAssertion { matching_rule: None, type_: Some("ou"), match_value: "x*)(y", dn_attributes: true })"#;
        check("(ou:dn:=$username)", by_dn);
    }

    #[test]
    fn what_is_no_filter_is_told() {
        for text in [
            "",
            "uid=x",
            "(uid=x",
            "(uid)",
            "(=x)",
            "(u d=x)",
            "(&)",
            "(&(a=1)",
            "(!a=1)",
            "(a=1)(b=2)",
            r"(a=\2)",
            r"(a=\zz)",
            r"(a=\+1)",
            r"(a=\ff)",
            r"(a=\ä)",
            "(:=x)",
            "(a:dn:b:c:=x)",
            "(a=b(c)",
            &"(!".repeat(100_000),
        ] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
