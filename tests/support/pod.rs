//! [`PoolerPod`]: a pod of CloudNativePG's Pooler with our binary in it, and everything around the binary as its
//! operator and its instance manager make it: the folder `/controller`, the very files, the environment, the
//! user, the read-only root, the network of its own.
//!
//! The texts of the files are those of CloudNativePG 1.30 (pkg/management/pgbouncer/config/config.go).

use super::certificates::{Authority, Identity};
use super::network::Network;
use super::postgres::Postgres;
use super::process::{self, private_directory, reap};
use super::relay::Relay;
use super::{Address, Login, PATIENCE, Raw, eventually};
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The user that the operator's Deployment names.
pub const DECLARED_USER: (u32, u32) = (998, 996);
/// One that OpenShift picks; no account has it.
pub const ARBITRARY_USER: (u32, u32) = (1_000_740_000, 0);

/// What makes a root of the folder and starts the binary in it. `$1` is the root, `$2` the binary, `$3` and `$4`
/// the user and group, `$5` the most open files.
const CONTAINER: &str = r#"set -e
root=$1
ulimit -n "$5"
mount --bind "$root" "$root"
mount --bind /usr/lib "$root/usr/lib"
if [ -d /usr/lib64 ]; then mount --bind /usr/lib64 "$root/usr/lib64"; fi
mount --bind "$2" "$root/usr/bin/pgbouncer"
mount --bind "$(command -v setpriv)" "$root/usr/bin/setpriv"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$root/controller" "$root/controller"
mount -o remount,bind,ro "$root"
exec chroot "$root" /usr/bin/setpriv --pdeathsig KILL --reuid="$3" --regid="$4" --clear-groups \
    /usr/bin/pgbouncer /controller/configs/pgbouncer.ini"#;

/// What the manager writes, in the order of its template.
const INI: &str = "
[databases]
* = host=pg-rw

[pgbouncer]
pool_mode = {pool_mode}
auth_user = {auth_user}
auth_query = SELECT usename, passwd FROM public.user_search($1)
auth_dbname = postgres

";

const HBA: &str = "
local pgbouncer pgbouncer peer


{rules}

host all all 0.0.0.0/0 md5
host all all ::/0 md5
";

/// What the operator sets unless the user did.
const DEFAULTS: &[(&str, &str)] = &[
    ("admin_users", "pgbouncer"),
    ("auth_hba_file", "/controller/configs/pg_hba.conf"),
    ("auth_type", "hba"),
    ("client_tls_ca_file", "/controller/configs/client-ca/ca.crt"),
    ("client_tls_cert_file", "/controller/configs/client-tls/tls.crt"),
    ("client_tls_key_file", "/controller/configs/client-tls/tls.key"),
    ("client_tls_sslmode", "prefer"),
    ("ignore_startup_parameters", "extra_float_digits,options"),
    ("listen_addr", "*"),
    ("listen_port", "5432"),
    ("log_stats", "0"),
    ("server_tls_ca_file", "/controller/configs/server-tls/ca.crt"),
    ("server_tls_cert_file", "/controller/configs/authUser/tls.crt"),
    ("server_tls_key_file", "/controller/configs/authUser/tls.key"),
    ("server_tls_sslmode", "verify-ca"),
    ("unix_socket_dir", "/controller/run"),
];

/// In the database `postgres` of the cluster.
const USER_SEARCH: &str = "CREATE FUNCTION public.user_search(uname TEXT) RETURNS TABLE (usename name, passwd text) \
     LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS \
     'SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename=$1;'";

const SERVER_HBA: &str = "local all all trust
hostssl all cnpg_pooler_pgbouncer all cert map=cnpg_pooler_pgbouncer
host all all all scram-sha-256
";

/// The cluster `pg`: its primary, and the certificates that the operator has issued.
pub struct Cluster {
    pub postgres: Postgres,
    /// Signs what servers show, and what the pooler shows its clients.
    pub server_ca: Authority,
    /// Signs what clients show, that of the pooler's own user among them.
    pub client_ca: Authority,
    shown: Identity,
}

