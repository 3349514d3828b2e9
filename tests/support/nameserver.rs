//! [`NameServer`]: a real DNS server (dnsmasq) on an address of its own, and a resolv.conf that names it.

use super::PATIENCE;
use super::process::{self, private_directory, reap, signal};
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The zone of all names.
const ZONE: &str = "weir.test";

/// A DNS server for the zone `weir.test`. It ends with its value.
pub struct NameServer {
    /// Where it listens, at port 53.
    pub address: Ipv4Addr,
    directory: tempfile::TempDir,
    child: Child,
}

impl NameServer {
    /// Whether this user may start one; if not, that is printed.
    pub fn is_possible() -> bool {
        let is_possible = process::is_root();
        if !is_possible {
            println!("skipped: only root may listen at port 53");
        }
        is_possible
    }

    /// One that knows these names: `db 127.0.0.1 127.0.0.2`, a line for each.
    pub fn start(names: &str) -> NameServer {
        let directory = private_directory("weir-dns-");
        let address = any_loopback();
        write_hosts(&directory, names);
        let child = launch(&directory, address, 1);
        let server = NameServer { address, directory, child };
        server.has_read(1);
        server
    }

    /// From now on it knows these names, and no others.
    pub fn set(&self, names: &str) {
        let before = self.times_read();
        write_hosts(&self.directory, names);
        signal(self.child.id(), "HUP");
        self.has_read(before + 1);
    }

    /// As [`NameServer::set`], with another serial number of the zone.
    pub fn set_with_serial(&mut self, names: &str, serial: u32) {
        self.stop();
        let before = self.times_read();
        write_hosts(&self.directory, names);
        self.child = launch(&self.directory, self.address, serial);
        self.has_read(before + 1);
    }

    /// It answers no more.
    pub fn stop(&mut self) {
        signal(self.child.id(), "KILL");
        reap(&mut self.child, PATIENCE);
    }

    /// A resolv.conf that names it, with further lines.
    pub fn resolv_conf(&self, more: &str) -> String {
        let path = self.directory.path().join("resolv.conf");
        let text = format!("nameserver {}\noptions timeout:1\n{more}\n", self.address);
        fs::write(&path, text).expect("our directory is writable");
        path.display().to_string()
    }

    /// How often it was asked for the IPv4 addresses of this name.
    pub fn times_asked(&self, name: &str) -> usize {
        let asked = format!("query[A] {name}.{ZONE} ");
        self.log().matches(&asked).count()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn times_read(&self) -> usize {
        let hosts = format!("read {}", self.directory.path().join("hosts").display());
        self.log().matches(&hosts).count()
    }

    fn has_read(&self, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.times_read() < times {
            assert!(Instant::now() < deadline, "dnsmasq does not start: {}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn write_hosts(directory: &tempfile::TempDir, names: &str) {
    let mut text = String::new();
    for line in names.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a line begins with its name");
        for address in words {
            writeln!(text, "{address} {name}.{ZONE}").expect("a String takes all text");
        }
    }
    fs::write(directory.path().join("hosts"), text).expect("our directory is writable");
}

fn launch(directory: &tempfile::TempDir, address: Ipv4Addr, serial: u32) -> Child {
    let folder = directory.path().display();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"]);
    command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root", "--log-queries"]);
    for option in [
        format!("--listen-address={address}"),
        format!("--addn-hosts={folder}/hosts"),
        format!("--log-facility={folder}/log"),
        format!("--pid-file={folder}/pid"),
        format!("--local=/{ZONE}/"),
        // The zone's SOA record as bytes: two names, the serial, and four times of it.
        format!("--dns-rr={ZONE},6,026e7300026e7300{serial:08x}{}", "0000000a".repeat(4)),
    ] {
        command.arg(option);
    }
    command.stdin(Stdio::null());
    process::spawn(command)
}

/// An address of this host that hardly anyone else listens on.
fn any_loopback() -> Ipv4Addr {
    let [a, b, c, ..] = RandomState::new().hash_one(0).to_le_bytes();
    Ipv4Addr::new(127, 1 + a % 250, b, 1 + c % 250)
}
