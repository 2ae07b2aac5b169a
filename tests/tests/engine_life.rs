//! How the engine starts, ends and is restarted, and that the server does not notice.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use ner_retriever_tests::processes::{ProcessId, command_line, is_alive, private_bytes, signal};
use ner_retriever_tests::server::{PATIENCE, Server, Settings, SharedServer};
use ner_retriever_tests::session::{
    Mention, backend_pid, engine_pid, engine_status, failure, mentions, mentions_of_texts,
    type_embedding,
};
use ner_retriever_tests::texts::{as_array, documents};
use ner_retriever_tests::wait::{shortest, timed, wait_until};
use postgres::Client;
use rustix::process::Signal;

static SERVER: SharedServer = SharedServer::new("life", &[]);

const DEFAULTS: Settings<'_> = &[];
const PRELOADED: Settings<'_> = &[("shared_preload_libraries", "ner_retriever")];
const MIB: u64 = 1 << 20;
/// Whatever ends the server, the engine must be gone after this.
const ENGINE_END: Duration = Duration::from_secs(5);
/// Of a call that takes the model some seconds.
const DOCUMENTS: usize = 24;

fn is_stopped(client: &mut Client) -> bool {
    engine_status(client).state == "stopped"
}

/// Waits until the engine computes, and gives its process.
fn wait_until_busy(client: &mut Client) -> ProcessId {
    wait_until("the engine is at work", PATIENCE, || {
        engine_status(client).queue_depth > Some(0)
    });
    engine_pid(client)
}

/// Makes the engine busy with a long call of another session, and meanwhile does `work` with the
/// engine's process; gives what the call gave.
fn while_busy(
    server: &Server,
    work: impl FnOnce(&mut Client, ProcessId),
) -> Result<Vec<Mention>, postgres::Error> {
    let texts = documents(DOCUMENTS, 4);
    let mut client = server.connect();
    type_embedding(&mut client, "warm-up").unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| mentions_of_texts(&mut server.connect(), &as_array(&texts)));
        let engine = wait_until_busy(&mut client);
        work(&mut client, engine);
        call.join().unwrap()
    })
}

fn wait_until_gone(processes: &[ProcessId]) {
    wait_until("engine and supervisor end", ENGINE_END, || {
        !processes.iter().any(|pid| is_alive(*pid))
    });
}

fn start_time(client: &mut Client) -> String {
    let sql = "select pg_postmaster_start_time()::text";
    client.query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn nothing_runs_before_the_first_call() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let mut client = server.connect();
    for _ in 0..2 {
        let status = engine_status(&mut client);
        assert_eq!(
            (status.state.as_str(), status.pid, status.requests),
            ("stopped", None, None)
        );
        assert_eq!(server.supervisors(), []);
    }
    // What needs no model starts none.
    assert_eq!(mentions(&mut client, "").unwrap(), []);
    failure(type_embedding(&mut client, ""));
    assert_eq!(server.supervisors(), []);

    type_embedding(&mut client, "city").unwrap();
    let supervisors = server.supervisors();
    assert_eq!(supervisors.len(), 1);
    let status = engine_status(&mut client);
    assert_eq!(status.state, "ready");
    assert_eq!(server.engines(), [status.pid.unwrap()]);
    assert_eq!(status.device.as_deref(), Some("cpu"));
    assert!(status.model.unwrap().ends_with(".gguf"));
    assert_eq!(status.fingerprint.unwrap().len(), 16);
}

#[test]
fn a_preloaded_library_has_its_supervisor_from_the_start() {
    let server = SERVER.turn();
    server.restart(PRELOADED);
    let supervisor_runs = || server.supervisors().len() == 1;
    wait_until("the supervisor runs", PATIENCE, supervisor_runs);
    let mut client = server.connect();
    assert!(is_stopped(&mut client));
    assert_eq!(server.engines(), []);
    type_embedding(&mut client, "city").unwrap();
    assert_eq!(server.engines(), [engine_pid(&mut client)]);
    assert_eq!(server.supervisors().len(), 1);

    let supervisor = server.supervisors()[0];
    signal(supervisor, Signal::TERM);
    wait_until_gone(&[supervisor]);
    wait_until("the supervisor is started again", PATIENCE, supervisor_runs);
    type_embedding(&mut client, "river").unwrap();
}

