//! Where histories run: one server, and for each run a database with the extension and a twin without.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use rustix::process::Signal;

use super::history::{History, Role};
use crate::processes::{is_alive, signal};
use crate::server::{PATIENCE, Server, Settings};
use crate::wait::wait_until;

/// Bytes of a text that the stand-in engine takes, as `ner_retriever.max_text_size` below says.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Nothing in a history takes as long on the busiest machine: whoever does hangs.
const STATEMENT_TIMEOUT: &str = "20s";
/// Long enough for what workers hold locks for, and short because sessions do wait for each other.
const LOCK_TIMEOUT: &str = "400ms";

const SETTINGS: Settings<'static> = &[
    ("shared_preload_libraries", "ner_retriever"),
    ("ner_retriever.max_text_size", "4kB"),
    // A poisoned row has failed after half a second.
    ("ner_retriever.max_attempts", "2"),
    ("max_prepared_transactions", "50"),
    ("max_connections", "200"),
    ("max_worker_processes", "64"),
    // A worker and a session that wait for each other are told before the session's own limit.
    ("deadlock_timeout", "300ms"),
    // Plans, and with them what SERIALIZABLE refuses, must be the same in both databases.
    ("autovacuum", "off"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "8GB"),
];

/// A pair of databases serves so many histories: creating one takes longer than most histories do.
const USES: usize = 40;

/// What both templates have, and every history may use.
const TYPES: &str = r#"
    SET ROLE histories_owner;
    CREATE DOMAIN public.code AS text CHECK (value <> '');
    CREATE DOMAIN public.prose AS text;
    CREATE TYPE public."Mood" AS ENUM ('label 0', 'label 1', 'label 2', 'label 3', 'label 4', 'label 5',
        'label 6', 'label 7', 'label 8', 'label 9', 'label 10', 'label 11', 'label 12', 'label 13');
    RESET ROLE"#;

/// Takes away whatever a history has left in a database.
const CLEAN: &str = r#"
    DO $$ DECLARE what text; BEGIN
        FOR what IN
            SELECT format('SCHEMA %I', nspname) FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema', 'ner_retriever')
            UNION ALL
            SELECT format('TABLE IF EXISTS public.%I', relname) FROM pg_class AS c
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
              AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
        LOOP
            EXECUTE 'DROP ' || what || ' CASCADE';
        END LOOP;
    END $$;
    DROP TYPE public.code, public.prose, public."Mood""#;

/// A server with the stand-in engine. Its histories run side by side, those that crash it alone.
pub struct Place {
    server: Server,
    major: u32,
    gate: RwLock<()>,
    made: AtomicUsize,
    free: Mutex<Vec<Pair>>,
}

/// The two databases of a run.
pub struct Pair {
    pub main: String,
    pub twin: String,
    uses: usize,
}

impl Place {
    /// Starts the instance `name` anew. `prelude` is SQL for the template with the extension: to look past
    /// a fault that is known.
    pub fn start(name: &str, engine: &Path, prelude: &str) -> Self {
        let engine = engine.to_str().expect("a path in UTF-8");
        let own = [("ner_retriever.engine", engine)];
        let server = Server::start(name, &[SETTINGS, &own].concat());
        let mut client = server.connect();
        let version: String = crate::managed::value(&mut client, "show server_version_num");
        let place = Self {
            server,
            major: version.parse::<u32>().expect("a number") / 10_000,
            gate: RwLock::new(()),
            made: AtomicUsize::new(0),
            free: Mutex::default(),
        };
        place.make_templates(&mut client, prelude);
        place
    }

