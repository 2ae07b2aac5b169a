//! Makes a history from a seed: a schema, settings, and what two or three sessions do.

use super::history::{Action, History, Role, Step};
use super::kinds::{KINDS, Kind};
use super::rng::Rng;
use super::tables::{self, Table};
use super::{settings, values};

/// Statements of a history after its tables were made.
const STATEMENTS: std::ops::RangeInclusive<usize> = 8..=28;
/// A transaction block is ended after so many statements.
const BLOCK: usize = 4;

/// What is left out: names of kinds of statements or of their groups.
#[derive(Debug, Clone, Default)]
pub struct Without(Vec<String>);

impl Without {
    /// From `ddl,crash,...`.
    pub fn parse(list: &str) -> Self {
        let names = list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        Self(names.map(str::to_owned).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|left_out| left_out == name)
    }
}

/// A session as the generator sees it.
#[derive(Debug)]
pub struct Session {
    pub role: Role,
    /// The tables at the start of the transaction block that is open.
    pub block: Option<Vec<Table>>,
    pub statements: usize,
    pub serializable: bool,
    pub savepoint: Option<Vec<Table>>,
}

pub struct Gen {
    pub rng: Rng,
    pub major: u32,
    pub tables: Vec<Table>,
    pub sessions: Vec<Session>,
    pub poison: bool,
    schemas: Vec<String>,
    steps: Vec<Step>,
    numbers: usize,
    without: Without,
}

/// The history of a seed, for a server of a major version.
pub fn generate(seed: u64, major: u32, without: &Without) -> History {
    let mut rng = Rng::new(seed);
    let mut roles = vec![Role::Owner];
    for _ in 0..1 + rng.below(2) {
        roles.push(*rng.pick(&[Role::Owner, Role::Superuser, Role::Writer]));
    }
    let poison = rng.chance(12);
    let session = |role: &Role| Session {
        role: *role,
        block: None,
        statements: 0,
        serializable: false,
        savepoint: None,
    };
    let mut g = Gen {
        rng,
        major,
        tables: Vec::new(),
        sessions: roles.iter().map(session).collect(),
        poison,
        schemas: vec!["public".into()],
        steps: Vec::new(),
        numbers: 0,
        without: without.clone(),
    };
    settings::of_database(&mut g);
    settings::of_sessions(&mut g);
    if g.rng.chance(40) {
        super::definitions::new_schema(&mut g, 0);
    }
    for _ in 0..1 + g.rng.weighted([65, 35].into_iter()) {
        tables::create(&mut g);
    }
    let kinds: Vec<&Kind> = KINDS
        .iter()
        .filter(|kind| !kind.is_in(&g.without))
        .collect();
    let statements = STATEMENTS.start() + g.rng.below(STATEMENTS.end() - STATEMENTS.start());
    for _ in 0..statements {
        let kind = kinds[g.rng.weighted(kinds.iter().map(|kind| kind.weight))];
        g.act(kind);
    }
    for session in 0..g.sessions.len() {
        super::blocks::end(&mut g, session);
    }
    History {
        seed,
        sessions: roles,
        steps: g.steps,
    }
}

impl Gen {
    fn act(&mut self, kind: &Kind) {
        let mut session = self.rng.below(self.sessions.len());
        // What only owners may do would fail everywhere.
        if kind.for_owners && self.sessions[session].role == Role::Writer && self.rng.chance(95) {
            session = 0;
        }
        if kind.locks {
            self.clear_way(session);
        }
        let alone =
            self.sessions[session].statements >= BLOCK || kind.outside || self.rng.chance(15);
        if alone && kind.group != "transaction" {
            super::blocks::end(self, session);
        }
        self.sessions[session].statements += 1;
        (kind.make)(self, session);
    }

    /// Ends what would have a statement of the session wait, mostly: waiting takes long and tells little.
    pub fn clear_way(&mut self, session: usize) {
        if self.rng.chance(90) {
            for other in (0..self.sessions.len()).filter(|other| *other != session) {
                super::blocks::end(self, other);
            }
        }
    }

    /// A statement of a user.
    pub fn say(&mut self, session: usize, sql: String) {
        self.push(session, Action::Statement, sql);
    }

    pub fn push(&mut self, session: usize, action: Action, sql: String) {
        self.steps.push(Step {
            session,
            action,
            sql,
            copy: None,
            twin: None,
        });
    }

    /// A call that reads a table, as the twin then does as well.
    pub fn read(&mut self, session: usize, action: Action, sql: String, table: usize) {
        if self.sessions[session].serializable {
            // What a plan has read counts there, and that of the call is its own.
            super::blocks::end(self, session);
        }
        let twin = Some(format!("SELECT FROM {} LIMIT 0", self.tables[table].q()));
        self.steps.push(Step {
            session,
            action,
            sql,
            copy: None,
            twin,
        });
    }

    pub fn copy(&mut self, session: usize, sql: String, rows: String) {
        self.steps.push(Step {
            session,
            action: Action::Statement,
            sql,
            copy: Some(rows),
            twin: None,
        });
    }

    pub fn without(&self, name: &str) -> bool {
        self.without.has(name)
    }

    pub fn number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    /// A name that nothing has yet.
    pub fn name(&mut self) -> String {
        let number = self.number();
        values::identifier(&mut self.rng, number)
    }

    pub fn add_schema(&mut self, name: String) {
        self.schemas.push(name);
    }

    pub fn schema(&mut self) -> String {
        self.rng.pick(&self.schemas).clone()
    }

    /// The number of a table that is there.
    pub fn table(&mut self) -> usize {
        let alive: Vec<usize> = (0..self.tables.len())
            .filter(|n| self.tables[*n].alive)
            .collect();
        match alive.is_empty() {
            true => 0,
            false => *self.rng.pick(&alive),
        }
    }

    pub fn text(&mut self) -> String {
        let poison = self.poison;
        values::text(&mut self.rng, poison)
    }

    /// A row that is not there, mostly one that no other session takes.
    pub fn new_row(&mut self, session: usize, table: usize) -> usize {
        let step = self.sessions.len();
        let used = &self.tables[table].rows;
        let free: Vec<usize> = (0..14).filter(|n| !used.contains(n)).collect();
        let own: Vec<usize> = free
            .iter()
            .copied()
            .filter(|n| n % step == session)
            .collect();
        let of_all = self.rng.chance(10) || own.is_empty();
        let choices = if of_all { free } else { own };
        if choices.is_empty() {
            return self.rng.below(14);
        }
        *self.rng.pick(&choices)
    }

    /// A row that is there, mostly one of the session's own.
    pub fn old_row(&mut self, session: usize, table: usize) -> usize {
        let step = self.sessions.len();
        let used: Vec<usize> = self.tables[table].rows.iter().copied().collect();
        let own: Vec<usize> = used
            .iter()
            .copied()
            .filter(|n| n % step == session)
            .collect();
        let of_all = self.rng.chance(15) || own.is_empty();
        let choices = if of_all { used } else { own };
        if choices.is_empty() {
            return self.rng.below(14);
        }
        *self.rng.pick(&choices)
    }
}
