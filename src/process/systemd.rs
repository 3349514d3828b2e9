//! What systemd, or whoever started us in its way, is told and gives: NOTIFY_SOCKET and LISTEN_FDS. Without these
//! variables nothing happens.

use std::io;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::listener::Inherited;

/// Clients are accepted, or the settings were read anew.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The settings are being read anew; [`ready`] ends that (systemd's `Type=notify-reload`).
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// The end has begun.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// What `systemctl status` shows: the line of the statistics.
pub(super) fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("NOTIFY_SOCKET: {error}");
    }
}

/// The sockets that were opened for us, instead of those of `listen_addr` and `unix_socket_dir`.
///
/// Fails when one is neither of TCP nor a Unix socket, or does not listen for streams.
pub(super) fn inherited() -> io::Result<Inherited> {
    let mut given = ListenFd::from_env();
    let mut inherited = Inherited::default();
    for number in 0..given.len() {
        match given.take_tcp_listener(number) {
            Ok(listener) => inherited.tcp.extend(listener),
            Err(_) => inherited.unix.extend(given.take_unix_listener(number)?),
        }
    }
    Ok(inherited)
}
