//! What says how clients are to prove who they are, read from files: [`Rules`].

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::auth::hba::Hba;
use crate::auth::ldap::LdapOptions;
use crate::config::{AuthType, Settings};
use crate::net::ldap;
use crate::net::tls::Connector;

/// The rules, and what is needed to carry them out.
#[derive(Debug, Default)]
pub struct Rules {
    /// Of `auth_hba_file`, or the one of `auth_ldap_options`; none with any other `auth_type`.
    pub hba: Arc<Hba>,
    /// How the certificates of directories are checked, if a rule asks one over TLS.
    pub directory_tls: Option<Arc<Connector>>,
}

impl Rules {
    /// Reads `auth_hba_file` and `auth_ident_file`, or `auth_ldap_options`. The second value has a warning for
    /// each line that is no good: nobody is let in by it.
    ///
    /// Fails when a file cannot be read, or the options are no good.
    pub fn read(settings: &Settings) -> io::Result<(Rules, Vec<String>)> {
        let (hba, warnings) = match settings.auth_type {
            AuthType::Hba => read_hba(settings)?,
            AuthType::Ldap => {
                let options = settings.auth_ldap_options.as_ref().map_or("", |options| options.expose());
                let wrong = |wrong| io::Error::other(format!("auth_ldap_options: {wrong}"));
                (Hba::of_ldap(options).map_err(wrong)?, Vec::new())
            }
            AuthType::Any
            | AuthType::Trust
            | AuthType::Plain
            | AuthType::Md5
            | AuthType::Cert
            | AuthType::Pam
            | AuthType::ScramSha256 => (Hba::default(), Vec::new()),
        };
        let directory_tls = match hba.directories().any(LdapOptions::has_tls) {
            true => Some(ldap::trust().map_err(|error| io::Error::other(format!("LDAP over TLS: {error}")))?),
            false => None,
        };
        Ok((Rules { hba: Arc::new(hba), directory_tls }, warnings))
    }
}

fn read_hba(settings: &Settings) -> io::Result<(Hba, Vec<String>)> {
    let read = |path: Option<&Path>| {
        let Some(path) = path else { return Ok(String::new()) };
        fs::read_to_string(path).map_err(|error| {
            let text = format!("could not open hba config file {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
    };
    let rules = read(settings.auth_hba_file.as_deref())?;
    let maps = read(settings.auth_ident_file.as_deref())?;
    let folder = settings.auth_hba_file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let read_list = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    Ok(Hba::parse(&rules, &maps, &read_list))
}
