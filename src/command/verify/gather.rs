//! Where the facts come from: [`facts`] asks the API, each server, and the consoles of the poolers. What does not
//! answer has a limit of time, and its silence is a fact.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::facts::{
    Certificate, Facts, MAY_ASK_UNARCHIVED, More, Pooler, PoolerSaid, Pools, QUESTION, Said, Server,
    UNARCHIVED_QUESTION,
};
use super::pools::pools;
use super::{VerifyArguments, VerifyError};
use crate::auth::{Credentials, Password, Proof, Secret, ServerSecret};
use crate::command::consoles::{Consoles, PoolerError, Rows};
use crate::command::login;
use crate::command::switchover::Operator;
use crate::config::{Cluster, Config, Host, SourceKind};
use crate::net::endpoint::{Dialing, Endpoint, TcpOptions};
use crate::net::tls::{self, Tls};
use crate::server::login::Recipe;
use crate::server::{ServerConnection, Session};
use crate::topology::kube::Kubernetes;
use crate::topology::kube::inspect::{Inspection, SecretFile, Seen};
use crate::topology::kube::operate::Operated;
use crate::topology::signals::{self, Signals};

/// How long a server may take to let us in, and then to answer.
const SERVER_MAX: Duration = Duration::from_secs(5);

/// What each pooler is asked.
const CONSOLE: &[&str] = &["SHOW CLUSTERS", "SHOW MEMBERS", "SHOW SERVERS"];

/// What is asked, and with what.
struct Subject {
    /// Its name in the poolers' settings.
    cluster: String,
    config: Option<Config>,
    operator: Operator,
    object: String,
    namespace: Option<String>,
    port: u16,
}

/// One look.
///
/// Fails when the settings cannot be read, or the API does not show the cluster.
pub(super) async fn facts(arguments: &VerifyArguments) -> Result<Facts, VerifyError> {
    let subject = Subject::of(arguments)?;
    let login = subject.login(arguments)?;
    let operated = Kubernetes::infer().await?.operate(subject.namespace.as_deref(), &subject.object);
    let account = arguments.service_account.as_deref();
    let api = match subject.operator {
        Operator::Cnpg => operated.inspect_cnpg(account).await,
        Operator::Patroni => operated.inspect_patroni(account).await,
    };
    let api = api.map_err(VerifyError::Api)?;
    let servers = match login {
        Ok(recipe) => Ok(servers(&api, &recipe, subject.port).await),
        Err(reason) => Err(reason),
    };
    let poolers = poolers(arguments, &operated, &subject, &api).await;
    let replicas = match (arguments.replicas, &poolers) {
        (Some(replicas), _) => Ok(replicas),
        (None, Ok(there)) => Ok(u32::try_from(there.len()).unwrap_or(u32::MAX)),
        (None, Err(reason)) => Err(format!("how many poolers there are is not known (--replicas): {reason}")),
    };
    Ok(Facts {
        pools: subject.pools(api.primary.as_deref(), &servers),
        certificates: certificates(&api.certificates, &servers),
        backup_age_max: Duration::from_secs(u64::from(arguments.backup_age_max) * 3600),
        api,
        servers,
        poolers,
        replicas,
    })
}

impl Subject {
    fn of(arguments: &VerifyArguments) -> Result<Self, VerifyError> {
        let environment = |name: &str| std::env::var(name).ok();
        let config = arguments.config.as_deref().map(|path| Config::load(path, &environment)).transpose()?;
        let known = config.as_ref().and_then(|config| config.clusters.get(&arguments.cluster));
        let operator = match (arguments.operator, known.and_then(|cluster| cluster.source)) {
            (Some(operator), _) => operator,
            (None, None | Some(SourceKind::Cnpg)) => Operator::Cnpg,
            (None, Some(SourceKind::Patroni)) => Operator::Patroni,
            (None, Some(other)) => {
                return Err(VerifyError::Source(arguments.cluster.clone(), other.as_str()));
            }
        };
        let namespace = || known.and_then(|cluster| cluster.namespace.clone());
        let in_settings = || config.as_ref().and_then(|config| config.settings.namespace.clone());
        let object = known.map_or(arguments.cluster.as_str(), Cluster::object_name);
        Ok(Subject {
            cluster: arguments.cluster.clone(),
            operator,
            object: arguments.name.clone().unwrap_or_else(|| object.to_owned()),
            namespace: arguments.namespace.clone().or_else(namespace).or_else(in_settings),
            port: arguments.port.or(known.map(|cluster| cluster.port)).unwrap_or(5432),
            config,
        })
    }

