//! [`Lane`]: plays a script directly at PostgreSQL and through the pooler, and compares.
//!
//! Each lane has two databases with the same content, one for each way, and a pool of two servers. So the
//! scripts of one lane know nothing of those of another, and may use the same names.

use super::end::{End, Heard, Model};
use super::script::{Request, Script, Step, Who};
use super::trace::{Answer, Difference, is_same, skips_parameters, word};
use crate::support::{Login, Message, Pooler, Postgres, Raw};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What the scripts find in their database.
const CONTENT: &str = "
    CREATE SCHEMA a; CREATE SCHEMA b;
    CREATE TABLE t (id int, word text); INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, NULL);
    CREATE TABLE a.t (id int, flag bool, note text); INSERT INTO a.t VALUES (1, true, 'in a');
    CREATE TABLE b.t (note text, id bigint); INSERT INTO b.t VALUES ('in b', 1), ('too', 2);
    CREATE TABLE items (n int PRIMARY KEY, word text);
    CREATE TABLE log (word text);
    CREATE TABLE child (n int REFERENCES items DEFERRABLE INITIALLY DEFERRED);
    CREATE SEQUENCE numbers;
    CREATE FUNCTION noisy(word text) RETURNS text LANGUAGE plpgsql AS
        'BEGIN RAISE NOTICE ''%'', word USING HINT = ''a hint''; RETURN word; END';
    CREATE FUNCTION reset() RETURNS void LANGUAGE plpgsql AS 'BEGIN
        -- A server process, and what it has locked, ends some time after its client.
        WHILE EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory''
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
        LOOP PERFORM pg_sleep(0.005); END LOOP;
        TRUNCATE items, child, log;
        INSERT INTO items VALUES (1, ''one''), (2, ''two''), (3, NULL);
        PERFORM setval(''numbers'', 1, false); END';
    GRANT ALL ON ALL TABLES IN SCHEMA public, a, b TO app, differential_role;
    GRANT ALL ON SEQUENCE numbers TO app, differential_role;
    GRANT USAGE ON SCHEMA a, b TO app, differential_role;
    GRANT CREATE ON SCHEMA public TO app;";

/// What is left of a script in its database. Where a row lies in its file is nobody's business.
const REMAINS: &str = "SELECT (SELECT string_agg(items::text, ' ' ORDER BY items::text) FROM items), \
     (SELECT string_agg(log::text, ' ' ORDER BY log::text) FROM log), \
     (SELECT string_agg(child::text, ' ' ORDER BY child::text) FROM child), (SELECT last_value FROM numbers)";

/// What became of a script.
#[derive(Debug)]
pub enum Outcome {
    Same,
    Differs(Box<Difference>),
    /// PostgreSQL itself did not come to the end that was expected.
    Unclear(String),
}

/// The pooler of all lanes.
pub async fn start(lanes: usize) -> Arc<Pooler> {
    let mut config = Pooler::config();
    for lane in 0..lanes {
        config = config.database_line(&format!(
            "lane_{lane} = {{server}} dbname={{database}}_pooled_{lane} pool_size=2"
        ));
    }
    let pooler = config.start().await;
    let role = "SELECT 1 FROM pg_roles WHERE rolname = 'differential_role'";
    if pooler.sql(role).await.is_empty() {
        pooler.sql("CREATE ROLE differential_role").await;
        pooler.sql("GRANT differential_role TO app").await;
    }
    let template = format!("{}_template", pooler.database);
    let postgres = &pooler.postgres;
    postgres.sql("postgres", &format!("CREATE DATABASE {template} OWNER app")).await;
    postgres.sql(&template, CONTENT).await;
    Arc::new(pooler)
}

/// One script at a time.
pub struct Lane {
    pooler: Arc<Pooler>,
    number: usize,
    databases: [String; 2],
    controls: [Raw; 2],
    /// How long each answer may take.
    pub patience: Duration,
}

/// What was sent directly, and what was said to it.
struct Spoken {
    sent: Vec<Vec<u8>>,
    answers: Vec<Answer>,
}

impl Lane {
    pub async fn open(pooler: Arc<Pooler>, number: usize) -> Lane {
        let name = &pooler.database;
        let databases = ["direct", "pooled"].map(|way| format!("{name}_{way}_{number}"));
        for database in &databases {
            pooler
                .postgres
                .sql("postgres", &format!("CREATE DATABASE {database} TEMPLATE {name}_template"))
                .await;
        }
        let postgres: &Postgres = &pooler.postgres;
        let controls = [postgres.control(&databases[0]).await, postgres.control(&databases[1]).await];
        let patience = crate::support::PATIENCE;
        Lane { number, databases, controls, patience, pooler }
    }

