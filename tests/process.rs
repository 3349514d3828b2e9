//! The process: which user it is, its pidfile, the background, taking over from another one, and what systemd is
//! told and gives.

#![allow(clippy::unwrap_used, reason = "the line of an unwrap says enough about a failed test")]

use crate::support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::process::{
    free_port, give, is_root, private_directory, reachable, reap, run, signal, spawn, unprivileged, unread,
};
use support::{Address, Login, PATIENCE, Pooler, Raw, eventually};

/// A settings file of our own, and the processes that run with it. Dropping it ends them.
struct Site {
    directory: tempfile::TempDir,
    port: u16,
    children: Vec<Child>,
}

impl Site {
    /// Settings without a database: its console is enough. `{folder}` stands for the folder.
    fn new(settings: &str) -> Site {
        let site = Site { directory: private_directory("weir-"), port: free_port(), children: Vec::new() };
        let text = format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir = {{folder}}\n\
             auth_type = any\nadmin_users = admin\n{settings}\n",
            site.port
        );
        fs::write(site.ini(), text.replace("{folder}", &site.folder())).unwrap();
        site
    }

    fn folder(&self) -> String {
        self.directory.path().display().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ini(&self) -> PathBuf {
        self.file("pooler.ini")
    }

    fn program(&self) -> PathBuf {
        reachable(Path::new(env!("CARGO_BIN_EXE_pgweir")), self.directory.path())
    }

    /// The program with these options and the settings file, as an unprivileged user.
    fn command(&self, options: &[&str]) -> Command {
        let mut command = unprivileged(&self.program(), "KILL");
        command.args(options).arg(self.ini()).stdin(Stdio::null());
        command
    }

    /// Starts it. What it says goes into a file of this name.
    fn start(&mut self, mut command: Command, log: &str) -> u32 {
        let output = fs::File::create(self.file(log)).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        self.children.push(spawn(command));
        self.children.last().unwrap().id()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    async fn logs(&self, name: &str, text: &str) {
        eventually(&format!("{name} has: {text}"), async || self.log(name).contains(text)).await;
    }

    /// Exit code and words of a start that must not succeed.
    fn refused(&self, mut command: Command) -> (Option<i32>, String) {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn tcp(&self) -> Address {
        Address::Tcp(([127, 0, 0, 1], self.port).into())
    }

    fn unix(&self) -> Address {
        Address::Unix(self.file(&format!(".s.PGSQL.{}", self.port)))
    }

    async fn console(&self, address: &Address) -> Raw {
        eventually("it accepts connections", async || Raw::connect(address).await.is_ok()).await;
        Raw::login(address, &Login::new("admin", "pgbouncer")).await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.children {
            signal(child.id(), "KILL");
            reap(child, PATIENCE);
        }
        if let Ok(pid) = self.log("pid").trim().parse() {
            signal(pid, "KILL");
        }
    }
}

fn status(pid: u32, field: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn root_is_refused_and_so_is_a_user_that_is_not_there_or_that_we_may_not_become() {
    let site = Site::new("");
    let as_we_are = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        command.args(options).arg(site.ini());
        command
    };
    if is_root() {
        let (code, said) = site.refused(as_we_are(&[]));
        assert_eq!(code, Some(1));
        assert!(said.contains("pgweir should not run as root"), "{said}");
        let (code, said) = site.refused(as_we_are(&["-u", "root"]));
        assert_eq!(code, Some(1));
        assert!(said.contains("pgweir should not run as root"), "{said}");
    }
    let (code, said) = site.refused(site.command(&["--user", "nobody-of-this-name"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("could not find user 'nobody-of-this-name' to switch to"), "{said}");
    let (code, said) = site.refused(site.command(&["-u", "root"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot become user 'root'"), "{said}");
}

#[tokio::test]
async fn root_becomes_the_user_of_the_option_or_the_setting_with_all_its_groups() {
    if !is_root() {
        println!("skipped: only root may become another user");
        return;
    }
    let id = |option: &str| {
        let mut command = Command::new("id");
        command.args([option, "nobody"]);
        run(command).trim().to_owned()
    };
    // The option goes before the setting.
    for (setting, options) in [("user = nobody", &[][..]), ("user = root", &["-u", "nobody"])] {
        let mut site = Site::new(&format!("unix_socket_dir =\n{setting}"));
        let mut command = Command::new(site.program());
        command.args(options).arg(site.ini());
        let pid = site.start(command, "log");
        site.console(&site.tcp()).await;
        assert_eq!(status(pid, "Uid:"), vec![id("-u"); 4], "{setting}");
        assert_eq!(status(pid, "Gid:"), vec![id("-g"); 4], "{setting}");
        assert_eq!(status(pid, "Groups:").join(" "), id("-G"), "{setting}");
    }
}

#[test]
fn a_mistake_that_nobody_can_be_told_of_has_its_exit_code_still() {
    for arguments in [&[][..], &["--nonsense"], &["status", "nowhere.ini"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(unread());
        assert_eq!(command.status().unwrap().code(), Some(1), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_daemon_leaves_its_caller_and_is_found_by_its_pidfile() {
    let site = Site::new("pidfile = {folder}/pid\nlogfile = {folder}/logfile");
    let mut command = site.command(&["-d"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut console = site.console(&site.unix()).await;
    console.query("SHOW VERSION").await.is("T D C(SHOW) Z(I)");
    site.logs("logfile", "process up").await;
    let pid: u32 = site.log("pid").trim().parse().unwrap();
    // It leads no session, so no terminal can become its own; and nothing of it is left on ours.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let session: u32 = fields.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_ne!(session, pid);
    for number in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap(), Path::new("/dev/null"));
    }
    let (code, said) = site.refused(site.command(&["-d"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("unix socket is in use, cannot continue"), "{said}");
    drop(console);
    signal(pid, "TERM");
    eventually("the pidfile is gone", async || !site.file("pid").exists()).await;
}

#[test]
fn a_daemon_needs_a_pidfile_and_a_log() {
    for (settings, expected) in [
        ("logfile = {folder}/logfile", "daemon needs pidfile configured"),
        ("pidfile = {folder}/pid", "daemon needs logging configured"),
    ] {
        let site = Site::new(settings);
        let (code, said) = site.refused(site.command(&["--daemon"]));
        assert_eq!(code, Some(1), "{settings}");
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_stale_pidfile_is_replaced_and_that_of_a_running_process_is_respected() {
    let mut site = Site::new("pidfile = {folder}/pid");
    let own = std::process::id().to_string();
    fs::write(site.file("pid"), &own).unwrap();
    give(&site.file("pid"));
    let (code, said) = site.refused(site.command(&[]));
    assert_eq!(code, Some(1));
    assert!(said.contains("pidfile exists, another instance running?"), "{said}");
    assert_eq!(site.log("pid"), own);
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    fs::write(site.file("pid"), ended.id().to_string()).unwrap();
    let pid = site.start(site.command(&[]), "log");
    site.console(&site.tcp()).await;
    site.logs("log", "stale pidfile, removing").await;
    eventually("it has its own number there", async || site.log("pid").trim() == pid.to_string()).await;
    signal(pid, "TERM");
    reap(&mut site.children[0], PATIENCE);
    assert!(!site.file("pid").exists());
}

#[tokio::test]
async fn a_second_process_at_the_same_unix_socket_is_refused_and_does_no_harm() {
    let mut site = Site::new("");
    site.start(site.command(&[]), "log");
    let mut console = site.console(&site.unix()).await;
    let (code, said) = site.refused(site.command(&[]));
    assert_eq!(code, Some(1));
    assert!(said.contains("unix socket is in use, cannot continue"), "{said}");
    console.query("SHOW VERSION").await.is("T D C(SHOW) Z(I)");
    site.console(&site.unix()).await;
}

#[tokio::test]
async fn clients_reach_an_abstract_unix_socket() {
    let mut site = Site::new("");
    let name = site.folder().replace('/', "-");
    let text = fs::read_to_string(site.ini()).unwrap();
    fs::write(site.ini(), format!("{text}unix_socket_dir = @{name}\n")).unwrap();
    site.start(site.command(&[]), "log");
    site.console(&site.tcp()).await;
    site.logs("log", &format!("listening on unix:@{name}/.s.PGSQL.{}", site.port)).await;
    let mut psql = support::clients::psql();
    let target = format!("host=@{name} port={} user=admin dbname=pgbouncer", site.port);
    psql.args(["-XAt", "-c", "SHOW VERSION", &target]);
    assert!(run(psql).starts_with("PgBouncer "));
}

/// What comes at a NOTIFY_SOCKET.
fn hear(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).expect("it is told within the time");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[tokio::test]
async fn systemd_is_told_of_the_start_each_reload_the_statistics_and_the_end() {
    let folder = private_directory("weir-");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = Pooler::config().environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut pooler = config.setting("stats_period", "1").start().await;
    let until = |text: &str| {
        let mut heard = hear(&socket);
        while !heard.contains(text) {
            heard = hear(&socket);
        }
        heard
    };
    assert_eq!(until("READY=1").trim(), "READY=1");
    assert!(until("STATUS=").contains("xacts/s"));
    pooler.signal("HUP");
    let reloading = until("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    until("READY=1");
    pooler.signal("TERM");
    until("STOPPING=1");
    assert!(pooler.wait().success());
}

#[tokio::test]
async fn sockets_that_systemd_has_opened_are_taken_and_left_in_place() {
    let mut site = Site::new("");
    let port = free_port();
    let socket = site.file("given");
    let script = "import os, socket, sys\n\
        tcp = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
        unix = socket.socket(socket.AF_UNIX)\n\
        unix.bind(sys.argv[2])\n\
        unix.listen()\n\
        os.dup2(os.dup2(tcp.fileno(), 10), 3)\n\
        os.dup2(os.dup2(unix.fileno(), 11), 4)\n\
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')\n\
        os.execvp(sys.argv[3], sys.argv[3:])\n";
    let inner = site.command(&[]);
    let mut command = Command::new("python3");
    command.args(["-c", script, &port.to_string()]).arg(&socket);
    command.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    let pid = site.start(command, "log");
    for address in [Address::Tcp(([127, 0, 0, 1], port).into()), Address::Unix(socket.clone())] {
        site.console(&address).await.query("SHOW VERSION").await.is("T D C(SHOW) Z(I)");
    }
    // They are instead of those of the settings.
    assert!(Raw::connect(&site.tcp()).await.is_err());
    signal(pid, "TERM");
    reap(&mut site.children[0], PATIENCE);
    assert!(socket.exists());
}

/// Whether this user may have a /dev of its own.
fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["--mount", "mount", "--bind", "/tmp", "/mnt"]).output();
    let may = tried.is_ok_and(|tried| tried.status.success());
    if !may {
        println!("skipped: no right to mount");
    }
    may
}

#[tokio::test]
async fn lines_go_to_syslog_under_the_name_and_facility_of_the_settings_as_a_reload_leaves_them() {
    if !may_mount() {
        return;
    }
    let mut site = Site::new("syslog = 1\nsyslog_ident = first\nsyslog_facility = local3");
    let devices = site.file("dev");
    fs::create_dir(&devices).unwrap();
    fs::set_permissions(&devices, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = UnixDatagram::bind(devices.join("log")).unwrap();
    fs::set_permissions(devices.join("log"), fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // The program sees our /dev, which has no more than it needs.
    let script = "cp -a /dev/null /dev/zero /dev/urandom \"$0\" && mount --bind \"$0\" /dev && exec \"$@\"";
    let inner = site.command(&["-q"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&devices);
    command.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    let pid = site.start(command, "log");
    let until = |text: &str| {
        let mut heard = hear(&socket);
        while !heard.contains(text) {
            heard = hear(&socket);
        }
        heard
    };
    // Facility local3 is 19, a notice is 5.
    let line = until("process up");
    assert!(
        line.starts_with("<157>") && line.contains(&format!(" first[{pid}]: process up: pgweir ")),
        "{line}"
    );
    let mut console = site.console(&site.tcp()).await;
    until("login attempt");
    let text = fs::read_to_string(site.ini()).unwrap();
    let changed = text.replace("= first", "= second").replace("local3", "auth");
    fs::write(site.ini(), format!("{changed}max_client_conn = 7\n")).unwrap();
    signal(pid, "HUP");
    until("got SIGHUP, re-reading config");
    // A line that is on its way meanwhile may have the one and not the other.
    eventually("the new settings are in force", async || {
        let settings = console.query("SHOW CONFIG").await;
        settings.of(b'D').any(|row| row.values()[..2] == ["max_client_conn", "7"])
    })
    .await;
    console.query("RECONNECT").await.is("C(RECONNECT) Z(I)");
    let line = until("second");
    assert!(line.starts_with("<37>") && line.contains(&format!(" second[{pid}]: ")), "{line}");
    assert_eq!(site.log("log"), "");
}

/// A second process of these settings takes over with `-R`; the first one serves its client to the end.
async fn takes_over(so_reuseport: &str) {
    let settings = format!("so_reuseport = {so_reuseport}\npidfile = {{folder}}/pid");
    let mut site = Site::new(&settings);
    let old = site.start(site.command(&[]), "old");
    let mut client = site.console(&site.tcp()).await;
    eventually("the pidfile is there", async || site.log("pid").trim() == old.to_string()).await;
    let new = site.start(site.command(&["-R"]), "new");
    site.logs("old", "SHUTDOWN").await;
    site.logs("new", "process up").await;
    assert!(site.log("new").contains("Online restart is deprecated, use so_reuseport instead"));
    eventually("the pidfile is the new one's", async || site.log("pid").trim() == new.to_string()).await;
    for address in [site.tcp(), site.unix()] {
        let mut console = site.console(&address).await;
        console.query("SHOW VERSION").await.is("T D C(SHOW) Z(I)");
    }
    // Consoles are no clients: this one sees the old process end.
    assert!(client.rest().await.closed);
    assert!(reap(&mut site.children[0], PATIENCE).success(), "{}", site.log("old"));
    for address in [site.tcp(), site.unix()] {
        site.console(&address).await.query("SHOW VERSION").await.is("T D C(SHOW) Z(I)");
    }
    assert_eq!(site.log("pid").trim(), new.to_string());
}

#[tokio::test]
async fn a_new_process_takes_over_with_so_reuseport() {
    takes_over("1").await;
}

#[tokio::test]
async fn a_new_process_takes_over_without_so_reuseport() {
    takes_over("0").await;
}

#[tokio::test]
async fn clients_of_the_old_process_are_served_to_the_end_and_the_new_one_has_all_others() {
    let mut old = Pooler::config().setting("so_reuseport", "1").start().await;
    let mut client = old.client().await;
    client.query("BEGIN").await.is("C(BEGIN) Z(T)");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (address, login) = (old.tcp(), Login::new("app", "app"));
    let coming = tokio::spawn(async move {
        let mut refused = Vec::new();
        while !*stopped.borrow() {
            refused.extend(Raw::try_login(&address, &login).await.err());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        refused
    });
    let program = reachable(Path::new(env!("CARGO_BIN_EXE_pgweir")), old.directory());
    let mut command = unprivileged(&program, "KILL");
    command.arg("-R").arg(old.directory().join("pooler.ini")).stdin(Stdio::null());
    command.stderr(fs::File::create(old.directory().join("new")).unwrap());
    let mut new = spawn(command);
    let log = old.directory().join("new");
    eventually("the old one is told", async || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("old process is told to leave"))
    })
    .await;
    stop.send(true).unwrap();
    let refused = coming.await.unwrap();
    client.query("SELECT 1").await.is("T D(1) C Z(T)");
    client.query("COMMIT").await.is("C(COMMIT) Z(I)");
    assert!(old.runs());
    drop(client);
    assert!(old.wait().success());
    let mut other = Raw::login(&old.tcp(), &Login::new("app", "app")).await;
    other.query("SELECT 1").await.is("T D(1) C Z(I)");
    signal(new.id(), "QUIT");
    reap(&mut new, PATIENCE);
    // Who was in the old one's queue when it closed its socket is turned away by the kernel, and that alone.
    let words: Vec<_> = refused.iter().filter(|error| error.contains("FATAL")).collect();
    assert!(words.len() <= 1, "{refused:?}");
}

#[tokio::test]
async fn without_an_old_process_a_restart_is_a_start() {
    let mut site = Site::new("");
    site.start(site.command(&["--reboot"]), "log");
    site.console(&site.tcp()).await;
    site.logs("log", "old process not found, try to continue normally").await;
}