    /// How a server is entered; the endpoint is another one for each. The inner error is why none can be.
    fn login(&self, arguments: &VerifyArguments) -> Result<Seen<Recipe>, VerifyError> {
        let settings = self.config.as_ref().map(|config| &config.settings);
        let own =
            || settings.and_then(|settings| settings.monitor_user.as_ref().or(settings.auth_user.as_ref()));
        let Some(user) = arguments.user.as_ref().or_else(own) else {
            return Ok(Err("no login for the servers was given: --config or --user".to_owned()));
        };
        let secret = match std::env::var("PGWEIR_MONITOR_PASSWORD") {
            Ok(password) if !password.is_empty() => Arc::new(ServerSecret::plain(Password::new(&password))),
            _ => self.secret_of(user),
        };
        let dialing = match settings {
            Some(settings) => Dialing {
                tcp: TcpOptions::new(settings),
                tls: Tls::load(settings, &Tls::default())?.0.connector,
                tls_name: Some(settings.server_tls_name.clone().unwrap_or(format!("{}-rw", self.object))),
                dns: None,
            },
            None => login::dialing(),
        };
        let in_settings = || settings.map(|settings| settings.monitor_dbname.clone());
        let database = arguments.dbname.clone().or_else(in_settings).unwrap_or_else(|| "postgres".to_owned());
        let nowhere = Endpoint { host: Host::Tcp(String::new()), port: self.port };
        let parameters = vec![
            ("application_name".to_owned(), "pgweir verify".to_owned()),
            ("statement_timeout".to_owned(), SERVER_MAX.as_millis().to_string()),
        ];
        let own = Recipe::own(nowhere, user, &database, secret);
        Ok(Ok(Recipe { dialing, parameters, timeout: Some(SERVER_MAX), ..own }))
    }

    fn secret_of(&self, user: &str) -> Arc<ServerSecret> {
        let known = self.config.as_ref().and_then(|config| config.auth_users.get(user));
        match known {
            Some(secret) => Credentials::new(Secret::parse(secret)).server_secret(&Proof::default()),
            None => Arc::new(ServerSecret::None),
        }
    }

    fn pools(&self, primary: Option<&str>, servers: &Seen<Vec<Server>>) -> Seen<Pools> {
        let config = self.config.as_ref().ok_or("the pools are not known: --config")?;
        if !config.clusters.contains_key(&self.cluster) {
            return Err(format!("the settings have no cluster \"{}\"", self.cluster));
        }
        let mut all = servers.iter().flatten();
        let said =
            all.find(|server| Some(server.name.as_str()) == primary).and_then(|one| one.said.as_ref().ok());
        let more = said.map(|said| said.more.clone()).unwrap_or_default();
        Ok(pools(config, &self.cluster, &more.databases, &more.roles))
    }
}

// ---- the servers ----

/// All at once.
async fn servers(api: &Inspection, recipe: &Recipe, port: u16) -> Vec<Server> {
    let mut asking = JoinSet::new();
    for instance in &api.instances {
        let name = instance.name.clone();
        let endpoint = instance.address.clone().map(|host| Endpoint { host: Host::Tcp(host), port });
        let recipe = recipe.clone();
        asking.spawn(async move {
            let said = match endpoint {
                None => Err("its pod has no address".to_owned()),
                Some(endpoint) => said(Recipe { endpoint: Arc::new(endpoint), ..recipe }).await,
            };
            Server { name, said }
        });
    }
    let mut servers = asking.join_all().await;
    servers.sort_by(|one, other| one.name.cmp(&other.name));
    servers
}

async fn said(recipe: Recipe) -> Seen<Said> {
    let session = Session::untracked();
    let (mut open, _) = recipe.open(&session, 0, 0).await.map_err(|error| error.to_string())?;
    match tokio::time::timeout(SERVER_MAX, answers(&mut open, &session)).await {
        Ok(answers) => answers,
        Err(_) => Err(format!("no answer within {} s", SERVER_MAX.as_secs())),
    }
}

async fn answers(open: &mut ServerConnection, session: &Session) -> Seen<Said> {
    let signals = Signals::read(&cell(open, signals::QUESTION, session).await?)?;
    let more: More = read(&cell(open, QUESTION, session).await?)?;
    // A standby archives nothing.
    let asks = !signals.in_recovery && cell(open, MAY_ASK_UNARCHIVED, session).await? == "t";
    let unarchived = match asks {
        true => Some(read(&cell(open, UNARCHIVED_QUESTION, session).await?)?),
        false => None,
    };
    let certificate_left_s = open.socket.shown_until().map(|end_s| end_s - now_s());
    Ok(Said { signals, more, unarchived, certificate_left_s })
}

