//! An engine without a model, for tests of what stands around the engine.
//!
//! It speaks the engine's protocol over the sockets that the supervisor hands over, takes and ignores
//! the settings of the model, and answers at once and always alike: that is what lets a test compare an
//! index with its texts a thousand times a minute. It stands in for the real engine below the real
//! tests and replaces none of them: `managed_storm.rs` does the same with the real one.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use ner_retriever_protocol::frame;
use ner_retriever_protocol::{EngineError, ErrorKind, Request, Response};
use ner_retriever_tests::stand_in;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// A client that neither sends nor takes anything for so long has stopped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// What the supervisor's command line says and a stand-in cares about.
struct Options {
    listen_fd: i32,
    status_socket: Option<String>,
    idle_timeout: Option<Duration>,
    max_text_bytes: usize,
}

impl Options {
    /// Reads `serve --name value ...`; names of the model's settings are passed over.
    fn from_arguments() -> Result<Self, String> {
        let mut options = Self {
            listen_fd: -1,
            status_socket: None,
            idle_timeout: None,
            max_text_bytes: 256 * 1024,
        };
        let mut arguments = env::args().skip(1);
        if arguments.next().as_deref() != Some("serve") {
            return Err("the extension's supervisor starts this, with 'serve'".into());
        }
        while let Some(name) = arguments.next().filter(|name| name != "--explain") {
            let value = arguments.next().ok_or(format!("{name} has no value"))?;
            let number = || value.parse::<u64>().map_err(|e| format!("{name}: {e}"));
            match name.as_str() {
                "--listen-fd" => {
                    options.listen_fd = value.parse().map_err(|e| format!("{name}: {e}"))?;
                }
                "--status-socket" => options.status_socket = Some(value),
                "--idle-timeout-ms" => {
                    options.idle_timeout = Some(number()?)
                        .filter(|ms| *ms > 0)
                        .map(Duration::from_millis);
                }
                "--max-text-bytes" => {
                    options.max_text_bytes = usize::try_from(number()?).unwrap_or(usize::MAX);
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// What all connections count together.
#[derive(Default)]
struct Counters {
    open: AtomicUsize,
    requests: AtomicU64,
}

fn main() {
    if let Err(error) = run() {
        eprintln!("stand-in engine: {error}");
        process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let options = Options::from_arguments()?;
    die_with_parent()?;
    if options.listen_fd < 3 {
        return Err("there is no --listen-fd of a socket".into());
    }
    // SAFETY: the supervisor opened the descriptor for this process and says its number on the command
    // line; nothing else here owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(options.listen_fd) };
    let mut listeners = vec![UnixListener::from(socket)];
    if let Some(path) = &options.status_socket {
        listeners.push(own_listener(Path::new(path)).map_err(|e| format!("{path}: {e}"))?);
    }
    serve(&listeners, Arc::new(options)).map_err(|e| e.to_string())
}

/// Ends this process with the supervisor, however that ends, as the real engine does.
fn die_with_parent() -> Result<(), String> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| e.to_string())?;
    // The signal is sent at the parent's death only: one that came earlier shows here.
    if getppid() != parent {
        return Err("the process that started the engine has ended".into());
    }
    Ok(())
}

fn own_listener(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Answers connections until none has come for the idle time.
fn serve(listeners: &[UnixListener], options: Arc<Options>) -> io::Result<()> {
    // A connection that poll announced may be gone by the time of the accept, which must not hang.
    for listener in listeners {
        listener.set_nonblocking(true)?;
    }
    let started = Instant::now();
    let counters = Arc::new(Counters::default());
    loop {
        let mut fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN))
            .collect();
        let timeout = options
            .idle_timeout
            .and_then(|t| Timespec::try_from(t).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) if counters.open.load(Relaxed) == 0 => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for listener in listeners {
            let Ok((stream, _)) = listener.accept() else {
                continue;
            };
            counters.open.fetch_add(1, Relaxed);
            let (options, counters) = (Arc::clone(&options), Arc::clone(&counters));
            thread::spawn(move || {
                // A client that has gone is no failure of the engine.
                let _ = answer(&stream, &options, &counters, started);
                counters.open.fetch_sub(1, Relaxed);
            });
        }
    }
}

/// Reads one request and writes its response.
fn answer(
    stream: &UnixStream,
    options: &Options,
    counters: &Counters,
    started: Instant,
) -> Result<(), frame::FrameError> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let response = match frame::read(&mut &*stream) {
        Ok(None) | Err(frame::FrameError::Io(_)) => return Ok(()),
        Err(error) => Response::Error(EngineError::new(ErrorKind::Protocol, error.to_string())),
        Ok(Some(Request::Status)) => {
            stand_in::status(counters.requests.load(Relaxed), started.elapsed())
        }
        Ok(Some(request)) => {
            counters.requests.fetch_add(1, Relaxed);
            stand_in::response(request, options.max_text_bytes)
        }
    };
    frame::write(&mut &*stream, &response)
}
