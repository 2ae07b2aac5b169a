//! Changes of a table reach its index.

use std::time::Duration;

use ner_retriever_tests::managed::{differences, rows, run, settle, value};
use ner_retriever_tests::session::{engine_status, failure};

use crate::SERVER;

/// What `ner_entity_embeddings` finds in the texts of a table now.
fn exact(table: &str) -> String {
    format!(
        "select t.id, e.entity, e.start_char, e.end_char
         from {table} as t cross join lateral ner_entity_embeddings(t.body) as e"
    )
}

#[test]
fn every_kind_of_change_in_every_mode() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for (mode, storage) in [("deferred", "halfvec"), ("immediate", "vector")] {
        run(
            &mut client,
            &format!(
                "create table changing (id int primary key, body text, note int);
                 insert into changing select n, 'Mount Etna seen from Catania ' || n from generate_series(1, 20) n;
                 select ner_index('changing', 'body', mode => '{mode}', storage => '{storage}')"
            ),
        );
        settle(&mut client, "changing");
        run(
            &mut client,
            "insert into changing select n, 'Lake Baikal ' || n from generate_series(21, 40) n;
             insert into changing values (50, null), (51, ''), (52, 'e\u{301}milie visited Zürich 🚀 and São Paulo');
             copy (select 60, 'The Nile', 1) to '/dev/null';
             update changing set body = 'Lake Geneva ' || id where id between 5 and 8;
             update changing set id = id + 100 where id between 9 and 10;
             update changing set body = null where id = 11;
             insert into changing values (12, 'Oslo') on conflict (id) do update set body = excluded.body;
             delete from changing where id = 13",
        );
        if mode == "deferred" {
            settle(&mut client, "changing");
        }
        assert_eq!(
            value::<i64>(&mut client, &differences("changing", &exact("changing"))),
            0,
            "{mode}"
        );
        assert_eq!(
            value::<i64>(&mut client, "select count(*) from ner_retriever.pending"),
            0
        );

        // A transaction that is rolled back leaves nothing, a savepoint neither.
        run(
            &mut client,
            "begin; insert into changing values (70, 'Madrid'); rollback;
             begin; savepoint a; insert into changing values (71, 'Madrid'); rollback to a;
             insert into changing values (72, 'Lisbon'); commit",
        );
        settle(&mut client, "changing");
        assert_eq!(
            value::<i64>(&mut client, &differences("changing", &exact("changing"))),
            0,
            "{mode}"
        );
        run(&mut client, "truncate changing cascade");
        let left = "select (select count(*) from changing_body_mentions) + (select count(*) from ner_retriever.pending)";
        assert_eq!(value::<i64>(&mut client, left), 0);
        run(&mut client, "drop table changing");
    }
}

#[test]
fn an_unchanged_text_is_not_embedded_again() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table same (id int primary key, body text, note int);
         insert into same values (1, 'Kyoto'), (2, 'Osaka');
         select ner_index('same', 'body')",
    );
    settle(&mut client, "same");
    let requests = engine_status(&mut client).requests;
    run(
        &mut client,
        "update same set note = 7; update same set body = body; update same set body = 'Kyoto' where id = 1",
    );
    assert_eq!(
        value::<i64>(&mut client, "select count(*) from ner_retriever.pending"),
        0
    );
    assert_eq!(engine_status(&mut client).requests, requests);
    run(&mut client, "drop table same");
}

#[test]
fn a_statement_enqueues_its_rows_at_once_and_immediate_mode_asks_once() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table bulk (id int primary key, body text);
         select ner_index('bulk', 'body', mode => 'immediate')",
    );
    settle(&mut client, "bulk");
    let before = engine_status(&mut client).requests.unwrap();
    run(
        &mut client,
        "insert into bulk select n, 'Oslo ' || n from generate_series(1, 200) n",
    );
    assert_eq!(engine_status(&mut client).requests.unwrap(), before + 1);
    assert_eq!(
        value::<i64>(
            &mut client,
            "select count(distinct id) from bulk_body_mentions"
        ),
        200
    );
    // An error of the engine is the statement's error, and nothing of it stays.
    let huge = "insert into bulk values (300, repeat('Oslo ', 100000)), (301, 'Oslo')";
    failure(client.batch_execute(huge).map(|()| 0)).expect(
        "54000",
        "larger than the limit",
        "max_text_size",
    );
    assert_eq!(
        value::<i64>(&mut client, "select count(*) from bulk where id >= 300"),
        0
    );
    run(&mut client, "drop table bulk");
}

#[test]
fn a_manual_index_is_refreshed_by_hand() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table by_hand (id int primary key, body text);
         insert into by_hand values (1, 'They went to Cairo');
         select ner_index('by_hand', 'body', mode => 'manual')",
    );
    settle(&mut client, "by_hand");
    run(
        &mut client,
        "insert into by_hand values (2, 'They saw Oslo'); update by_hand set body = 'They left for Rome' where id = 1",
    );
    std::thread::sleep(Duration::from_millis(300));
    let mentions = "select id, mention from by_hand_body_mentions order by id";
    assert_eq!(rows(&mut client, mentions), ["(1,Cairo)"]);
    assert_eq!(
        value::<i64>(&mut client, "select ner_refresh('by_hand', 'id > 1')"),
        1
    );
    settle(&mut client, "by_hand");
    assert_eq!(rows(&mut client, mentions), ["(1,Cairo)", "(2,Oslo)"]);
    assert_eq!(
        value::<i64>(&mut client, "select ner_refresh('by_hand')"),
        2
    );
    settle(&mut client, "by_hand");
    assert_eq!(rows(&mut client, mentions), ["(1,Rome)", "(2,Oslo)"]);
    run(&mut client, "drop table by_hand");
}
