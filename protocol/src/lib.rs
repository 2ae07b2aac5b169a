//! The messages between the PostgreSQL extension and the engine, and nothing else.
//!
//! A connection carries one request and one response, each in one frame ([`frame`]). A client that
//! closes its connection before the response arrives has cancelled its request.

pub mod frame;

use serde::{Deserialize, Serialize};

/// Where the supervisor listens, relative to the data directory: every backend's working directory
/// is the data directory, so the path neither depends on its length nor can other users reach it.
pub const SOCKET_DIR: &str = "ner_retriever";
/// The listening socket in [`SOCKET_DIR`].
pub const SOCKET_PATH: &str = "ner_retriever/engine.sock";
/// The running engine's own socket in [`SOCKET_DIR`], for requests that must not start one: what
/// connects to [`SOCKET_PATH`] while an engine ends would wait for the next.
pub const STATUS_SOCKET_PATH: &str = "ner_retriever/status.sock";

/// Exit code of an engine whose device cannot be used, or has too little memory for the model, and
/// that was told that another engine can serve instead.
pub const EXIT_DEVICE_UNUSABLE: i32 = 69;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Detect the mentions of texts and, if `embed` is set, embed them.
    Mentions {
        texts: Vec<TextRequest>,
        embed: bool,
        /// Least probability of a detected mention, instead of the head's own.
        threshold: Option<f32>,
        priority: Priority,
    },
    /// Embed the name of an entity type.
    Type { name: String },
    /// Report the engine's state; never loads the model.
    Status,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextRequest {
    pub text: String,
    /// The caller's spans, which replace detection; mentions come back in this order.
    pub spans: Option<Vec<Span>>,
}

/// Interactive requests go before bulk ones, which still progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Priority {
    Interactive,
    Bulk,
}

/// A range of characters (Unicode code points) of a text: 0-based, `end` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// One list of mentions per requested text, in order.
    Mentions {
        fingerprint: String,
        texts: Vec<Vec<Mention>>,
    },
    Type {
        fingerprint: String,
        /// L2-normalised, `[dims]`.
        embedding: Vec<f32>,
    },
    Status(Box<Status>),
    Error(EngineError),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mention {
    pub span: Span,
    /// The mention's characters, exactly as in the text.
    pub text: String,
    /// The detector's probability in 0..=1; 1 for a span given by the caller.
    pub score: f32,
    /// L2-normalised, `[dims]`; empty when the request did not ask for embeddings.
    pub embedding: Vec<f32>,
}

/// A failure that the engine reports to the session that asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    pub kind: ErrorKind,
    /// What was wrong, in PostgreSQL's style: no capital, no full stop.
    pub message: String,
    /// What to do about it, one or more full sentences.
    pub hint: Option<String>,
}

impl EngineError {
    /// An error without a hint; add one with [`EngineError::hint`].
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The kinds of failure; the extension maps each to one SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The model's file or folder is not there or cannot be read.
    ModelNotFound,
    /// The model is intact, but of an architecture, tokenizer or format that is not supported.
    ModelUnsupported,
    /// The model's files contradict themselves or end early.
    ModelDamaged,
    HeadNotFound,
    HeadDamaged,
    /// The head was trained for another base model.
    HeadMismatch,
    /// The configured device cannot be used.
    DeviceUnavailable,
    OutOfMemory,
    /// Too many requests are waiting.
    QueueFull,
    /// A text or a request is larger than the configured limit.
    TextTooLarge,
    /// A span given by the caller lies outside its text or is empty.
    InvalidSpan,
    /// A setting has a value that the engine does not accept.
    InvalidSetting,
    /// The request could not be decoded.
    Protocol,
    /// A bug or an unforeseen failure of a library.
    Internal,
    /// The engine's program is not there or cannot be run; only the supervisor says so.
    EngineNotFound,
    /// The engine has ended abnormally so often that it is not started for a while; only the
    /// supervisor says so.
    EngineKeepsEnding,
}

/// What the engine is doing; counters count since its start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    pub pid: u32,
    /// Present once a model has been loaded.
    pub model: Option<ModelInfo>,
    pub uptime_ms: u64,
    pub requests: u64,
    /// Tokens of texts and type names that went through the model, special tokens included; those
    /// of mentions' suffixes are not counted.
    pub tokens: u64,
    pub batches: u64,
    /// Requests that went through the model in a batch with another request.
    pub merged_requests: u64,
    /// Requests waiting for the model.
    pub queue_depth: u64,
    /// Resident memory of the engine process, bytes.
    pub resident_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum State {
    /// Running, no model loaded yet.
    #[default]
    Idle,
    Loading,
    Ready,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The model's path as configured.
    pub model: String,
    /// The head's name.
    pub head: String,
    /// Hash of base model and head: vectors of different fingerprints are not comparable.
    pub fingerprint: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// 0-based block whose attention values represent a mention.
    pub block: u32,
    /// Dimensions of an embedding.
    pub dims: u32,
    /// The numbers that the model computes in: `f32`, `bf16`, `int8`.
    pub dtype: String,
}
