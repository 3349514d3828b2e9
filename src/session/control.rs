//! What the console can do to the data plane: [`Control`] carries its commands out.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::clusters::ClusterCommand;
use super::databases::{DatabaseEntry, log_dropping};
use super::plane::{Message, Plane, Shared, Task};
use super::rules::LoginRules;
use super::views;
use super::{Farewell, Session};
use crate::admin::{ConsoleError, Pooler, SetOutcome, Shutdown, Snapshot, View};
use crate::config::Settings;
use crate::error::{SqlError, sqlstate};
use crate::net::tls::Tls;

/// How often a waiting command looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long REROUTE waits for running transactions before it leaves everything as it was.
const REROUTE_MAX: Duration = Duration::from_secs(60);

/// What only the process as a whole can do.
#[derive(Debug)]
pub enum ProcessCommand {
    /// Read the settings anew, and say whether that worked.
    Reload(oneshot::Sender<bool>),
    /// Write the log as the settings say now, and say when that is done.
    Log(oneshot::Sender<()>),
    /// End, and say when nobody new is let in.
    Shutdown(Shutdown, oneshot::Sender<()>),
}

/// The console's hand on the data plane.
#[derive(Clone)]
pub struct Control {
    plane: Rc<Plane>,
}

impl Control {
    /// A hand for a console that lives on this plane.
    pub fn new(plane: &Rc<Plane>) -> Self {
        Control { plane: Rc::clone(plane) }
    }

