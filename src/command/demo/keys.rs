//! Single keys from the terminal, without Enter. Read [`Keys`] first.

use std::io::{IsTerminal, Read};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// Keys that may wait to be looked at.
const KEYS_MAX: usize = 8;

/// The terminal's keys, one by one. Dropping it gives the terminal its lines and its echo back.
pub(super) struct Keys {
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

impl Keys {
    /// Standard input's keys; none when it is no terminal.
    pub(super) fn listen() -> Keys {
        let stdin = std::io::stdin();
        let (sender, keys) = mpsc::channel(KEYS_MAX);
        let before = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
        if let Some(before) = &before {
            let mut one_by_one = before.clone();
            one_by_one.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // A terminal that does not take it keeps its lines: keys then need Enter.
            let _ = tcsetattr(&stdin, OptionalActions::Now, &one_by_one);
            std::thread::spawn(move || {
                for key in std::io::stdin().lock().bytes().map_while(Result::ok) {
                    if sender.blocking_send(key).is_err() {
                        return;
                    }
                }
            });
        }
        Keys { before, keys }
    }

    /// The next key; waits for ever when there is no terminal.
    pub(super) async fn next(&mut self) -> u8 {
        match self.keys.recv().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
