//! Runs a history in a database with managed indexes and in its twin, and tells where they differ.

use std::thread;
use std::time::Duration;

use postgres::{Client, SimpleQueryMessage};

use super::compare;
use super::history::{Action, History, Outcome, Role, Step};
use super::place::{Pair, Place};

/// Time that a `Pause` gives to what runs in the background.
const PAUSE: Duration = Duration::from_millis(60);
/// The SQLSTATEs of a session that is ended from outside.
const ENDED: [&str; 3] = ["57P01", "57P02", "57P05"];
/// What an engine that is gone or refuses a text makes a statement of mode immediate end with.
const ENGINE_ERRORS: [&str; 4] = ["54000", "58000", "08006", "57P03"];

/// What is wrong, in kinds: a shrunk history must fail in the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A user's statement ended otherwise than without an index; the SQLSTATE with the index, if any.
    Outcome(Option<String>),
    /// A call of the extension's ended with an internal error, or showed what is not there.
    Call(String),
    /// The tables themselves differ from the twin's.
    Contents,
    /// An index has gone, though its column is there.
    Vanished,
    /// `ner_wait` gave up.
    Wait,
    /// Mentions are not those of the texts.
    Mentions,
    /// Rows count as failed that are not poisoned, or the reverse.
    Failed,
    /// The index does not say that it is ready and without differences.
    State,
}

#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: Kind,
    pub text: String,
}

/// What a run gave: outcomes by step, with the index and without.
#[derive(Debug, Default)]
pub struct Report {
    pub outcomes: Vec<(Option<Outcome>, Option<Outcome>)>,
    pub fault: Option<Fault>,
}

/// A session: one connection in each database.
struct Ends {
    main: Client,
    twin: Client,
}

struct Run<'a> {
    place: &'a Place,
    pair: &'a Pair,
    roles: &'a [Role],
    sessions: Vec<Option<Ends>>,
    /// Of each session, what to set again after a crash.
    settings: Vec<Vec<String>>,
    main: Client,
    twin: Client,
    /// Columns that have been indexed and not been given up: table and number of the column.
    indexed: Vec<(u32, i16)>,
}

/// Runs a history in two databases, which have never had another if they are to be `fresh`.
pub fn run(place: &Place, history: &History, fresh: bool) -> Report {
    place.admit(history, || {
        let pair = place.pair(fresh);
        let mut run = Run {
            place,
            pair: &pair,
            roles: &history.sessions,
            sessions: history.sessions.iter().map(|_| None).collect(),
            settings: vec![Vec::new(); history.sessions.len()],
            main: place.controller(&pair.main),
            twin: place.controller(&pair.twin),
            indexed: Vec::new(),
        };
        let mut report = Report::default();
        for step in &history.steps {
            let (main, twin) = run.step(step);
            report.fault = run.judge(step, main.as_ref(), twin.as_ref());
            report.outcomes.push((main, twin));
            if report.fault.is_some() {
                break;
            }
        }
        if report.fault.is_none() {
            report.fault = run.finish();
        }
        drop(run);
        place.give_back(pair, report.fault.is_none());
        report
    })
}

