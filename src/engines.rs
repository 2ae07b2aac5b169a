//! Which engine serves: the one for GPUs, where it is installed and can run, or the one for the CPU.
//!
//! The engine for GPUs is linked with the driver's library, so that it does not even start on a
//! machine without one. That is found out by starting it: what it says then decides.

use ner_retriever_protocol::{EngineError, ErrorKind};
use pgrx::prelude::*;

use crate::engine_process::EngineCommand;
use crate::gucs;
use crate::text::displayable;

/// What `ner_retriever.device` asks for.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    /// The CPU; also values that the engine is to complain about.
    Cpu,
    /// A GPU if it can be used.
    Auto,
    /// A GPU and nothing else.
    Gpu,
}

impl Wanted {
    fn configured() -> Self {
        match gucs::device().to_str() {
            Some("auto") => Self::Auto,
            Some(name) if name == "cuda" || name.starts_with("cuda:") => Self::Gpu,
            _ => Self::Cpu,
        }
    }
}

/// The engines that the settings allow, and what is known of them.
pub struct Engines {
    wanted: Wanted,
    cpu: EngineCommand,
    gpu: EngineCommand,
    /// Why the engine for GPUs cannot be used. Remembered until the configuration is reloaded:
    /// drivers do not appear by themselves, and trying costs a request its one repetition.
    unusable: Option<String>,
}

impl Engines {
    pub fn configured() -> Self {
        Self {
            wanted: Wanted::configured(),
            cpu: EngineCommand::for_cpu(),
            gpu: EngineCommand::for_gpu(),
            unusable: None,
        }
    }

    /// Takes the settings over; true when they start an engine differently. What made the engine for
    /// GPUs fail may have been repaired, so it is tried again when the next engine starts.
    pub fn reload(&mut self) -> bool {
        let old = std::mem::replace(self, Self::configured());
        old.cpu != self.cpu
    }

    /// The engine to start now.
    ///
    /// # Errors
    /// `DeviceUnavailable` when the settings insist on a GPU and its engine cannot be used.
    pub fn choose(&self) -> Result<&EngineCommand, EngineError> {
        match self.wanted {
            Wanted::Cpu => Ok(&self.cpu),
            Wanted::Auto if self.unusable.is_none() && self.gpu.is_installed() => Ok(&self.gpu),
            Wanted::Auto => Ok(&self.cpu),
            Wanted::Gpu => match &self.unusable {
                Some(reason) => Err(Self::unavailable(reason).hint(
                    "Set ner_retriever.device to auto or cpu, or make it work and call pg_reload_conf().",
                )),
                None if !self.gpu.is_installed() => Err(self.not_installed()),
                None => Ok(&self.gpu),
            },
        }
    }

    /// Whether another engine serves when the one for GPUs cannot.
    pub fn falls_back(&self) -> bool {
        self.wanted == Wanted::Auto
    }

    /// Notes that the engine for GPUs cannot be used, and says so in the log.
    pub fn gpu_is_unusable(&mut self, reason: &str) {
        let reason = displayable(reason.to_owned());
        let consequence = if self.falls_back() {
            "; the CPU is used until the configuration is reloaded"
        } else {
            ""
        };
        log!("ner_retriever: the engine for GPUs cannot be used: {reason}{consequence}");
        self.unusable = Some(reason);
    }

    fn not_installed(&self) -> EngineError {
        let program = self.gpu.program().to_string_lossy();
        Self::unavailable(&format!(
            "the engine for GPUs is not installed (there is no \"{program}\")"
        ))
        .hint("Set ner_retriever.device to auto or cpu, or install it (make install CUDA=1).")
    }

    fn unavailable(reason: &str) -> EngineError {
        let device = gucs::device();
        let message = format!(
            "device \"{}\" cannot be used: {reason}",
            device.to_string_lossy()
        );
        EngineError::new(ErrorKind::DeviceUnavailable, message)
    }
}
