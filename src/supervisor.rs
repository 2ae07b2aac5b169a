//! The background worker that owns the listening socket and the engine's life.
//!
//! While no engine runs it waits for a connection and then starts one, which finds that connection
//! in the socket's backlog. While one runs it only waits for signals.

use std::ffi::c_int;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use ner_retriever_protocol::{
    EngineError, ErrorKind, Response, SOCKET_PATH, STATUS_SOCKET_PATH, frame,
};
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;

use crate::backoff::Backoff;
use crate::engine_process::{EngineCommand, EngineProcess};
use crate::engines::Engines;
use crate::latch::{Interest, wait};
use crate::paths;
use crate::start::{Origin, open_lock};
use crate::text::displayable;
use crate::visits::Visits;

/// A killed process may linger in the kernel (a GPU driver); the server's shutdown must not wait.
const REAP_LIMIT: Duration = Duration::from_secs(1);

/// The worker's entry point; PostgreSQL finds it by name.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn ner_retriever_supervisor_main(argument: pg_sys::Datum) {
    let origin = Origin::from_argument(argument);
    BackgroundWorker::attach_signal_handlers(
        SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM | SignalWakeFlags::SIGCHLD,
    );
    // With 0 the postmaster forgets the worker, and the next session registers another; with 1 it
    // starts it again, unless the server is shutting down.
    let end = c_int::from(origin == Origin::Preload);
    let code = match Supervisor::new() {
        Ok(Some(mut supervisor)) => {
            supervisor.run();
            supervisor.shut_down();
            end
        }
        // Another one runs.
        Ok(None) => 0,
        Err(error) => {
            log!("ner_retriever: could not listen on \"{SOCKET_PATH}\": {error}");
            end
        }
    };
    // SAFETY: the regular way out of a server process; nothing is left to be dropped.
    unsafe { pg_sys::proc_exit(code) };
}

struct Supervisor {
    listener: UnixListener,
    engines: Engines,
    engine: Option<EngineProcess>,
    backoff: Backoff,
    last_end: String,
    /// Keeps descriptor 3 taken, if it was free: std's pipe, which reports a failed exec, would
    /// otherwise get that number and be overwritten by the engine's listening socket.
    _descriptor_3: OwnedFd,
    _lock: File,
}

impl Supervisor {
    /// Takes the lock and the socket. `None` when another supervisor has them.
    fn new() -> io::Result<Option<Self>> {
        let lock = open_lock(paths::SUPERVISOR_LOCK)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // What a predecessor that was killed has left; nobody else uses it, for we have the lock.
        remove(SOCKET_PATH)?;
        remove(paths::PID_FILE)?;
        let listener = UnixListener::bind(SOCKET_PATH)?;
        listener.set_nonblocking(true)?;
        let descriptor_3 = rustix::io::fcntl_dupfd_cloexec(&listener, 3)?;
        Ok(Some(Self {
            listener,
            engines: Engines::configured(),
            engine: None,
            backoff: Backoff::default(),
            last_end: String::new(),
            _descriptor_3: descriptor_3,
            _lock: lock,
        }))
    }

    fn run(&mut self) {
        let mut visits = Visits::new();
        while !BackgroundWorker::sigterm_received() {
            if BackgroundWorker::sighup_received() {
                self.reload();
            }
            self.reap();
            let next = visits.look();
            if let Some(engine) = &self.engine {
                let timeout = engine.enforce_stop();
                wait(None, Some(timeout.unwrap_or(next).min(next)));
            } else {
                self.wait_for_connection(next);
            }
        }
    }

    /// Waits until it is time for the next look at most.
    fn wait_for_connection(&mut self, next: Duration) {
        let pause = self.backoff.remaining(Instant::now());
        let pause = Some(pause.unwrap_or(next).min(next));
        let connection = Some((self.listener.as_fd(), Interest::Readable));
        if !wait(connection, pause) {
            return;
        }
        match self.backoff.remaining(Instant::now()) {
            Some(left) => self.refuse(self.keeps_ending(left)),
            None => self.start_engine(),
        }
    }

    fn start_engine(&mut self) {
        let command = match self.engines.choose() {
            Ok(command) => command,
            Err(refusal) => return self.refuse(refusal),
        };
        match EngineProcess::start(command, self.listener.as_fd()) {
            Ok(engine) => {
                let pid = engine.pid();
                self.engine = Some(engine);
                log!("ner_retriever: engine started (PID {pid})");
                if let Err(error) = fs::write(paths::PID_FILE, pid.to_string()) {
                    log!(
                        "ner_retriever: could not write \"{}\": {error}",
                        paths::PID_FILE
                    );
                }
            }
            Err(error) if command.is_for_gpu() && is_of_program(&error) => {
                self.engines.gpu_is_unusable(&error.to_string());
            }
            Err(error) => {
                let refusal = cannot_start(command, &error);
                log!("ner_retriever: {refusal}");
                self.refuse(refusal);
            }
        }
    }

