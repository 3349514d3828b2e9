//! FOLLOW. One task for each cluster: what its source observes and what its servers answer goes in,
//! where the pools may open servers comes out. [`Follower`] is the type to read first; what it decides
//! by is pure ([`topology`](crate::topology)).

mod health;
mod inquiry;
pub mod monitor;
pub mod peers;
mod publish;
mod readers;
mod source;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use crate::auth::Proof;
use crate::config::{Cluster, Role, SourceKind};
use crate::net::endpoint::Endpoint;
use crate::pool::access::{Alarm, Site};
use crate::server::login::Recipe;
use crate::session::clusters::{ClusterCommand, ClusterHandle, Event};
use crate::session::control::on_all_workers;
use crate::session::plane::Shared;
use crate::topology::freshness::{Freshness, PrimaryLog};
use crate::topology::health::Judge;
use crate::topology::kube::SourceEvent;
use crate::topology::primary::{Act, Gate, State, Why};
use crate::topology::signals::Samples;
use crate::topology::volume::{Growth, Volume};
use crate::topology::{Identity, Member, Observation, Place, probe};
use monitor::{Answer, Bell, Said, Status};
use readers::Readers;
use source::News;

/// Answers and observations that may wait for the follower; who finds it full waits in turn.
const EVENTS_MAX: usize = 64;

/// What has happened to a cluster is remembered for the page, the newest so many.
const KEPT_EVENTS_MAX: usize = 50;

/// Commands of the console that may wait.
const COMMANDS_MAX: usize = 8;

/// How long a login of the monitor may take.
const MONITOR_LOGIN: Duration = Duration::from_secs(1);

/// When the primary has owed an answer for so long, it may be gone: who follows it will say so first.
const SUSPICIOUS: Duration = Duration::from_millis(200);

/// The source may be silent for so long while no other server can be reached; it is the time after which
/// CloudNativePG's lease may go to another one.
const ISOLATED_AFTER: Duration = Duration::from_secs(15);

/// How often standbys are looked at that say nothing, and servers asked while there is no primary.
const TICK: Duration = Duration::from_millis(50);

/// A question that can be asked early, and the task that asks.
struct Monitor {
    bell: Arc<Bell>,
    task: AbortHandle,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of one member.
struct Known {
    member: Member,
    freshness: Freshness,
    identity: Option<Identity>,
    samples: Samples,
    /// How its WAL grows.
    growth: Growth,
    /// Why it does not answer.
    trouble: Option<Arc<str>>,
    /// It was promoted, and then the monitor's session ended.
    sessions_ended: bool,
    /// `None` when there is no user to ask as.
    monitor: Option<Monitor>,
}

/// Follows one cluster.
pub struct Follower {
    cluster: Cluster,
    shared: Arc<Shared>,
    handle: Arc<ClusterHandle>,
    gate: Gate,
    known: BTreeMap<Arc<str>, Known>,
    log: PrimaryLog,
    alarm: Arc<Alarm>,
    /// Where rw goes, kept while it is verified again.
    writer: Option<Arc<Site>>,
    readers: Readers,
    answers: mpsc::Sender<Answer>,
    /// Who waits for a HOLD to be complete.
    holds: Vec<oneshot::Sender<bool>>,
    moves: u64,
    severed: u64,
    last_primary: Option<Arc<str>>,
    /// Since when the source is silent, or when it last spoke; and whether it can be reached.
    last_source: Option<(Instant, bool)>,
    /// When all were last asked because there was no primary.
    asked_everyone: Option<Instant>,
    /// What clients were last said to wait for.
    last_why: Option<&'static str>,
    judge: Judge,
    /// What has happened last, the oldest first; at most [`KEPT_EVENTS_MAX`].
    events: Arc<VecDeque<Event>>,
    /// When the cluster's health was last judged, and how its gate stood.
    judged: Option<(Instant, &'static str)>,
    /// Whether the source has ever said anything of the cluster.
    heard: bool,
    /// The volumes with WAL, by member; or why they are not known.
    volumes: Result<BTreeMap<Arc<str>, Volume>, String>,
    /// Our own zone: the setting, else what Kubernetes says.
    zone: Option<Arc<str>>,
    /// The task that listens to the source.
    source: Option<AbortHandle>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            source.abort();
        }
    }
}

/// A follower's task; dropping it ends it.
pub struct Following {
    cluster: Cluster,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.clusters.remove(&self.cluster.name);
    }
}

/// The followers of all clusters of the settings.
#[derive(Default)]
pub struct Followers(BTreeMap<String, Following>);

