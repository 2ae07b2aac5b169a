//! Rows that cannot be embedded, engines that cannot run, and models that change.

use std::fs;

use ner_retriever_tests::managed::{problem, rows, run, settle, value};
use ner_retriever_tests::server::{PATIENCE, env_path};
use ner_retriever_tests::session::failure;
use ner_retriever_tests::wait::wait_until;

use crate::SERVER;

#[test]
fn a_poisoned_row_fails_alone_and_can_be_retried() {
    let server = SERVER.turn();
    let mut client = server.connect();
    // Before PostgreSQL 17, ALTER SYSTEM takes no setting that the session does not know.
    run(&mut client, "load 'ner_retriever'");
    run(
        &mut client,
        "alter system set ner_retriever.max_attempts = 2",
    );
    run(&mut client, "select pg_reload_conf()");
    run(
        &mut client,
        "create table poisoned (id int primary key, body text);
         insert into poisoned select n, case n when 7 then repeat('Rome ', 60000) else 'Rome ' || n end
         from generate_series(1, 40) n;
         select ner_index('poisoned', 'body')",
    );
    settle(&mut client, "poisoned");
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(distinct id) from poisoned_body_mentions"
        ),
        39
    );
    assert_eq!(
        rows(
            &mut client,
            "select \"table\", key, attempts, sqlstate, message from ner_retriever.failed"
        ),
        [
            "(poisoned,{7},2,54000,\"a text of 300000 bytes is larger than the limit of 262144 bytes\")"
        ]
    );
    assert_eq!(
        rows(
            &mut client,
            "select rows_done, rows_total, rows_failed, state from ner_retriever.indexes"
        ),
        ["(39,40,1,ready)"]
    );
    // A row that is repaired is no failure any more.
    assert_eq!(
        value::<i64>(&mut client, "select ner_retry_failed('poisoned')"),
        1
    );
    settle(&mut client, "poisoned");
    assert_eq!(
        value::<i64>(&mut client, "select count(*) from ner_retriever.failed"),
        1
    );
    run(
        &mut client,
        "update poisoned set body = 'Rome' where id = 7",
    );
    settle(&mut client, "poisoned");
    assert_eq!(
        value::<i64>(&mut client, "select count(*) from ner_retriever.failed"),
        0
    );
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(distinct id) from poisoned_body_mentions"
        ),
        40
    );
    run(&mut client, "drop table poisoned");
    run(&mut client, "alter system reset ner_retriever.max_attempts");
    run(&mut client, "select pg_reload_conf()");
}

#[test]
fn the_queue_waits_for_an_engine_that_cannot_run() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table patient (id int primary key, body text);
         select ner_index('patient', 'body')",
    );
    settle(&mut client, "patient");
    server.configure(&[("ner_retriever.model", Some("/nowhere.gguf"))]);
    run(
        &mut client,
        "insert into patient select n, 'Oslo ' || n from generate_series(1, 5) n",
    );
    wait_until("the queue pauses", PATIENCE, || {
        problem(&mut client, "patient").0 == "paused"
    });
    let (_, error) = problem(&mut client, "patient");
    assert!(
        error
            .as_deref()
            .is_some_and(|text| text.contains("/nowhere.gguf")),
        "{error:?}"
    );
    assert!(!value::<bool>(
        &mut client,
        "select ner_wait('patient', '1 second')"
    ));
    // Nobody is blamed for it.
    let blamed = "select coalesce(max(attempts), 0) + (select count(*) from ner_retriever.failed) from ner_retriever.pending";
    assert_eq!(value::<i64>(&mut client, blamed), 0);
    server.configure(&[("ner_retriever.model", None)]);
    settle(&mut client, "patient");
    assert_eq!(problem(&mut client, "patient"), ("ready".into(), None));
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(distinct id) from patient_body_mentions"
        ),
        5
    );
    run(&mut client, "drop table patient");
}

