//! What a trigger has to know of its index, kept for as long as the tables stay what they are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_int;
use std::rc::Rc;

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use super::role::{as_role, owner};
use crate::errors::Error;

/// The columns of a table, or of a partition, that an index depends on.
pub struct Columns {
    /// The indexed table's owner, with whose rights changes are enqueued.
    pub owner: Oid,
    pub key: Vec<Column>,
    pub text: Column,
    /// The relation is the index's table, not a partition of it.
    pub is_whole: bool,
    /// The text is computed whenever it is read: no row has it.
    pub text_is_virtual: bool,
}

/// A column of the relation whose trigger fired.
pub struct Column {
    pub number: c_int,
    by_value: bool,
    length: c_int,
    /// Written in the same way whatever the session's settings are.
    pub plain: bool,
}

unsafe extern "C-unwind" {
    // Of utils/datum.h, which has no bindings. It may raise an error.
    fn datum_image_eq(
        one: pg_sys::Datum,
        other: pg_sys::Datum,
        by_value: bool,
        length: c_int,
    ) -> bool;
}

impl Column {
    /// Whether two values of the column are the same, byte for byte: equality of the type may take
    /// different texts for equal.
    pub fn is_same(&self, one: Option<pg_sys::Datum>, other: Option<pg_sys::Datum>) -> bool {
        match (one, other) {
            (None, None) => true,
            // SAFETY: both values are of the column's type, whose length and passing these are.
            (Some(one), Some(other)) => unsafe {
                pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    datum_image_eq(one, other, self.by_value, self.length)
                })
            },
            _ => false,
        }
    }
}

thread_local! {
    /// By index and by the relation whose trigger fired: the table or a partition of it.
    static CACHE: RefCell<HashMap<(i32, Oid), Rc<Columns>>> = RefCell::default();
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    /// Also before anything is known.
    static STALE: Cell<bool> = const { Cell::new(true) };
}

/// Forgets all if any relation has changed since the last time. Returns whether one has.
pub fn forget_stale() -> bool {
    watch();
    let stale = STALE.replace(false);
    if stale {
        CACHE.with_borrow_mut(HashMap::clear);
    }
    stale
}

/// The next time, too, relations count as changed.
pub fn keep_stale() {
    STALE.set(true);
}

/// The columns for a trigger on `relation`; `None` if that is not the index's table, nor a partition of
/// it. Anyone may put the triggers' function on a table of their own.
///
/// # Errors
/// PostgreSQL's own.
///
/// # Safety
/// `row_type` is the relation's.
pub unsafe fn of_trigger(
    index: i32,
    relation: Oid,
    row_type: pg_sys::TupleDesc,
) -> Result<Option<Rc<Columns>>, Error> {
    if let Some(known) = CACHE.with_borrow(|cache| cache.get(&(index, relation)).cloned()) {
        return Ok(Some(known));
    }
    for table in with_ancestors(relation)? {
        let Some(owner) = owner(table) else { continue };
        // SAFETY: as the caller says.
        let found = as_role(owner, || unsafe { look_up(index, relation, row_type) })?;
        if let Some(columns) = found.filter(|columns| columns.owner == owner) {
            let known = Rc::new(columns);
            CACHE.with_borrow_mut(|cache| cache.insert((index, relation), Rc::clone(&known)));
            return Ok(Some(known));
        }
    }
    Ok(None)
}

unsafe fn look_up(
    index: i32,
    relation: Oid,
    row_type: pg_sys::TupleDesc,
) -> Result<Option<Columns>, Error> {
    Spi::connect_mut(|client| {
        let row = client
            .update(
                "SELECT owner, key_numbers, text_number, virtual, is_whole FROM ner_retriever.trigger_columns($1, $2)",
                None,
                &[index.into(), relation.into()],
            )?
            .first();
        let (Some(owner), Some(key), Some(text)) = (
            row.get::<Oid>(1)?,
            row.get::<Vec<i16>>(2)?,
            row.get::<i16>(3)?,
        ) else {
            return Ok(None);
        };
        // SAFETY: as the caller says; the numbers are of columns that are there.
        let column = |number: i16| unsafe { column(row_type, number) };
        Ok(Some(Columns {
            owner,
            key: key.into_iter().map(column).collect(),
            text: column(text),
            is_whole: row.get(5)?.unwrap_or(false),
            text_is_virtual: row.get(4)?.unwrap_or(false),
        }))
    })
}

unsafe fn column(row_type: pg_sys::TupleDesc, number: i16) -> Column {
    let (mut length, mut by_value) = (0, false);
    // SAFETY: the caller has the row type of a column with this number.
    let type_ = unsafe {
        let type_ = pg_sys::SPI_gettypeid(row_type, c_int::from(number));
        pg_sys::get_typlenbyval(type_, &raw mut length, &raw mut by_value);
        type_
    };
    Column {
        number: c_int::from(number),
        by_value,
        length: c_int::from(length),
        plain: is_plain(type_),
    }
}

/// Types that are most often keys.
fn is_plain(type_: Oid) -> bool {
    [
        pg_sys::INT2OID,
        pg_sys::INT4OID,
        pg_sys::INT8OID,
        pg_sys::TEXTOID,
        pg_sys::VARCHAROID,
        pg_sys::BPCHAROID,
        pg_sys::UUIDOID,
        pg_sys::NUMERICOID,
        pg_sys::BOOLOID,
        pg_sys::OIDOID,
    ]
    .contains(&type_)
}

/// A relation and the partitioned tables that it is part of.
fn with_ancestors(relation: Oid) -> Result<Vec<Oid>, Error> {
    let mut relations = vec![relation];
    Spi::connect_mut(|client| {
        let ancestors = client.update(
            "SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors($1)",
            None,
            &[relation.into()],
        )?;
        for row in ancestors {
            relations.extend(row.get::<Oid>(1)?);
        }
        Ok(relations)
    })
}

/// Any change of a table may be one that the columns know nothing of; changes are rare, and to ask for
/// the columns again is cheap beside one.
fn watch() {
    if WATCHING.replace(true) {
        return;
    }
    // SAFETY: the callback stays for the life of the process, as this library does.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
    }
}

/// PostgreSQL calls this in the midst of its own work: it only takes a note.
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, _relation: Oid) {
    STALE.set(true);
}
