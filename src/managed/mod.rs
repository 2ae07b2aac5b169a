//! Managed indexes: tables that stay searchable by entity type. sql/0.2.0 holds the catalogue, the
//! functions that people call and the queue's logic; here is what SQL cannot do: acting with an
//! owner's rights, embedding rows, the triggers' function, and the workers that drain the queue.

mod dependencies;
mod role;
mod rows;
mod statements;
mod triggers;
pub mod wake;
mod worker;
