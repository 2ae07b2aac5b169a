//! The engine as a child process of the supervisor: its command line, its birth, its end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ner_retriever_protocol::{EXIT_DEVICE_UNUSABLE, STATUS_SOCKET_PATH};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::{gucs, paths};

/// The descriptor that the engine finds its listening socket at.
const LISTEN_FD: RawFd = 3;
/// How long an engine that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(3);
/// Linux does not promise a range; descriptors above this are not opened in a background worker.
const HIGHEST_FD: libc::c_int = 65_535;

/// With this the dynamic loader ends a program that lacks a library.
const LOADER_FAILED: i32 = 127;
/// More than any reason of an engine that cannot run has, bytes.
const REASON_BYTES: usize = 1024;

/// What the engine is started with.
#[derive(PartialEq)]
pub struct EngineCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// `None`: it never ends by itself.
    idle_timeout: Option<Duration>,
    /// Whether it may find that it cannot run on this machine, and says why.
    explains: bool,
}

impl EngineCommand {
    /// The engine for the CPU as the current settings start it.
    pub fn for_cpu() -> Self {
        Self::configured(cpu_engine(), false)
    }

    /// The engine for GPUs as the current settings start it; it stands beside the other.
    pub fn for_gpu() -> Self {
        let mut program = cpu_engine().into_os_string();
        program.push(paths::GPU_SUFFIX);
        Self::configured(program.into(), true)
    }

    fn configured(program: PathBuf, explains: bool) -> Self {
        let model_or_shipped = |path: Option<OsString>| {
            path.unwrap_or_else(|| paths::shipped_model().into_os_string())
        };
        let head = gucs::head().unwrap_or_else(|| paths::shipped_head().into_os_string());
        let options: [(&str, OsString); 13] = [
            ("--listen-fd", number(LISTEN_FD)),
            ("--status-socket", STATUS_SOCKET_PATH.into()),
            ("--model", model_or_shipped(gucs::model())),
            (
                "--companion-model",
                model_or_shipped(gucs::companion_model()),
            ),
            ("--head", head),
            ("--device", gucs::device()),
            ("--dtype", gucs::dtype()),
            ("--detector", gucs::detector()),
            (
                "--idle-timeout-ms",
                number(milliseconds(gucs::idle_timeout())),
            ),
            ("--batch-tokens", number(gucs::batch_tokens())),
            ("--threads", number(gucs::threads())),
            ("--max-text-bytes", number(gucs::max_text_bytes())),
            ("--max-queue", number(gucs::max_queue())),
        ];
        let options = options
            .into_iter()
            .flat_map(|(name, value)| [OsString::from(name), value]);
        let mut arguments: Vec<OsString> = std::iter::once("serve".into()).chain(options).collect();
        if explains {
            arguments.push("--explain".into());
        }
        Self {
            program,
            arguments,
            idle_timeout: gucs::idle_timeout(),
            explains,
        }
    }

    /// False only when there is certainly no such program; any other trouble shows at its start.
    pub fn is_installed(&self) -> bool {
        self.program.try_exists().unwrap_or(true)
    }

    /// Whether this is the engine for GPUs.
    pub fn is_for_gpu(&self) -> bool {
        self.explains
    }

    pub fn program(&self) -> &OsStr {
        self.program.as_os_str()
    }
}

fn cpu_engine() -> PathBuf {
    gucs::engine().map_or_else(paths::shipped_engine, PathBuf::from)
}

/// 0 stands for no limit, on the command line as in the settings.
fn milliseconds(duration: Option<Duration>) -> u128 {
    duration.map_or(0, |duration| duration.as_millis())
}

fn number(value: impl ToString) -> OsString {
    value.to_string().into()
}

/// A running engine.
pub struct EngineProcess {
    child: Child,
    started: Instant,
    idle_timeout: Option<Duration>,
    /// Of an engine for GPUs: why it cannot run, as the dynamic loader or itself says.
    explanation: Option<File>,
    /// Set once it has been asked to end: when to kill it.
    kill_at: Option<Instant>,
}

