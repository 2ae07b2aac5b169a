//! Which engine serves: the one for GPUs beside the one for the CPU, and what happens where it cannot
//! run. Programs that fail as it does on a machine without a driver stand in its place; where it has
//! been built, and there is no driver, so does it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ner_retriever_tests::processes::{command_line, is_alive, signal};
use ner_retriever_tests::server::{PATIENCE, Server, SharedServer};
use ner_retriever_tests::session::{engine_pid, engine_status, failure, type_embedding};
use ner_retriever_tests::wait::{timed, wait_until};
use rustix::process::Signal;

static SERVER: SharedServer = SharedServer::new("devices", &[]);

const UNUSABLE: &str = "the engine for GPUs cannot be used";
/// A library that every Rust program needs, and one that no machine has, of the same length.
const NEEDED: &[u8] = b"libgcc_s.so.1";
const MISSING: &str = "libnotthere.1";

/// The installed engine, and a place beside it for the engine for GPUs.
struct Engines {
    folder: PathBuf,
    installed: PathBuf,
    logged_before: usize,
}

impl Engines {
    /// For one test: starts the server anew with them and `device`.
    fn install(server: &Server, test: &str, device: &str) -> Self {
        let sql = "select setting from pg_config where name = 'PKGLIBDIR'";
        let libraries: String = server.connect().query_one(sql, &[]).unwrap().get(0);
        let engines = Self {
            folder: server.folder(test),
            installed: Path::new(&libraries).join("ner-retriever-engine"),
            logged_before: server.log().len(),
        };
        let cpu = engines.folder.join("engine");
        symlink(&engines.installed, &cpu).unwrap();
        server.restart(&[
            ("ner_retriever.engine", cpu.to_str().unwrap()),
            ("ner_retriever.device", device),
        ]);
        engines
    }

    fn gpu(&self) -> PathBuf {
        self.folder.join("engine-cuda")
    }

    /// Puts `program` into the place of the engine for GPUs.
    fn put(&self, program: &[u8]) {
        fs::write(self.gpu(), program).unwrap();
        fs::set_permissions(self.gpu(), Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts an engine there for which the dynamic loader does not find a library.
    fn put_without_library(&self) {
        let mut program = fs::read(&self.installed).unwrap();
        let places: Vec<usize> = (0..program.len() - NEEDED.len())
            .filter(|at| program[*at..].starts_with(NEEDED))
            .collect();
        assert!(!places.is_empty(), "the engine needs another library now");
        for at in places {
            program[at..at + NEEDED.len()].copy_from_slice(MISSING.as_bytes());
        }
        self.put(&program);
    }

    /// What has been logged of the engine for GPUs since the test began.
    fn complaints(&self, server: &Server) -> Vec<String> {
        let log = server.log();
        let lines = log[self.logged_before..].lines();
        let complaints = lines.filter(|line| line.contains(UNUSABLE));
        complaints.map(str::to_owned).collect()
    }

    #[track_caller]
    fn expect_one_complaint(&self, server: &Server, reason: &str) {
        let complaints = self.complaints(server);
        let [complaint] = &complaints[..] else {
            panic!("expected one line about \"{reason}\", got {complaints:#?}");
        };
        assert!(
            complaint.contains(reason) && complaint.contains("the CPU is used"),
            "{complaint}"
        );
    }
}

/// Asks for something and checks that the CPU's engine has answered.
#[track_caller]
fn expect_the_cpu_to_serve(server: &Server) {
    let mut client = server.connect();
    type_embedding(&mut client, "city").unwrap();
    let status = engine_status(&mut client);
    assert_eq!(status.device.as_deref(), Some("cpu"));
    let dtype = status.dtype.as_deref();
    assert!(matches!(dtype, Some("f32" | "int8" | "bf16")), "{dtype:?}");
    let program = command_line(status.pid.unwrap());
    assert!(program.contains("/engine serve"), "{program}");
}

fn end_engine(server: &Server) {
    let engine = engine_pid(&mut server.connect());
    signal(engine, Signal::KILL);
    wait_until("the engine is gone", PATIENCE, || !is_alive(engine));
}

#[test]
fn without_an_engine_for_gpus_the_cpu_serves_and_nothing_is_said() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "none", "auto");
    expect_the_cpu_to_serve(&server);
    assert_eq!(engines.complaints(&server), [""; 0]);
}

