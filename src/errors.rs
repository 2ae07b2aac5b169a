//! Every failure that a session can see, and the one place that gives each its SQLSTATE and hint.

use std::backtrace::Backtrace;
use std::io;
use std::time::Duration;

use ner_retriever_protocol::frame::MAX_PAYLOAD_BYTES;
use ner_retriever_protocol::{EngineError, ErrorKind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::PgSqlErrorCode;

use crate::text;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine, or the supervisor in its place, has answered with an error.
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the engine ended during the request")]
    EngineEnded,
    #[error("could not reach the engine: {0}")]
    Unreachable(io::Error),
    #[error("could not use the directory \"ner_retriever\" in the data directory: {0}")]
    RuntimeDir(io::Error),
    #[error("the engine's supervisor did not start within {} seconds", .0.as_secs())]
    SupervisorNotStarted(Duration),
    #[error("no background worker slot is free for the engine's supervisor")]
    NoWorkerSlot,
    #[error("canceling request due to ner_retriever.request_timeout")]
    RequestTimeout,
    #[error("the engine speaks another version of the protocol than this session")]
    ProtocolVersion,
    #[error("the engine gave an answer that cannot be used: {0}")]
    BadAnswer(String),
    #[error("the request is larger than {} MB", MAX_PAYLOAD_BYTES >> 20)]
    RequestTooLarge,
    #[error("a text of {bytes} bytes is larger than the limit of {limit} bytes")]
    TextTooLarge { bytes: usize, limit: usize },
    #[error("out of memory for an answer of {0} bytes")]
    AnswerOutOfMemory(usize),
    #[error("text is not valid UTF-8")]
    InvalidText,
    #[error("name of the entity type must not be empty")]
    EmptyTypeName,
    #[error("the example has {example} dimensions and the type's embedding {name}")]
    ExampleDimensions { example: usize, name: usize },
    #[error("an example is not a vector as pgvector stores it")]
    NotAVector,
    #[error("the state of ner_refine_type is damaged")]
    RefinementState,
    #[error("the model changed during the call")]
    ModelChanged,
    #[error("the engine's model is not the one that made the mentions")]
    ForeignModel { index: String, engine: String },
    #[error("this function is for the extension's own workers")]
    WorkerOnly,
    #[error("this function is for the triggers of a managed index")]
    NotATrigger,
    /// PostgreSQL raises its own errors; this is of the interface between.
    #[error("could not run a statement: {0}")]
    Spi(#[from] pgrx::spi::Error),
    #[error("span {0} is NULL, empty or unbounded")]
    SpanWithoutText(usize),
    #[error("span {0} begins before the text")]
    SpanBeforeText(usize),
}

impl Error {
    fn sqlstate(&self) -> PgSqlErrorCode {
        use PgSqlErrorCode::*;
        match self {
            Self::Engine(error) => engine_sqlstate(error.kind),
            Self::EngineEnded | Self::RuntimeDir(_) => ERRCODE_SYSTEM_ERROR,
            Self::Unreachable(_) | Self::SupervisorNotStarted(_) => ERRCODE_CONNECTION_FAILURE,
            Self::NoWorkerSlot => ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            Self::RequestTimeout => ERRCODE_QUERY_CANCELED,
            Self::ProtocolVersion => ERRCODE_PROTOCOL_VIOLATION,
            Self::BadAnswer(_) => ERRCODE_INTERNAL_ERROR,
            Self::ExampleDimensions { .. } | Self::NotAVector | Self::RefinementState => {
                ERRCODE_DATA_EXCEPTION
            }
            Self::WorkerOnly => ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::NotATrigger => ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            Self::Spi(_) => ERRCODE_INTERNAL_ERROR,
            Self::ModelChanged | Self::ForeignModel { .. } => {
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
            }
            Self::RequestTooLarge | Self::TextTooLarge { .. } => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::AnswerOutOfMemory(_) => ERRCODE_OUT_OF_MEMORY,
            Self::InvalidText => ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
            Self::EmptyTypeName | Self::SpanWithoutText(_) | Self::SpanBeforeText(_) => {
                ERRCODE_INVALID_PARAMETER_VALUE
            }
        }
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Self::Engine(error) => error.hint.as_deref(),
            Self::EngineEnded => Some(
                "The server log says how it ended; a kill by signal 9 usually means that the machine ran out of memory. The next call starts it again.",
            ),
            Self::Unreachable(_) | Self::SupervisorNotStarted(_) => {
                Some("See the server log for messages of ner_retriever.")
            }
            Self::RuntimeDir(_) => {
                Some("The server's user must be able to write to its data directory.")
            }
            Self::NoWorkerSlot => Some(
                "Raise max_worker_processes, or add ner_retriever to shared_preload_libraries; both need a restart of the server.",
            ),
            Self::RequestTimeout => Some("Raise ner_retriever.request_timeout, or set it to 0."),
            Self::ProtocolVersion => Some(
                "After an upgrade of ner_retriever, reconnect; if that does not help, restart the server.",
            ),
            Self::BadAnswer(_) => Some("This is a bug of the engine."),
            Self::RequestTooLarge => Some("Pass fewer texts in one call."),
            Self::TextTooLarge { .. } => {
                Some("Split the text, or raise ner_retriever.max_text_size.")
            }
            Self::AnswerOutOfMemory(_) => Some("Pass fewer or shorter texts in one call."),
            Self::InvalidText => None,
            Self::EmptyTypeName => Some("Pass the name of a type, such as 'dinosaur'."),
            Self::ExampleDimensions { .. } => Some(
                "Embeddings of different models or heads cannot be mixed: embed the example's text anew.",
            ),
            Self::NotAVector | Self::RefinementState => {
                Some("Pass embeddings that ner_entity_embeddings gave.")
            }
            Self::ModelChanged => Some("Call it again."),
            Self::ForeignModel { .. } => {
                Some("Configure the old model again, or embed the table anew with ner_reindex.")
            }
            Self::NotATrigger | Self::WorkerOnly => None,
            Self::Spi(_) => Some("This is a bug of the extension."),
            Self::SpanWithoutText(_) | Self::SpanBeforeText(_) => Some(
                "Spans count characters from 0 and exclude their end, such as int4range(0, 5).",
            ),
        }
    }
}

