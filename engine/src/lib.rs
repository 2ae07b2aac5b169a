//! The engine: finds and embeds the entity mentions of texts with a frozen base model.

pub mod backend;
pub mod error;
pub mod model;
pub mod tokenizer;