#[test]
fn the_first_call_is_answered_soon_and_costs_little() {
    let server = SERVER.turn();
    let limit = Duration::from_secs(5);
    let cold_call = || {
        server.restart(DEFAULTS);
        let mut client = server.connect();
        timed(|| mentions(&mut client, "A Triceratops skull came from Montana.").unwrap()).1
    };
    let time = shortest(limit, 3, cold_call);
    println!("first call from cold: {time:?}");
    assert!(time < limit, "the first call took {time:?}");

    let texts = documents(40, 5);
    let mut client = server.connect();
    mentions_of_texts(&mut client, &as_array(&texts)).unwrap();
    let resident = engine_status(&mut client).resident_bytes.unwrap() as u64 / MIB;
    println!("the engine's resident memory: {resident} MiB");
    assert!(resident < 1024, "the engine has {resident} MiB");
}

#[test]
fn a_session_grows_little() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let pid = backend_pid(&mut client);
    // What pgvector and the catalogs cost is not ours.
    client
        .batch_execute("select '[1]'::vector; select 'x'::text, array[int4range(1, 2)]")
        .unwrap();
    let before = private_bytes(pid);
    client.batch_execute("load 'ner_retriever'").unwrap();
    mentions(&mut client, "A Triceratops skull came from Montana.").unwrap();
    type_embedding(&mut client, "dinosaur").unwrap();
    let growth = private_bytes(pid).saturating_sub(before) / 1024;
    println!("a session's growth: {growth} KiB");
    assert!(growth < 5 * 1024, "a session grew by {growth} KiB");
}

#[test]
fn an_idle_engine_ends_and_the_next_call_starts_another() {
    let server = SERVER.turn();
    server.restart(&[("ner_retriever.idle_timeout", "2s")]);
    let mut client = server.connect();
    let expected = type_embedding(&mut client, "city").unwrap();
    let first = engine_pid(&mut client);
    // Asking for the status is no use of the model: it keeps no engine alive and starts none, not
    // even in the moment in which one ends.
    wait_until("the idle engine ends", PATIENCE, || {
        let status = engine_status(&mut client);
        assert!(
            status.pid.is_none_or(|pid| pid == first),
            "another engine was started"
        );
        status.state == "stopped"
    });
    wait_until("the idle engine's process ends", ENGINE_END, || {
        !is_alive(first)
    });
    assert!(is_stopped(&mut client));
    assert_eq!(server.engines(), []);
    assert_eq!(server.supervisors().len(), 1);
    assert_eq!(
        type_embedding(&mut server.connect(), "city").unwrap(),
        expected
    );
    assert_ne!(engine_pid(&mut client), first);
}

#[test]
fn a_killed_engine_is_replaced_during_the_call() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let mut bystander = server.connect();
    let before = (backend_pid(&mut bystander), start_time(&mut bystander));
    let kill = |_: &mut Client, engine| signal(engine, Signal::KILL);
    match while_busy(&server, kill) {
        Ok(found) => assert!(found.iter().any(|mention| mention.doc == DOCUMENTS as i32)),
        error => failure(error).expect("58000", "the engine ended", "server log"),
    }
    assert_eq!(
        (backend_pid(&mut bystander), start_time(&mut bystander)),
        before
    );
    mentions(&mut bystander, "Paris").unwrap();
}

#[test]
fn an_engine_that_is_killed_again_and_again_is_reported() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let mut bystander = server.connect();
    let before = (backend_pid(&mut bystander), start_time(&mut bystander));
    let result = while_busy(&server, |client, engine| {
        signal(engine, Signal::KILL);
        wait_until("another engine works on the call", PATIENCE, || {
            let status = engine_status(client);
            status.pid.is_some_and(|pid| pid != engine) && status.queue_depth > Some(0)
        });
        signal(engine_pid(client), Signal::KILL);
    });
    failure(result).expect(
        "58000",
        "the engine ended during the request",
        "starts it again",
    );
    assert_eq!(
        (backend_pid(&mut bystander), start_time(&mut bystander)),
        before
    );

    // The third end in a row: the supervisor waits a moment before it starts the next one.
    type_embedding(&mut bystander, "city").unwrap();
    let third = engine_pid(&mut bystander);
    signal(third, Signal::KILL);
    wait_until_gone(&[third]);
    let error = failure(type_embedding(&mut bystander, "river"));
    error.expect(
        "57P03",
        "the engine has ended abnormally 3 times",
        "pg_reload_conf()",
    );
    wait_until("the engine may start again", PATIENCE, || {
        type_embedding(&mut server.connect(), "river").is_ok()
    });
}

#[test]
fn engine_and_supervisor_end_with_a_killed_postmaster() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let call = while_busy(&server, |_, engine| {
        let ours = [engine, server.supervisors()[0]];
        signal(server.postmaster(), Signal::KILL);
        wait_until_gone(&ours);
    });
    assert!(call.is_err());
    server.start_again();
    let mut client = server.connect();
    assert!(
        is_stopped(&mut client),
        "the engine of the killed server is not taken for ours"
    );
    type_embedding(&mut client, "city").unwrap();
    assert_eq!(server.engines(), [engine_pid(&mut client)]);
}

