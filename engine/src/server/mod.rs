//! The engine's server: takes the listening socket that the supervisor owns, answers one request a
//! connection and returns when nobody has needed the model for a while.
//!
//! One thread a connection reads, prepares and answers a request; one thread, the scheduler's, runs
//! the model for all of them.

mod activity;
mod connection;
mod model_slot;
mod process;
mod queue;
mod scheduler;
mod status;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ner_retriever_protocol::{EngineError, ErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::Backend;
use activity::Activity;
use model_slot::ModelSlot;
use process::give_memory_back;
pub use process::{inherited_listener, own_listener, prepare_process};
use scheduler::Scheduler;
use status::Counters;
pub use status::resident_bytes;

/// How long a client may take to send its request, and to take its answer. Both sides are on one
/// machine: only a stopped or broken client needs longer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections beyond `max_queue` that still get a thread: for status requests and for requests
/// that are refused only after they were read.
const SPARE_CONNECTIONS: usize = 32;
/// Pause before the next accept when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the supervisor configures.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// How long after the last request for the model [`serve`] returns; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Tokens of one batch, 0: what suits the device. A window that is larger goes alone.
    pub batch_tokens: usize,
    /// Bytes of one text or type name.
    pub max_text_bytes: usize,
    /// Requests that may wait for the model at the same time.
    pub max_queue: usize,
}

/// Why the server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("descriptor {fd} {problem}; the engine is started by the PostgreSQL extension")]
    Descriptor { fd: i32, problem: &'static str },
    #[error("the process that started the engine has ended")]
    ParentGone,
    #[error("cannot {action}: {source}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
}

/// Serves connections of all `listeners` until the model has not been asked for `idle_timeout`;
/// connections that come later stay in the backlog of an inherited socket for the next engine. `load` runs when
/// the first request needs the model and again after a failure; its error goes to all who wait.
///
/// # Errors
/// `Io` when the listening socket fails; the connections that are open are served first.
pub fn serve<B: Backend>(
    listeners: &[UnixListener],
    options: ServeOptions,
    load: impl Fn() -> Result<B, EngineError> + Send + Sync + 'static,
) -> Result<(), ServeError> {
    serve_with(listeners, options, CLIENT_TIMEOUT, load)
}

/// [`serve`] with a chosen time for clients to send their request and to take their answer.
fn serve_with<B: Backend>(
    listeners: &[UnixListener],
    options: ServeOptions,
    client_timeout: Duration,
    load: impl Fn() -> Result<B, EngineError> + Send + Sync + 'static,
) -> Result<(), ServeError> {
    // A connection that poll announced may be gone by the time of the accept, which must not hang.
    for listener in listeners {
        listener
            .set_nonblocking(true)
            .map_err(|source| ServeError::Io {
                action: "configure the listening socket",
                source,
            })?;
    }
    let counters = Arc::new(Counters::new());
    let (batch_tokens, model_counters) = (options.batch_tokens, Arc::clone(&counters));
    let server = Server {
        activity: Activity::new(options.idle_timeout),
        options,
        client_timeout,
        counters,
        model: ModelSlot::new(move || {
            Scheduler::start(load()?, batch_tokens, Arc::clone(&model_counters))
        }),
    };
    thread::scope(|scope| accept_until_idle(scope, listeners, &server))
}

/// What all threads share.
struct Server<B: Backend> {
    options: ServeOptions,
    client_timeout: Duration,
    counters: Arc<Counters>,
    activity: Activity,
    model: ModelSlot<Scheduler<B>>,
}

impl<B: Backend> Server<B> {
    fn queue_full(&self) -> EngineError {
        EngineError::new(
            ErrorKind::QueueFull,
            format!(
                "{} requests are waiting for the model already",
                self.options.max_queue
            ),
        )
        .hint("Try again later, or raise ner_retriever.max_queue.")
    }
}

/// Accepting and deciding to exit happen on one thread: once it has decided, nobody accepts.
fn accept_until_idle<'scope, B: Backend>(
    scope: &'scope thread::Scope<'scope, '_>,
    listeners: &[UnixListener],
    server: &'scope Server<B>,
) -> Result<(), ServeError> {
    loop {
        let ready = wait_readable(listeners, server.activity.until_idle())?;
        for listener in ready {
            match listener.accept() {
                Ok((stream, _)) => spawn(scope, server, Arc::new(stream)),
                Err(error) if is_transient(&error) => {}
                Err(error) if is_shortage(&error) => {
                    log(&format!("cannot accept a connection for now: {error}"));
                    thread::sleep(ACCEPT_PAUSE);
                }
                Err(source) => {
                    return Err(ServeError::Io {
                        action: "accept a connection",
                        source,
                    });
                }
            }
        }
        if server.activity.settles() {
            give_memory_back();
        }
        if server.activity.is_idle() {
            return Ok(());
        }
    }
}

/// Starts the thread of a connection, or refuses it.
fn spawn<'scope, B: Backend>(
    scope: &'scope thread::Scope<'scope, '_>,
    server: &'scope Server<B>,
    stream: Arc<UnixStream>,
) {
    let limit = server.options.max_queue.saturating_add(SPARE_CONNECTIONS);
    if !server.activity.open(limit) {
        connection::refuse(&stream, server.queue_full());
        return;
    }
    let client = Arc::clone(&stream);
    let spawned = thread::Builder::new()
        .name("connection".into())
        .spawn_scoped(scope, move || {
            let handled = catch_panic("answering a request", || {
                connection::handle(server, client);
                Ok(())
            });
            if let Err(error) = handled {
                log(&error.message);
            }
            server.activity.close();
        });
    if let Err(error) = spawned {
        server.activity.close();
        let refusal = EngineError::new(
            ErrorKind::QueueFull,
            format!("the engine cannot start a thread for the request: {error}"),
        );
        connection::refuse(
            &stream,
            refusal.hint("Lower ner_retriever.max_queue, or raise the limit of processes."),
        );
    }
}

/// Waits for a connection; gives the listeners that have one, none when `timeout` has passed.
fn wait_readable(
    listeners: &[UnixListener],
    timeout: Option<Duration>,
) -> Result<Vec<&UnixListener>, ServeError> {
    // A timeout too long for the system is as good as none.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut fds: Vec<PollFd> = listeners
        .iter()
        .map(|listener| PollFd::new(listener, PollFlags::IN))
        .collect();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(listeners
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(listener, _)| listener)
            .collect()),
        Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
        Err(error) => Err(ServeError::Io {
            action: "wait for connections",
            source: error.into(),
        }),
    }
}

/// The connection is gone, or another engine has taken it.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// A panic of another thread leaves what our mutexes guard consistent: no guard spans foreign code.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs model code and turns a panic into an `Internal` error, so that one bad request does not
/// end the engine. `doing` says what failed, as in "failed while doing".
fn catch_panic<T>(
    doing: &str,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(EngineError::new(
            ErrorKind::Internal,
            format!(
                "the engine failed while {doing}: {}",
                panic_message(&*panic)
            ),
        )
        .hint("This is a bug in the engine. The server log tells where it happened."))
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown cause")
}

/// Writes a line to the server's log. Unlike `eprintln!` it does not panic when the log is gone.
fn log(message: &str) {
    use io::Write;
    let _ = writeln!(io::stderr(), "ner-retriever-engine: {message}");
}
