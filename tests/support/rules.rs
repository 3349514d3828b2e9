//! [`Ruled`]: the files of `auth_type = hba`, for a pooler of a test.

use super::certificates::text;
use super::pooler::{Config, Pooler};
use super::process::{give, private_directory};
use std::fs;
use std::path::PathBuf;

/// A pooler with these rules and maps; the folder has the files.
pub struct Ruled {
    folder: tempfile::TempDir,
}

impl Ruled {
    pub fn new(rules: &str, maps: &str) -> Ruled {
        let ruled = Ruled { folder: private_directory("weir-hba-") };
        ruled.write("rules", rules);
        ruled.write("maps", maps);
        ruled
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.file(name), content).expect("it is our folder");
        give(&self.file(name));
    }

    /// All clients come to the servers as `app`.
    pub fn config(&self) -> Config {
        Pooler::config()
            .setting("auth_type", "hba")
            .setting("auth_hba_file", text(&self.file("rules")))
            .setting("auth_ident_file", text(&self.file("maps")))
            .database_option("user=app")
    }
}