impl Cluster {
    /// `None` where this user may not make the pod's network; then that is printed.
    pub async fn start() -> Option<Cluster> {
        if !Network::is_possible() {
            return None;
        }
        let (server_ca, client_ca) = (Authority::new(), Authority::new());
        let shown = server_ca.issue("pg-rw", "DNS:pg-rw,DNS:pg-rw.default,DNS:pg-r,DNS:pg-ro");
        let files = server_ca.certificate();
        let folder = files.parent().expect("it is in a folder");
        fs::write(folder.join("hba"), SERVER_HBA).expect("it is our folder");
        let map = "cnpg_pooler_pgbouncer cnpg_pooler_pgbouncer cnpg_pooler_pgbouncer\n";
        fs::write(folder.join("ident"), map).expect("it is our folder");
        let settings = [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", shown.certificate.display()),
            format!("ssl_key_file={}", shown.key.display()),
            format!("ssl_ca_file={}", client_ca.certificate().display()),
            format!("hba_file={}", folder.join("hba").display()),
            format!("ident_file={}", folder.join("ident").display()),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let postgres = Postgres::start(&settings).await;
        postgres.sql("postgres", "CREATE ROLE cnpg_pooler_pgbouncer LOGIN").await;
        postgres.sql("postgres", USER_SEARCH).await;
        Some(Cluster { postgres, server_ca, client_ca, shown })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.postgres.port))
    }
}

/// What a Pooler's specification says.
#[derive(Clone)]
pub struct Specification {
    pub pool_mode: &'static str,
    pub parameters: Vec<(&'static str, String)>,
    pub hba: Vec<&'static str>,
    /// The user and password of a secret of type basic-auth, in place of the pooler's own certificate.
    pub basic_auth: Option<(&'static str, &'static str)>,
    pub user: (u32, u32),
    /// Further variables of the container.
    pub environment: Vec<(&'static str, &'static str)>,
    /// The most files that a process of the container may open.
    pub files_max: u32,
}

impl Default for Specification {
    fn default() -> Specification {
        Specification {
            pool_mode: "transaction",
            parameters: Vec::new(),
            hba: Vec::new(),
            basic_auth: None,
            user: DECLARED_USER,
            environment: Vec::new(),
            files_max: 1024,
        }
    }
}

/// The pod. It ends with its value.
pub struct PoolerPod {
    specification: Specification,
    folder: tempfile::TempDir,
    network: Network,
    /// Stands for the Service `pg-rw`: leads to the primary, or to nobody.
    service: watch::Sender<SocketAddr>,
    _relay: Relay,
    child: Child,
    ended: Option<ExitStatus>,
    /// From the start of the process to its first answer on the Unix socket.
    pub answered_after: Duration,
}

impl PoolerPod {
    pub async fn start(cluster: &Cluster, specification: Specification) -> PoolerPod {
        PoolerPod::start_with(cluster, specification, cluster.address(), |_| {}).await
    }

    /// The Service leads to this address at first; `prepare` is given the folder that will be the root.
    pub async fn start_with(
        cluster: &Cluster,
        specification: Specification,
        primary: SocketAddr,
        prepare: impl FnOnce(&Path),
    ) -> PoolerPod {
        let network = Network::start();
        let service_address = Ipv4Addr::from(u32::from(network.address) - 1);
        let (service, leads_to) = watch::channel(primary);
        let relay = Relay::start(SocketAddr::from((service_address, 5432)), leads_to, None);
        let folder = private_directory("weir-pod-");
        make_root(folder.path(), service_address);
        let mut pod = PoolerPod {
            child: Command::new("true").spawn().expect("it is there"),
            specification,
            folder,
            network,
            service,
            _relay: relay,
            ended: None,
            answered_after: Duration::ZERO,
        };
        pod.write_files(cluster);
        prepare(pod.folder.path());
        pod.launch();
        pod
    }

