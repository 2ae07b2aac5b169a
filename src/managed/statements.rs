//! The statements that `ner_retriever.statements` writes for an index, kept for as long as the
//! tables that they name stay what they are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_int;
use std::rc::Rc;

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use pgrx::spi::OwnedPreparedStatement;

use super::role::{as_role, owner};
use crate::errors::Error;

/// How an index reads its table.
pub struct Statements {
    pub base: Oid,
    /// The table's owner, with whose rights all of them run.
    pub owner: Oid,
    /// The key's columns in the table.
    pub key_names: Vec<String>,
    /// `$1` the columns of the keys one after the other, `text[]`: the number (from 1) and the text,
    /// UTF-8 `bytea`, of each row.
    pub read: String,
    /// `$1` keys, `$2` texts, `bytea[]`: locks the rows, and says of each whether its text is still
    /// that one. Rows that someone else has locked are left out.
    pub lock: String,
    pub enqueue_inserted: String,
    pub enqueue_updated: String,
    pub keys_inserted: String,
    pub keys_updated: String,
}

/// How an index replaces mentions in one of its tables.
pub struct WriteStatements {
    pub fingerprint: String,
    pub dims: usize,
    /// `$1` keys, `$2` numbers of the rows whose mentions go.
    pub remove: String,
    /// `$1` keys, `$2` numbers of rows, `$3` mentions, `$4` starts, `$5` ends, `$6` scores, `$7` all
    /// embeddings one after the other.
    pub add: String,
}

/// Those of an index; `None` if the current role has no such index.
///
/// # Errors
/// PostgreSQL's own.
pub fn statements(index: i32) -> Result<Option<Statements>, Error> {
    Spi::connect_mut(|client| {
        let row = client
            .update(
                "SELECT base, owner, key_names, read, lock, enqueue_inserted, enqueue_updated,
                        keys_inserted, keys_updated
                 FROM ner_retriever.statements($1)",
                None,
                &[index.into()],
            )?
            .first();
        let Some(base) = row.get::<Oid>(1)? else {
            return Ok(None);
        };
        let text = |column: usize| Ok::<_, Error>(row.get::<String>(column)?.unwrap_or_default());
        Ok(Some(Statements {
            base,
            owner: row.get(2)?.unwrap_or(Oid::INVALID),
            key_names: row.get(3)?.unwrap_or_default(),
            read: text(4)?,
            lock: text(5)?,
            enqueue_inserted: text(6)?,
            enqueue_updated: text(7)?,
            keys_inserted: text(8)?,
            keys_updated: text(9)?,
        }))
    })
}

/// Those of the tables of an index: its own, and the one that is to take its place.
///
/// # Errors
/// PostgreSQL's own.
pub fn write_statements(index: i32) -> Result<Vec<WriteStatements>, Error> {
    Spi::connect_mut(|client| {
        let rows = client.update(
            "SELECT fingerprint, dims, remove, add FROM ner_retriever.write_statements($1)",
            None,
            &[index.into()],
        )?;
        rows.map(|row| {
            Ok(WriteStatements {
                fingerprint: row.get(1)?.unwrap_or_default(),
                dims: usize::try_from(row.get::<i32>(2)?.unwrap_or(0)).unwrap_or(0),
                remove: row.get(3)?.unwrap_or_default(),
                add: row.get(4)?.unwrap_or_default(),
            })
        })
        .collect()
    })
}

/// What a trigger needs of its index, with the plans of what it runs on every statement.
pub struct TriggerStatements {
    pub statements: Statements,
    plans: RefCell<HashMap<&'static str, Rc<OwnedPreparedStatement>>>,
}

impl TriggerStatements {
    /// The plan of one of the statements, made by `prepare` at its first use.
    ///
    /// # Errors
    /// Those of `prepare`.
    pub fn plan(
        &self,
        name: &'static str,
        prepare: impl FnOnce() -> Result<OwnedPreparedStatement, Error>,
    ) -> Result<Rc<OwnedPreparedStatement>, Error> {
        if let Some(plan) = self.plans.borrow().get(name) {
            return Ok(Rc::clone(plan));
        }
        let plan = Rc::new(prepare()?);
        self.plans.borrow_mut().insert(name, Rc::clone(&plan));
        Ok(plan)
    }
}

thread_local! {
    /// By index and by the relation whose trigger fired: the table or a partition of it.
    static CACHE: RefCell<HashMap<(i32, Oid), Rc<TriggerStatements>>> = RefCell::default();
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    static STALE: Cell<bool> = const { Cell::new(false) };
}

/// The statements of an index for a trigger on `relation`; `None` if that is not the index's table,
/// nor a partition of it. Anyone may put the triggers' function on a table of their own.
///
/// # Errors
/// PostgreSQL's own.
pub fn of_trigger(index: i32, relation: Oid) -> Result<Option<Rc<TriggerStatements>>, Error> {
    watch();
    if STALE.replace(false) {
        CACHE.with_borrow_mut(HashMap::clear);
    }
    if let Some(known) = CACHE.with_borrow(|cache| cache.get(&(index, relation)).cloned()) {
        return Ok(Some(known));
    }
    for table in with_ancestors(relation)? {
        let Some(owner) = owner(table) else { continue };
        let found = as_role(owner, || statements(index))?;
        if let Some(statements) = found.filter(|found| found.base == table) {
            let known = Rc::new(TriggerStatements {
                statements,
                plans: RefCell::default(),
            });
            CACHE.with_borrow_mut(|cache| cache.insert((index, relation), Rc::clone(&known)));
            return Ok(Some(known));
        }
    }
    Ok(None)
}

/// A relation and the partitioned tables that it is part of.
fn with_ancestors(relation: Oid) -> Result<Vec<Oid>, Error> {
    let mut relations = vec![relation];
    Spi::connect_mut(|client| {
        let ancestors = client.update(
            "SELECT relid::oid FROM pg_catalog.pg_partition_ancestors($1)",
            None,
            &[relation.into()],
        )?;
        for row in ancestors {
            relations.extend(row.get::<Oid>(1)?);
        }
        Ok(relations)
    })
}

/// Any change of a table may be one that the statements know nothing of; changes are rare, and to
/// ask for the statements again is cheap beside one.
fn watch() {
    if WATCHING.replace(true) {
        return;
    }
    // SAFETY: the callback stays for the life of the process, as this library does.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
        // A schema can be renamed without a change of its tables.
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as c_int,
            Some(schema_changed),
            pg_sys::Datum::from(0),
        );
    }
}

/// PostgreSQL calls this in the midst of its own work: it only takes a note.
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, _relation: Oid) {
    STALE.set(true);
}

/// As [`relation_changed`].
unsafe extern "C-unwind" fn schema_changed(_argument: pg_sys::Datum, _cache: c_int, _hash: u32) {
    STALE.set(true);
}
