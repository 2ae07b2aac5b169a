//! A private PostgreSQL server per test file, made by `scripts/server.sh`.

use std::env;
use std::fs;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use postgres::{Client, Config, NoTls};

use crate::processes::{ProcessId, children, command_line, is_alive};
use crate::session::engine_status;
use crate::wait::wait_until;

/// Longer than the server takes for anything on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A configuration change has reached every process of the server after this.
const SIGNAL_DELIVERY: Duration = Duration::from_millis(200);
const LOG_LINES: usize = 60;

/// Settings of the server: name and value.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// An instance of its own: data directory, socket, server. It is removed when this process ends.
pub struct Server {
    name: String,
    socket: PathBuf,
    port: u16,
    user: String,
    database: String,
    data: PathBuf,
    _undertaker: Child,
}

impl Server {
    /// Creates and starts the instance `name` anew.
    pub fn start(name: &str, settings: Settings<'_>) -> Self {
        let name = format!("tests-{name}");
        server_script(&["remove", "--instance", &name]);
        start_or_restart("start", &name, settings);
        let places = "echo $PGHOST; echo $PGPORT; echo $PGUSER; echo $PGDATABASE; echo $PGDATA";
        let output = server_script(&["exec", "--instance", &name, "--", "sh", "-c", places]);
        let mut lines = output.lines().map(str::to_owned);
        let mut line = || lines.next().expect("server.sh gives five lines");
        Self {
            socket: line().into(),
            port: line().parse().expect("a port number"),
            user: line(),
            database: line(),
            data: line().into(),
            _undertaker: undertaker(&name),
            name,
        }
    }

    /// Starts the server if it does not run.
    pub fn start_again(&self) {
        server_script(&["start", "--instance", &self.name]);
    }

    /// Stops and starts the server: neither supervisor nor engine have run before.
    pub fn restart(&self, settings: Settings<'_>) {
        start_or_restart("restart", &self.name, settings);
    }

    /// A session of the superuser.
    pub fn connect(&self) -> Client {
        self.connect_as(&self.user, &self.database)
    }

    /// A session of the superuser, if the server takes one now.
    pub fn try_connect(&self) -> Result<Client, postgres::Error> {
        let mut config = self.config();
        config
            .user(&self.user)
            .dbname(&self.database)
            .connect(NoTls)
    }

    pub fn connect_as(&self, user: &str, database: &str) -> Client {
        self.try_connect_with(user, database, "")
            .expect("the server accepts connections")
    }