    /// As the manager's `exec.Command`, in its environment.
    fn launch(&mut self) {
        let (user, group) = self.specification.user;
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_pgweir"));
        let mut inner = Command::new("unshare");
        inner.args(["--mount", "--", "sh", "-c", CONTAINER, "sh"]).arg(self.folder.path()).arg(binary);
        inner.args([user.to_string(), group.to_string(), self.specification.files_max.to_string()]);
        let mut command = self.network.inside(&inner);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, value) in [
            ("NAMESPACE", "default"),
            ("POOLER_NAME", "pooler-rw"),
            ("METRICS_PORT_TLS", "false"),
            ("PGUSER", "pgbouncer"),
            ("PGDATABASE", "pgbouncer"),
            ("PGHOST", "/controller/run"),
            ("PSQL_HISTORY", "/controller/tmp/.psql_history"),
        ] {
            command.env(name, value);
        }
        command.envs(self.specification.environment.iter().copied());
        let log = |name| File::create(self.folder.path().join(name)).expect("it is our folder");
        command.stdin(Stdio::null()).stdout(log("out")).stderr(log("log"));
        // The first child was only a place-holder.
        let _ = self.child.wait();
        self.child = process::spawn(command);
        let began = Instant::now();
        let socket = self.folder.path().join("controller/run/.s.PGSQL.5432");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let ended = self.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "pgbouncer ended, {ended:?}:\n{}", self.log());
            assert!(began.elapsed() < PATIENCE, "pgbouncer does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.answered_after = began.elapsed();
    }

    /// All files, each in one step, as at the manager's start and at each event of the Pooler.
    pub fn write_files(&self, cluster: &Cluster) {
        self.copy("server-tls/ca.crt", &cluster.server_ca.certificate());
        self.copy("client-ca/ca.crt", &cluster.client_ca.certificate());
        self.show(&cluster.shown);
        let rules = self.specification.hba.join("\n");
        self.write("pg_hba.conf", HBA.replace("{rules}", &rules).as_bytes());
        let mut settings: Vec<(&str, &str)> = DEFAULTS.to_vec();
        let auth_user = match self.specification.basic_auth {
            Some((user, password)) => {
                let line =
                    format!("\n\"{}\" \"{}\"\n", user.replace('"', "\"\""), password.replace('"', "\"\""));
                self.write("userlist.txt", line.as_bytes());
                settings.retain(|(name, _)| !["server_tls_cert_file", "server_tls_key_file"].contains(name));
                settings.push(("auth_file", "/controller/configs/userlist.txt"));
                user
            }
            None => {
                let own = cluster.client_ca.issue_without_alternatives("cnpg_pooler_pgbouncer");
                self.copy("authUser/tls.crt", &own.certificate);
                self.copy("authUser/tls.key", &own.key);
                "cnpg_pooler_pgbouncer"
            }
        };
        for (name, value) in &self.specification.parameters {
            settings.retain(|(known, _)| known != name);
            settings.push((name, value));
        }
        settings.sort_unstable();
        let mut ini =
            INI.replace("{pool_mode}", self.specification.pool_mode).replace("{auth_user}", auth_user);
        for (name, value) in settings {
            writeln!(ini, "{name} = {value}").expect("a String takes all text");
        }
        self.write("pgbouncer.ini", ini.as_bytes());
    }

    /// Another specification; the manager must still be told.
    pub fn specify(&mut self, change: impl FnOnce(&mut Specification)) {
        change(&mut self.specification);
    }

    /// The certificate for clients, renewed.
    pub fn show(&self, identity: &Identity) {
        self.copy("client-tls/tls.crt", &identity.certificate);
        self.copy("client-tls/tls.key", &identity.key);
    }

    fn copy(&self, name: &str, from: &Path) {
        self.write(name, &fs::read(from).expect("it is our file"));
    }

