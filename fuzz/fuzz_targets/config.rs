//! Any text as a configuration file, in either format, is read or refused.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pgweir::config::Config;

fuzz_target!(|input: (bool, &str)| {
    let (is_toml, text) = input;
    // What a file names is read: this is about the text.
    if text.contains("include") || text.contains("auth_file") {
        return;
    }
    let path = Path::new(if is_toml { "fuzz.toml" } else { "fuzz.ini" });
    if let Ok(config) = Config::from_text(path, text, &|_| None) {
        assert!(!config.show().is_empty());
    }
});