    /// Closes the pool's servers, so that what they have been through has no part in what follows.
    pub async fn renew_servers(&mut self) {
        self.pooler.admin(&format!("RECONNECT lane_{}", self.number)).await;
    }

    /// Plays the script both ways.
    pub async fn play(&mut self, script: &Script) -> Outcome {
        if let Err(fault) = self.reset().await {
            return Outcome::Unclear(fault);
        }
        let spoken = match self.play_directly(script).await {
            Ok(spoken) => spoken,
            Err(fault) => return Outcome::Unclear(fault),
        };
        let difference = |step, pooled, besides| {
            Outcome::Differs(Box::new(Difference { step, direct: spoken.answers.clone(), pooled, besides }))
        };
        match self.play_pooled(script, &spoken).await {
            Err((pooled, besides)) => difference(pooled.len().saturating_sub(1), pooled, besides),
            Ok(pooled) => {
                let [direct, through] = &mut self.controls;
                let (expected, got) = tokio::join!(direct.query(REMAINS), through.query(REMAINS));
                let (expected, got) = (expected.to_string(), got.to_string());
                if expected == got {
                    return Outcome::Same;
                }
                difference(script.steps.len(), pooled, format!("left behind: {expected}\n    instead: {got}"))
            }
        }
    }

    async fn reset(&mut self) -> Result<(), String> {
        let sql = "SET lock_timeout = '10s'; SET statement_timeout = '10s'; SELECT reset()";
        let [direct, pooled] = &mut self.controls;
        let (direct, pooled) = tokio::join!(direct.query(sql), pooled.query(sql));
        let errors = direct.count(b'E') + pooled.count(b'E');
        if errors == 0 { Ok(()) } else { Err(format!("no clean start: {direct} {pooled}")) }
    }

    async fn play_directly(&mut self, script: &Script) -> Result<Spoken, String> {
        let login = login(script, &self.databases[0]);
        let raw = Raw::try_login(&self.pooler.postgres.unix(), &login).await?;
        let mut listener = Listener::new(raw);
        let mut model = Model::default();
        let mut spoken = Spoken { sent: Vec::new(), answers: Vec::new() };
        for step in script.steps.iter().chain([&farewell()]) {
            if step.who == Who::Other {
                spoken.sent.push(step.bytes());
                spoken.answers.push(Answer::default());
                continue;
            }
            let end = model.end(&step.requests);
            let bytes = [step.bytes(), Model::mark(end)].concat();
            listener.raw.send(&bytes).await;
            let (answer, heard) = listener.hear(end, self.patience).await?;
            model.heard(end, &heard);
            spoken.sent.push(bytes);
            spoken.answers.push(answer);
            if listener.closed {
                break;
            }
        }
        Ok(spoken)
    }

    /// The error is what was said up to the first difference.
    async fn play_pooled(
        &mut self,
        script: &Script,
        spoken: &Spoken,
    ) -> Result<Vec<Answer>, (Vec<Answer>, String)> {
        let mut answers = Vec::new();
        let alias = format!("lane_{}", self.number);
        let login = login(script, &alias);
        let raw = match Raw::try_login(&self.pooler.tcp(), &login).await {
            Ok(raw) => raw,
            Err(refusal) => return Err((answers, format!("login refused: {refusal}"))),
        };
        let mut listener = Listener::new(raw);
        let mut other = None;
        for (at, (bytes, expected)) in spoken.sent.iter().zip(&spoken.answers).enumerate() {
            let step = script.steps.get(at);
            if let Some(step) = step.filter(|step| step.who == Who::Other) {
                answers.push(Answer::default());
                if !self.play_other(&mut other, step).await {
                    return Err((answers, "the other client is not answered".to_owned()));
                }
                continue;
            }
            let mut from = 0;
            for cut in step.map_or(&[][..], |step| &step.cuts) {
                let cut = (*cut).clamp(from, bytes.len());
                listener.raw.send(&bytes[from..cut]).await;
                tokio::task::yield_now().await;
                from = cut;
            }
            listener.raw.send(&bytes[from..]).await;
            let (answer, same) = listener.hear_again(expected, self.patience).await;
            answers.push(answer);
            if !same {
                let got = answers.last().expect("just pushed");
                let besides = unlike(&expected.parameters, &got.parameters);
                return Err((answers, besides));
            }
        }
        Ok(answers)
    }

