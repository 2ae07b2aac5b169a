//! Clients that send nothing, garbage or too much, go too early or come in too great a number.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;

use super::*;

#[test]
fn a_silent_or_dripping_client_is_let_go() {
    let socket = Socket::new();
    let mut silent = socket.connect();
    let mut dripping = socket.connect();
    dripping.write_all(&frame::MAGIC[..2]).unwrap();
    let engine = socket.serve_with(exits_after(Duration::from_millis(1)), SHORT, || {
        Ok(Toy::new(uppercase))
    });
    engine.join().unwrap().unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(dripping.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_client_that_does_not_take_its_answer_is_let_go() {
    let socket = Socket::new();
    // A request that fits the socket's buffer, so that only the answer waits for the client.
    let mut client = socket.send(&texts(&[&"x ".repeat(50_000)]));
    let options = ServeOptions {
        batch_tokens: 100_000,
        max_text_bytes: 100_000,
        ..exits_after(Duration::from_millis(1))
    };
    let engine = socket.serve_with(options, Duration::from_secs(1), || Ok(Toy::new(uppercase)));
    engine.join().unwrap().unwrap();
    let cut = frame::read::<Response>(&mut client).unwrap_err();
    assert!(matches!(cut, frame::FrameError::Io(_)));
}

#[test]
fn a_client_that_ended_its_own_side_gets_its_answer() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    let client = socket.send(&texts(&["one"]));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(words(receive(client)), [["ONE"]]);
}

#[test]
fn a_cancelled_request_never_reaches_the_model() {
    let socket = Socket::new();
    let (gate, hook) = Gate::new();
    let hook = Mutex::new(Some(hook));
    socket.serve(options(), move || Ok(Toy::new(lock(&hook).take().unwrap())));
    let _first = socket.send(&texts(&["first"]));
    assert_eq!(gate.next(), ["first"]);
    drop(socket.send(&texts(&["cancelled"])));
    let last = socket.send(&texts(&["last"]));
    gate.release();
    assert_eq!(gate.next(), ["last"]);
    gate.release();
    assert_eq!(words(receive(last)), [["LAST"]]);
}

#[test]
fn a_request_cancelled_during_the_load_is_not_even_prepared() {
    let socket = Socket::new();
    let (finish, finished) = mpsc::channel();
    let finished = Mutex::new(finished);
    let prepared = Arc::new(AtomicUsize::new(0));
    let toy_prepared = Arc::clone(&prepared);
    socket.serve(options(), move || {
        lock(&finished).recv().unwrap();
        let mut toy = Toy::new(uppercase);
        toy.prepared = Arc::clone(&toy_prepared);
        Ok(toy)
    });
    let client = socket.send(&texts(&["cancelled"]));
    while socket.status().state != State::Loading {}
    drop(client);
    finish.send(()).unwrap();
    while socket.status().queue_depth > 0 {}
    assert_eq!(prepared.load(SeqCst), 0);
    assert_eq!(words(socket.ask(&texts(&["one"]))), [["ONE"]]);
    assert_eq!(prepared.load(SeqCst), 1);
}

#[test]
fn garbage_and_other_versions_get_a_clear_error() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    let mut other_version = frame::encode(&Request::Status).unwrap();
    other_version[3] += 1;
    // More than the socket holds: the client is still sending when the error is found.
    let garbage = vec![b'x'; 1 << 20];
    let mut unknown_request = frame::encode(&Request::Status).unwrap();
    *unknown_request.last_mut().unwrap() = 99;
    for bytes in [other_version, garbage, unknown_request] {
        let mut client = socket.connect();
        client.write_all(&bytes).unwrap();
        let error = error(receive(client));
        assert_eq!(error.kind, ErrorKind::Protocol);
        assert!(hint(&error).contains("restart the server"));
    }
}

#[test]
fn a_text_over_the_limit_is_refused_with_its_number() {
    let socket = Socket::new();
    socket.serve(options(), || Ok(Toy::new(uppercase)));
    let long = "é".repeat(501);
    let of_many = error(socket.ask(&texts(&["one", &long])));
    assert_eq!(of_many.kind, ErrorKind::TextTooLarge);
    assert_eq!(
        of_many.message,
        "text 2 has 1002 bytes, more than the limit of 1000 bytes"
    );
    assert!(hint(&of_many).contains("ner_retriever.max_text_size"));
    let name = error(socket.ask(&Request::Type { name: long }));
    assert!(name.message.starts_with("the type name has 1002 bytes"));
    assert_eq!(socket.status().state, State::Idle, "nothing was loaded");
}

#[test]
fn a_full_queue_refuses_requests_but_not_status() {
    let socket = Socket::new();
    let (gate, hook) = Gate::new();
    let hook = Mutex::new(Some(hook));
    let options = ServeOptions {
        max_queue: 1,
        ..options()
    };
    socket.serve(options, move || Ok(Toy::new(lock(&hook).take().unwrap())));
    let first = socket.send(&texts(&["first"]));
    assert_eq!(gate.next(), ["first"]);
    let refused = error(socket.ask(&texts(&["second"])));
    assert_eq!(refused.kind, ErrorKind::QueueFull);
    assert!(hint(&refused).contains("ner_retriever.max_queue"));
    assert_eq!(socket.status().queue_depth, 1);
    gate.release();
    assert_eq!(words(receive(first)), [["FIRST"]]);
}

#[test]
fn connections_without_a_thread_are_refused() {
    let socket = Socket::new();
    let options = ServeOptions {
        max_queue: 0,
        ..options()
    };
    let _silent: Vec<_> = (0..SPARE_CONNECTIONS).map(|_| socket.connect()).collect();
    let refused = socket.send(&Request::Status);
    socket.serve(options, || Ok(Toy::new(uppercase)));
    assert_eq!(error(receive(refused)).kind, ErrorKind::QueueFull);
}
