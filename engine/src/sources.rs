//! Where the files of a model are.

use std::path::{Path, PathBuf};

use clap::Args;

/// A head and its base model, as every command takes them.
#[derive(Debug, Clone, Args)]
pub struct Sources {
    /// GGUF file or Hugging Face folder of the base model
    #[arg(long)]
    pub model: PathBuf,
    /// Folder of the head
    #[arg(long)]
    pub head: PathBuf,
    /// Base model of the head's companion, for a head that has one
    #[arg(long)]
    pub companion_model: Option<PathBuf>,
}

impl Sources {
    /// Of a head without a companion.
    pub fn new(model: &Path, head: &Path) -> Self {
        Self {
            model: model.to_owned(),
            head: head.to_owned(),
            companion_model: None,
        }
    }
}
