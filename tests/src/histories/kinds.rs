//! What may happen in a history, and how often: the one table that says so.

use super::generate::{Gen, Without};
use super::{blocks, calls, changes, definitions, partitions};

/// A kind of statement.
pub struct Kind {
    pub name: &'static str,
    /// Several kinds that are switched off together.
    pub group: &'static str,
    pub weight: usize,
    /// Takes locks that transaction blocks of other sessions would have it wait for.
    pub locks: bool,
    /// Cannot run in a transaction block, or should not: the twin's transaction would be another.
    pub outside: bool,
    /// Needs to own the table.
    pub for_owners: bool,
    pub make: fn(&mut Gen, usize),
}

impl Kind {
    pub fn is_in(&self, without: &Without) -> bool {
        without.has(self.name) || without.has(self.group)
    }
}

/// For anybody, anywhere.
const fn row(
    name: &'static str,
    group: &'static str,
    weight: usize,
    make: fn(&mut Gen, usize),
) -> Kind {
    Kind {
        name,
        group,
        weight,
        locks: false,
        outside: false,
        for_owners: false,
        make,
    }
}

/// For the owner, with locks.
const fn ddl(
    name: &'static str,
    group: &'static str,
    weight: usize,
    make: fn(&mut Gen, usize),
) -> Kind {
    Kind {
        name,
        group,
        weight,
        locks: true,
        outside: false,
        for_owners: true,
        make,
    }
}

/// For the owner, with locks, outside of a block.
const fn alone(
    name: &'static str,
    group: &'static str,
    weight: usize,
    make: fn(&mut Gen, usize),
) -> Kind {
    Kind {
        name,
        group,
        weight,
        locks: true,
        outside: true,
        for_owners: true,
        make,
    }
}

pub const KINDS: &[Kind] = &[
    row("insert", "rows", 80, changes::insert_some),
    row("upsert", "rows", 45, changes::upsert),
    row("update-text", "rows", 90, changes::update_text),
    row("update-nothing", "rows", 15, changes::update_nothing),
    row("update-other", "rows", 15, changes::update_other),
    row("update-key", "rows", 40, changes::update_key),
    row("delete", "rows", 50, changes::delete),
    row("copy", "rows", 25, changes::copy),
    row("merge", "rows", 30, changes::merge),
    row("select", "rows", 12, changes::select),
    row("begin", "transaction", 80, blocks::begin_or_end),
    row("savepoint", "transaction", 40, blocks::savepoint),
    ddl("truncate", "truncate", 22, changes::truncate),
    ddl("add-column", "ddl", 10, definitions::add_column),
    ddl("drop-column", "ddl", 8, definitions::drop_column),
    ddl("rename-column", "ddl", 16, definitions::rename_column),
    ddl("rename-table", "ddl", 12, definitions::rename_table),
    ddl("set-schema", "ddl", 8, definitions::set_schema),
    ddl("owner", "ddl", 8, definitions::owner),
    ddl("text-type", "type", 8, definitions::text_type),
    ddl("other-type", "type", 8, definitions::other_type),
    ddl("expression", "type", 6, definitions::expression),
    ddl("storage", "ddl", 25, definitions::storage),
    ddl("triggers", "trigger", 9, definitions::triggers),
    ddl("constraint", "ddl", 8, definitions::constraint),
    ddl("key", "key", 10, definitions::key),
    ddl("rights", "rights", 12, definitions::rights),
    ddl("labels", "type", 6, definitions::labels),
    ddl("drop-text", "drop", 4, definitions::drop_text),
    alone("drop-table", "drop", 5, definitions::drop_table),
    alone("create-index", "ddl", 8, definitions::index),
    alone("rewrite", "ddl", 14, definitions::rewrite),
    ddl("attach", "partition", 22, partitions::attach_or_detach),
    ddl("change-aside", "partition", 10, partitions::change_aside),
    ddl("drop-partition", "partition", 8, partitions::drop_part),
    ddl("add-partition", "partition", 10, partitions::add_part),
    Kind {
        outside: true,
        for_owners: true,
        ..row("refresh", "managed", 15, calls::refresh)
    },
    row("search", "managed", 16, calls::search),
    row("wait", "managed", 14, calls::wait),
    Kind {
        for_owners: true,
        ..row("check", "managed", 12, calls::check)
    },
    alone("reindex", "managed", 10, calls::reindex),
    alone("index-again", "managed", 8, calls::index_again),
    alone("second-index", "managed", 5, calls::second_index),
    row("pause", "managed", 20, calls::pause),
    row("kill-engine", "kill", 3, calls::kill_engine),
    row("kill-workers", "kill", 6, calls::kill_workers),
    row("server-crash", "crash", 1, calls::crash),
];
