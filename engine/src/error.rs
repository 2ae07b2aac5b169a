//! Constructors of [`EngineError`] for failures that arise in many places.

use std::{fmt::Display, io, path::Path};

pub use ner_retriever_protocol::{EngineError, ErrorKind};

pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// A failure of a tensor operation while a loaded model runs. candle reports a failed device
/// allocation as text only.
pub fn compute(error: candle_core::Error) -> EngineError {
    let message = error.to_string();
    if message.to_ascii_lowercase().contains("out of memory") {
        EngineError::new(ErrorKind::OutOfMemory, "the device is out of memory")
            .hint("Lower ner_retriever.batch_tokens, or use a smaller model or a larger device.")
    } else {
        EngineError::new(
            ErrorKind::Internal,
            format!("a tensor operation failed: {message}"),
        )
        .hint("This is a bug; please report it with the server's log.")
    }
}

/// A file of the model that is missing or cannot be read.
pub fn model_file(path: &Path, error: &io::Error) -> EngineError {
    EngineError::new(
        ErrorKind::ModelNotFound,
        format!("cannot read model file \"{}\": {error}", path.display()),
    )
    .hint(
        "Set ner_retriever.model to a GGUF file or a Hugging Face checkpoint folder that the \
         server's operating system user can read.",
    )
}

/// A model whose content contradicts itself or ends early.
pub fn model_damaged(path: &Path, problem: impl Display) -> EngineError {
    EngineError::new(
        ErrorKind::ModelDamaged,
        format!("model \"{}\" is damaged: {problem}", path.display()),
    )
    .hint("Download or copy the model again and compare its checksum with the publisher's.")
}

/// An intact model that this engine cannot run.
pub fn model_unsupported(path: &Path, problem: impl Display, hint: &str) -> EngineError {
    EngineError::new(
        ErrorKind::ModelUnsupported,
        format!("model \"{}\" is not supported: {problem}", path.display()),
    )
    .hint(hint)
}

/// A head whose files contradict themselves or end early.
pub fn head_damaged(path: &Path, problem: impl Display) -> EngineError {
    EngineError::new(
        ErrorKind::HeadDamaged,
        format!("head \"{}\" is damaged: {problem}", path.display()),
    )
    .hint("Copy the head's folder again, or train a new one with ner-retriever-engine train.")
}
