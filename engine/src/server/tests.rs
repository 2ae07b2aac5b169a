//! The server over real Unix sockets, with a toy model.

mod clients;
mod scheduling;
mod toy;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ner_retriever_protocol::{Priority, Request, Response, State, Status, TextRequest, frame};

use super::activity::IDLE_RECHECK;
use super::*;
use toy::{Gate, Toy, uppercase};

/// Longer than any test takes: it only keeps a broken server from hanging the tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// A client timeout for the tests that wait for it.
const SHORT: Duration = Duration::from_millis(50);

/// The supervisor's part: owns the listening socket and starts engines on it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Socket {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        Self {
            listener: UnixListener::bind(&path).unwrap(),
            path,
            _folder: folder,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn send(&self, request: &Request) -> UnixStream {
        let mut stream = self.connect();
        frame::write(&mut stream, request).unwrap();
        stream
    }

    fn ask(&self, request: &Request) -> Response {
        receive(self.send(request))
    }

    fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Response::Status(status) => *status,
            other => panic!("not a status: {other:?}"),
        }
    }

    fn serve_with(
        &self,
        options: ServeOptions,
        client_timeout: Duration,
        load: impl Fn() -> Result<Toy, EngineError> + Send + Sync + 'static,
    ) -> JoinHandle<Result<(), ServeError>> {
        let listener = self.listener.try_clone().unwrap();
        thread::spawn(move || super::serve_with(&[listener], options, client_timeout, load))
    }

    fn serve(
        &self,
        options: ServeOptions,
        load: impl Fn() -> Result<Toy, EngineError> + Send + Sync + 'static,
    ) -> JoinHandle<Result<(), ServeError>> {
        let listener = self.listener.try_clone().unwrap();
        thread::spawn(move || super::serve(&[listener], options, load))
    }
}

fn options() -> ServeOptions {
    ServeOptions {
        idle_timeout: None,
        batch_tokens: 64,
        max_text_bytes: 1000,
        max_queue: 100,
    }
}

fn exits_after(idle_timeout: Duration) -> ServeOptions {
    ServeOptions {
        idle_timeout: Some(idle_timeout),
        ..options()
    }
}

fn texts(texts: &[&str]) -> Request {
    let texts = texts
        .iter()
        .map(|text| TextRequest {
            text: (*text).to_owned(),
            spans: None,
        })
        .collect();
    Request::Mentions {
        texts,
        embed: true,
        threshold: None,
        priority: Priority::Interactive,
    }
}

fn receive(mut stream: UnixStream) -> Response {
    frame::read(&mut stream).unwrap().expect("a response")
}

fn words(response: Response) -> Vec<Vec<String>> {
    let Response::Mentions { fingerprint, texts } = response else {
        panic!("not mentions: {response:?}");
    };
    assert_eq!(fingerprint, toy::FINGERPRINT);
    let words = |mentions: Vec<_>| mentions.into_iter().map(|m: toy::Mention| m.text).collect();
    texts.into_iter().map(words).collect()
}

fn error(response: Response) -> EngineError {
    match response {
        Response::Error(error) => error,
        other => panic!("not an error: {other:?}"),
    }
}

fn hint(error: &EngineError) -> &str {
    error.hint.as_deref().expect("a hint")
}

#[test]
fn texts_and_types_are_answered_in_order() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    let answer = socket.ask(&texts(&["one two", "", "three"]));
    assert_eq!(words(answer), [vec!["ONE", "TWO"], vec![], vec!["THREE"]]);
    let answer = socket.ask(&Request::Type {
        name: "dinosaur".into(),
    });
    let expected = Response::Type {
        fingerprint: toy::FINGERPRINT.into(),
        embedding: vec![8.0],
    };
    assert_eq!(answer, expected);
}

#[test]
fn concurrent_sessions_get_the_answers_they_get_alone() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    let requests: Vec<_> = (0..16)
        .map(|n| texts(&[&format!("a{n} b{n}"), &format!("c{n}")]))
        .collect();
    let alone: Vec<_> = requests.iter().map(|request| socket.ask(request)).collect();
    let streams: Vec<_> = requests
        .iter()
        .map(|request| socket.send(request))
        .collect();
    let together: Vec<_> = streams.into_iter().map(receive).collect();
    assert_eq!(alone, together);
}

#[test]
fn status_does_not_load_and_counts_what_was_done() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    let before = socket.status();
    assert_eq!((before.state, before.model), (State::Idle, None));
    assert_eq!(before.pid, std::process::id());
    assert!(before.resident_bytes > 1 << 20);

    socket.ask(&texts(&["one three"]));
    let after = socket.status();
    assert_eq!(after.state, State::Ready);
    assert_eq!(after.model.unwrap().fingerprint, toy::FINGERPRINT);
    assert_eq!((after.requests, after.batches, after.tokens), (1, 1, 8));
    assert_eq!((after.merged_requests, after.queue_depth), (0, 0));
}