    /// A session with settings that go before those of its role and database, as `-c name=value ...`,
    /// if the server takes one now.
    pub fn try_connect_with(
        &self,
        user: &str,
        database: &str,
        options: &str,
    ) -> Result<Client, postgres::Error> {
        self.config()
            .user(user)
            .dbname(database)
            .options(options)
            .connect(NoTls)
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.socket).port(self.port);
        config
    }

    /// Runs psql with `script` as its input; gives what it prints, errors included, in order.
    pub fn psql(&self, script: &str) -> String {
        let script_path = env_path("NER_RETRIEVER_SERVER_SCRIPT");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let mut child = Command::new(script_path)
            .args(["psql", "--instance", &self.name, "--", "-X", "-a", "-q"])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a descriptor"))
            .stderr(writer)
            .spawn()
            .expect("server.sh can be run");
        let mut input = child.stdin.take().expect("a pipe");
        let script = script.to_owned();
        let feeder =
            thread::spawn(move || std::io::Write::write_all(&mut input, script.as_bytes()));
        let mut output = String::new();
        std::io::Read::read_to_string(&mut reader, &mut output).expect("psql prints UTF-8");
        let status = child.wait().expect("psql ends");
        assert!(status.success(), "psql: {status}\n{output}");
        feeder
            .join()
            .expect("no panic")
            .expect("psql reads its input");
        output
    }

    /// Runs a program of the server's, such as pg_dump, with the connection in its environment; gives
    /// what it prints.
    pub fn exec(&self, command: &[&str]) -> String {
        let arguments = ["exec", "--instance", &self.name, "--"];
        server_script(&[&arguments, command].concat())
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn postmaster(&self) -> ProcessId {
        let file = self.data.join("postmaster.pid");
        let content = fs::read_to_string(file).expect("the server runs");
        let line = content.lines().next();
        line.and_then(|pid| pid.parse().ok()).expect("a process id")
    }

    /// The supervisors that run: at most one, unless something is wrong.
    pub fn supervisors(&self) -> Vec<ProcessId> {
        let mut workers = children(self.postmaster());
        workers.retain(|pid| command_line(*pid).contains("ner_retriever supervisor"));
        workers
    }

    /// The engines that run: at most one, unless something is wrong.
    pub fn engines(&self) -> Vec<ProcessId> {
        self.supervisors().into_iter().flat_map(children).collect()
    }

    /// A folder for files that the server reads; it goes with the instance.
    pub fn folder(&self, name: &str) -> PathBuf {
        let instance = self.data.parent().expect("a data directory has a parent");
        let folder = instance.join("files").join(name);
        fs::create_dir_all(&folder).expect("the instance's folder can be written to");
        folder
    }

    /// Changes settings in the running server, `None` to the default, and waits until they are in
    /// force: a running engine, whose settings these must be, has ended then.
    pub fn configure(&self, settings: &[(&str, Option<&str>)]) {
        let mut client = self.connect();
        let engine = engine_status(&mut client).pid;
        for (name, value) in settings {
            let value = value.map_or("default".to_owned(), |value| format!("'{value}'"));
            let sql = format!("alter system set {name} = {value}");
            client.batch_execute(&sql).expect("the setting is accepted");
        }
        client
            .batch_execute("select pg_reload_conf()")
            .expect("the configuration can be loaded");
        match engine {
            Some(pid) => wait_until("the engine ends after a reload", PATIENCE, || {
                !is_alive(pid)
            }),
            None => thread::sleep(SIGNAL_DELIVERY),
        }
    }

    /// Undoes [`Self::configure`] and whatever a failed test has left.
    fn recover(&self) {
        self.start_again();
        let reset = self.connect().batch_execute("alter system reset all");
        reset.expect("a superuser may do this");
        server_script(&["restart", "--instance", &self.name]);
    }

    /// Everything that the server and its engines have logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.data.with_file_name("server.log"));
        String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()
    }

    fn print_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        eprintln!("--- the end of the server's log\n{}\n---", end.join("\n"));
    }
}

/// One server for all tests of a file, one test at a time.
pub struct SharedServer {
    name: &'static str,
    settings: Settings<'static>,
    server: OnceLock<Mutex<Server>>,
}

/// A test's turn on the shared server. If the test fails, it prints the end of the server's log.
pub struct Turn(MutexGuard<'static, Server>);

impl SharedServer {
    pub const fn new(name: &'static str, settings: Settings<'static>) -> Self {
        Self {
            name,
            settings,
            server: OnceLock::new(),
        }
    }

    /// Waits for the test's turn; the first one starts the server.
    pub fn turn(&'static self) -> Turn {
        let start = || Mutex::new(Server::start(self.name, self.settings));
        let server = self.server.get_or_init(start);
        let failed_before = server.is_poisoned();
        let turn = server.lock().unwrap_or_else(PoisonError::into_inner);
        if failed_before {
            turn.recover();
            server.clear_poison();
        }
        Turn(turn)
    }
}

impl Deref for Turn {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_log();
        }
    }
}

/// The path in an environment variable that `make test` sets.
pub fn env_path(variable: &str) -> PathBuf {
    let path = env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} is not set: run the tests with 'make test'"))
        .into()
}

fn start_or_restart(command: &str, name: &str, settings: Settings<'_>) {
    let mut arguments = vec![command.to_owned(), "--instance".into(), name.to_owned()];
    // The tests kill servers, not machines.
    for (setting, value) in settings.iter().chain(&[("fsync", "off")]) {
        arguments.extend(["--set".into(), format!("{setting}={value}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    server_script(&arguments);
}

/// Runs `scripts/server.sh` and gives what it prints.
fn server_script(arguments: &[&str]) -> String {
    let output = Command::new(env_path("NER_RETRIEVER_SERVER_SCRIPT"))
        .args(arguments)
        // With this, Rust libraries may put backtraces into errors; ours must not.
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("server.sh can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "server.sh {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("server.sh prints UTF-8")
}

/// A process that removes the instance when this one ends, however it ends: the pipe between them
/// is closed then.
fn undertaker(name: &str) -> Child {
    Command::new("sh")
        .args(["-c", "cat; exec \"$0\" remove --instance \"$1\""])
        .arg(env_path("NER_RETRIEVER_SERVER_SCRIPT"))
        .arg(name)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Out of reach of an interrupt from the keyboard.
        .process_group(0)
        .spawn()
        .expect("sh can be run")
}