async fn cell(open: &mut ServerConnection, sql: &str, session: &Session) -> Seen<String> {
    let value = open.first_value(sql, session).await.map_err(|error| error.to_string())?;
    value.ok_or_else(|| "an answer without a value".to_owned())
}

fn read<T: DeserializeOwned>(text: &str) -> Seen<T> {
    serde_json::from_str(text).map_err(|error| format!("an answer that cannot be read: {error}"))
}

// ---- the poolers ----

async fn poolers(
    arguments: &VerifyArguments,
    operated: &Operated,
    subject: &Subject,
    api: &Inspection,
) -> Seen<Vec<Pooler>> {
    if arguments.no_pooler {
        return Err("--no-pooler".to_owned());
    }
    // The one reason is that there is none, and that is a finding; the other that the API does not say it.
    let consoles = match Consoles::find(&arguments.poolers, Some(operated)).await {
        Ok(consoles) => consoles,
        Err(PoolerError::NoPoolers(..)) => return Ok(Vec::new()),
        Err(other) => return Err(other.to_string()),
    };
    let primary = api.primary.as_deref();
    let primary = api.instances.iter().find(|instance| Some(instance.name.as_str()) == primary);
    let address = primary.and_then(|instance| instance.address.as_deref()).unwrap_or_default();
    let at = [address, &subject.port.to_string()].map(str::to_owned);
    let pooler = |(pooler, answers): (std::net::SocketAddr, Result<Vec<Rows>, String>)| Pooler {
        address: pooler.to_string(),
        said: answers.and_then(|answers| pooler_said(&answers, &subject.cluster, &at)),
    };
    Ok(consoles.ask(CONSOLE).await.into_iter().map(pooler).collect())
}

/// Of the answers to [`CONSOLE`], what concerns this cluster.
fn pooler_said(answers: &[Rows], cluster: &str, primary: &[String; 2]) -> Seen<PoolerSaid> {
    let [clusters, members, servers] = answers else {
        return Err("it answers less than was asked".to_owned());
    };
    let text = |row: &[Option<String>], column: usize| row.get(column).cloned().flatten().unwrap_or_default();
    let own = clusters.iter().find(|row| text(row, 0) == cluster);
    let own = own.ok_or_else(|| format!("it has no cluster \"{cluster}\""))?;
    // name, state, since_ms, primary, timeline, why
    let state = match (text(own, 1), text(own, 5)) {
        (state, why) if why.is_empty() => state,
        (state, why) => format!("{state}, {why}"),
    };
    // cluster, name, address, zone, says
    let members = members.iter().filter(|row| text(row, 0) == cluster);
    // type, user, database, replication, state, addr, port
    let at_primary = servers.iter().filter(|row| [text(row, 5), text(row, 6)] == *primary).count();
    Ok(PoolerSaid {
        state,
        members: members.map(|row| (text(row, 1), text(row, 4))).collect(),
        at_primary: u32::try_from(at_primary).unwrap_or(u32::MAX),
    })
}

// ---- certificates ----

/// Those in secrets; where one may not be read, what the operator says of it; and what servers have shown.
fn certificates(secrets: &Seen<Vec<SecretFile>>, servers: &Seen<Vec<Server>>) -> Seen<Vec<Certificate>> {
    let shown = servers.iter().flatten().filter_map(|server| {
        let left_s = server.said.as_ref().ok()?.certificate_left_s?;
        Some(Certificate { name: format!("shown by {}", server.name), left_s: Ok(left_s) })
    });
    let shown: Vec<Certificate> = shown.collect();
    match secrets {
        Err(reason) if shown.is_empty() => Err(reason.clone()),
        Err(_) => Ok(shown),
        Ok(secrets) => Ok(secrets.iter().map(in_secret).chain(shown).collect()),
    }
}

fn in_secret(file: &SecretFile) -> Certificate {
    let unreadable = || format!("{} is no certificate in PEM format", file.name);
    let end_s = match &file.pem {
        Ok(pem) => tls::valid_until(pem).ok_or_else(unreadable),
        Err(reason) => file.expires_s.ok_or_else(|| reason.clone()),
    };
    Certificate { name: file.name.clone(), left_s: end_s.map(|end_s| end_s - now_s()) }
}

/// Seconds since 1970.
fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