    /// Mode 0600, by renaming.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.folder.path().join("controller/configs").join(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("it is our folder");
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, bytes).expect("it is our folder");
        fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).expect("it is our file");
        fs::rename(&unfinished, &path).expect("it is our folder");
        let controller = self.folder.path().join("controller");
        for path in path.ancestors().take_while(|path| *path != controller).chain([controller.as_path()]) {
            self.hand_over(path);
        }
        self.hand_over(&controller.join("run"));
    }

    fn hand_over(&self, path: &Path) {
        let (user, group) = self.specification.user;
        chown(path, Some(user), Some(group)).expect("root may change owners");
    }

    /// The Service leads to the primary again, or to a port where nobody listens.
    pub fn lead_to(&self, cluster: Option<&Cluster>) {
        self.service.send_replace(cluster.map_or_else(nobody, Cluster::address));
    }

    /// A file below `/controller`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("controller").join(name)
    }

    /// Where applications connect to.
    pub fn tcp(&self) -> Address {
        Address::Tcp(SocketAddr::from((self.network.address, 5432)))
    }

    pub fn address(&self) -> Ipv4Addr {
        self.network.address
    }

    /// A login of the manager: user `pgbouncer` over the Unix socket, from a process of the same user, with the
    /// start-up packet of Go's pgx.
    pub async fn console(&self) -> Raw {
        let login =
            Login::new("pgbouncer", "pgbouncer").option("client_encoding", "UTF8").option("datestyle", "ISO");
        let stream = self.connect_as_the_manager();
        Raw::login_over(stream, &login).await.expect("the manager is let in")
    }

    /// SO_PEERCRED has the user of the thread that connects.
    fn connect_as_the_manager(&self) -> std::os::unix::net::UnixStream {
        let socket = self.folder.path().join("controller/run/.s.PGSQL.5432");
        let user = rustix::process::Uid::from_raw(self.specification.user.0);
        let connects = move || {
            rustix::thread::set_thread_res_uid(None, Some(user), None).expect("root may");
            std::os::unix::net::UnixStream::connect(socket).expect("the pooler listens")
        };
        std::thread::spawn(connects).join().expect("it does not panic")
    }

    /// psql in the container: the environment says whom to ask.
    pub fn psql(&self, command: &str) -> Output {
        let (user, group) = self.specification.user;
        let mut psql = Command::new("setpriv");
        psql.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
        psql.args(["psql", "-XAt", "-c", command, "-p", "5432", "-U", "pgbouncer", "-d", "pgbouncer", "-h"]);
        psql.arg(self.folder.path().join("controller/run"));
        psql.env("HOME", "/nonexistent").output().expect("psql is installed")
    }

    /// What it wrote to standard error, where the manager reads it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub async fn logs(&self, text: &str) {
        eventually(&format!("the log has: {text}"), async || self.log().contains(text)).await;
    }

    pub fn signal(&self, name: &str) {
        process::signal(self.child.id(), name);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn wait(&mut self) -> ExitStatus {
        let status = reap(&mut self.child, PATIENCE);
        self.ended = Some(status);
        status
    }
}

impl Drop for PoolerPod {
    fn drop(&mut self) {
        if self.ended.is_none() {
            process::signal(self.child.id(), "QUIT");
            reap(&mut self.child, Duration::from_secs(5));
        }
        if std::thread::panicking() {
            eprintln!("the pooler's log:\n{}", self.log());
        }
    }
}

/// Where nobody listens.
pub fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// The folders and files that the image and the kubelet give a container.
fn make_root(root: &Path, service: Ipv4Addr) {
    for folder in
        ["usr/bin", "usr/lib", "usr/lib64", "dev", "proc", "etc", "controller/configs", "controller/run"]
    {
        fs::create_dir_all(root.join(folder)).expect("it is our folder");
    }
    symlink("usr/lib", root.join("lib")).expect("it is our folder");
    symlink("usr/lib64", root.join("lib64")).expect("it is our folder");
    for (name, text) in [
        ("usr/bin/pgbouncer", String::new()),
        ("usr/bin/setpriv", String::new()),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n".to_owned()),
        ("etc/hosts", format!("127.0.0.1 localhost\n{service} pg-rw\n")),
        ("etc/nsswitch.conf", "hosts: files dns\n".to_owned()),
        ("etc/resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
    ] {
        fs::write(root.join(name), text).expect("it is our folder");
    }
}