    /// Returns when the process has done it, or is on its way out.
    async fn tell(&self, command: impl FnOnce(oneshot::Sender<()>) -> ProcessCommand) {
        let (sender, receiver) = oneshot::channel();
        if self.shared().process.send(command(sender)).is_ok() {
            let _ = receiver.await;
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.plane.shared
    }

    /// The databases that a command means; an unknown one is made from `*`, as PgBouncer does.
    fn meant(&self, database: Option<&str>) -> Result<Vec<Arc<DatabaseEntry>>, ConsoleError> {
        match database {
            None => Ok(self.shared().databases.known()),
            Some(name) => Ok(vec![self.database(name)?]),
        }
    }

    fn database(&self, name: &str) -> Result<Arc<DatabaseEntry>, ConsoleError> {
        if self.shared().config.load().database(name).is_none() {
            return Err(ConsoleError::NoSuchDatabase(name.to_owned()));
        }
        Ok(self.shared().databases.database(name))
    }

    async fn command(&self, cluster: &str, command: ClusterCommand) -> Result<(), ConsoleError> {
        let no_such = || ConsoleError::NoSuchCluster(cluster.to_owned());
        let handle = self.shared().clusters.get(cluster).ok_or_else(no_such)?;
        // A follower that has ended is one whose cluster a RELOAD has just taken away.
        handle.commands.send(command).await.map_err(|_| no_such())
    }

    /// From now on databases that are entered are paused too.
    fn begin_pause(&self) -> Result<(), ConsoleError> {
        match self.shared().lifecycle.paused.swap(true, Ordering::AcqRel) {
            true => Err(ConsoleError::AlreadyPaused),
            false => Ok(()),
        }
    }

    /// Pauses these databases, and waits until they have no servers.
    async fn drain(&self, meant: &[Arc<DatabaseEntry>]) {
        meant.iter().for_each(|entry| entry.set_paused(true));
        self.until(|| meant.iter().all(|entry| entry.pools().iter().all(|pool| pool.is_empty()))).await;
    }

    async fn until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Runs something on every worker, and gathers what comes of it.
pub async fn on_all_workers<T: Send + 'static>(
    shared: &Shared,
    run: impl Fn(&Rc<Plane>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    // A client on its way would be nowhere, or be met twice. Until all have run it, be the one who asks gone.
    let standstill = Arc::new(shared.spread.stand_still());
    let (sender, mut receiver) = mpsc::unbounded_channel();
    for worker in &shared.workers {
        let (sender, run, standstill) = (sender.clone(), run.clone(), Arc::clone(&standstill));
        let task = Task(Box::new(move |plane| {
            let _standstill = standstill;
            // Nobody listens any more if the console's client has gone.
            let _ = sender.send(run(plane));
        }));
        // A worker that has stopped has nothing to tell.
        let _ = worker.send(Message::Run(task));
    }
    drop((sender, standstill));
    let mut gathered = Vec::new();
    while let Some(one) = receiver.recv().await {
        gathered.push(one);
    }
    gathered
}

/// Whether every session [has passed on all](Session::has_passed_on_all) that was answered before this was asked.
pub async fn have_passed_on_all(shared: &Shared) -> bool {
    let all = |plane: &Rc<Plane>| {
        plane.sessions.borrow().iter().all(|(_, session)| session.borrow().has_passed_on_all())
    };
    !on_all_workers(shared, all).await.contains(&false)
}

/// Ends every session that `chosen` says so of, on every worker.
pub async fn end_sessions(
    shared: &Shared,
    chosen: impl Fn(&Session) -> bool + Clone + Send + 'static,
    error: SqlError,
) -> usize {
    let ended = on_all_workers(shared, move |plane| {
        let sessions = plane.sessions.borrow();
        let mut count = 0;
        for (_, session) in sessions.iter() {
            let mut session = session.borrow_mut();
            if !session.is_parting() && chosen(&session) {
                session.end(Farewell::from(error.clone()));
                count += 1;
            }
        }
        count
    });
    ended.await.into_iter().sum()
}

impl Pooler for Control {
    async fn snapshot(&self, view: View) -> Snapshot {
        views::snapshot(self.shared(), view).await
    }

    async fn set(&self, key: &str, value: &str) -> Result<SetOutcome, ConsoleError> {
        let mut config = (*self.shared().config.load_full()).clone();
        config.set(key, value).map_err(|error| {
            tracing::warn!("SET failed: {error}");
            ConsoleError::SetFailed
        })?;
        // Other settings leave the files alone: someone may be writing them.
        let of_files = key.contains("_tls") || key.starts_with("auth_");
        let read = !of_files || read_files(self.shared(), &config.settings);
        apply(self.shared(), config).await;
        if key == "verbose" || key.starts_with("syslog") {
            self.tell(ProcessCommand::Log).await;
        }
        Ok(if read { SetOutcome::Done } else { SetOutcome::TlsNotApplied })
    }

    async fn reload(&self) -> Result<(), ConsoleError> {
        let (sender, receiver) = oneshot::channel();
        let asked = self.shared().process.send(ProcessCommand::Reload(sender));
        let worked = asked.is_ok() && receiver.await.unwrap_or(false);
        if !worked {
            return Err(ConsoleError::ReloadFailed);
        }
        Ok(())
    }

    async fn pause(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        let meant = self.meant(database)?;
        // A database may be paused again, as in PgBouncer: the command then waits like the first one.
        if database.is_none() {
            self.begin_pause()?;
        }
        self.drain(&meant).await;
        Ok(())
    }

    async fn resume(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        let lifecycle = &self.shared().lifecycle;
        if lifecycle.closing.load(Ordering::Acquire) {
            return Err(ConsoleError::ShuttingDown);
        }
        let meant = self.meant(database)?;
        let any = meant.iter().any(|entry| entry.paused.load(Ordering::Acquire));
        match database {
            None => {
                let all = lifecycle.paused.swap(false, Ordering::AcqRel);
                lifecycle.suspended.store(false, Ordering::Release);
                if !all && !any {
                    return Err(ConsoleError::NotPaused);
                }
            }
            Some(name) if !any => return Err(ConsoleError::DatabaseNotPaused(name.to_owned())),
            Some(_) => {}
        }
        for entry in &meant {
            entry.set_paused(false);
            open_waiting(self.plane.worker, entry);
        }
        Ok(())
    }

    async fn suspend(&self) -> Result<(), ConsoleError> {
        let lifecycle = &self.shared().lifecycle;
        let meant = self.shared().databases.known();
        let any = meant.iter().any(|entry| entry.paused.load(Ordering::Acquire));
        // PAUSE without a name pauses each of them too.
        if any && !lifecycle.paused.load(Ordering::Acquire) {
            return Err(ConsoleError::PausedDatabases);
        }
        self.begin_pause()?;
        lifecycle.suspended.store(true, Ordering::Release);
        // A session holds no bytes that its poll could write, so what is waited for are the transactions.
        let limit = self.shared().config.load().settings.suspend_timeout;
        if tokio::time::timeout(limit, self.drain(&meant)).await.is_err() {
            tracing::warn!("suspend_timeout={}: transactions are still open", limit.as_secs_f64());
        }
        Ok(())
    }

    async fn kill(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        let meant = self.meant(database)?;
        if database.is_none() {
            self.shared().lifecycle.paused.store(true, Ordering::Release);
        }
        for entry in &meant {
            entry.set_paused(true);
        }
        let names: Vec<_> = meant.iter().map(|entry| Arc::clone(&entry.name)).collect();
        let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "database removed")
            .detail("The administrator has closed all connections to the database.");
        let chosen = move |session: &Session| names.iter().any(|name| **name == *session.database());
        end_sessions(self.shared(), chosen, error).await;
        Ok(())
    }

    async fn kill_client(&self, id: u64) -> Result<(), ConsoleError> {
        let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "admin forced disconnect");
        match end_sessions(self.shared(), move |session: &Session| session.id == id, error).await {
            0 => Err(ConsoleError::ClientNotFound),
            _ => Ok(()),
        }
    }

