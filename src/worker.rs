//! The data plane's threads. Each has an event loop of its own; a client lives on one at a time.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::net::event_loop::{EventLoop, spawn};
use crate::pool::OpenRequest;
use crate::session::plane::{Message, Plane, Shared};
use crate::session::{cancel, databases, login, moving};

/// Starts one worker. It ends with the process, or when nobody can send to it any more.
///
/// Its timers, DNS and work that blocks are the runtime's that the caller runs in.
pub fn start(
    number: usize,
    shared: Arc<Shared>,
    mailbox: UnboundedReceiver<Message>,
    openings: UnboundedReceiver<OpenRequest>,
) -> std::io::Result<JoinHandle<()>> {
    let event_loop = EventLoop::new()?;
    let runtime = Handle::current();
    let run = move || {
        prefer_throughput(number);
        let _timers = runtime.enter();
        event_loop.run(run(number, shared, mailbox, openings));
    };
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(run)
}

/// Has the kernel treat this thread as batch work (`SCHED_BATCH`): it gets its share of the processor as
/// before, but a wake-up does not interrupt whoever runs. On busy cores the events of several clients
/// then come together, which saves most of the sleeping and waking; on idle cores nothing changes.
///
/// Some containers forbid the call. Then the thread stays an ordinary one.
#[expect(unsafe_code, reason = "no safe wrapper of sched_setscheduler is kept up to date")]
fn prefer_throughput(number: usize) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads one sched_param, which lives until the call returns; 0 is this thread.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    if outcome != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!("worker {number} stays with the default scheduling policy: {error}");
    }
}

async fn run(
    number: usize,
    shared: Arc<Shared>,
    mut mailbox: UnboundedReceiver<Message>,
    mut openings: UnboundedReceiver<OpenRequest>,
) {
    let plane = Plane::new(number, shared);
    spawn(async move {
        while let Some(pool) = openings.recv().await {
            spawn(pool.open(number));
        }
    });
    while let Some(message) = mailbox.recv().await {
        match message {
            Message::Client(socket, peer) => login::welcome(&plane, socket, peer),
            Message::Moving(client) => moving::arrive(&plane, client),
            Message::Cancel(key, address, canceller) => cancel::deliver(&plane, key, address, canceller),
            Message::Run(task) => (task.0)(&plane),
            Message::Tick(sent) => {
                plane.metrics.borrow_mut().stall.record(sent.elapsed());
                tick(&plane);
            }
        }
    }
}

fn tick(plane: &Plane) {
    let now = Instant::now();
    if plane.worker == 0 {
        // Before the tick begins attempts to open servers, which hide that there is no room for them.
        plane.shared.databases.share_limits(now);
        databases::keep_ready(&plane.shared);
        let config = plane.shared.config.load_full();
        plane.shared.databases.tick(&config, now);
        plane.shared.spread.decide(config.settings.worker_load_max);
    }
    plane.tick(now);
}