    fn reload(&mut self) {
        // SAFETY: the main loop of a worker is where configuration is reloaded.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        // Whatever made the engine end may have been repaired.
        self.backoff.reset();
        if !self.engines.reload() {
            return;
        }
        if let Some(engine) = &mut self.engine {
            log!("ner_retriever: settings have changed, the engine will be started anew");
            engine.stop();
        }
    }

    fn reap(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let status = match engine.try_reap() {
            Ok(None) => return,
            Ok(Some(status)) => Some(status),
            Err(error) => {
                log!("ner_retriever: lost track of the engine: {error}");
                None
            }
        };
        let lifetime = engine.lifetime();
        let as_it_should = status.is_some_and(|status| engine.may_end_with(status));
        let unusable = status.and_then(|status| engine.why_unusable(status));
        let for_gpu = engine.is_for_gpu();
        let explanation = engine.explanation();
        self.engine = None;
        self.forget_pid();
        if let Some(reason) = unusable {
            self.engines.gpu_is_unusable(&reason);
            return;
        }
        let mut ended =
            status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
        if let Some(explanation) = explanation {
            ended = format!("{ended}: {}", displayable(explanation));
        }
        log!("ner_retriever: engine ended ({ended})");
        if as_it_should {
            self.backoff.reset();
        } else {
            self.last_end = ended;
            self.backoff.abnormal_end(lifetime, Instant::now());
            if for_gpu {
                self.give_up_gpu_that_keeps_ending();
            }
        }
    }

    /// An engine that crashes at every start, in the driver for example, cannot be used either.
    fn give_up_gpu_that_keeps_ending(&mut self) {
        if self.engines.falls_back() && self.backoff.remaining(Instant::now()).is_some() {
            let reason = format!("it {}", self.ends());
            self.engines.gpu_is_unusable(&reason);
            self.backoff.reset();
        }
    }

    fn ends(&self) -> String {
        format!(
            "has ended abnormally {} times in quick succession, last with {}",
            self.backoff.abnormal_ends(),
            self.last_end
        )
    }

    /// Answers a connection that waits: it must not hang while no engine may start. The frame is
    /// small enough for any socket buffer; a client that has gone needs no answer.
    fn refuse(&self, refusal: EngineError) {
        if let (Ok(frame), Ok((stream, _))) = (
            frame::encode(&Response::Error(refusal)),
            self.listener.accept(),
        ) {
            let _ = rustix::net::send(&stream, &frame, rustix::net::SendFlags::NOSIGNAL);
        }
    }

    fn keeps_ending(&self, left: Duration) -> EngineError {
        let message = format!("the engine {}", self.ends());
        EngineError::new(ErrorKind::EngineKeepsEnding, message).hint(format!(
            "The server log says why. The engine may start again in {} s, or at once after pg_reload_conf().",
            left.as_secs() + 1
        ))
    }

    /// Ends the engine and removes what tells sessions of it. Takes at most 4 seconds.
    fn shut_down(mut self) {
        let _ = remove(SOCKET_PATH);
        let _ = remove(STATUS_SOCKET_PATH);
        if let Some(engine) = &mut self.engine {
            engine.stop();
            let mut killed = None;
            while let Ok(None) = engine.try_reap() {
                let timeout = engine.enforce_stop().unwrap_or_else(|| {
                    killed.get_or_insert_with(Instant::now);
                    Duration::from_millis(20)
                });
                if killed.is_some_and(|killed| killed.elapsed() > REAP_LIMIT) {
                    break;
                }
                wait(None, Some(timeout));
            }
        }
        self.forget_pid();
    }

    fn forget_pid(&self) {
        if let Err(error) = remove(paths::PID_FILE) {
            log!(
                "ner_retriever: could not remove \"{}\": {error}",
                paths::PID_FILE
            );
        }
    }
}

/// Whether it is the program that cannot be started, and not the machine that is short of something.
fn is_of_program(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
    )
}

fn cannot_start(command: &EngineCommand, error: &io::Error) -> EngineError {
    let program = command.program().to_string_lossy();
    let message = format!("could not start the engine \"{program}\": {error}");
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => EngineError::new(
            ErrorKind::EngineNotFound,
            message,
        )
        .hint(
            "Install the engine there (make install), or set ner_retriever.engine to where it is.",
        ),
        io::ErrorKind::OutOfMemory => EngineError::new(ErrorKind::OutOfMemory, message),
        _ => EngineError::new(ErrorKind::Internal, message),
    }
}

/// Removes a file that may be missing.
fn remove(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
