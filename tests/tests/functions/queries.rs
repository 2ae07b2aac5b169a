//! The functions within queries, schemas, roles and limits.

use ner_retriever_tests::session::{
    distance, engine_status, failure, mentions, mentions_of_texts, type_embedding,
};
use ner_retriever_tests::texts::{as_array, documents};
use postgres::Client;

use crate::{SAME, SERVER};

#[test]
fn a_search_uses_the_hnsw_index() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let dimensions = {
        type_embedding(&mut client, "dinosaur").unwrap();
        engine_status(&mut client).dimensions.unwrap()
    };
    let create = format!(
        "create temporary table entities (doc int, entity text, embedding vector({dimensions}));
         create index on entities using hnsw (embedding vector_cosine_ops)"
    );
    client.batch_execute(&create).unwrap();
    let texts = documents(20, 2);
    let fill =
        "insert into entities select doc, entity, embedding from ner_entity_embeddings($1::text[])";
    client.execute(fill, &[&as_array(&texts)]).unwrap();
    client.batch_execute("analyze entities").unwrap();

    let search = "select entity, embedding <=> ner_type_embedding('dinosaur') as distance \
                  from entities order by embedding <=> ner_type_embedding('dinosaur') limit 10";
    let explain = format!("explain (costs off) {search}");
    let plan: Vec<String> = client
        .query(&explain, &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(
        plan.iter()
            .any(|line| line.contains("Index Scan using entities_embedding_idx")),
        "{plan:#?}"
    );

    let distances = |client: &mut Client| -> Vec<f64> {
        let rows = client.query(search, &[]).unwrap();
        rows.iter().map(|row| row.get("distance")).collect()
    };
    let by_index = distances(&mut client);
    client.batch_execute("set enable_indexscan = off").unwrap();
    let by_scan = distances(&mut client);
    assert_eq!(by_index.len(), 10);
    assert!(by_index.is_sorted());
    assert!(
        (by_index[0] - by_scan[0]).abs() < 1e-6,
        "{by_index:?} {by_scan:?}"
    );
}

#[test]
fn parallel_workers_may_ask_as_well() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let version = "select current_setting('server_version_num')::int >= 160000";
    let newer: bool = client.query_one(version, &[]).unwrap().get(0);
    let force = if newer {
        "debug_parallel_query"
    } else {
        "force_parallel_mode"
    };
    client.batch_execute(&format!("set {force} = on")).unwrap();
    let expected = type_embedding(&mut client, "volcano").unwrap();
    let sql = "select ner_type_embedding(name)::real[] from (values ('volcano')) as types (name) offset 0";
    let explain: Vec<_> = client.query(&format!("explain {sql}"), &[]).unwrap();
    assert!(
        explain[0].get::<_, &str>(0).contains("Gather"),
        "the query is not parallel"
    );
    let embedding: Vec<f32> = client.query_one(sql, &[]).unwrap().get(0);
    assert!(distance(&embedding, &expected) < SAME);
}

#[test]
fn any_schema_and_any_user_will_do() {
    let server = SERVER.turn();
    let mut admin = server.connect();
    for statement in [
        "drop database if exists elsewhere",
        "drop role if exists reader",
    ] {
        admin.batch_execute(statement).unwrap();
    }
    admin.batch_execute("create database elsewhere").unwrap();
    admin.batch_execute("create role reader login").unwrap();
    let mut owner = server.connect_as("postgres", "elsewhere");
    let extensions = "create schema vectors; create extension vector schema vectors;
                      create schema ner; create extension ner_retriever schema ner;
                      grant usage on schema ner, vectors to reader";
    owner.batch_execute(extensions).unwrap();
    drop(owner);

    let mut reader = server.connect_as("reader", "elsewhere");
    let superuser: bool = reader
        .query_one(
            "select rolsuper from pg_roles where rolname = current_user",
            &[],
        )
        .unwrap()
        .get(0);
    assert!(!superuser);
    let sql = "select (select count(*) from ner.ner_entity_embeddings($1::text)),
                      (select count(*) from ner.ner_entity_embeddings(array[$1::text])),
                      (select count(*) from ner.ner_entity_embeddings($1::text, array[int4range(0, 5)])),
                      (select count(*) from ner.ner_entities($1::text)),
                      vectors.vector_dims(ner.ner_type_embedding('city')),
                      (select dimensions from ner.ner_engine_status())";
    let row = reader
        .query_one(sql, &[&"Paris is a city in France."])
        .unwrap();
    let counts: [i64; 4] = std::array::from_fn(|column| row.get(column));
    assert!(counts[0] > 0 && counts[0] == counts[1] && counts[0] == counts[3] && counts[2] == 1);
    assert_eq!(row.get::<_, i32>(4), row.get::<_, i32>(5));

    let error = failure(reader.batch_execute("set ner_retriever.model = '/etc/passwd'"));
    assert_eq!(
        error.sqlstate, "55P02",
        "paths come from the configuration only"
    );
}

#[test]
fn a_call_ends_after_the_request_timeout() {
    let server = SERVER.turn();
    let mut client = server.connect();
    mentions(&mut client, "Paris").unwrap();
    client
        .batch_execute("set ner_retriever.request_timeout = '100ms'")
        .unwrap();
    let texts = documents(40, 10);
    let error = failure(mentions_of_texts(&mut client, &as_array(&texts)));
    error.expect(
        "57014",
        "ner_retriever.request_timeout",
        "Raise ner_retriever.request_timeout",
    );
}
