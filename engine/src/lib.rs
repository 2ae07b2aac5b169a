//! The engine: finds and embeds the entity mentions of texts with a frozen base model.

pub mod backend;
pub mod batches;
pub mod bench;
pub mod corpus;
pub mod device;
mod download;
pub mod embedder;
pub mod error;
pub mod eval;
pub mod features;
mod finder;
pub mod head;
pub mod mentions;
pub mod model;
pub mod prepare;
pub mod projection;
pub mod representation;
pub mod server;
pub mod startup;
pub mod suffixes;
pub mod sweep;
pub mod tensor_map;
pub mod text;
pub mod tokenizer;
pub mod train;
pub mod window;