#[test]
fn a_failed_load_is_reported_and_tried_again() {
    let socket = Socket::new();
    let attempts = AtomicUsize::new(0);
    socket.serve(options(), move || match attempts.fetch_add(1, SeqCst) {
        0 => Err(EngineError::new(ErrorKind::HeadNotFound, "no head").hint("Set it.")),
        1 => panic!("a library gave up"),
        _ => Ok(Toy::new(uppercase)),
    });
    let first = error(socket.ask(&texts(&["one"])));
    assert_eq!(
        (first.kind, hint(&first)),
        (ErrorKind::HeadNotFound, "Set it.")
    );
    assert_eq!(socket.status().state, State::Idle);
    let second = error(socket.ask(&texts(&["one"])));
    assert_eq!(second.kind, ErrorKind::Internal);
    assert!(second.message.contains("a library gave up"));
    assert_eq!(words(socket.ask(&texts(&["one"]))), [["ONE"]]);
}

/// In a process of its own, which is this test once more.
#[test]
fn a_device_that_is_lost_ends_the_process() {
    const INNER: &str = "NER_RETRIEVER_TEST_LOST_DEVICE";
    if std::env::var_os(INNER).is_some() {
        let socket = Socket::new();
        socket.serve(options(), || {
            let mut toy = Toy::new(|_| Err(EngineError::new(ErrorKind::Internal, "a fault")));
            toy.is_lost = true;
            Ok(toy)
        });
        let answer = socket.ask(&texts(&["one"]));
        panic!("the engine goes on: {answer:?}");
    }
    let name = "server::tests::a_device_that_is_lost_ends_the_process";
    let inner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    assert_eq!(inner.status.code(), Some(1));
    let log = String::from_utf8(inner.stderr).unwrap();
    assert!(
        log.contains("the device has failed, the engine ends: a fault"),
        "{log}"
    );
}

#[test]
fn connections_after_the_idle_exit_wait_for_the_next_engine() {
    let socket = Socket::new();
    let first = socket.serve(exits_after(SHORT), || Ok(Toy::new(uppercase)));
    first.join().unwrap().unwrap();
    let client = socket.send(&texts(&["one"]));
    let second = socket.serve(exits_after(SHORT), || Ok(Toy::new(uppercase)));
    assert_eq!(words(receive(client)), [["ONE"]]);
    second.join().unwrap().unwrap();
}

#[test]
fn the_engine_goes_on_accepting_until_its_work_is_done() {
    let socket = Socket::new();
    let (gate, hook) = Gate::new();
    let hook = Mutex::new(Some(hook));
    let client = socket.send(&texts(&["one"]));
    let engine = socket.serve(exits_after(Duration::from_millis(1)), move || {
        Ok(Toy::new(lock(&hook).take().unwrap()))
    });
    assert_eq!(gate.next(), ["one"]);
    thread::sleep(2 * IDLE_RECHECK);
    assert_eq!(socket.status().queue_depth, 1, "it still accepts");
    gate.release();
    assert_eq!(words(receive(client)), [["ONE"]]);
    engine.join().unwrap().unwrap();
}

#[test]
fn status_requests_do_not_keep_the_engine_alive() {
    let socket = Socket::new();
    let started = Instant::now();
    let engine = socket.serve(exits_after(Duration::from_millis(200)), || {
        Ok(Toy::new(uppercase))
    });
    // The idle time ends while a connection is open.
    let mut silent = Some(UnixStream::connect(&socket.path).unwrap());
    while !engine.is_finished() {
        silent.take_if(|_| started.elapsed() > 2 * IDLE_RECHECK);
        assert!(
            started.elapsed() < 50 * IDLE_RECHECK,
            "the engine never exits"
        );
        let mut client = socket.send(&Request::Status);
        // The last one may come too late for an answer.
        client.set_read_timeout(Some(SHORT)).unwrap();
        let _ = frame::read::<Response>(&mut client);
        // Less than the engine waits for its connections to close.
        thread::sleep(IDLE_RECHECK / 20);
    }
    engine.join().unwrap().unwrap();
}

#[test]
fn a_panic_is_the_error_of_one_request() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    for stage in [toy::PANIC_PREPARE, toy::PANIC_FORWARD, toy::PANIC_FINISH] {
        let error = error(socket.ask(&texts(&[stage])));
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.message.contains(stage), "{}", error.message);
        assert!(hint(&error).contains("server log"));
    }
    assert_eq!(words(socket.ask(&texts(&["one"]))), [["ONE"]]);
    assert_eq!(socket.status().queue_depth, 0);
}
