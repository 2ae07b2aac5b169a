//! Managed indexes: tables that stay searchable by entity type. sql/ holds the catalogue, the functions
//! that people call, the queue's logic and the comparison of tables with what is remembered of them; here
//! is what SQL cannot do: acting with an owner's rights, embedding rows, collecting what changes, reading
//! what a statement is, and the workers that drain the queue.

mod before_update;
mod changes;
mod columns;
mod dependencies;
mod events;
mod extension;
pub mod failures;
mod fixed_settings;
mod progress;
mod role;
mod rows;
mod run_as;
mod server_bytes;
mod snapshot;
mod subtransaction;
mod triggers;
pub mod wake;
mod worker;
mod world;