#[test]
fn another_models_mentions_are_neither_searched_nor_mixed() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table stale (id int primary key, body text);
         insert into stale values (1, 'Triassic rocks with Plateosaurus'), (2, 'The Rhine at Basel');
         select ner_index('stale', 'body');
         create role reader_of_stale;
         grant select on stale, stale_body_mentions to reader_of_stale",
    );
    settle(&mut client, "stale");
    let old: String = value(
        &mut client,
        "select distinct fingerprint from stale_body_mentions",
    );
    // The same head with another threshold is another head.
    let head = server.folder("other-head");
    for file in fs::read_dir(env_path("NER_RETRIEVER_HEAD"))
        .unwrap()
        .flatten()
    {
        fs::copy(file.path(), head.join(file.file_name())).unwrap();
    }
    let description = fs::read_to_string(head.join("head.json")).unwrap();
    fs::write(
        head.join("head.json"),
        description.replacen("\"threshold\": 0.", "\"threshold\": 0.1", 1),
    )
    .unwrap();
    server.configure(&[("ner_retriever.head", Some(head.to_str().unwrap()))]);

    let error = failure(client.query("select ner_search('stale', 'dinosaur')", &[]));
    error.expect(
        "55000",
        "the mentions of table public.stale are of model",
        "SELECT ner_reindex('public.stale')",
    );
    assert!(error.message.contains(&old), "{error:?}");
    let is_stale = "select stale from ner_retriever.indexes where \"table\" = 'stale'::regclass";
    assert!(value::<bool>(&mut client, is_stale));
    run(
        &mut client,
        "insert into stale values (3, 'A Utahraptor was found in Utah')",
    );
    wait_until("the index pauses", PATIENCE, || {
        problem(&mut client, "stale").0 == "paused"
    });
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(*) from stale_body_mentions where id = 3"
        ),
        0
    );

    run(&mut client, "select ner_reindex('stale')");
    settle(&mut client, "stale");
    assert!(!value::<bool>(&mut client, is_stale));
    assert_eq!(
        rows(
            &mut client,
            "select key->>'id' from ner_search('stale', 'dinosaur', 2) order by 1"
        ),
        ["(1)", "(3)"]
    );
    let new: String = value(
        &mut client,
        "select distinct fingerprint from stale_body_mentions",
    );
    assert_ne!(new, old);
    // What held for the old table holds for the new one.
    run(
        &mut client,
        "insert into stale values (4, 'A Deinonychus was found in Montana')",
    );
    settle(&mut client, "stale");
    run(
        &mut client,
        "delete from stale where id = 3; set role reader_of_stale",
    );
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(*) from ner_search('stale', 'dinosaur')"
        ),
        3
    );
    run(
        &mut client,
        "reset role; drop table stale; drop role reader_of_stale",
    );
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(*) from pg_class where relname like 'stale%' or relname like 'ner_retriever_%'"
        ),
        0
    );
    server.configure(&[("ner_retriever.head", None)]);
}

#[test]
fn searching_goes_on_while_the_same_model_embeds_anew() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table again (id int primary key, body text);
         insert into again select n, 'The Danube at kilometre ' || n from generate_series(1, 60) n;
         select ner_index('again', 'body')",
    );
    settle(&mut client, "again");
    // Its snapshot sees neither the old mentions, which will be gone, nor the new ones.
    let mut earlier = server.connect();
    run(
        &mut earlier,
        "begin isolation level repeatable read; select 1",
    );
    run(&mut client, "select ner_reindex('again')");
    while problem(&mut client, "again").0 == "reindexing" {
        assert_eq!(
            value::<i64>(
                &mut client,
                "select count(*) from ner_search('again', 'river', 60)"
            ),
            60
        );
    }
    settle(&mut client, "again");
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(distinct id) from again_body_mentions"
        ),
        60
    );
    let search = "select from ner_search('again', 'river')";
    failure(earlier.execute(search, &[])).expect(
        "40001",
        "embedded anew",
        "Run the transaction again",
    );
    drop(earlier);
    run(&mut client, "drop table again");
}

#[test]
fn a_database_can_be_dropped_while_its_queue_is_drained() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(&mut client, "create database short_lived");
    let user: String = value(&mut client, "select current_user::text");
    let mut other = server.connect_as(&user, "short_lived");
    run(
        &mut other,
        "create extension ner_retriever cascade;
         create table busy (id int primary key, body text);
         insert into busy select n, 'Bergen and Stavanger ' || n from generate_series(1, 2000) n;
         select ner_index('busy', 'body')",
    );
    wait_until("the worker works", PATIENCE, || {
        value::<i64>(&mut other, "select count(*) from busy_body_mentions") > 0
    });
    drop(other);
    run(&mut client, "drop database short_lived");
    let workers = "select count(*) from pg_stat_activity where datname = 'short_lived'";
    assert_eq!(value::<i64>(&mut client, workers), 0);
}
