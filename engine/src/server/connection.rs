//! One connection: one request, one response.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ner_retriever_protocol::frame::{self, FrameError};
use ner_retriever_protocol::{EngineError, ErrorKind, Priority, Request, Response};

use super::queue::clients_gone;
use super::scheduler::Scheduler;
use super::{Server, catch_panic};
use crate::backend::{Backend, Input, Output};

/// How long a client whose request was not read to its end may go on sending.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request has no result.
enum Failure {
    Error(EngineError),
    /// The client has closed the connection: nobody wants an answer.
    Abandoned,
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Error(error)
    }
}

/// Reads the request of a new connection and answers it.
pub(super) fn handle<B: Backend>(server: &Server<B>, stream: Arc<UnixStream>) {
    let timeout = server.client_timeout;
    let request = match frame::read(&mut Timed::new(&stream, timeout)) {
        Ok(Some(request)) => request,
        // It has gone, or it sent nothing for too long: there is no one to talk to.
        Ok(None) | Err(FrameError::Io(_)) => return,
        Err(error) => {
            send(&stream, timeout, &Response::Error(protocol_error(&error)));
            drain(&stream);
            return;
        }
    };
    match request {
        Request::Status => send(&stream, timeout, &status(server)),
        Request::Mentions {
            texts,
            embed,
            threshold,
            priority,
        } => {
            let inputs = texts
                .into_iter()
                .map(|request| Input::Text {
                    request,
                    embed,
                    threshold,
                })
                .collect();
            answer(server, &stream, Work { inputs, priority }, mentions);
        }
        Request::Type { name } => {
            let work = Work {
                inputs: vec![Input::Type { name }],
                priority: Priority::Interactive,
            };
            answer(server, &stream, work, type_embedding);
        }
    }
}

/// Answers a connection that gets no thread.
pub(super) fn refuse(stream: &UnixStream, refusal: EngineError) {
    // What has arrived already is taken in: closing over unread bytes would look like a crash.
    if stream.set_nonblocking(true).is_ok() {
        let mut arrived = [0; 16 * 1024];
        let _ = (&mut &*stream).read(&mut arrived);
        let _ = frame::write(&mut &*stream, &Response::Error(refusal));
    }
}

/// What a request asks of the model.
struct Work {
    inputs: Vec<Input>,
    priority: Priority,
}

/// Runs a request through the model and sends what `respond` makes of its outputs.
fn answer<B: Backend>(
    server: &Server<B>,
    stream: &Arc<UnixStream>,
    work: Work,
    respond: impl FnOnce(String, Vec<Output>) -> Result<Response, EngineError>,
) {
    server.counters.requests.fetch_add(1, Relaxed);
    let working = server.activity.work();
    let response = run(server, stream, work)
        .and_then(|(fingerprint, outputs)| Ok(respond(fingerprint, outputs)?));
    drop(working);
    match response {
        Ok(response) => send(stream, server.client_timeout, &response),
        Err(Failure::Error(error)) => {
            send(stream, server.client_timeout, &Response::Error(error));
        }
        Err(Failure::Abandoned) => {}
    }
}

/// The fingerprint of the model and its outputs, one for each input.
fn run<B: Backend>(
    server: &Server<B>,
    stream: &Arc<UnixStream>,
    work: Work,
) -> Result<(String, Vec<Output>), Failure> {
    check_sizes(&work.inputs, server.options.max_text_bytes)?;
    let place = server
        .counters
        .admit(server.options.max_queue)
        .ok_or_else(|| server.queue_full())?;
    let model = server.model.get_or_load()?;
    let backend = model.backend();

    let mut windows = Vec::new();
    let mut tokens = Vec::new();
    let mut prepared = Vec::with_capacity(work.inputs.len());
    for input in work.inputs {
        check_client(stream)?;
        let (prepared_input, input_windows) = catch_panic("preparing a text", || {
            let (prepared, windows) = backend.prepare(input)?;
            tokens.extend(windows.iter().map(|window| backend.tokens(window)));
            Ok((prepared, windows))
        })?;
        prepared.push((prepared_input, input_windows.len()));
        windows.extend(input_windows);
    }
    let outputs = compute(&model, stream, work.priority, windows, tokens)?;
    drop(place);

    let mut window_outputs = outputs.into_iter();
    let mut outputs = Vec::with_capacity(prepared.len());
    for (prepared, count) in prepared {
        check_client(stream)?;
        let own = window_outputs.by_ref().take(count).collect();
        outputs.push(catch_panic("finishing a text", || {
            backend.finish(prepared, own)
        })?);
    }
    Ok((backend.info().fingerprint.clone(), outputs))
}

