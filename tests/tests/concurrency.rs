//! Many sessions at once, and sessions that change their mind.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ner_retriever_tests::processes::ProcessId;
use ner_retriever_tests::server::{PATIENCE, Server, SharedServer};
use ner_retriever_tests::session::{
    EngineStatus, Mention, backend_pid, engine_status, failure, mentions, mentions_of_texts,
    type_embedding,
};
use ner_retriever_tests::texts::{as_array, documents, sentences};
use ner_retriever_tests::wait::{shortest, timed, wait_until};
use postgres::{Client, NoTls};

/// Small batches: how long the engine takes for one bounds how soon it sees anything else, and this
/// machine may be slow and busy.
static SERVER: SharedServer =
    SharedServer::new("concurrency", &[("ner_retriever.batch_tokens", "512")]);

const TIMEOUT: Duration = Duration::from_millis(100);
/// How soon after its moment a cancel must have taken effect.
const PROMPT: Duration = Duration::from_millis(200);

/// More than a minute of work.
fn endless() -> Vec<String> {
    documents(400, 20)
}

fn status(server: &Server) -> EngineStatus {
    engine_status(&mut server.connect())
}

fn wait_until_busy(server: &Server) {
    let mut client = server.connect();
    wait_until("the engine is at work", PATIENCE, || {
        engine_status(&mut client).queue_depth > Some(0)
    });
}

/// Nothing waits and nothing is computed any more.
fn wait_until_dropped(server: &Server) {
    let mut client = server.connect();
    wait_until("the engine drops the work", PATIENCE, || {
        engine_status(&mut client).queue_depth == Some(0)
    });
    let before = engine_status(&mut client);
    thread::sleep(Duration::from_millis(500));
    let after = engine_status(&mut client);
    assert_eq!(
        (after.tokens, after.batches),
        (before.tokens, before.batches)
    );
}

/// Ends the engine in a way that the supervisor takes for normal; the next call loads the model.
fn unload(server: &Server) {
    let mut client = server.connect();
    type_embedding(&mut client, "city").unwrap();
    let sql = "select current_setting('ner_retriever.idle_timeout')";
    let changed = match client.query_one(sql, &[]).unwrap().get(0) {
        "1h" => "2h",
        _ => "1h",
    };
    server.configure(&[("ner_retriever.idle_timeout", Some(changed))]);
}

/// How long the call takes beyond its statement_timeout.
fn beyond_statement_timeout(client: &mut Client, texts: &[Option<&str>]) -> Duration {
    let set = format!("set statement_timeout = {}", TIMEOUT.as_millis());
    client.batch_execute(&set).unwrap();
    let (result, time) = timed(|| mentions_of_texts(client, texts));
    let error = failure(result);
    assert_eq!(error.sqlstate, "57014", "{error:?}");
    assert!(error.message.contains("statement timeout"));
    client.batch_execute("reset statement_timeout").unwrap();
    time.saturating_sub(TIMEOUT)
}

#[test]
fn many_sessions_get_what_one_gets() {
    let server = SERVER.turn();
    let sessions = 16;
    let texts: Vec<String> = (0..sessions).map(|n| sentences(n, 1 + n % 3)).collect();
    let mut client = server.connect();
    let alone: Vec<Vec<Mention>> = texts
        .iter()
        .map(|text| mentions(&mut client, text).unwrap())
        .collect();
    assert!(alone.iter().any(|found| !found.is_empty()));
    let before = status(&server);
    let barrier = Barrier::new(sessions);
    thread::scope(|scope| {
        for (text, alone) in texts.iter().zip(&alone) {
            let (server, barrier) = (&server, &barrier);
            scope.spawn(move || {
                let mut client = server.connect();
                barrier.wait();
                for _ in 0..4 {
                    let together = mentions(&mut client, text).unwrap();
                    assert_eq!(together.len(), alone.len());
                    for (a, b) in together.iter().zip(alone) {
                        assert!(a.agrees(b, 1e-4), "{a:?} {b:?}");
                    }
                }
            });
        }
    });
    let after = status(&server);
    let grown =
        |count: fn(&EngineStatus) -> Option<i64>| count(&after).unwrap() - count(&before).unwrap();
    let (requests, batches) = (grown(|s| s.requests), grown(|s| s.batches));
    assert_eq!(requests, 4 * sessions as i64);
    assert!(
        batches < requests,
        "{batches} batches for {requests} requests"
    );
    assert!(grown(|s| s.merged_requests) > 0);
}

#[test]
fn a_crowd_is_served() {
    let server = SERVER.turn();
    let barrier = Barrier::new(64);
    thread::scope(|scope| {
        for session in 0..64 {
            let (server, barrier) = (&server, &barrier);
            scope.spawn(move || {
                let mut client = server.connect();
                barrier.wait();
                let text = sentences(session, 1);
                mentions(&mut client, &text).unwrap();
                type_embedding(&mut client, "city").unwrap();
                mentions_of_texts(&mut client, &[Some("Paris"), None]).unwrap();
            });
        }
    });
    assert_eq!(status(&server).queue_depth, Some(0));
}

