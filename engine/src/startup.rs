//! How an engine for a GPU makes way for the one for the CPU.
//!
//! The supervisor reads why an engine cannot run from what it was given as standard error: what the
//! dynamic loader says when a library is missing comes there before this program runs, and what the
//! program itself has to say comes there too. The log goes to standard output meanwhile.

use std::fs::File;
use std::io::{self, Write};
use std::process;

use ner_retriever_protocol::EXIT_DEVICE_UNUSABLE;
use rustix::stdio::{dup2_stderr, stderr, stdout};

use crate::error::{EngineError, ErrorKind};

/// Whom to tell, if anyone, that another engine must serve.
pub struct Startup {
    explanation: Option<File>,
}

impl Startup {
    /// Nobody asks: errors go to the sessions.
    pub fn unobserved() -> Self {
        Self { explanation: None }
    }

    /// Takes standard error as the place for the explanation and logs to standard output from now
    /// on. Call it before anything logs.
    ///
    /// # Errors
    /// Those of duplicating descriptors.
    pub fn observed() -> io::Result<Self> {
        let explanation = rustix::io::fcntl_dupfd_cloexec(stderr(), 3)?;
        dup2_stderr(stdout())?;
        Ok(Self {
            explanation: Some(explanation.into()),
        })
    }

    /// Gives `result` back, unless it says that the device is the reason for a failure and the
    /// supervisor can start another engine instead: then this process explains itself and ends.
    /// Its connections ask once more, and find the other engine.
    ///
    /// # Errors
    /// That of `result`.
    pub fn or_make_way<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let (Err(error), Some(explanation)) = (&result, &self.explanation) {
            let of_device = [ErrorKind::DeviceUnavailable, ErrorKind::OutOfMemory];
            if of_device.contains(&error.kind) {
                let mut explanation: &File = explanation;
                // Without it the supervisor still knows the exit status.
                let _ = writeln!(explanation, "{}", error.message);
                process::exit(EXIT_DEVICE_UNUSABLE);
            }
        }
        result
    }
}
