//! A history: who did what in which order, as text that can be run again.

use std::fmt;

/// What a step is, and so where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `ALTER DATABASE {db} SET`, before anybody connects.
    Setting,
    /// A session's own `SET`: runs again when the session has to connect anew.
    SessionSetting,
    /// A statement of a user, whose outcome must not depend on whether there is a managed index.
    Statement,
    /// A call of the extension's: the twin, which has none, leaves it out.
    Managed,
    /// As `Managed`; a row that comes back is a fault.
    ManagedNoRows,
    KillEngine,
    KillWorkers,
    /// `kill -9` of the postmaster, and a start.
    Crash,
    /// Time for what runs in the background.
    Pause,
}

/// One thing that happens. `{db}` in the SQL is the database's name, for names that all databases of
/// a server share.
#[derive(Debug, Clone)]
pub struct Step {
    pub session: usize,
    pub action: Action,
    pub sql: String,
    /// What is sent after `COPY ... FROM STDIN`.
    pub copy: Option<String>,
    /// What the twin does in place of a call: transactions there must have the same snapshots and locks.
    pub twin: Option<String>,
}

/// The roles that sessions log in as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Owner,
    Superuser,
    Writer,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "histories_owner",
            Self::Superuser => "postgres",
            Self::Writer => "histories_writer",
        }
    }
}

/// Everything that a run needs; the seed is only told.
#[derive(Debug, Clone)]
pub struct History {
    pub seed: u64,
    pub sessions: Vec<Role>,
    pub steps: Vec<Step>,
}

impl History {
    /// Whether it takes the server down, and so must be alone.
    pub fn crashes(&self) -> bool {
        self.steps.iter().any(|step| step.action == Action::Crash)
    }

    /// The same with some of its steps only.
    pub fn with_steps(&self, steps: Vec<Step>) -> Self {
        Self {
            seed: self.seed,
            sessions: self.sessions.clone(),
            steps,
        }
    }
}

/// How a statement ended, as its session saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Rows as text and numbers of rows, in order.
    Done(Vec<String>),
    Failed {
        sqlstate: String,
        message: String,
    },
    /// The session is gone.
    Lost(String),
}

impl Outcome {
    /// Whether a user would call both the same; messages name what differs anyway.
    pub fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failed { sqlstate: a, .. }, Self::Failed { sqlstate: b, .. }) => a == b,
            (a, b) => a == b,
        }
    }

    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Failed { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(lines) => write!(f, "{}", shortened(&lines.join(" | "), 160)),
            Self::Failed { sqlstate, message } => write!(f, "{sqlstate} {message}"),
            Self::Lost(why) => write!(f, "session lost: {why}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.action {
            Action::Setting => "database".to_owned(),
            Action::KillEngine | Action::KillWorkers | Action::Crash | Action::Pause => {
                return write!(f, "-- {:?}", self.action);
            }
            _ => format!("{}", self.session),
        };
        write!(f, "/* {who} */ {};", shortened(&self.sql, 1200))?;
        match &self.copy {
            Some(rows) => write!(f, "\n{}\\.", shortened(rows, 1200)),
            None => Ok(()),
        }
    }
}

fn shortened(text: &str, limit: usize) -> String {
    let count = text.chars().count();
    if count <= limit {
        return text.to_owned();
    }
    let half = limit / 2;
    let start: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(count - half).collect();
    format!("{start}[... {} characters ...]{end}", count - 2 * half)
}
