//! [`Network`]: a host of its own for a server, and a cable to it that a test can pull.
//!
//! It is a network namespace, held by a process that dies with us, and a pair of virtual interfaces. The last
//! process in it takes all of it along, so nothing stays behind, whatever ends the test.

use super::PATIENCE;
use super::process::{self, reap, signal};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The other end of the cable, inside.
const INSIDE: &str = "node";
/// The interface inside has this address, so that nobody need ask for it: packets to a host that is cut off
/// vanish, and no neighbour says that it cannot be reached.
const HARDWARE: &str = "02:70:67:77:65:69";

/// A host of its own. It ends with its value.
pub struct Network {
    /// The address of the host, for everybody outside.
    pub address: Ipv4Addr,
    /// The name of the cable's end on our side.
    pub cable: String,
    holder: Child,
}

impl Network {
    /// Whether this user may make one; if not, that is printed.
    pub fn is_possible() -> bool {
        let is_possible = process::is_root();
        if !is_possible {
            println!("skipped: only root may make a network namespace");
        }
        is_possible
    }

    /// A host with an address that nobody else has.
    pub fn start() -> Network {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sleep", "infinity"]);
        command.stdin(Stdio::null());
        let holder = process::spawn(command);
        let mut network = Network { address: Ipv4Addr::UNSPECIFIED, cable: String::new(), holder };
        network.is_apart();
        // The number of the cable is that of its addresses too, and the kernel gives each name once.
        let number = (0..1000).map(any_number).find(|number| network.is_connected(*number));
        let number = number.expect("one of 1000 names is free");
        network.address = addresses(number).1;
        network.cable = outside(number);
        network.set_up(number);
        network
    }

    /// Waits until the holder has left our network.
    fn is_apart(&self) {
        let ours = fs::read_link("/proc/self/ns/net").expect("Linux has namespaces");
        let deadline = Instant::now() + PATIENCE;
        while fs::read_link(self.file()).is_ok_and(|its| its == ours) {
            assert!(Instant::now() < deadline, "root may make network namespaces");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_connected(&self, number: u32) -> bool {
        let holder = self.holder.id();
        let words = format!(
            "link add {} type veth peer name {INSIDE} address {HARDWARE} netns {holder}",
            outside(number)
        );
        let tried = ip(&words).output().expect("scripts/setup has installed ip");
        let said = String::from_utf8_lossy(&tried.stderr);
        assert!(tried.status.success() || said.contains("File exists"), "ip {words}: {said}");
        tried.status.success()
    }

    fn set_up(&self, number: u32) {
        let (cable, (here, there)) = (outside(number), addresses(number));
        for words in [
            format!("address add {here}/30 dev {cable}"),
            format!("link set {cable} up"),
            format!("neighbour replace {there} lladdr {HARDWARE} dev {cable} nud permanent"),
        ] {
            process::run(ip(&words));
        }
        for words in [
            "link set lo up".to_owned(),
            format!("address add {there}/30 dev {INSIDE}"),
            format!("link set {INSIDE} up"),
        ] {
            process::run(self.inside(&ip(&words)));
        }
        self.is_carrying();
    }

    /// Waits until the kernel has seen that both ends are up: what is sent before that is dropped, and sent
    /// again a second later.
    fn is_carrying(&self) {
        let state = format!("/sys/class/net/{}/operstate", self.cable);
        let deadline = Instant::now() + PATIENCE;
        while fs::read_to_string(&state).expect("each interface has its state").trim() != "up" {
            assert!(Instant::now() < deadline, "{state} becomes \"up\"");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Pulls the cable: what is sent vanishes, in both directions, and nobody is told.
    pub fn cut(&self) {
        process::run(self.inside(&ip(&format!("link set {INSIDE} down"))));
    }

    /// Plugs it in again.
    pub fn heal(&self) {
        process::run(self.inside(&ip(&format!("link set {INSIDE} up"))));
        self.is_carrying();
    }

    /// The same command, on this host.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.file().display())).arg("--");
        inside.arg(command.get_program()).args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            inside.current_dir(directory);
        }
        inside
    }

    /// The namespace, as a file.
    pub fn file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        signal(self.holder.id(), "KILL");
        reap(&mut self.holder, PATIENCE);
    }
}

/// Of the 32768 networks of four addresses in 198.18.0.0/15, which is set aside for tests (RFC 2544).
fn any_number(attempt: u32) -> u32 {
    let chance = RandomState::new().hash_one(attempt);
    u32::try_from(chance % 32_768).expect("it fits")
}

/// The name of the cable's end on our side.
fn outside(number: u32) -> String {
    format!("weir{number}")
}

/// Ours and the host's.
fn addresses(number: u32) -> (Ipv4Addr, Ipv4Addr) {
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number * 4;
    (Ipv4Addr::from(first + 1), Ipv4Addr::from(first + 2))
}

fn ip(words: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(words.split_whitespace());
    command
}
