//! The sockets of a running pooler, looked at from outside: what it has set on them.

use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, getrlimit, pidfd_getfd, pidfd_open, setrlimit,
};
use socket2::Socket;
use std::fs;

/// Lets this process open as many files as it may. Returns how many.
pub fn raise_limit() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("it is not above the maximum");
    maximum.unwrap_or(u64::MAX)
}

/// Each TCP socket of the process that is connected.
pub fn connected_sockets(process: u32) -> Vec<Socket> {
    let pid = Pid::from_raw(i32::try_from(process).expect("process ids are small")).expect("it is not 0");
    let handle = pidfd_open(pid, PidfdFlags::empty()).expect("the process runs");
    let entries = fs::read_dir(format!("/proc/{process}/fd")).expect("the process runs");
    let numbers = entries.flatten().filter_map(|entry| {
        let leads_to = fs::read_link(entry.path()).ok()?;
        let is_socket = leads_to.to_string_lossy().starts_with("socket:");
        is_socket.then(|| entry.file_name().to_string_lossy().parse().ok()).flatten()
    });
    let copies = numbers.filter_map(|number| pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()).ok());
    copies.map(Socket::from).filter(|socket| socket.peer_addr().is_ok_and(|peer| peer.is_ipv4())).collect()
}
