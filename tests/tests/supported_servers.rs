//! What must work on every supported server: `make test` runs this file on PostgreSQL 15 as well, whose
//! scripts of the extension are made in another way (`scripts/install.sh`).

use ner_retriever_tests::managed::{rows, run, settle, value};
use ner_retriever_tests::server::{Server, SharedServer};
use ner_retriever_tests::session::engine_status;
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("supported-servers", &[]);

/// A new database; it goes when the test begins anew, or with the instance.
fn new_database(server: &Server, name: &str) -> Client {
    let mut client = server.connect();
    run(
        &mut client,
        &format!("drop database if exists {name} with (force)"),
    );
    run(&mut client, &format!("create database {name}"));
    server.connect_as("postgres", name)
}

fn make_notes(client: &mut Client) {
    run(
        client,
        "create table note (id int primary key, body text);
         insert into note values (1, 'Marie Curie worked in Paris.'), (2, 'The Danube flows through Vienna.');
         select ner_index('note', 'body');",
    );
    settle(client, "note");
}

/// The best mention of each of the rows of `note`, as `ner_search` finds it.
fn found(client: &mut Client, type_name: &str, k: i32) -> Vec<String> {
    let search = format!(
        "select key->>'id', mention from ner_search('note', '{type_name}', {k}) order by rank"
    );
    rows(client, &search)
}

/// Searches, changes a row, and searches again.
fn work_with_notes(client: &mut Client) {
    assert_eq!(found(client, "river", 1), ["(2,Danube)"]);
    assert_eq!(found(client, "person", 1), ["(1,\"Marie Curie\")"]);
    run(
        client,
        "update note set body = 'Alan Turing ran to Cambridge.' where id = 1;
         insert into note values (3, 'Barges come up the Rhine to Basel.');
         delete from note where id = 2;",
    );
    settle(client, "note");
    assert_eq!(found(client, "person", 1), ["(1,\"Alan Turing\")"]);
    assert_eq!(found(client, "river", 1), ["(3,Rhine)"]);
    assert_eq!(rows(client, "select * from ner_retriever.failed"), [""; 0]);
}

/// The schemas and names of the types `vector` and `vector[]` in the signatures of the extension's functions.
fn vector_types(client: &mut Client) -> Vec<String> {
    rows(
        client,
        "select distinct t.typnamespace::regnamespace::text, t.typname
         from pg_depend as d join pg_proc as p on p.oid = d.objid
         cross join lateral unnest(p.proallargtypes || p.proargtypes::oid[] || p.prorettype) as a (type)
         join pg_type as t on t.oid = a.type
         where d.classid = 'pg_proc'::regclass and d.deptype = 'e' and t.typname like '%vector'
           and d.refobjid = (select oid from pg_extension where extname = 'ner_retriever')
         order by 2",
    )
}

#[test]
fn an_index_works_from_its_making_to_its_end() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "whole_life");
    run(&mut client, "create extension ner_retriever cascade");
    make_notes(&mut client);
    work_with_notes(&mut client);
    run(&mut client, "drop extension ner_retriever cascade");
    // The mentions stay in a table like any other.
    run(&mut client, "insert into note values (4, 'Ada Lovelace')");
    let kept = "select count(*) filter (where id = 3) > 0, count(*) filter (where id = 4)
                from note_body_mentions";
    assert_eq!(rows(&mut client, kept), ["(t,0)"]);
    run(
        &mut client,
        "drop table note_body_mentions; create extension ner_retriever; select ner_index('note', 'body')",
    );
    settle(&mut client, "note");
    run(&mut client, "drop table note");
    let left = "select count(*) from ner_retriever.managed_index";
    assert_eq!(value::<i64>(&mut client, left), 0);
    assert!(value::<bool>(
        &mut client,
        "select to_regclass('note_body_mentions') is null"
    ));
}

#[test]
fn the_schema_of_pgvector_is_found() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "schemas");
    // The scripts must not take another type for pgvector's, wherever people have put one.
    run(
        &mut client,
        "create schema \"Far away\"; create schema tools;
         create domain tools.vector as text; create domain public.vector as text;
         create extension vector schema \"Far away\";
         create extension ner_retriever schema tools;
         set search_path = tools, public;",
    );
    let expected = [
        "(\"\"\"Far away\"\"\",_vector)",
        "(\"\"\"Far away\"\"\",vector)",
    ];
    assert_eq!(vector_types(&mut client), expected);
    make_notes(&mut client);
    work_with_notes(&mut client);
}

#[test]
fn a_schema_of_pgvector_that_could_end_a_string_is_refused() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "bad_schema");
    run(
        &mut client,
        "create schema \"far$$away\"; create extension vector schema \"far$$away\"",
    );
    let error = client
        .batch_execute("create extension ner_retriever")
        .expect_err("the name must be refused");
    let error = error.as_db_error().expect("an error of the server");
    let message = "invalid character in extension \"vector\" schema";
    assert!(error.message().starts_with(message), "{error:?}");
}

#[test]
fn updates_take_indexes_with_them() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "updates");
    run(
        &mut client,
        "create extension ner_retriever version '0.1.0' cascade;
         alter extension ner_retriever update to '0.2.0'",
    );
    // Version 0.2.0 with an index that it has filled: its library is not at hand, so its tables get what it
    // would have put there.
    run(
        &mut client,
        "create table note (id int primary key, body text);
         insert into note values (1, 'Marie Curie worked in Paris.'), (2, 'The Danube flows through Vienna.'),
             (4, '...'), (5, null);
         select ner_index('note', 'body');
         insert into note_body_mentions
         select n.id, e.entity, e.start_char, e.end_char, e.score, e.embedding, i.fingerprint
         from ner_retriever.managed_index as i, note as n cross join lateral ner_entity_embeddings(n.body) as e;
         create index on note_body_mentions using hnsw (embedding halfvec_cosine_ops);
         delete from ner_retriever.pending;
         update ner_retriever.managed_index set state = 'ready', rows_total = 4;
         -- The library is the newest version's: changes are kept until the update.
         insert into note values (6, 'Oslo lies on a fjord.')",
    );
    let waiting = "select count(*) from ner_retriever.pending";
    assert_eq!(value::<i64>(&mut client, waiting), 1);
    let mentions = "select id, mention, embedding from note_body_mentions where id <> 6 order by id, start_char";
    let before = rows(&mut client, mentions);
    assert_eq!(before.len(), 4);
    let requests = engine_status(&mut client).requests;
    run(&mut client, "alter extension ner_retriever update");
    let newest = "select installed_version = default_version from pg_available_extensions
                  where name = 'ner_retriever'";
    assert!(value::<bool>(&mut client, newest));
    settle(&mut client, "note");
    // What was embedded stays; what waited is embedded, and nothing else.
    assert_eq!(rows(&mut client, mentions), before);
    assert_eq!(
        engine_status(&mut client).requests.unwrap(),
        requests.unwrap() + 1
    );
    assert_eq!(
        rows(&mut client, "select * from ner_check('note')"),
        ["(0,0,0)"]
    );
    let foreign_keys = "select count(*) from pg_constraint where contype = 'f'";
    assert_eq!(value::<i64>(&mut client, foreign_keys), 0);
    let oslo = "select count(*) from note_body_mentions where id = 6 and mention = 'Oslo'";
    assert_eq!(value::<i64>(&mut client, oslo), 1);
    work_with_notes(&mut client);
}