impl Followers {
    /// Starts and ends followers, so that there is one for each cluster of the settings in force.
    pub fn configure(&mut self, shared: &Arc<Shared>) {
        let config = shared.config.load_full();
        self.0.retain(|name, following| config.clusters.get(name) == Some(&following.cluster));
        for (name, cluster) in &config.clusters {
            if !self.0.contains_key(name) {
                self.0.insert(name.clone(), start(cluster.clone(), shared));
            }
        }
    }
}

fn start(cluster: Cluster, shared: &Arc<Shared>) -> Following {
    let (commands, command_ends) = mpsc::channel(COMMANDS_MAX);
    let handle = Arc::new(ClusterHandle { commands, status: Default::default() });
    shared.clusters.enter(&cluster.name, Arc::clone(&handle));
    let (answers, answer_ends) = mpsc::channel(EVENTS_MAX);
    let follower = Follower {
        cluster: cluster.clone(),
        shared: Arc::clone(shared),
        handle,
        gate: Gate::new(Instant::now()),
        known: BTreeMap::new(),
        log: PrimaryLog::default(),
        alarm: Arc::default(),
        writer: None,
        readers: Readers::default(),
        answers,
        holds: Vec::new(),
        moves: 0,
        severed: 0,
        last_primary: None,
        last_source: None,
        heard: false,
        volumes: Ok(BTreeMap::new()),
        zone: shared.config.load().settings.zone.as_deref().map(Arc::from),
        source: None,
        asked_everyone: None,
        last_why: None,
        judge: Judge::default(),
        events: Arc::default(),
        judged: None,
    };
    let task = tokio::spawn(follower.run(answer_ends, command_ends));
    Following { cluster, shared: Arc::clone(shared), task }
}

/// How our own connection to a server logs in; `None` without a user for it.
fn monitors_recipe(shared: &Shared, cluster: &Cluster, place: &Place) -> Option<Recipe> {
    let config = shared.config.load();
    let settings = &config.settings;
    let user = settings.monitor_user.as_ref().or(settings.auth_user.as_ref())?;
    let secret = shared.credentials(user)?.server_secret(&Proof::default());
    let endpoint = Endpoint { host: place.host.clone(), port: place.port };
    Some(Recipe {
        dialing: shared.databases.dialing(&config, Some(cluster)),
        parameters: vec![
            ("application_name".to_owned(), "pgweir monitor".to_owned()),
            // The server stops what nobody waits for any more.
            ("statement_timeout".to_owned(), monitor::PATIENCE.as_millis().to_string()),
        ],
        timeout: Some(MONITOR_LOGIN),
        ..Recipe::own(endpoint, user, &settings.monitor_dbname, secret)
    })
}

