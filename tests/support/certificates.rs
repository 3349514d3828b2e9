//! [`Authority`]: a CA of the test's own, made by the `openssl` that made the certificates of the
//! world's PgBouncers.

use super::process::{give, private_directory, run};
use std::fs::{self, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A CA, with the certificates that it signs beside it.
pub struct Authority {
    directory: tempfile::TempDir,
    name: String,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        let chance = RandomState::new().hash_one(0);
        Authority::named(&format!("ca {chance:x}"))
    }

    pub fn named(name: &str) -> Authority {
        Authority::with_constraints(name, "critical,CA:TRUE")
    }

    /// One that signs although its certificate says that it may not.
    pub fn that_is_none() -> Authority {
        Authority::with_constraints("no ca", "critical,CA:FALSE")
    }

    fn with_constraints(name: &str, constraints: &str) -> Authority {
        let authority = Authority { directory: private_directory("weir-ca-"), name: name.to_owned() };
        authority.self_signed("ca", name, &["-addext", &format!("basicConstraints={constraints}")]);
        authority
    }

    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// A certificate for the name, with these alternative names (`DNS:a,IP:127.0.0.1`).
    pub fn issue(&self, common_name: &str, alternatives: &str) -> Identity {
        let file = format!("{common_name}-{}.ext", self.count());
        fs::write(self.file(&file), format!("subjectAltName={alternatives}\n")).expect("it is our directory");
        self.sign(common_name, &["-extfile", &self.file(&file).display().to_string()])
    }

    /// A certificate whose name stands in its CN alone.
    pub fn issue_without_alternatives(&self, common_name: &str) -> Identity {
        let file = format!("{common_name}-{}.ext", self.count());
        fs::write(self.file(&file), "basicConstraints=CA:FALSE\n").expect("it is our directory");
        self.sign(common_name, &["-extfile", &self.file(&file).display().to_string()])
    }

    /// A certificate of X.509 version 1, which has no extensions.
    pub fn issue_version_1(&self, common_name: &str) -> Identity {
        self.sign(common_name, &[])
    }

    /// A certificate that is its own CA, as many a quick set-up has it.
    pub fn self_signed(&self, file: &str, common_name: &str, options: &[&str]) -> Identity {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        self.self_signed_with(file, common_name, &[&key, options].concat())
    }

    /// The same with a key of any kind, as `openssl req` takes it (`-newkey rsa:2048 -sha512`).
    pub fn self_signed_with(&self, file: &str, common_name: &str, options: &[&str]) -> Identity {
        let identity = self.identity(file);
        let mut command = openssl();
        command.args(["req", "-x509", "-nodes"]);
        command.args(["-days", "30", "-subj", &format!("/CN={common_name}")]).args(options);
        command.arg("-keyout").arg(&identity.key).arg("-out").arg(&identity.certificate);
        run(command);
        identity.hand_over()
    }

    fn sign(&self, common_name: &str, options: &[&str]) -> Identity {
        let number = self.count();
        let identity = self.identity(&format!("{common_name}-{number}"));
        let request = self.file(&format!("{number}.csr"));
        let mut command = openssl();
        command.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        command.args(["-subj", &format!("/CN={common_name}")]);
        command.arg("-keyout").arg(&identity.key).arg("-out").arg(&request);
        run(command);
        let mut command = openssl();
        command.args(["x509", "-req", "-days", "30", "-CAcreateserial"]).args(options);
        command.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.file("ca.key"));
        command.arg("-in").arg(request).arg("-out").arg(&identity.certificate);
        run(command);
        identity.hand_over()
    }

    fn identity(&self, name: &str) -> Identity {
        Identity { certificate: self.file(&format!("{name}.pem")), key: self.file(&format!("{name}.key")) }
    }

    fn count(&self) -> usize {
        fs::read_dir(self.directory.path()).expect("it is our directory").count()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Identity {
    /// For the unprivileged user, as PostgreSQL and libpq demand of a key.
    fn hand_over(self) -> Identity {
        for file in [&self.certificate, &self.key] {
            fs::set_permissions(file, Permissions::from_mode(0o600)).expect("it is our file");
            give(file);
        }
        fs::set_permissions(&self.certificate, Permissions::from_mode(0o644)).expect("it is our file");
        self
    }

    /// Puts this identity's files in the place of another's.
    pub fn replace(&self, other: &Identity) {
        for (from, to) in [(&self.certificate, &other.certificate), (&self.key, &other.key)] {
            fs::copy(from, to).expect("both are our files");
        }
    }
}

fn openssl() -> Command {
    let mut command = Command::new("openssl");
    // Debian's settings would add extensions to every certificate.
    command.env("OPENSSL_CONF", "/dev/null");
    command
}

/// As a setting's value.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
