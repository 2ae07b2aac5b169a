//! The rows that this transaction has changed, by index, until it commits.
//!
//! What is enqueued is a hint: a worker compares the row's text with what is remembered of it. So nothing is
//! lost or wrong when more is told than has changed, as by a savepoint that was rolled back.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use pgrx::spi::OwnedPreparedStatement;
use pgrx::{PgXactCallbackEvent, register_xact_callback};

use super::extension::is_installed;
use super::fixed_settings::with_fixed_settings;
use super::role::as_role;
use super::rows::{embed, is_whole};
use super::server_bytes::ServerBytes;
use super::snapshot::ActiveSnapshot;
use super::subtransaction::unless_in_conflict;
use super::wake;
use crate::errors::Error;

/// The columns of a row's key as text.
pub type Key = Vec<ServerBytes>;

/// Keys of one index that a transaction tells of; of more, the whole table is compared. At a hundred bytes
/// each they are 10 MB, and comparing as many rows takes about as long as reading so many hints.
const MOST: usize = 100_000;
/// Rows that are embedded and written together, which bounds the memory of a large statement.
const ROWS: usize = 1000;

/// What is to be told of one index.
struct Changes {
    owner: Oid,
    /// Embedded by this transaction, not by a worker.
    immediate: bool,
    /// Of rows that are there now, and that were there: the first go before the others, so that a row
    /// with another key finds what is known of it.
    changed: BTreeSet<Key>,
    gone: BTreeSet<Key>,
    /// Too many to be named.
    all: bool,
}

impl Changes {
    fn add(&mut self, key: Key, is_gone: bool) {
        if self.all {
            return;
        }
        if is_gone {
            self.gone.insert(key);
        } else {
            self.changed.insert(key);
        }
        if !self.immediate && self.changed.len() + self.gone.len() > MOST {
            self.add_all();
        }
    }

    fn add_all(&mut self) {
        self.all = true;
        self.changed.clear();
        self.gone.clear();
    }

    /// Every key once.
    fn into_keys(self) -> Vec<Key> {
        let Self { changed, gone, .. } = self;
        let also: Vec<Key> = gone.difference(&changed).cloned().collect();
        changed.into_iter().chain(also).collect()
    }
}

thread_local! {
    static CHANGES: RefCell<BTreeMap<i32, Changes>> = const { RefCell::new(BTreeMap::new()) };
    static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
    static ONE_KEY: RefCell<Option<Rc<OwnedPreparedStatement>>> = const { RefCell::new(None) };
}

/// `ner_retriever.has_uncommitted_changes(integer)`
#[pg_extern]
fn ner_has_uncommitted_changes(index: i32) -> bool {
    CHANGES.with_borrow(|changes| changes.contains_key(&index))
}

/// Takes down a row's key.
pub fn add(index: i32, owner: Oid, immediate: bool, key: Key, is_gone: bool) {
    of_index(index, owner, immediate, |changes| changes.add(key, is_gone));
}

/// Takes down that rows have changed that have not been named.
pub fn add_all(index: i32, owner: Oid) {
    of_index(index, owner, false, Changes::add_all);
}

/// Empties what is known of a table that has been truncated. False if somebody uses it: a worker does it then.
///
/// # Errors
/// PostgreSQL's own.
pub fn forget_all(index: i32, owner: Oid) -> Result<bool, Error> {
    let sql = "SELECT ner_retriever.forget_all($1)";
    let emptied = as_role(owner, || Spi::get_one_with_args(sql, &[index.into()]))?;
    Ok(emptied.unwrap_or(false))
}

fn of_index(index: i32, owner: Oid, immediate: bool, work: impl FnOnce(&mut Changes)) {
    tell_at_commit();
    CHANGES.with_borrow_mut(|all| {
        let changes = all.entry(index).or_insert_with(|| Changes {
            owner,
            immediate,
            changed: BTreeSet::new(),
            gone: BTreeSet::new(),
            all: false,
        });
        work(changes);
    });
}

/// Embeds what a statement has changed of an index in mode `immediate`.
///
/// # Errors
/// Those of the engine, and PostgreSQL's own.
pub fn tell_now(index: i32) -> Result<(), Error> {
    match CHANGES.with_borrow_mut(|all| all.remove(&index)) {
        Some(changes) => tell(index, changes),
        None => Ok(()),
    }
}