impl Follower {
    async fn run(
        mut self,
        mut answers: mpsc::Receiver<Answer>,
        mut commands: mpsc::Receiver<ClusterCommand>,
    ) {
        let (news, mut news_ends) = mpsc::channel(EVENTS_MAX);
        match self.cluster.source {
            Some(SourceKind::Static) => self.observe(probe::fixed(&self.cluster)),
            Some(SourceKind::Probe) => self.enter_members(&probe::members(&self.cluster)),
            Some(SourceKind::Cnpg | SourceKind::Patroni | SourceKind::Label) | None => {
                self.listen_to_kubernetes(news);
            }
        }
        let alarm = Arc::clone(&self.alarm);
        loop {
            self.settle().await;
            let pause = self
                .gate
                .next_deadline()
                .map_or(TICK, |at| at.saturating_duration_since(Instant::now()).min(TICK));
            tokio::select! {
                Some(answer) = answers.recv() => self.handle_answer(answer),
                Some(news) = news_ends.recv() => self.handle_news(news),
                Some(command) = commands.recv() => self.handle_command(command),
                () = alarm.rung() => self.handle_troubles(),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn listen_to_kubernetes(&mut self, news: mpsc::Sender<News>) {
        if self.cluster.namespace.is_none() {
            self.cluster.namespace = self.shared.config.load().settings.namespace.clone();
        }
        let listening = source::follow_kubernetes(self.cluster.clone(), self.zone.is_none(), news);
        self.source = Some(tokio::spawn(listening).abort_handle());
    }

    // ---- what comes in ----

    fn handle_news(&mut self, news: News) {
        let name = &self.cluster.name;
        match news {
            News::OwnZone(zone) => {
                tracing::info!("cluster {name}: our own zone is {zone}");
                self.zone = Some(zone);
            }
            News::Volumes(found) => self.handle_volumes(found),
            News::Event(SourceEvent::Observed(observation)) => self.observe(observation),
            News::Event(SourceEvent::Unreachable(error)) => {
                tracing::warn!("cluster {name}: the Kubernetes API cannot be reached: {error}");
                self.go_on_without_source("cannot be reached", &error);
            }
            News::Event(SourceEvent::Denied(error)) => {
                tracing::warn!("cluster {name}: the Kubernetes API denies what is needed: {error}");
                self.go_on_without_source("denies what is needed", &error);
            }
        }
    }

    /// What was known stays true until the servers say otherwise. Who never saw anything goes by the
    /// operator's Services, where there are such.
    fn go_on_without_source(&mut self, what: &str, error: &str) {
        if !matches!(self.last_source, Some((_, false))) {
            self.last_source = Some((Instant::now(), false));
            self.note_event("source", format!("the Kubernetes API {what}: {error}"));
        }
        if !self.heard && self.cluster.source == Some(SourceKind::Cnpg) {
            let observation = source::by_services(&self.cluster);
            self.enter_members(&observation.members);
            self.gate.handle_observation(observation, Instant::now());
        }
    }

    fn observe(&mut self, observation: Observation) {
        let now = Instant::now();
        self.last_source = Some((now, true));
        self.heard = true;
        if observation != *self.gate.observation() {
            tracing::debug!("cluster {}: {observation:?}", self.cluster.name);
        }
        self.enter_members(&observation.members);
        self.gate.handle_observation(observation, now);
    }

    /// Members that came get a monitor, those that went or moved lose theirs.
    fn enter_members(&mut self, members: &[Member]) {
        let is_there = |known: &Known| members.iter().any(|member| member.place == known.member.place);
        self.known.retain(|_, known| is_there(known));
        for member in members {
            if let Some(known) = self.known.get_mut(&member.name) {
                known.member = member.clone();
                continue;
            }
            let monitor = self.monitor(&member.place);
            let known = Known {
                member: member.clone(),
                freshness: Freshness::default(),
                identity: None,
                samples: Samples::default(),
                growth: Growth::default(),
                trouble: None,
                sessions_ended: false,
                monitor,
            };
            self.known.insert(Arc::clone(&member.name), known);
        }
    }

    fn monitor(&self, place: &Place) -> Option<Monitor> {
        let recipe = monitors_recipe(&self.shared, &self.cluster, place)?;
        let (shared, cluster, at) = (Arc::clone(&self.shared), self.cluster.clone(), place.clone());
        let renewed = move || monitors_recipe(&shared, &cluster, &at);
        let bell = Arc::<Bell>::default();
        let session = Arc::clone(&self.shared.server);
        let answers = self.answers.clone();
        let asking = monitor::watch(place.clone(), recipe, renewed, session, Arc::clone(&bell), answers);
        Some(Monitor { bell, task: tokio::spawn(asking).abort_handle() })
    }

    fn handle_answer(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer.said {
            Said::Status(status) => self.handle_status(&answer.place, &status, answer.asked, now),
            Said::Signals(signals) => self.handle_signals(&answer.place, signals, now),
        }
    }

    fn handle_status(
        &mut self,
        place: &Place,
        status: &Result<Status, Arc<str>>,
        asked: Instant,
        now: Instant,
    ) {
        let system_id = self.gate.system_id();
        let Some(known) = self.known.values_mut().find(|known| known.member.place == *place) else {
            return;
        };
        match status {
            Ok(status) => {
                if let Some(expected) = system_id
                    && let found = status.identity.system_id
                    && found != expected
                    && known.identity.is_none_or(|last| last.system_id != found)
                {
                    let (name, member) = (&self.cluster.name, &known.member.name);
                    tracing::warn!(
                        "cluster {name}: server {member} has system identifier {found}, the cluster's is {expected}"
                    );
                }
                known.identity = Some(status.identity);
                known.trouble = None;
                known.sessions_ended =
                    !status.identity.in_recovery && (known.sessions_ended || status.session_lost);
                let counts = status.identity.in_recovery || known.sessions_ended;
                if status.identity.in_recovery {
                    known.freshness.hear(self.log.lag(status.lsn, now), now);
                } else if self.gate.state().member().is_some_and(|member| member.place == *place) {
                    self.log.note(status.lsn, asked);
                    self.ask_the_unmeasured();
                }
                if counts || !self.waits_for_old_sessions(place, now) {
                    self.gate.handle_identity(place, status.identity, now);
                }
            }
            Err(reason) => {
                known.identity = None;
                known.sessions_ended = false;
                // Each reason once: it is tried many times a second.
                if known.trouble.replace(Arc::clone(reason)).as_ref() != Some(reason) {
                    tracing::warn!(
                        "cluster {}: server {} does not answer: {reason}",
                        self.cluster.name,
                        known.member.name
                    );
                }
                self.gate.handle_silence(place, reason, now);
                self.gate.handle_trouble(place, reason, now);
            }
        }
        if self.cluster.source == Some(SourceKind::Probe) {
            let answers = self.known.values().map(|known| (known.member.clone(), known.identity));
            self.observe(probe::observe(&answers.collect::<Vec<_>>()));
        }
    }

    /// Standbys that answered before the primary did have no lag yet, and so no queries.
    fn ask_the_unmeasured(&self) {
        let unmeasured = |known: &&Known| {
            known.freshness.lag.is_none() && known.identity.is_some_and(|identity| identity.in_recovery)
        };
        let monitors = self.known.values().filter(unmeasured).filter_map(|known| known.monitor.as_ref());
        monitors.for_each(|monitor| monitor.bell.ring());
    }

    fn handle_command(&mut self, command: ClusterCommand) {
        let now = Instant::now();
        match command {
            ClusterCommand::Hold(time, answer) => {
                tracing::info!("cluster {}: HOLD seconds={}", self.cluster.name, time.as_secs_f64());
                self.note_event("hold", format!("HOLD for {} s", time.as_secs_f64()));
                self.gate.hold(now + time, now);
                self.holds.push(answer);
            }
            ClusterCommand::Release => {
                self.note_event("hold", "RELEASE".to_owned());
                self.gate.release(now);
            }
        }
    }

    fn handle_troubles(&mut self) {
        for (place, reason) in self.alarm.take() {
            self.gate.handle_trouble(&place, &reason, Instant::now());
            let known = self.known.values().find(|known| known.member.place == place);
            if let Some(monitor) = known.and_then(|known| known.monitor.as_ref()) {
                monitor.bell.ring_anew();
            }
        }
    }

    // ---- what goes out ----

    /// Carries out what was decided, asks whom there is to ask, and tells the pools.
    async fn settle(&mut self) {
        let now = Instant::now();
        self.gate.tick(now);
        self.gate.set_isolated(self.is_isolated(now), now);
        if let Some(member) = self.gate.poll_verify(now) {
            self.verify(&member, now);
        }
        self.ask_everyone(now);
        for act in self.gate.take_acts() {
            self.act(act).await;
        }
        self.log_why();
        self.judge_health(now);
        self.let_servers_end();
        self.publish(now);
        self.answer_holds();
    }

    /// A server that shuts down smartly waits for every session, also for a monitor's.
    fn let_servers_end(&self) {
        let drained = match self.gate.state() {
            State::Draining(member, _) => Some(&member.place),
            State::Open(_) | State::Hold(_) | State::Verify { .. } => None,
        };
        for known in self.known.values() {
            let ends = known.member.terminating || drained == Some(&known.member.place);
            if let Some(monitor) = &known.monitor {
                monitor.bell.be_brief(ends);
            }
        }
    }

    /// Whether we are probably cut off together with the primary: the API has been away for long, and of all
    /// servers only the primary answers. CloudNativePG's own instances judge by the same.
    fn is_isolated(&self, now: Instant) -> bool {
        let Some((since, false)) = self.last_source else { return false };
        let Some(primary) = self.gate.state().member() else { return false };
        let others = self.known.values().filter(|known| known.member.name != primary.name);
        let mut others = others.filter(|known| known.monitor.is_some()).peekable();
        self.heard
            && now.saturating_duration_since(since) > ISOLATED_AFTER
            && others.peek().is_some()
            && others.all(|known| known.identity.is_none())
    }

    fn verify(&mut self, member: &Member, now: Instant) {
        if let Some(monitor) = self.known.get(&member.name).and_then(|known| known.monitor.as_ref()) {
            monitor.bell.ring();
        } else if !self.waits_for_old_sessions(&member.place, now) {
            // Without a user to ask as, each connection is checked at its login, and nothing before it.
            self.gate.trust(&member.place, now);
        }
    }

    /// While a probe knows of no primary that answers, nobody else will say who it is.
    fn ask_everyone(&mut self, now: Instant) {
        let is_due = self.asked_everyone.is_none_or(|at| now.saturating_duration_since(at) >= TICK);
        if self.cluster.source != Some(SourceKind::Probe) || !is_due || self.primary_answers(now) {
            return;
        }
        self.asked_everyone = Some(now);
        let monitors = self.known.values().filter_map(|known| known.monitor.as_ref());
        monitors.for_each(|monitor| monitor.bell.ring());
    }

    fn primary_answers(&self, now: Instant) -> bool {
        let State::Open(member) = self.gate.state() else { return false };
        let monitor = self.known.get(&member.name).and_then(|known| known.monitor.as_ref());
        monitor.is_none_or(|monitor| monitor.bell.waits(now) < SUSPICIOUS)
    }

    /// CloudNativePG's new primary ends all its sessions once it is named. That the monitor's has ended is
    /// the sign that this is done.
    fn waits_for_old_sessions(&mut self, place: &Place, now: Instant) -> bool {
        self.cluster.source == Some(SourceKind::Cnpg)
            && self.last_primary.is_some()
            && self.gate.handle_old_session(place, now)
    }

    async fn act(&mut self, act: Act) {
        let name = &self.cluster.name;
        match act {
            Act::Drain(place) => self.close_writer(&place),
            Act::Open(place) => {
                let primary = self.gate.state().member().map(|member| Arc::clone(&member.name));
                tracing::info!(
                    "cluster {name}: primary={} address={place}",
                    primary.as_deref().unwrap_or("")
                );
                if self.last_primary != primary {
                    self.moves += u64::from(self.last_primary.is_some());
                    let (name, was) = (primary.as_deref(), self.last_primary.as_deref());
                    let was = was.map_or_else(String::new, |was| format!(", after {was}"));
                    self.note_event("primary", format!("{} is the primary{was}", name.unwrap_or_default()));
                }
                self.last_primary = primary;
                let same = |site: &Arc<Site>| site.place.as_ref() == Some(&place) && !site.is_closed();
                if !self.writer.as_ref().is_some_and(same) {
                    self.writer = Some(Site::of_cluster(place, Some(false), &self.alarm));
                }
            }
            Act::Sever(place) => {
                self.close_writer(&place);
                self.readers.close(&place);
                // First, so that nothing begins there between the cut and the word of it.
                self.publish(Instant::now());
                let cut = sever(&self.shared, place.clone()).await;
                self.severed += cut;
                tracing::warn!("cluster {}: cut connections to {place}: count={cut}", self.cluster.name);
                if cut > 0 {
                    self.note_event("severed", format!("{cut} connections to {place} were cut"));
                }
            }
        }
    }

    /// One line when clients begin to wait for something, or for something else.
    fn log_why(&mut self) {
        let why = self.gate.state().why();
        let label = why.map(Why::label);
        if std::mem::replace(&mut self.last_why, label) != label
            && let Some(why) = why
            && !matches!(why, Why::Starting | Why::Unverified(_))
        {
            let (name, state) = (&self.cluster.name, self.gate.state().name());
            tracing::warn!("cluster {name}: clients wait: {why} state={state} reason={}", why.label());
            self.note_event("wait", format!("clients wait: {why}"));
        }
    }

    /// Keeps for the page what the log has said.
    fn note_event(&mut self, kind: &'static str, text: String) {
        let events = Arc::make_mut(&mut self.events);
        if events.len() >= KEPT_EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { at: Instant::now(), kind, text });
    }

    fn close_writer(&mut self, place: &Place) {
        if let Some(site) = self.writer.take_if(|site| site.place.as_ref() == Some(place)) {
            tracing::info!("cluster {}: draining {place}: {}", self.cluster.name, self.why());
            site.close();
        }
    }

    fn why(&self) -> String {
        self.gate.state().why().map_or_else(String::new, Why::to_string)
    }

    fn answer_holds(&mut self) {
        let held = matches!(self.gate.state(), State::Draining(_, Why::Held) | State::Hold(Why::Held));
        let drained = || {
            let pools = self.shared.databases.pools_of(&self.cluster.name, Role::ReadWrite);
            pools.iter().all(|pool| pool.is_empty())
        };
        if self.holds.is_empty() || held && !drained() {
            return;
        }
        for answer in self.holds.drain(..) {
            // The console's client may have gone meanwhile.
            let _ = answer.send(held);
        }
    }
}

/// Ends every session that drives a server at this place. Returns how many there were.
async fn sever(shared: &Shared, place: Place) -> u64 {
    let cut = on_all_workers(shared, move |plane| {
        let sessions = plane.sessions.borrow();
        let at_place = sessions.iter().filter(|(_, session)| session.borrow_mut().sever(&place));
        at_place.count() as u64
    });
    cut.await.into_iter().sum()
}