    fn make_templates(&self, client: &mut Client, prelude: &str) {
        let run = |client: &mut Client, sql: &str| {
            client
                .batch_execute(sql)
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        };
        run(
            client,
            "CREATE ROLE histories_owner LOGIN; CREATE ROLE histories_writer LOGIN;
             CREATE ROLE histories_reader; CREATE ROLE histories_group;
             GRANT histories_group TO histories_owner;
             GRANT pg_read_server_files TO histories_owner, histories_writer",
        );
        for (name, extension) in [
            (
                "histories_main",
                format!("CREATE EXTENSION ner_retriever SCHEMA public CASCADE; {prelude};"),
            ),
            ("histories_twin", String::new()),
        ] {
            run(
                client,
                &format!("CREATE DATABASE {name} OWNER histories_owner TEMPLATE template0"),
            );
            let mut inside = self.server.connect_as("postgres", name);
            let sql = format!(
                "{extension} CREATE EXTENSION citext SCHEMA public; GRANT ALL ON SCHEMA public TO PUBLIC; {TYPES}"
            );
            run(&mut inside, &sql);
        }
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The server's major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Runs `work` with the server to itself if the history takes it down.
    pub fn admit<T>(&self, history: &History, work: impl FnOnce() -> T) -> T {
        if history.crashes() {
            let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            work()
        } else {
            let _beside = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            work()
        }
    }

    /// Two databases with nothing in them, `fresh` ones or such that an earlier history had.
    pub fn pair(&self, fresh: bool) -> Pair {
        let free = || {
            self.free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()
        };
        if let Some(pair) = (!fresh).then(free).flatten() {
            return pair;
        }
        let number = self.made.fetch_add(1, Relaxed);
        let pair = Pair {
            main: format!("h{number}m"),
            twin: format!("h{number}t"),
            uses: 0,
        };
        let mut client = self.controller("postgres");
        for (name, template) in [
            (&pair.main, "histories_main"),
            (&pair.twin, "histories_twin"),
        ] {
            let sql = format!("CREATE DATABASE {name} OWNER histories_owner TEMPLATE {template}");
            retried(|| client.batch_execute(&sql));
        }
        pair
    }

    /// Takes a pair back after a run; one that a fault may have left something in is dropped.
    pub fn give_back(&self, mut pair: Pair, faultless: bool) {
        pair.uses += 1;
        let again = faultless && pair.uses < USES;
        if again
            && [&pair.main, &pair.twin]
                .iter()
                .all(|name| self.clean(name).is_ok())
        {
            self.free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(pair);
            return;
        }
        let mut client = self.controller("postgres");
        for name in [&pair.main, &pair.twin] {
            retried(|| client.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")));
        }
    }

    fn clean(&self, database: &str) -> Result<(), postgres::Error> {
        let mut client = self.controller(database);
        // A worker keeps the settings that it came with: the next history's are others.
        client.batch_execute(&format!(
            "SET client_min_messages = error;
             ALTER DATABASE {database} RESET ALL;
             ALTER ROLE postgres IN DATABASE {database} RESET ALL;
             SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ))?;
        client.batch_execute(CLEAN)?;
        client.batch_execute(TYPES)
    }

    /// A session that no setting of the database reaches, for looking and for arranging.
    pub fn controller(&self, database: &str) -> Client {
        let options = "-c search_path=public -c DateStyle=ISO,YMD -c TimeZone=UTC \
             -c IntervalStyle=postgres -c extra_float_digits=1 -c bytea_output=hex \
             -c lock_timeout=0 -c statement_timeout=60s -c role=none -c quote_all_identifiers=off";
        self.connect(Role::Superuser, database, options)
    }

    /// A user's session: what the database's settings say holds there, but for time limits.
    pub fn session(&self, role: Role, database: &str) -> Client {
        let options = format!(
            "-c statement_timeout={STATEMENT_TIMEOUT} -c lock_timeout={LOCK_TIMEOUT} -c role=none"
        );
        self.connect(role, database, &options)
    }

    fn connect(&self, role: Role, database: &str, options: &str) -> Client {
        let mut options = format!(
            "{options} -c default_transaction_read_only=off -c idle_session_timeout=0 \
             -c idle_in_transaction_session_timeout=0"
        );
        if self.major >= 17 {
            options.push_str(" -c transaction_timeout=0");
        }
        retried(|| {
            self.server
                .try_connect_with(role.name(), database, &options)
        })
    }

    /// Ends the engine by signal 9. It may have none.
    pub fn kill_engine(&self) {
        for engine in self
            .server
            .engines()
            .into_iter()
            .filter(|pid| is_alive(*pid))
        {
            if let Some(pid) = rustix::process::Pid::from_raw(engine) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        // The supervisor answers several ends in a row with a pause, and a reload with none: the
        // histories are about indexes, and `engine_life.rs` about that.
        let mut client = self.controller("postgres");
        retried(|| client.batch_execute("select pg_reload_conf()"));
    }

    /// Takes the server down without a word and starts it again.
    pub fn crash(&self) {
        let postmaster = self.server.postmaster();
        signal(postmaster, Signal::KILL);
        wait_until("the server is gone", PATIENCE, || !is_alive(postmaster));
        self.server.start_again();
    }
}

/// Tries until it works: others may be using a template, or the server may just be starting.
fn retried<T>(mut work: impl FnMut() -> Result<T, postgres::Error>) -> T {
    let started = Instant::now();
    loop {
        match work() {
            Ok(result) => return result,
            Err(error) if started.elapsed() > PATIENCE => panic!("{error:?}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
