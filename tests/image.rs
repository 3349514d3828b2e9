//! The image without an engine: assembles the files of the Dockerfile's final stage, and runs them.
//!
//! It never pulls or builds anything: what the builder would produce is cargo's own binary here,
//! and the base image is this machine. Read [`Image`] first.

#![allow(clippy::unwrap_used, reason = "a test may, and so may its helpers")]

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a started or stopped pooler may take, seconds. Far more than it needs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The owner that the image declares, and one that a cluster with arbitrary user ids picks.
const OWNERS: [(u32, u32); 2] = [(998, 996), (1_000_740_000, 0)];

#[test]
fn every_copied_file_exists() {
    let stages = stages(&dockerfile());
    for stage in &stages {
        for copy in &stage.copies {
            for source in &copy.sources {
                assert!(source_exists(&stages, copy, source), "COPY {source}: there is no such file");
            }
        }
    }
}

#[test]
fn a_missing_file_is_found() {
    let check = |line: &str, expected: bool| {
        let text = format!(
            "FROM rust AS builder\nWORKDIR /src\nCOPY scripts scripts\nCOPY src src\nRUN scripts/build-release\n\nFROM debian\n{line}\n"
        );
        let stages = stages(&text);
        let copy = &stages[1].copies[0];
        assert_eq!(source_exists(&stages, copy, &copy.sources[0]), expected, "{line}");
    };
    check("COPY LICENSE /x", true);
    check("COPY NO_SUCH_FILE /x", false);
    check("COPY Makefile /x", false); // exists, but .dockerignore keeps it from the builder
    check("COPY --from=builder /src/target/profiled/pgweir /x", true);
    check("COPY --from=builder /src/target/profiled/other /x", false);
    check("COPY --from=builder /src/src/main.rs /x", true);
    check("COPY --from=cellar /src/target/profiled/pgweir /x", false);
}

#[test]
fn the_image_runs_as_nobody_special() {
    let stage = final_stage();
    assert_eq!(stage.user.as_deref(), Some("998:996"));
    assert_eq!(stage.entrypoint.as_deref(), Some(r#"["/usr/bin/pgweir"]"#));
    assert!(stage.packages.contains("postgresql-client"), "psql is missing");
}

#[test]
fn both_names_tell_their_version() {
    let image = Image::assemble();
    for (name, owner) in image.names_and_owners() {
        let output = image.run(name, owner, &["--version"]);
        let own = concat!("pgweir ", env!("CARGO_PKG_VERSION"));
        let expected = match name.ends_with("/pgbouncer") {
            true => format!("PgBouncer 1.25.2 ({own})\n"),
            false => format!("{own}\n"),
        };
        assert!(output.status.success(), "{name} as {owner:?}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{name} as {owner:?}");
    }
}

#[test]
fn both_names_start_and_stop_on_a_read_only_root() {
    let image = Image::assemble();
    for (name, owner) in image.names_and_owners() {
        let port = free_port();
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port=1\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        );
        fs::write(image.path("/pgweir.ini"), ini).unwrap();
        let ini = image.path("/pgweir.ini").to_string_lossy().into_owned();
        let mut pooler = image.command(name, owner, &[&ini]).stderr(Stdio::piped()).spawn().unwrap();
        let what = format!("{name} as {owner:?}");
        wait_for(&what, &mut pooler, |_| TcpStream::connect(("127.0.0.1", port)).is_ok());
        terminate(&pooler);
        wait_for(&what, &mut pooler, |pooler| pooler.try_wait().unwrap().is_some());
        assert!(pooler.wait().unwrap().success(), "{what}: SIGTERM did not end it with 0");
    }
}

/// One stage of the Dockerfile: the instructions that this test understands.
#[derive(Default)]
struct Stage {
    name: String,
    workdir: String,
    copies: Vec<Copy>,
    /// `ln -s` in a RUN instruction: what it points to, and its own path.
    links: Vec<(String, String)>,
    user: Option<String>,
    entrypoint: Option<String>,
    /// The text of all RUN instructions that install packages.
    packages: String,
    builds_release: bool,
}

/// `COPY [--from=STAGE] SOURCE... TARGET`
struct Copy {
    from: Option<String>,
    sources: Vec<String>,
    target: String,
}

fn dockerfile() -> String {
    fs::read_to_string(root().join("Dockerfile")).expect("Dockerfile is readable")
}

fn final_stage() -> Stage {
    stages(&dockerfile()).pop().expect("the Dockerfile has a stage")
}

/// Reads the Dockerfile: comments dropped, continued lines joined, one stage for each FROM.
fn stages(text: &str) -> Vec<Stage> {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    let lines: Vec<&str> = text.lines().filter(|line| !is_comment(line)).collect();
    let mut stages: Vec<Stage> = Vec::new();
    for line in lines.join("\n").replace("\\\n", " ").lines() {
        let Some((instruction, arguments)) = line.trim().split_once(char::is_whitespace) else { continue };
        if instruction == "FROM" {
            let name = arguments.split(" AS ").nth(1).unwrap_or_default().to_owned();
            stages.push(Stage { name, ..Stage::default() });
        }
        let stage = stages.last_mut().expect("a Dockerfile begins with FROM");
        stage.take(instruction, arguments.trim());
    }
    stages
}

impl Stage {
    fn take(&mut self, instruction: &str, arguments: &str) {
        match instruction {
            "FROM" | "EXPOSE" | "STOPSIGNAL" | "CMD" | "ENV" | "LABEL" => {}
            "WORKDIR" => self.workdir = arguments.to_owned(),
            "USER" => self.user = Some(arguments.to_owned()),
            "ENTRYPOINT" => self.entrypoint = Some(arguments.to_owned()),
            "COPY" => self.copies.push(Copy::parse(arguments)),
            "RUN" => arguments.split("&&").for_each(|command| self.take_command(command.trim())),
            _ => panic!("{instruction}: this test must learn what it means for the image"),
        }
    }

    fn take_command(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["ln", "-s", target, link] => self.links.push((target.to_owned(), link.to_owned())),
            ["apt-get", "install", ..] => self.packages.push_str(command),
            [script @ "scripts/build-release"] => {
                self.builds_release = self.holds(&format!("{}/{script}", self.workdir));
            }
            _ => {}
        }
    }

    /// Would this stage hold this file? Copied from the context, or built by scripts/build-release.
    fn holds(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix(&format!("{}/", self.workdir)) else { return false };
        if self.builds_release && path == "target/profiled/pgweir" {
            return true;
        }
        let copied = |source: &String| Path::new(path).starts_with(source);
        self.copies.iter().flat_map(|copy| &copy.sources).any(copied) && root().join(path).exists()
    }
}

