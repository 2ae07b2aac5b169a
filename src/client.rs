//! A session's side of a request: one connection, one frame each way, interruptible at any moment.
//!
//! When a cancel unwinds through here the socket is closed, which is how the engine learns that the
//! work is no longer wanted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ner_retriever_protocol::frame::{self, FrameError, HEADER_BYTES};
use ner_retriever_protocol::{Request, Response, SOCKET_PATH, STATUS_SOCKET_PATH};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

use crate::errors::Error;
use crate::gucs;
use crate::latch::{Interest, wait_interruptibly};
use crate::start::Starter;

/// A request is idempotent, so one whose engine ended (idle, killed) is sent once more.
const ATTEMPTS: usize = 2;
/// Pause before another try when the backlog is full, or the socket is not there yet.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Sends a request, starting the supervisor if none runs, and waits for the answer.
///
/// # Errors
/// `Engine` for an error that the engine reports; others when there is no answer.
pub fn ask(request: &Request) -> Result<Response, Error> {
    let frame = encode(request)?;
    let deadline = Deadline::from_settings();
    for _ in 0..ATTEMPTS {
        let socket = connect_or_start(&deadline)?;
        if let Some(response) = exchange(&socket, &frame, &deadline)? {
            return accept(response);
        }
    }
    Err(Error::EngineEnded)
}

/// Sends a request to an engine that runs already, on its own socket, so that none is started.
/// `None` when there is none, or it has ended.
///
/// # Errors
/// As [`ask`].
pub fn ask_if_running(request: &Request) -> Result<Option<Response>, Error> {
    let frame = encode(request)?;
    let deadline = Deadline::from_settings();
    let socket = match try_connect(STATUS_SOCKET_PATH) {
        Ok(socket) => socket,
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(Error::Unreachable(error.into())),
    };
    exchange(&socket, &frame, &deadline)?
        .map(accept)
        .transpose()
}

/// An error about an answer of a kind that was not asked for.
pub fn unexpected(response: &Response) -> Error {
    let kind = match response {
        Response::Mentions { .. } => "mentions",
        Response::Type { .. } => "a type's embedding",
        Response::Status(_) => "its status",
        Response::Error(_) => "an error",
    };
    Error::BadAnswer(format!("{kind} were not asked for"))
}

fn accept(response: Response) -> Result<Response, Error> {
    match response {
        Response::Error(error) => Err(Error::Engine(error)),
        response => Ok(response),
    }
}

fn encode(request: &Request) -> Result<Vec<u8>, Error> {
    frame::encode(request).map_err(|error| match error {
        FrameError::TooLarge(_) => Error::RequestTooLarge,
        other => Error::Unreachable(io::Error::other(other)),
    })
}

/// The end of what `request_timeout` allows.
struct Deadline(Option<Instant>);

impl Deadline {
    fn from_settings() -> Self {
        Self(gucs::request_timeout().map(|timeout| Instant::now() + timeout))
    }

    /// Time left; `None` means no limit.
    fn remaining(&self) -> Result<Option<Duration>, Error> {
        let Some(end) = self.0 else { return Ok(None) };
        match end.checked_duration_since(Instant::now()) {
            None | Some(Duration::ZERO) => Err(Error::RequestTimeout),
            left => Ok(left),
        }
    }

    fn pause(&self) -> Result<(), Error> {
        let left = self.remaining()?.unwrap_or(RETRY_PAUSE);
        wait_interruptibly(None, Some(left.min(RETRY_PAUSE)));
        Ok(())
    }
}

fn connect_or_start(deadline: &Deadline) -> Result<OwnedFd, Error> {
    let mut starter = Starter::default();
    loop {
        match try_connect(SOCKET_PATH) {
            Ok(socket) => return Ok(socket),
            // The backlog is full: the engine takes connections from it as fast as it can.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => starter.keep_starting()?,
            Err(error) => return Err(Error::Unreachable(error.into())),
        }
        deadline.pause()?;
    }
}

/// One connect that neither waits nor leaks into child processes.
fn try_connect(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends the frame and reads the answer. `None` when the connection ended before the answer.
fn exchange(
    socket: &OwnedFd,
    frame: &[u8],
    deadline: &Deadline,
) -> Result<Option<Response>, Error> {
    send_frame(socket, frame, deadline)?;
    let mut header = [0; HEADER_BYTES];
    if !receive(socket, &mut header, deadline)? {
        return Ok(None);
    }
    let len = frame::payload_len(header).map_err(bad_frame)?;
    let mut payload: Vec<u8> = Vec::new();
    payload
        .try_reserve_exact(len)
        .map_err(|_| Error::AnswerOutOfMemory(len))?;
    payload.resize(len, 0);
    if !receive(socket, &mut payload, deadline)? {
        return Ok(None);
    }
    frame::decode(&payload).map(Some).map_err(bad_frame)
}

fn bad_frame(error: FrameError) -> Error {
    match error {
        FrameError::Version => Error::ProtocolVersion,
        other => Error::BadAnswer(other.to_string()),
    }
}

/// Sends all of `frame`, or as much as the peer wants: it may answer before it has read everything
/// (a refusal), and the answer is then there to read even if it closed the connection.
fn send_frame(socket: &OwnedFd, mut frame: &[u8], deadline: &Deadline) -> Result<(), Error> {
    while !frame.is_empty() {
        match send(socket, frame, SendFlags::NOSIGNAL) {
            Ok(sent) => frame = &frame[sent..],
            Err(Errno::AGAIN) => {
                wait(socket, Interest::Any, deadline)?;
                if is_readable(socket) {
                    return Ok(());
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(error) => return Err(Error::Unreachable(error.into())),
        }
        pgrx::check_for_interrupts!();
    }
    Ok(())
}

/// Whether there is an answer, or the end of the stream.
fn is_readable(socket: &OwnedFd) -> bool {
    let mut byte = [0_u8; 1];
    recv(socket, &mut byte, RecvFlags::PEEK) != Err(Errno::AGAIN)
}

/// Fills `buffer`. False when the stream ends before.
fn receive(socket: &OwnedFd, mut buffer: &mut [u8], deadline: &Deadline) -> Result<bool, Error> {
    while !buffer.is_empty() {
        match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) | Err(Errno::CONNRESET | Errno::PIPE) => return Ok(false),
            Ok((received, _)) => buffer = &mut buffer[received..],
            Err(Errno::AGAIN) => wait(socket, Interest::Readable, deadline)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Unreachable(error.into())),
        }
        pgrx::check_for_interrupts!();
    }
    Ok(true)
}

fn wait(socket: &OwnedFd, interest: Interest, deadline: &Deadline) -> Result<(), Error> {
    wait_interruptibly(Some((socket.as_fd(), interest)), deadline.remaining()?);
    Ok(())
}
