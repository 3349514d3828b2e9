//! [`Directory`]: a real, private slapd, over LDAP (with StartTLS) and over ldaps.
//!
//! | entry | password |
//! |---|---|
//! | `cn=alice,ou=people,dc=example` with `uid=alice`, `mail=alice@example`, of `cn=dba` | `alice-secret` |
//! | `cn=bob,ou=people,dc=example` with `uid=bob` | `bob-secret` |
//! | `cn=twin,ou=people,...` and `cn=twin,ou=robots,...`, both with `uid=twin` | `twin-secret` |
//! | `cn=reader,dc=example`, who alone may search | `reader-secret` |

use super::certificates::{Identity, text};
use super::process::{self, private_directory, reap, run, unprivileged};
use super::{PATIENCE, eventually};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

const ENTRIES: &str = "\
dn: dc=example\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: example\n
dn: ou=people,dc=example\nobjectClass: organizationalUnit\nou: people\n
dn: ou=robots,dc=example\nobjectClass: organizationalUnit\nou: robots\n
dn: cn=reader,dc=example\nobjectClass: inetOrgPerson\ncn: reader\nsn: reader\nuserPassword: reader-secret\n
dn: cn=alice,ou=people,dc=example\nobjectClass: inetOrgPerson\ncn: alice\nsn: alice\nuid: alice\n\
mail: alice@example\ntitle: cn=dba\nuserPassword: alice-secret\n
dn: cn=bob,ou=people,dc=example\nobjectClass: inetOrgPerson\ncn: bob\nsn: bob\nuid: bob\n\
userPassword: bob-secret\n
dn: cn=twin,ou=people,dc=example\nobjectClass: inetOrgPerson\ncn: twin\nsn: twin\nuid: twin\n\
userPassword: twin-secret\n
dn: cn=twin,ou=robots,dc=example\nobjectClass: inetOrgPerson\ncn: twin\nsn: twin\nuid: twin\n\
userPassword: twin-secret\n";

/// A running slapd. It is stopped and removed when dropped.
pub struct Directory {
    /// Of `ldap://127.0.0.1`.
    pub port: u16,
    /// Of `ldaps://127.0.0.1`.
    pub port_tls: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Directory {
    /// Starts one that shows this certificate.
    pub async fn start(shown: &Identity) -> Directory {
        let folder = private_directory("weir-ldap-");
        let (port, port_tls) = (process::free_port(), process::free_port());
        let settings = folder.path().join("slapd.conf");
        fs::create_dir(folder.path().join("data")).expect("it is our folder");
        process::give(&folder.path().join("data"));
        fs::write(&settings, Self::settings(folder.path(), shown)).expect("it is our folder");
        fs::write(folder.path().join("entries"), ENTRIES).expect("it is our folder");
        let mut add = unprivileged(Path::new("/usr/sbin/slapadd"), "KILL");
        add.arg("-f").arg(&settings).arg("-l").arg(folder.path().join("entries"));
        run(add);
        let mut slapd = unprivileged(Path::new("/usr/sbin/slapd"), "KILL");
        let places = format!("ldap://127.0.0.1:{port}/ ldaps://127.0.0.1:{port_tls}/");
        // With -d it stays in the foreground.
        slapd.args(["-d", "0", "-h", &places]).arg("-f").arg(&settings);
        slapd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = process::spawn(slapd);
        let accepts = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
        eventually("slapd accepts connections", async || accepts(port) && accepts(port_tls)).await;
        Directory { port, port_tls, child, _folder: folder }
    }

    fn settings(folder: &Path, shown: &Identity) -> String {
        let data = folder.join("data");
        format!(
            "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n\
             pidfile {0}/pid\nTLSCertificateFile {1}\nTLSCertificateKeyFile {2}\n\
             database mdb\nmaxsize 10485760\nsuffix dc=example\ndirectory {0}\n\
             access to attrs=userPassword by anonymous auth by * none\n\
             access to * by dn.exact=cn=reader,dc=example read by anonymous auth by * none\n",
            data.display(),
            text(&shown.certificate),
            text(&shown.key),
        )
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        process::signal(self.child.id(), "INT");
        reap(&mut self.child, PATIENCE);
    }
}