#[test]
fn statement_timeout_takes_effect_while_the_model_runs() {
    let server = SERVER.turn();
    let texts = endless();
    let mut client = server.connect();
    type_embedding(&mut client, "city").unwrap();
    let before = status(&server).tokens.unwrap();
    let late = shortest(PROMPT, 3, || {
        beyond_statement_timeout(&mut client, &as_array(&texts))
    });
    assert!(late < PROMPT, "{late:?} late");
    wait_until_dropped(&server);
    let computed = status(&server).tokens.unwrap() - before;
    assert!(
        computed < 10_000,
        "the engine went on to compute {computed} tokens"
    );
    mentions(&mut client, "Paris").unwrap();
}

#[test]
fn statement_timeout_takes_effect_while_the_model_loads() {
    let server = SERVER.turn();
    let late = shortest(PROMPT, 3, || {
        unload(&server);
        beyond_statement_timeout(&mut server.connect(), &[Some("Paris")])
    });
    assert!(late < PROMPT, "{late:?} late");
    // Where other load slows everything down, the engine's process may not even have begun.
    assert_ne!(
        status(&server).state,
        "ready",
        "the model loaded before the timeout"
    );
    mentions(&mut server.connect(), "Paris").unwrap();
}

/// Runs a call without end in one session, cancels it from another once `started`, and gives how
/// long the cancel took.
fn cancel(server: &Server, texts: &[Option<&str>], started: impl Fn()) -> Duration {
    let mut client = server.connect();
    let pid = backend_pid(&mut client);
    let mut other = server.connect();
    thread::scope(|scope| {
        let call = scope.spawn(move || {
            let error = failure(mentions_of_texts(&mut client, texts));
            let ended = Instant::now();
            type_embedding(&mut client, "river").expect("the session goes on");
            (error, ended)
        });
        started();
        let cancelled = Instant::now();
        let done: bool = other
            .query_one("select pg_cancel_backend($1)", &[&pid])
            .unwrap()
            .get(0);
        assert!(done);
        let (error, ended) = call.join().unwrap();
        assert_eq!(error.sqlstate, "57014", "{error:?}");
        ended.duration_since(cancelled)
    })
}

#[test]
fn cancel_takes_effect_while_the_model_runs() {
    let server = SERVER.turn();
    let texts = endless();
    let cancel = || cancel(&server, &as_array(&texts), || wait_until_busy(&server));
    let late = shortest(PROMPT, 3, cancel);
    assert!(late < PROMPT, "{late:?} late");
    wait_until_dropped(&server);
}

#[test]
fn cancel_takes_effect_while_the_model_loads() {
    let server = SERVER.turn();
    let texts = [Some("Paris")];
    let late = shortest(PROMPT, 3, || {
        unload(&server);
        cancel(&server, &texts, || {
            wait_until("the model loads", PATIENCE, || {
                status(&server).state == "loading"
            });
        })
    });
    assert!(late < PROMPT, "{late:?} late");
}

#[test]
fn a_client_may_cancel_with_its_own_token() {
    let server = SERVER.turn();
    let texts = endless();
    let mut client = server.connect();
    let token = client.cancel_token();
    thread::scope(|scope| {
        let call = scope.spawn(|| mentions_of_texts(&mut client, &as_array(&texts)));
        wait_until_busy(&server);
        token.cancel_query(NoTls).unwrap();
        assert_eq!(failure(call.join().unwrap()).sqlstate, "57014");
    });
    wait_until_dropped(&server);
}

#[test]
fn the_work_of_a_terminated_session_is_dropped() {
    let server = SERVER.turn();
    let texts = endless();
    let mut victim = server.connect();
    let pid: ProcessId = backend_pid(&mut victim);
    let mut other = server.connect();
    let expected = type_embedding(&mut other, "city").unwrap();
    let before = status(&server).tokens.unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| mentions_of_texts(&mut victim, &as_array(&texts)));
        wait_until_busy(&server);
        other
            .execute("select pg_terminate_backend($1)", &[&pid])
            .unwrap();
        assert!(call.join().unwrap().is_err());
    });
    wait_until_dropped(&server);
    assert!(status(&server).tokens.unwrap() - before < 10_000);
    assert_eq!(type_embedding(&mut other, "city").unwrap(), expected);
}

#[test]
fn a_short_call_does_not_wait_for_a_long_one() {
    let server = SERVER.turn();
    let texts = documents(40, 4);
    let mut client = server.connect();
    type_embedding(&mut client, "city").unwrap();
    thread::scope(|scope| {
        let long = scope.spawn(|| {
            let (found, time) =
                timed(|| mentions_of_texts(&mut server.connect(), &as_array(&texts)));
            (found.unwrap(), time, Instant::now())
        });
        wait_until_busy(&server);
        let (found, short_time) = timed(|| mentions(&mut client, "Ada Lovelace lived in London."));
        let short_end = Instant::now();
        found.unwrap();
        let (found, long_time, long_end) = long.join().unwrap();
        assert!(
            short_end < long_end && short_time * 2 < long_time,
            "{short_time:?} of {long_time:?}"
        );
        assert!(
            found.iter().any(|mention| mention.doc == 40),
            "the long call is complete"
        );
    });
}