fn tell_at_commit() {
    if IS_REGISTERED.replace(true) {
        return;
    }
    register_xact_callback(PgXactCallbackEvent::PreCommit, || {
        end_with(tell_all());
    });
    // Nobody is told when it commits: a worker looks at what is prepared.
    register_xact_callback(PgXactCallbackEvent::PrePrepare, || {
        end_with(tell_all());
        wake::leave_word();
    });
    let forget = || {
        IS_REGISTERED.set(false);
        CHANGES.with_borrow_mut(BTreeMap::clear);
    };
    register_xact_callback(PgXactCallbackEvent::Commit, forget);
    register_xact_callback(PgXactCallbackEvent::Prepare, forget);
    register_xact_callback(PgXactCallbackEvent::Abort, forget);
}

fn end_with(result: Result<(), Error>) {
    if let Err(error) = result {
        ErrorReport::from(error).report(PgLogLevel::ERROR);
    }
}

/// A transaction may have become read-only after its changes.
struct Writable(bool);

impl Writable {
    fn new() -> Self {
        // SAFETY: a variable of this process, restored when dropped.
        unsafe {
            let before = pg_sys::XactReadOnly;
            pg_sys::XactReadOnly = false;
            Self(before)
        }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // SAFETY: see `new`.
        unsafe { pg_sys::XactReadOnly = self.0 };
    }
}

fn tell_all() -> Result<(), Error> {
    // With the extension went what could be told of.
    if CHANGES.with_borrow(BTreeMap::is_empty) || !is_installed() {
        return Ok(());
    }
    let _writable = Writable::new();
    let _snapshot = ActiveSnapshot::of_transaction();
    while let Some((index, changes)) = CHANGES.with_borrow_mut(BTreeMap::pop_first) {
        tell(index, changes)?;
    }
    Ok(())
}

fn tell(index: i32, changes: Changes) -> Result<(), Error> {
    let owner = changes.owner;
    if changes.all {
        as_role(owner, || enqueue(index, None, 1))?;
        wake::at_commit();
        return Ok(());
    }
    let immediate = changes.immediate;
    let keys = changes.into_keys();
    if immediate {
        return with_fixed_settings(|| embed_now(index, owner, &keys));
    }
    as_role(owner, || match keys.as_slice() {
        [] => Ok(()),
        [key] => enqueue_one(index, key),
        [first, ..] => {
            let width = first.len();
            enqueue(index, Some(keys.into_iter().flatten().collect()), width)
        }
    })?;
    wake::at_commit();
    Ok(())
}

fn embed_now(index: i32, owner: Oid, keys: &[Key]) -> Result<(), Error> {
    if !as_role(owner, || is_whole(index))? {
        // Compared when it is: the change itself is nobody's to refuse.
        return as_role(owner, || enqueue(index, None, 1));
    }
    for keys in keys.chunks(ROWS) {
        let attempt = unless_in_conflict(|| as_role(owner, || embed(index, keys, true)));
        let again = match attempt {
            Some(again) => again?,
            None => (1..=i32::try_from(keys.len()).unwrap_or(0)).collect(),
        };
        for number in again {
            // Somebody else writes them, or has changed them meanwhile: a worker looks at them again.
            let position = usize::try_from(number - 1).ok();
            if let Some(key) = position.and_then(|at| keys.get(at)) {
                as_role(owner, || enqueue_one(index, key))?;
                wake::at_commit();
            }
        }
    }
    Ok(())
}

/// Most transactions change one row: the plan is kept.
fn enqueue_one(index: i32, key: &Key) -> Result<(), Error> {
    Spi::connect_mut(|client| {
        let known = ONE_KEY.with_borrow(Clone::clone);
        let plan = match known {
            Some(plan) => plan,
            None => {
                let plan = client
                    .prepare_mut(
                        "INSERT INTO ner_retriever.pending (index_id, key) VALUES ($1, $2)",
                        &[
                            PgBuiltInOids::INT4OID.oid(),
                            PgBuiltInOids::TEXTARRAYOID.oid(),
                        ],
                    )?
                    .keep();
                let plan = Rc::new(plan);
                ONE_KEY.set(Some(Rc::clone(&plan)));
                plan
            }
        };
        client.update(&*plan, None, &[index.into(), key.clone().into()])?;
        Ok(())
    })
}

fn enqueue(index: i32, keys: Option<Vec<ServerBytes>>, width: usize) -> Result<(), Error> {
    let width = i32::try_from(width).unwrap_or(1);
    Spi::run_with_args(
        "SELECT ner_retriever.enqueue($1, $2, $3)",
        &[index.into(), keys.into(), width.into()],
    )?;
    Ok(())
}