fn engine_sqlstate(kind: ErrorKind) -> PgSqlErrorCode {
    use PgSqlErrorCode::*;
    match kind {
        ErrorKind::ModelNotFound | ErrorKind::HeadNotFound | ErrorKind::EngineNotFound => {
            ERRCODE_UNDEFINED_FILE
        }
        ErrorKind::ModelUnsupported => ERRCODE_FEATURE_NOT_SUPPORTED,
        ErrorKind::ModelDamaged | ErrorKind::HeadDamaged => ERRCODE_DATA_CORRUPTED,
        ErrorKind::HeadMismatch | ErrorKind::DeviceUnavailable => {
            ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
        }
        ErrorKind::OutOfMemory => ERRCODE_OUT_OF_MEMORY,
        ErrorKind::QueueFull => ERRCODE_TOO_MANY_CONNECTIONS,
        ErrorKind::TextTooLarge => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        ErrorKind::InvalidSpan | ErrorKind::InvalidSetting => ERRCODE_INVALID_PARAMETER_VALUE,
        ErrorKind::Protocol => ERRCODE_PROTOCOL_VIOLATION,
        ErrorKind::Internal => ERRCODE_INTERNAL_ERROR,
        ErrorKind::EngineKeepsEnding => ERRCODE_CANNOT_CONNECT_NOW,
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let message = text::displayable(error.to_string());
        let report = Self::new(error.sqlstate(), message, "ner_retriever");
        match error.hint() {
            Some(hint) => report.set_hint(text::displayable(hint.to_owned())),
            None => report,
        }
    }
}

/// Keeps pgrx from putting Rust backtraces into the DETAIL of users' errors when the server was
/// started with RUST_BACKTRACE. Call it before anything can fail.
pub fn disable_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(VARIABLE);
    // SAFETY: server processes have one thread, so nobody else reads the environment meanwhile.
    unsafe { std::env::set_var(VARIABLE, "0") };
    // The standard library, of which this library has a copy of its own, reads the variable at the
    // first capture only. So the environment can stay what it was: the engine and other libraries
    // in this process have the backtraces that they were told to have.
    drop(Backtrace::capture());
    // SAFETY: as above.
    unsafe {
        match before {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}