impl Copy {
    fn parse(arguments: &str) -> Self {
        let mut words: Vec<String> = arguments.split_whitespace().map(String::from).collect();
        let target = words.pop().expect("COPY has a target");
        let (options, sources): (Vec<_>, Vec<_>) = words.into_iter().partition(|word| word.starts_with("--"));
        let from = options.iter().find_map(|option| option.strip_prefix("--from=")).map(String::from);
        Self { from, sources, target }
    }
}

fn source_exists(stages: &[Stage], copy: &Copy, source: &str) -> bool {
    match &copy.from {
        Some(name) => stages.iter().any(|stage| stage.name == *name && stage.holds(source)),
        None => root().join(source).exists() && reaches_the_builder(source),
    }
}

/// Our .dockerignore excludes everything, and names with `!` what is let through.
fn reaches_the_builder(source: &str) -> bool {
    let ignore = fs::read_to_string(root().join(".dockerignore")).expect(".dockerignore is readable");
    let mut let_through = ignore.lines().filter_map(|line| line.strip_prefix('!'));
    let_through.any(|entry| Path::new(source).starts_with(entry))
}

/// The files that the final stage adds to its base, in a temporary folder that anybody may read.
struct Image {
    folder: TempDir,
    stage: Stage,
}

impl Image {
    fn assemble() -> Self {
        let image = Self { folder: TempDir::new().unwrap(), stage: final_stage() };
        fs::set_permissions(image.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for copy in &image.stage.copies {
            for source in &copy.sources {
                let built = PathBuf::from(env!("CARGO_BIN_EXE_pgweir"));
                let source = if copy.from.is_some() { built } else { root().join(source) };
                fs::create_dir_all(image.path(&copy.target).parent().unwrap()).unwrap();
                fs::copy(&source, image.path(&copy.target)).unwrap();
            }
        }
        for (target, link) in &image.stage.links {
            symlink(target, image.path(link)).unwrap();
        }
        image
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.folder.path().join(absolute.trim_start_matches('/'))
    }

    /// Each name with each owner; as ourselves only, when we may not become somebody else.
    fn names_and_owners(&self) -> Vec<(&'static str, Option<(u32, u32)>)> {
        let owners: Vec<_> = if is_root() { OWNERS.map(Some).to_vec() } else { vec![None] };
        if !is_root() {
            eprintln!("not root: skipped the other owners and the read-only mount");
        }
        let names = ["/usr/bin/pgweir", "/usr/bin/pgbouncer"];
        names.iter().flat_map(|name| owners.iter().map(|owner| (*name, *owner))).collect()
    }

    fn run(&self, name: &str, owner: Option<(u32, u32)>, arguments: &[&str]) -> Output {
        self.command(name, owner, arguments).output().expect("the command starts")
    }

    /// The program as that owner, on a root and an image folder that nobody can write to. Each
    /// step replaces the one before it, so the child's process id is the program's.
    fn command(&self, name: &str, owner: Option<(u32, u32)>, arguments: &[&str]) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some((user, group)) = owner {
            if may_mount() {
                let read_only = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -o remount,bind,ro / && exec "$@""#;
                let folder = self.folder.path().to_string_lossy();
                words.extend(["unshare", "--mount", "sh", "-c", read_only, &folder].map(String::from));
            }
            let become_owner =
                [format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()];
            words.push("setpriv".to_owned());
            words.extend(become_owner);
        }
        words.push(self.path(name).to_string_lossy().into_owned());
        words.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", env_path()).current_dir("/").stdin(Stdio::null());
        command
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id is there");
    output.stdout == b"0\n"
}

/// A container's root may lack the right to mount; then the read-only part is skipped, and said.
fn may_mount() -> bool {
    let mut probe = Command::new("unshare");
    let may = probe.args(["--mount", "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !may {
        eprintln!("no right to mount: skipped the read-only mount");
    }
    may
}

/// Asks again and again, for at most [`PATIENCE`]; shows what the pooler said if that was in vain.
fn wait_for(what: &str, pooler: &mut Child, mut done: impl FnMut(&mut Child) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(pooler) {
        let ended = pooler.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            pooler.kill().ok();
            let mut said = String::new();
            pooler.stderr.take().unwrap().read_to_string(&mut said).ok();
            panic!("{what}: ended {ended:?}, after it said:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn terminate(pooler: &Child) {
    let kill = format!("kill -TERM {}", pooler.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn env_path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