/// Waits for the model thread's outputs, one for each window.
fn compute<B: Backend>(
    model: &Scheduler<B>,
    stream: &Arc<UnixStream>,
    priority: Priority,
    windows: Vec<B::Window>,
    tokens: Vec<usize>,
) -> Result<Vec<B::WindowOutput>, Failure> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let answer = model.submit(Arc::clone(stream), priority, windows, tokens);
    Ok(answer.recv().map_err(|_| Failure::Abandoned)??)
}

fn check_sizes(inputs: &[Input], max_text_bytes: usize) -> Result<(), EngineError> {
    for (index, input) in inputs.iter().enumerate() {
        let (what, bytes) = match input {
            Input::Text { request, .. } if inputs.len() > 1 => {
                (format!("text {}", index + 1), request.text.len())
            }
            Input::Text { request, .. } => ("the text".into(), request.text.len()),
            Input::Type { name } => ("the type name".into(), name.len()),
        };
        if bytes > max_text_bytes {
            return Err(EngineError::new(
                ErrorKind::TextTooLarge,
                format!("{what} has {bytes} bytes, more than the limit of {max_text_bytes} bytes"),
            )
            .hint("Split the text, or raise ner_retriever.max_text_size."));
        }
    }
    Ok(())
}

fn check_client(stream: &UnixStream) -> Result<(), Failure> {
    if clients_gone(std::iter::once(stream)).contains(&true) {
        return Err(Failure::Abandoned);
    }
    Ok(())
}

fn mentions(fingerprint: String, outputs: Vec<Output>) -> Result<Response, EngineError> {
    let texts = outputs
        .into_iter()
        .map(|output| match output {
            Output::Mentions(mentions) => Ok(mentions),
            Output::Type(_) => Err(wrong_output()),
        })
        .collect::<Result<_, _>>()?;
    Ok(Response::Mentions { fingerprint, texts })
}

fn type_embedding(fingerprint: String, mut outputs: Vec<Output>) -> Result<Response, EngineError> {
    match outputs.pop() {
        Some(Output::Type(embedding)) => Ok(Response::Type {
            fingerprint,
            embedding,
        }),
        _ => Err(wrong_output()),
    }
}

fn wrong_output() -> EngineError {
    EngineError::new(
        ErrorKind::Internal,
        "the model answered another question than it was asked",
    )
}

fn status<B: Backend>(server: &Server<B>) -> Response {
    let (state, model) = server.model.peek();
    let info = model.map(|model| model.backend().info().clone());
    Response::Status(Box::new(server.counters.status(state, info)))
}

fn protocol_error(error: &FrameError) -> EngineError {
    EngineError::new(
        ErrorKind::Protocol,
        format!("the engine does not understand the request: {error}"),
    )
    .hint(
        "The session and the engine may run different versions of the extension. Start a new \
         session; if that does not help, restart the server.",
    )
}

/// Sends the response. A client that has gone is no failure of the engine.
fn send(stream: &UnixStream, timeout: Duration, response: &Response) {
    let bytes = frame::encode(response).or_else(|error| {
        let error = EngineError::new(
            ErrorKind::TextTooLarge,
            format!("the answer cannot be sent: {error}"),
        )
        .hint("Ask for fewer texts at once.");
        frame::encode(&Response::Error(error))
    });
    if let Ok(bytes) = bytes {
        let _ = Timed::new(stream, timeout).write_all(&bytes);
    }
}

/// Reads and forgets what the client still sends, so that it gets to read its answer: closing over
/// unread bytes breaks the client's own sending first.
fn drain(stream: &UnixStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = io::copy(&mut Timed::new(stream, DRAIN_TIMEOUT), &mut io::sink());
}

/// Reads and writes until a deadline for all of it; the socket's own timeouts start anew with every
/// byte.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream, timeout: Duration) -> Self {
        Self {
            stream,
            deadline: Instant::now() + timeout,
        }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