impl EngineProcess {
    /// Starts an engine that serves `listener`. It gets nothing else of this process: no
    /// descriptor but the standard ones, no signal mask, no ignored signal. It dies with this
    /// process, however that ends.
    ///
    /// # Errors
    /// Those of fork and exec; `NotFound` and `PermissionDenied` mean the program.
    pub fn start(command: &EngineCommand, listener: BorrowedFd<'_>) -> io::Result<Self> {
        let listener = listener.as_raw_fd();
        let supervisor = rustix::process::getpid();
        let explanation = command.explains.then(anonymous_file).transpose()?;
        let mut child = Command::new(&command.program);
        child
            .args(&command.arguments)
            .stdin(Stdio::null())
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            // The postmaster signals the process groups of its children: a group of its own
            // leaves it to the supervisor how the engine ends.
            .process_group(0);
        if let Some(file) = &explanation {
            child.stderr(file.try_clone()?);
        }
        // SAFETY: between fork and exec the closure makes system calls only; it neither allocates
        // nor locks.
        unsafe { child.pre_exec(move || prepare_child(listener, supervisor)) };
        // Before the engine's own clock starts: it cannot be idle for longer than it lived.
        let started = Instant::now();
        Ok(Self {
            child: child.spawn()?,
            started,
            idle_timeout: command.idle_timeout,
            explanation,
            kill_at: None,
        })
    }

    pub fn is_for_gpu(&self) -> bool {
        self.explanation.is_some()
    }

    /// Why this engine, which ended with `status`, cannot run on this machine; `None` if it can, or was
    /// asked to end.
    pub fn why_unusable(&self, status: ExitStatus) -> Option<String> {
        let cannot_run = matches!(status.code(), Some(LOADER_FAILED | EXIT_DEVICE_UNUSABLE));
        if !cannot_run || !self.is_for_gpu() || self.kill_at.is_some() {
            return None;
        }
        let reason = self.explanation();
        Some(reason.unwrap_or_else(|| format!("it ended with {status}")))
    }

    /// What an engine for GPUs, or the dynamic loader in its place, has said before it ran: the last
    /// line, for a library may have said something before.
    pub fn explanation(&self) -> Option<String> {
        let mut text = [0; REASON_BYTES];
        let len = self.explanation.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(&text[..len]);
        let line = text.trim_end().lines().next_back()?;
        // The loader names the program first.
        let reason = match line.split_once(": ") {
            Some((program, reason)) if program.contains('/') => reason,
            _ => line,
        };
        Some(reason.to_owned())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn lifetime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether this is a normal end: on request, or after having been idle. A program that is no
    /// engine may well end at once and report success.
    pub fn may_end_with(&self, status: ExitStatus) -> bool {
        let idle = self
            .idle_timeout
            .is_some_and(|idle| self.lifetime() >= idle);
        self.kill_at.is_some() || (status.success() && idle)
    }

    /// Asks the engine to end; [`Self::enforce_stop`] says when to insist.
    pub fn stop(&mut self) {
        if self.kill_at.is_none() {
            self.signal(Signal::TERM);
            self.kill_at = Some(Instant::now() + GRACE);
        }
    }

    /// Time left for an engine that was asked to end. Kills it when there is none left.
    pub fn enforce_stop(&self) -> Option<Duration> {
        let left = self.kill_at?.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.signal(Signal::KILL);
        None
    }

    /// How the engine ended; `None` while it runs.
    pub fn try_reap(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The child has not been reaped, so its id is still its own. A failure means that it has
    /// ended already.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// A file in memory that ends with its last descriptor.
fn anonymous_file() -> io::Result<File> {
    let file = memfd_create(c"ner_retriever", MemfdFlags::CLOEXEC)?;
    Ok(file.into())
}

/// Runs in the child, between fork and exec.
fn prepare_child(listener: RawFd, supervisor: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The signal is sent at the parent's death only: one that came earlier shows here.
    if getppid() != Some(supervisor) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    default_signals();
    pass_descriptor(listener)?;
    close_others_on_exec();
    Ok(())
}

/// Handlers end with exec, but the signals that the server ignores or blocks would stay so.
fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is no function of ours; numbers that cannot be set are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised before it is used; the old one is not asked for.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn pass_descriptor(listener: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on descriptors. dup2 clears close-on-exec, except when both
    // descriptors are the same, which fcntl is for.
    let failed = unsafe {
        libc::dup2(listener, LISTEN_FD) < 0 || libc::fcntl(LISTEN_FD, libc::F_SETFD, 0) < 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Marks all descriptors above the listening socket; std's own, which reports a failed exec, stays
/// usable until then.
fn close_others_on_exec() {
    let first = LISTEN_FD + 1;
    // SAFETY: plain system calls that change nothing but descriptor flags. Linux before 5.11 does
    // not know the first; descriptors that are not open are refused by the second.
    unsafe {
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) < 0 {
            for descriptor in first..=HIGHEST_FD {
                libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}