    async fn reconnect(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        for entry in self.meant(database)? {
            for pool in entry.pools() {
                pool.reconnect();
            }
        }
        Ok(())
    }

    async fn wait_close(&self, database: Option<&str>) -> Result<(), ConsoleError> {
        let meant = self.meant(database)?;
        let old_epochs =
            |entry: &Arc<DatabaseEntry>| entry.pools().iter().all(|pool| !pool.has_old_servers());
        self.until(|| meant.iter().all(old_epochs)).await;
        Ok(())
    }

    async fn disable(&self, database: &str) -> Result<(), ConsoleError> {
        self.database(database)?.disabled.store(true, Ordering::Release);
        Ok(())
    }

    async fn enable(&self, database: &str) -> Result<(), ConsoleError> {
        self.database(database)?.disabled.store(false, Ordering::Release);
        Ok(())
    }

    async fn hold(&self, cluster: &str, seconds: u32) -> Result<(), ConsoleError> {
        let (answer, drained) = oneshot::channel();
        let time = Duration::from_secs(seconds.into());
        self.command(cluster, ClusterCommand::Hold(time, answer)).await?;
        match drained.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(ConsoleError::HoldLapsed(cluster.to_owned())),
        }
    }

    async fn release(&self, cluster: &str) -> Result<(), ConsoleError> {
        self.command(cluster, ClusterCommand::Release).await
    }

    async fn reroute(&self, database: &str, cluster: &str) -> Result<(), ConsoleError> {
        let shared = self.shared();
        let mut config = (*shared.config.load_full()).clone();
        if !config.clusters.contains_key(cluster) {
            return Err(ConsoleError::NoSuchCluster(cluster.to_owned()));
        }
        let entry = config.databases.get_mut(database);
        let entry = entry.ok_or_else(|| ConsoleError::NoSuchDatabase(database.to_owned()))?;
        let Some(of) = &mut entry.cluster else {
            return Err(ConsoleError::NoCluster(database.to_owned()));
        };
        cluster.clone_into(of);
        // No statement may reach the new cluster while one still runs on the old one.
        let is_meant = |name: &str| name.split('@').next() == Some(database);
        let meant: Vec<_> = shared.databases.known().into_iter().filter(|e| is_meant(&e.name)).collect();
        let meant: Vec<_> = meant.into_iter().filter(|e| !e.paused.load(Ordering::Acquire)).collect();
        let drained = tokio::time::timeout(REROUTE_MAX, self.drain(&meant)).await.is_ok();
        if drained {
            apply(shared, config).await;
        }
        for entry in &meant {
            entry.set_paused(false);
            open_waiting(self.plane.worker, entry);
        }
        match drained {
            true => Ok(()),
            false => Err(ConsoleError::StillBusy(database.to_owned())),
        }
    }

    async fn shutdown(&self, mode: Shutdown) -> Result<(), ConsoleError> {
        self.tell(|answer| ProcessCommand::Shutdown(mode, answer)).await;
        Ok(())
    }
}

fn open_waiting(worker: usize, entry: &DatabaseEntry) {
    let now = Instant::now();
    for pool in entry.pools() {
        pool.open_more(worker, now);
    }
}

/// Reads certificates, keys and rules anew. Returns whether all of them are good; what is not stays as it
/// was.
pub fn read_files(shared: &Shared, settings: &Settings) -> bool {
    let tls = match Tls::load(settings, &shared.databases.tls()) {
        Ok((tls, warnings)) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            shared.databases.set_tls(tls);
            true
        }
        Err(error) => {
            tracing::error!("TLS configuration could not be reloaded, keeping old configuration: {error}");
            false
        }
    };
    let rules = match LoginRules::read(settings) {
        Ok((rules, warnings)) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            shared.rules.store(Arc::new(rules));
            true
        }
        Err(error) => {
            tracing::error!("{error}: the rules stay as they were");
            false
        }
    };
    tls && rules
}

/// Puts new settings in force: for logins, pools and the sessions that are there. Certificates and rules
/// are those of the last [`read_files`].
pub async fn apply(shared: &Arc<Shared>, config: crate::config::Config) {
    shared.configure(config);
    let config = shared.config.load_full();
    let gone: Vec<_> =
        shared.databases.configure(&config).iter().map(|entry| Arc::clone(&entry.name)).collect();
    // Who is told that it is done finds the new settings in force.
    on_all_workers(shared, |plane| plane.refresh()).await;
    if gone.is_empty() {
        return;
    }
    for name in &gone {
        log_dropping(name);
    }
    let error = SqlError::fatal(sqlstate::PROTOCOL_VIOLATION, "database removed")
        .detail("The settings no longer have the database.");
    let chosen = move |session: &Session| gone.iter().any(|name| **name == *session.database());
    end_sessions(shared, chosen, error).await;
}
