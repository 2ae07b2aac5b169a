//! Histories: what people may do to tables with managed indexes, made up from a seed, run, compared
//! with the same without indexes and with indexes made afresh, and shrunk when something differs.
//!
//! Examples show what their author thought of; what goes wrong is what nobody thought of.

mod blocks;
mod calls;
mod changes;
mod compare;
mod definitions;
mod generate;
pub mod history;
mod kinds;
mod partitions;
pub mod place;
mod rng;
pub mod run;
mod settings;
pub mod shrink;
pub mod soak;
mod tables;
mod values;

pub use generate::{Without, generate};
