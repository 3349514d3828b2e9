//! [`Loader`]: a configuration while its file is read. It knows what a section's header does and
//! which settings a running process may change.

use std::collections::BTreeMap;
use std::path::Path;

use super::entry::Section;
use super::error::{ConfigError, Problem};
use super::settings::{self, Change, Origin, SETTINGS, Settings};
use super::{Config, Environment};

/// A configuration while its file is read.
pub(super) struct Loader {
    pub(super) config: Config,
    /// At a RELOAD, fixed settings are checked but keep their value.
    running: bool,
    has_settings: bool,
}

impl Loader {
    /// For the start.
    pub(super) fn new() -> Loader {
        Loader { config: Config::default(), running: false, has_settings: false }
    }

    /// For a RELOAD: the settings go on from those of `config`, the entries begin anew.
    pub(super) fn again(config: &Config) -> Loader {
        let config = Config {
            databases: BTreeMap::new(),
            any_database: None,
            clusters: BTreeMap::new(),
            users: BTreeMap::new(),
            peers: BTreeMap::new(),
            warnings: Vec::new(),
            ..config.clone()
        };
        Loader { config, running: true, has_settings: false }
    }

    /// A section's header. That of the settings gives each of them its default again.
    pub(super) fn begin(&mut self, section: &str) -> Result<Section, Problem> {
        match section {
            "pgbouncer" => {
                self.has_settings = true;
                self.config.settings.reset(self.running);
                Ok(Section::Settings)
            }
            "databases" => Ok(Section::Databases),
            "clusters" => Ok(Section::Clusters),
            "users" => Ok(Section::Users),
            "peers" => Ok(Section::Peers),
            _ => Err(Problem::Syntax(format!(
                "there is no section [{}]; there are [pgbouncer], [databases], [clusters], [users] and [peers]",
                section.escape_debug()
            ))),
        }
    }

    /// One line of the settings.
    pub(super) fn setting(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        let setting = settings::find(key)?;
        let settings = &mut self.config.settings;
        match self.running && setting.change == Change::Fixed {
            true => setting.set(&mut settings.clone(), value, key),
            false => setting.set(settings, value, key),
        }
    }

    /// The end of the file: our settings from the environment, which go before the file's.
    pub(super) fn finish(mut self, path: &Path, environment: Environment<'_>) -> Result<Config, ConfigError> {
        if !self.has_settings {
            return Err(Problem::NotAllowed("there is no section [pgbouncer]".into()).in_file(path));
        }
        for setting in SETTINGS.iter().filter(|setting| setting.origin == Origin::Ours) {
            let variable = format!("PGWEIR_{}", setting.name.to_ascii_uppercase());
            if let Some(value) = environment(&variable) {
                self.variable(setting, &value, &variable).map_err(Problem::without_file)?;
            }
        }
        Ok(self.config)
    }

    fn variable(&mut self, setting: &settings::Setting, value: &str, variable: &str) -> Result<(), Problem> {
        let mut changed: Settings = self.config.settings.clone();
        setting.set(&mut changed, value, variable)?;
        if !self.running || setting.change == Change::Live {
            self.config.settings = changed;
        }
        Ok(())
    }
}
