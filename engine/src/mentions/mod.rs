//! Mention detection: which spans of a text are entity mentions.

pub mod candidates;
pub mod decode;
pub mod probe;
mod span_network;