impl Run<'_> {
    fn step(&mut self, step: &Step) -> (Option<Outcome>, Option<Outcome>) {
        match step.action {
            Action::Setting => {
                let main = execute(&mut self.main, &named(&step.sql, &self.pair.main));
                let twin = execute(&mut self.twin, &named(&step.sql, &self.pair.twin));
                return (Some(main), Some(twin));
            }
            Action::SessionSetting => self.settings[step.session].push(step.sql.clone()),
            Action::Statement | Action::Managed | Action::ManagedNoRows => {}
            Action::KillEngine => self.place.kill_engine(),
            Action::KillWorkers => self.kill_workers(),
            Action::Crash => self.crash(),
            Action::Pause => thread::sleep(PAUSE),
        }
        match step.action {
            Action::Statement | Action::SessionSetting => self.statement(step),
            Action::Managed | Action::ManagedNoRows => (Some(self.managed(step)), None),
            _ => (None, None),
        }
    }

    fn statement(&mut self, step: &Step) -> (Option<Outcome>, Option<Outcome>) {
        let sql = self.with_copy(step);
        let (main_sql, twin_sql) = (named(&sql, &self.pair.main), named(&sql, &self.pair.twin));
        let ends = self.ends(step.session);
        let main = execute(&mut ends.main, &main_sql);
        let refused = main
            .sqlstate()
            .filter(|s| ENGINE_ERRORS.contains(s))
            .map(str::to_owned);
        let excused = refused.filter(|_| self.has_immediate());
        let ends = self.ends(step.session);
        let twin = match excused {
            // The documented price of the mode; the twin has to fail as well to stay one.
            Some(sqlstate) => fail(&mut ends.twin, &sqlstate),
            None => execute(&mut ends.twin, &twin_sql),
        };
        (Some(main), Some(twin))
    }

    fn managed(&mut self, step: &Step) -> Outcome {
        let sql = named(&step.sql, &self.pair.main);
        let ends = self.ends(step.session);
        let outcome = execute(&mut ends.main, &sql);
        if matches!(outcome, Outcome::Failed { .. }) {
            // A transaction that this has ended must have ended for the twin.
            fail(&mut ends.twin, "22000");
            return outcome;
        }
        // A transaction's snapshot is that of its first statement.
        execute(&mut ends.twin, step.twin.as_deref().unwrap_or("SELECT"));
        if step.sql.contains("ner_index") {
            let now = compare::indexed_columns(&mut self.main);
            self.indexed.extend(now);
        } else if step.sql.contains("ner_drop_index") {
            self.indexed = compare::indexed_columns(&mut self.main);
        }
        outcome
    }

    fn judge(&self, step: &Step, main: Option<&Outcome>, twin: Option<&Outcome>) -> Option<Fault> {
        let main = main?;
        if let Some(twin) = twin {
            return (!main.agrees(twin)).then(|| Fault {
                kind: Kind::Outcome(main.sqlstate().map(str::to_owned)),
                text: format!("{step}\nwith the index:    {main}\nwithout an index:  {twin}"),
            });
        }
        let wrong = match main {
            Outcome::Done(rows) => {
                step.action == Action::ManagedNoRows && rows.iter().any(|row| row.starts_with('('))
            }
            // Versions before 0.3.0 do not have it, which is no fault of theirs.
            Outcome::Failed { message, .. } if message.starts_with("function public.ner_check") => {
                false
            }
            Outcome::Failed { sqlstate, .. } => is_internal(sqlstate),
            Outcome::Lost(_) => true,
        };
        wrong.then(|| Fault {
            kind: Kind::Call(main.sqlstate().unwrap_or_default().to_owned()),
            text: format!("{step}\n{main}"),
        })
    }

    /// Ends what is open and compares.
    fn finish(&mut self) -> Option<Fault> {
        for session in 0..self.sessions.len() {
            if self.sessions[session].is_none() {
                continue;
            }
            let commit = Step {
                session,
                action: Action::Statement,
                sql: "COMMIT".into(),
                copy: None,
                twin: None,
            };
            let (main, twin) = self.step(&commit);
            let fault = self.judge(&commit, main.as_ref(), twin.as_ref());
            if fault.is_some() {
                return fault;
            }
            self.sessions[session] = None;
        }
        compare::compare(&mut self.main, &mut self.twin, &self.indexed)
    }

    /// The statement, which reads what it copies from a file: the client library is out of step with
    /// the server after a `COPY FROM STDIN` that fails early.
    fn with_copy(&self, step: &Step) -> String {
        let Some(rows) = &step.copy else {
            return step.sql.clone();
        };
        let file = self.place.server().folder("copies").join(&self.pair.main);
        std::fs::write(&file, rows).expect("the instance's folder can be written to");
        let path = super::values::string(&file.to_string_lossy());
        step.sql.replace("FROM STDIN", &format!("FROM {path}"))
    }

    fn ends(&mut self, session: usize) -> &mut Ends {
        let role = self.roles[session];
        self.sessions[session].get_or_insert_with(|| Ends {
            main: self.place.session(role, &self.pair.main),
            twin: self.place.session(role, &self.pair.twin),
        })
    }

    fn has_immediate(&mut self) -> bool {
        let sql = "select count(*) > 0 from ner_retriever.managed_index where mode = 'immediate'";
        self.main.query_one(sql, &[]).is_ok_and(|row| row.get(0))
    }

    fn kill_workers(&mut self) {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and backend_type ilike '%ner_retriever%'";
        let _ = self.main.simple_query(sql);
    }

    fn crash(&mut self) {
        let open: Vec<bool> = self.sessions.iter().map(Option::is_some).collect();
        self.place.crash();
        self.main = self.place.controller(&self.pair.main);
        self.twin = self.place.controller(&self.pair.twin);
        for session in open
            .iter()
            .enumerate()
            .filter(|(_, open)| **open)
            .map(|(n, _)| n)
        {
            self.sessions[session] = None;
            let settings = self.settings[session].clone();
            let ends = self.ends(session);
            for sql in settings {
                execute(&mut ends.main, &sql);
                execute(&mut ends.twin, &sql);
            }
        }
    }
}

fn named(sql: &str, database: &str) -> String {
    sql.replace("{db}", database)
}

/// Has a statement fail with `sqlstate`, so that a transaction block is as it would be after that.
fn fail(client: &mut Client, sqlstate: &str) -> Outcome {
    let sql = format!("DO $$ BEGIN RAISE 'as the other' USING ERRCODE = '{sqlstate}'; END $$");
    execute(client, &sql)
}

/// Errors that are nobody's fault but the extension's.
fn is_internal(sqlstate: &str) -> bool {
    sqlstate.starts_with("XX") || ["42883", "42601", "22P02", "P0002", "P0004"].contains(&sqlstate)
}

/// Runs a statement and says how it ended.
fn execute(client: &mut Client, sql: &str) -> Outcome {
    let result = client.simple_query(sql).map(|messages| lines(&messages));
    match result {
        Ok(lines) => Outcome::Done(lines),
        Err(error) => match error.as_db_error() {
            Some(error) if !ENDED.contains(&error.code().code()) => Outcome::Failed {
                sqlstate: error.code().code().to_owned(),
                message: error.message().to_owned(),
            },
            _ => Outcome::Lost(error.to_string()),
        },
    }
}

fn lines(messages: &[SimpleQueryMessage]) -> Vec<String> {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let values: Vec<&str> = (0..row.len())
                    .map(|n| row.get(n).unwrap_or("NULL"))
                    .collect();
                Some(format!("({})", values.join(",")))
            }
            SimpleQueryMessage::CommandComplete(count) => Some(format!("{count} rows")),
            _ => None,
        })
        .collect()
}
