//! The same settings as TOML: `[pgweir]` (or `[pgbouncer]`), `[databases.x]`, `[users.x]` and
//! `[peers.1]`. Each value becomes the text that `pgbouncer.ini` would hold, so that both files mean
//! the same by construction.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeString, DeTable, DeValue};

use super::entry::{Entry, Section};
use super::error::{ConfigError, Problem};
use super::ini::read_connect_string;
use super::loader::Loader;
use super::settings;

/// A problem, and where in the text it is.
type Located = (Problem, Range<usize>);

/// Reads the text of one file into the loader.
pub(super) fn read(loader: &mut Loader, path: &Path, text: &str) -> Result<(), ConfigError> {
    let line = |span: Range<usize>| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count();
    // The error's own Display would show the line, and a password with it.
    let document = DeTable::parse(text).map_err(|error| {
        Problem::Syntax(error.message().to_owned()).at(path, line(error.span().unwrap_or_default()))
    })?;
    read_document(loader, document.get_ref()).map_err(|(problem, span)| problem.at(path, line(span)))
}

fn read_document(loader: &mut Loader, document: &DeTable<'_>) -> Result<(), Located> {
    let mut settings_read = false;
    for (name, content) in in_order(document) {
        let at_name = |problem| (problem, name.span());
        let section_name = if *name.get_ref() == "pgweir" { "pgbouncer" } else { name.get_ref() };
        let section = loader.begin(section_name).map_err(at_name)?;
        let DeValue::Table(table) = content.get_ref() else {
            return Err(at_name(Problem::Syntax(format!("{} must be a [table]", name.get_ref()))));
        };
        if section != Section::Settings {
            read_entries(loader, section, table)?;
            continue;
        }
        if std::mem::replace(&mut settings_read, true) {
            let text = "[pgweir] and [pgbouncer] are two names of one table; give one of them";
            return Err(at_name(Problem::NotAllowed(text.into())));
        }
        for (key, value) in in_order(table) {
            read_setting(loader, key.get_ref(), value).map_err(|problem| (problem, key.span()))?;
        }
    }
    Ok(())
}

/// The items of a table in the order of the text, so that the first error is the one that is told.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut items: Vec<_> = table.iter().collect();
    items.sort_by_key(|(key, _)| key.span().start);
    items
}

fn read_setting(loader: &mut Loader, key: &str, value: &Spanned<DeValue<'_>>) -> Result<(), Problem> {
    let setting = settings::find(key)?;
    loader.setting(key, &text_of(value.get_ref(), key, setting.list)?)
}

fn read_entries(loader: &mut Loader, section: Section, table: &DeTable<'_>) -> Result<(), Located> {
    for (name, content) in in_order(table) {
        let at_name = |problem| (problem, name.span());
        let mut entry = Entry::new(section, name.get_ref()).map_err(at_name)?;
        match content.get_ref() {
            DeValue::String(text) => read_connect_string(&mut entry, text).map_err(at_name)?,
            DeValue::Table(keys) => {
                for (key, value) in in_order(keys) {
                    let is_list = entry.is_list(key.get_ref());
                    text_of(value.get_ref(), key.get_ref(), is_list)
                        .and_then(|text| entry.set(key.get_ref(), &text))
                        .map_err(|problem| (problem, key.span()))?;
                }
            }
            _ => {
                let text = "an entry is a [table] or a string \"host=... port=...\"";
                return Err(at_name(Problem::Syntax(text.into())));
            }
        }
        entry.insert(&mut loader.config).map_err(at_name)?;
    }
    Ok(())
}

/// The value as `pgbouncer.ini` would hold it.
fn text_of(value: &DeValue<'_>, key: &str, is_list: bool) -> Result<String, Problem> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) => {
            integer(number).ok_or_else(|| Problem::NotAllowed(format!("{key} is a number that is too large")))
        }
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Ok(u8::from(*flag).to_string()),
        DeValue::Array(items) if is_list => list(items, key),
        DeValue::Array(_) => Err(Problem::NotAllowed(format!("{key} cannot be a list"))),
        DeValue::Datetime(_) | DeValue::Table(_) => {
            Err(Problem::NotAllowed(format!("{key} must be a string, a number or true or false")))
        }
    }
}

/// In decimal: TOML's `0o777` is C's `0777`.
fn integer(number: &DeInteger<'_>) -> Option<String> {
    let value = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
    Some(value.to_string())
}

fn list(items: &DeArray<'_>, key: &str) -> Result<String, Problem> {
    let mut texts = Vec::with_capacity(items.len());
    for item in items.iter() {
        match item.get_ref() {
            DeValue::String(text) if !text.contains(',') => texts.push(text.as_ref()),
            _ => {
                return Err(Problem::NotAllowed(format!("{key} is a list of strings without commas")));
            }
        }
    }
    Ok(texts.join(","))
}