#[test]
fn an_engine_for_gpus_without_its_libraries_leaves_the_work_to_the_cpu() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "libraries", "auto");
    engines.put_without_library();
    expect_the_cpu_to_serve(&server);
    let reason = format!("{MISSING}: cannot open shared object file");
    engines.expect_one_complaint(&server, &reason);
    // What is known is not tried again.
    end_engine(&server);
    expect_the_cpu_to_serve(&server);
    engines.expect_one_complaint(&server, &reason);
}

#[test]
fn programs_that_cannot_be_run_leave_the_work_to_the_cpu() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "programs", "auto");
    engines.put(b"");
    fs::set_permissions(engines.gpu(), Permissions::from_mode(0o644)).unwrap();
    expect_the_cpu_to_serve(&server);
    engines.expect_one_complaint(&server, "Permission denied");

    let engines = Engines::install(&server, "formats", "auto");
    engines.put(b"\x7fELF and nothing else");
    expect_the_cpu_to_serve(&server);
    // The system gives it to a shell, and each shell says something else.
    engines.expect_one_complaint(&server, UNUSABLE);
}

#[test]
fn an_engine_whose_gpu_is_too_small_leaves_the_work_to_the_cpu() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "memory", "auto");
    engines
        .put(b"#!/bin/sh\necho 'a warning' >&2\necho 'the device is out of memory' >&2\nexit 69\n");
    expect_the_cpu_to_serve(&server);
    engines.expect_one_complaint(&server, "cannot be used: the device is out of memory;");
}

#[test]
fn an_engine_for_gpus_that_keeps_crashing_leaves_the_work_to_the_cpu() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "crash", "auto");
    engines.put(b"#!/bin/sh\necho 'the last words' >&2\nkill -SEGV $$\n");
    expect_the_cpu_to_serve(&server);
    engines.expect_one_complaint(&server, "it has ended abnormally 3 times");
    engines.expect_one_complaint(&server, ": the last words;");
}

#[test]
fn after_a_reload_the_engine_for_gpus_is_tried_again() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "reload", "auto");
    engines.put(b"#!/bin/sh\nexit 127\n");
    expect_the_cpu_to_serve(&server);
    engines.expect_one_complaint(&server, "it ended with exit status: 127");

    fs::remove_file(engines.gpu()).unwrap();
    symlink(&engines.installed, engines.gpu()).unwrap();
    let mut client = server.connect();
    let engine = engine_pid(&mut client);
    client.batch_execute("select pg_reload_conf()").unwrap();
    type_embedding(&mut client, "river").unwrap();
    assert_eq!(engine_pid(&mut client), engine, "a reload alone ends none");
    // The signal reaches the supervisor before the engine's end does, but not at once.
    std::thread::sleep(Duration::from_millis(200));
    end_engine(&server);
    type_embedding(&mut client, "lake").unwrap();
    let program = command_line(engine_pid(&mut client));
    assert!(program.contains("/engine-cuda serve"), "{program}");
}

#[test]
fn the_cpu_by_name_never_starts_the_engine_for_gpus() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "cpu", "cpu");
    // Its working directory is the data directory.
    engines.put(b"#!/bin/sh\n: >gpu-engine-was-started\nexit 127\n");
    let trace = server.data().join("gpu-engine-was-started");
    expect_the_cpu_to_serve(&server);
    assert!(!trace.exists());
    server.configure(&[("ner_retriever.device", Some("auto"))]);
    expect_the_cpu_to_serve(&server);
    assert!(trace.exists());
    server.configure(&[("ner_retriever.device", None)]);
}