    /// Whether the other client got all its answers.
    async fn play_other(&mut self, other: &mut Option<Listener>, step: &Step) -> bool {
        if other.is_none() {
            let login = Login::new("app", &format!("lane_{}", self.number));
            match Raw::try_login(&self.pooler.tcp(), &login).await {
                Ok(raw) => *other = Some(Listener::new(raw)),
                Err(_) => return false,
            }
        }
        let other = other.as_mut().expect("it has just logged in");
        other.raw.send(step.bytes()).await;
        let readies =
            step.requests.iter().filter(|request| matches!(request, Request::Query(_) | Request::Sync));
        other.hear(End::Ready(readies.count()), self.patience).await.is_ok()
    }
}

/// Ends whatever is open. It also brings to light what was said too much.
fn farewell() -> Step {
    let close = Request::CloseStatement("none".to_owned());
    Step::new(vec![
        Request::CopyDone,
        Request::Sync,
        Request::Query("ROLLBACK".to_owned()),
        close,
        Request::Sync,
    ])
}

fn login(script: &Script, database: &str) -> Login {
    let login = Login::new("app", database);
    script.login.iter().fold(login, |login, (name, value)| login.option(name, value))
}

/// Reports that come when they come.
const NOT_COMPARED: [&str; 1] = ["in_hot_standby"];

fn unlike(expected: &BTreeMap<String, String>, got: &BTreeMap<String, String>) -> String {
    let all = expected.keys().chain(got.keys().filter(|name| !expected.contains_key(*name)));
    let unlike = all.filter(|name| expected.get(*name) != got.get(*name));
    let lines =
        unlike.map(|name| format!("{name} is reported as {:?}, not {:?}", got.get(name), expected.get(name)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A connection, and what its client knows.
struct Listener {
    raw: Raw,
    parameters: BTreeMap<String, String>,
    closed: bool,
}

impl Listener {
    fn new(raw: Raw) -> Listener {
        let parameters = raw.parameters.iter().filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
        let parameters = parameters.map(|(name, value)| (name.clone(), value.clone())).collect();
        Listener { raw, parameters, closed: false }
    }

    /// The next message that is no ParameterStatus. The outer option is the deadline.
    async fn next(&mut self, deadline: Instant) -> Option<Option<Message>> {
        loop {
            match self.raw.reader.message_before(deadline).await {
                Some(Some(message)) if message.tag == b'S' => {
                    let mut words = message.strings().into_iter();
                    let name = words.next().unwrap_or_default();
                    if !NOT_COMPARED.contains(&name.as_str()) {
                        self.parameters.insert(name, words.next().unwrap_or_default());
                    }
                }
                Some(None) => {
                    self.closed = true;
                    return Some(None);
                }
                other => return other,
            }
        }
    }

    /// All up to this end.
    async fn hear(&mut self, end: End, patience: Duration) -> Result<(Answer, Heard), String> {
        let (mut answer, mut heard) = (Answer::default(), Heard::default());
        let deadline = Instant::now() + patience;
        while !heard.is_all(end) && !self.closed {
            match self.next(deadline).await {
                None => return Err(format!("no {end:?} but: {answer}")),
                Some(None) => answer.words.push("EOF".to_owned()),
                Some(Some(message)) => {
                    heard.hear(&message);
                    answer.words.push(word(&message));
                }
            }
        }
        answer.parameters = self.parameters.clone();
        Ok((answer, heard))
    }

    /// As many messages as expected, and whether they are the same. Behind a difference it is not patient.
    async fn hear_again(&mut self, expected: &Answer, patience: Duration) -> (Answer, bool) {
        let mut answer = Answer::default();
        let mut deadline = Instant::now() + patience;
        let mut same = true;
        while answer.words.len() < expected.words.len() && !self.closed {
            let word = match self.next(deadline).await {
                None => "(nothing more)".to_owned(),
                Some(None) => "EOF".to_owned(),
                Some(Some(message)) => word(&message),
            };
            if skips_parameters(expected, answer.words.len(), &word) {
                answer.words.push(expected.words[answer.words.len()].clone());
            }
            if same && !is_same(&expected.words[answer.words.len()], &word) {
                same = false;
                deadline = Instant::now() + Duration::from_millis(100);
            }
            let ends = word == "(nothing more)";
            answer.words.push(word);
            if ends {
                break;
            }
        }
        same &= answer.words.len() == expected.words.len();
        answer.parameters = self.parameters.clone();
        let is_ready = expected.words.last().is_some_and(|word| word.starts_with("Z("));
        (answer.clone(), same && (!is_ready || answer.parameters == expected.parameters))
    }
}