/// `signal_of_mode` is what `pg_ctl stop` sends.
fn engine_ends_with_the_server(signal_of_mode: Signal) {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let call = while_busy(&server, |_, engine| {
        let ours = [engine, server.supervisors()[0]];
        let postmaster = server.postmaster();
        signal(postmaster, signal_of_mode);
        wait_until_gone(&ours);
        wait_until("the server stops", PATIENCE, || !is_alive(postmaster));
    });
    assert!(call.is_err());
    server.start_again();
    type_embedding(&mut server.connect(), "city").unwrap();
}

#[test]
fn a_fast_shutdown_ends_a_busy_engine() {
    engine_ends_with_the_server(Signal::INT);
}

#[test]
fn an_immediate_shutdown_ends_a_busy_engine() {
    engine_ends_with_the_server(Signal::QUIT);
}

#[test]
fn a_changed_model_takes_effect_with_a_reload() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let mut client = server.connect();
    let expected = type_embedding(&mut client, "city").unwrap();
    let first = engine_pid(&mut client);
    server.configure(&[("ner_retriever.model", Some("/nowhere/model.gguf"))]);
    let error = failure(type_embedding(&mut client, "city"));
    error.expect(
        "58P01",
        "cannot read model file \"/nowhere/model.gguf\"",
        "Set ner_retriever.model",
    );
    server.configure(&[("ner_retriever.model", None)]);
    assert_eq!(type_embedding(&mut client, "city").unwrap(), expected);
    assert_ne!(engine_pid(&mut client), first);
}

#[test]
fn an_engine_that_is_not_there_is_reported() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let mut client = server.connect();
    client.batch_execute("load 'ner_retriever'").unwrap();
    let program = "ner_retriever.engine";
    for (path, message) in [
        ("/nowhere/engine", "No such file"),
        ("/dev/null", "Permission denied"),
    ] {
        server.configure(&[(program, Some(path))]);
        let error = failure(type_embedding(&mut client, "city"));
        error.expect(
            "58P01",
            &format!("could not start the engine \"{path}\": {message}"),
            "make install",
        );
    }
    // A program that is no engine: it ends at once, whatever it is asked.
    server.configure(&[(program, Some("/bin/true"))]);
    let error = failure(type_embedding(&mut client, "city"));
    error.expect("57P03", "ended abnormally 3 times", "server log");
    server.configure(&[(program, None)]);
    type_embedding(&mut client, "city").unwrap();
}

#[test]
fn sessions_that_start_at_once_share_one_supervisor() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let sessions = 8;
    let barrier = Barrier::new(sessions);
    let engines: Vec<ProcessId> = thread::scope(|scope| {
        let threads: Vec<_> = (0..sessions)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = server.connect();
                    barrier.wait();
                    type_embedding(&mut client, "city").unwrap();
                    engine_pid(&mut client)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(server.supervisors().len(), 1);
    assert_eq!(server.engines(), engines[..1]);
    assert!(
        engines.iter().all(|engine| *engine == engines[0]),
        "{engines:?}"
    );
}

#[test]
fn the_engine_has_nothing_of_the_server_but_its_socket() {
    let server = SERVER.turn();
    server.restart(DEFAULTS);
    let mut client = server.connect();
    type_embedding(&mut client, "city").unwrap();
    let engine = engine_pid(&mut client);
    let files: Vec<String> = fs::read_dir(format!("/proc/{engine}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let data = server.data().to_str().unwrap();
    let of_the_server = |file: &&String| {
        [data, "/dev/shm", "PostgreSQL."]
            .iter()
            .any(|part| file.contains(part))
    };
    assert!(!files.iter().any(|file| of_the_server(&file)), "{files:?}");
    let sockets = files
        .iter()
        .filter(|file| file.starts_with("socket:"))
        .count();
    // Two that listen, and the connection of the last answer.
    assert!(sockets <= 3, "{files:?}");
    let maps = fs::read_to_string(format!("/proc/{engine}/maps")).unwrap();
    for shared in ["SYSV", "/dev/zero", "/dev/shm", "ner_retriever.so"] {
        assert!(!maps.contains(shared), "the engine maps {shared}");
    }
    let score = fs::read_to_string(format!("/proc/{engine}/oom_score_adj")).unwrap();
    assert!(score.trim().parse::<i32>().unwrap() >= 800);
    assert!(command_line(engine).contains("serve"));
}