#[test]
fn a_gpu_by_name_is_an_error_where_it_cannot_be_used() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "by-name", "cuda");
    let hint = "Set ner_retriever.device to auto or cpu";
    let ask = || failure(type_embedding(&mut server.connect(), "city"));
    let error = ask();
    error.expect(
        "55000",
        "device \"cuda\" cannot be used: the engine for GPUs is not installed",
        hint,
    );
    error.expect("55000", "/engine-cuda\"", "make install CUDA=1");

    engines.put_without_library();
    let reason = format!("{MISSING}: cannot open shared object file");
    // The second is told what is known.
    for _ in 0..2 {
        let error = ask();
        error.expect(
            "55000",
            "device \"cuda\" cannot be used: error while loading",
            hint,
        );
        error.expect("55000", &reason, "pg_reload_conf()");
    }
    let complaints = engines.complaints(&server);
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(!complaints[0].contains("CPU"), "{complaints:#?}");

    server.configure(&[("ner_retriever.device", Some("cuda:1"))]);
    ask().expect(
        "55000",
        "device \"cuda:1\" cannot be used: error while loading",
        hint,
    );
    server.configure(&[("ner_retriever.device", Some("cpu"))]);
    expect_the_cpu_to_serve(&server);
    server.configure(&[("ner_retriever.device", None)]);
}

#[test]
fn a_gpu_engine_that_hangs_blocks_neither_a_cancel_nor_a_reload_nor_the_server() {
    let server = SERVER.turn();
    let engines = Engines::install(&server, "hang", "auto");
    engines.put(b"#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n");
    let mut client = server.connect();
    client
        .batch_execute("set statement_timeout = '500ms'")
        .unwrap();
    let (result, time) = timed(|| type_embedding(&mut client, "city"));
    assert_eq!(failure_code(result), "57014");
    assert!(time < Duration::from_secs(5), "the cancel took {time:?}");

    server.configure(&[("ner_retriever.device", Some("cpu"))]);
    expect_the_cpu_to_serve(&server);
    server.configure(&[("ner_retriever.device", None)]);
    let call = type_embedding(&mut client, "river");
    assert_eq!(failure_code(call), "57014");
    let hanging = server.engines();
    assert_eq!(hanging.len(), 1);
    let ((), time) = timed(|| server.restart(&[]));
    assert!(!is_alive(hanging[0]));
    assert!(time < Duration::from_secs(30), "the restart took {time:?}");
}

fn failure_code<T: std::fmt::Debug>(result: Result<T, postgres::Error>) -> String {
    let error = result.expect_err("the call must fail");
    error
        .code()
        .expect("an error of the server")
        .code()
        .to_owned()
}

/// The engine that `make engine-cuda` builds, on a machine where its libraries are missing.
#[test]
fn the_real_engine_for_gpus_leaves_the_work_to_the_cpu() {
    let Some(program) = std::env::var_os("NER_RETRIEVER_ENGINE_CUDA") else {
        println!("skipped: make engine-cuda has not been run");
        return;
    };
    let started = Command::new(&program).arg("--version").output().unwrap();
    if started.status.code() != Some(127) {
        println!(
            "skipped: this machine has CUDA's libraries ({})",
            started.status
        );
        return;
    }
    let server = SERVER.turn();
    let engines = Engines::install(&server, "real", "auto");
    symlink(program, engines.gpu()).unwrap();
    expect_the_cpu_to_serve(&server);
    engines.expect_one_complaint(&server, "error while loading shared libraries: libcu");
    server.configure(&[("ner_retriever.device", Some("cuda"))]);
    failure(type_embedding(&mut server.connect(), "city")).expect(
        "55000",
        "device \"cuda\" cannot be used: error while loading shared libraries: libcu",
        "pg_reload_conf()",
    );
    server.configure(&[("ner_retriever.device", None)]);
}
