//! What the SQL functions give, with the default model.

mod offsets;
mod queries;
mod sizes;

use std::collections::BTreeSet;

use ner_retriever_tests::server::SharedServer;
use ner_retriever_tests::session::{
    Mention, distance, engine_status, failure, mentions, mentions_of_texts, type_embedding,
};
use ner_retriever_tests::texts::sentences;
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("functions", &[]);

/// The same words twice give the same vectors up to the order of floating-point sums.
const SAME: f32 = 1e-4;

/// What PostgreSQL itself finds at a mention's offsets.
fn substring(client: &mut Client, text: &str, mention: &Mention) -> String {
    let sql = "select substring($1 from $2::int for $3::int)";
    let (from, length) = (mention.start + 1, mention.end - mention.start);
    client
        .query_one(sql, &[&text, &from, &length])
        .unwrap()
        .get(0)
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

fn covers(mentions: &[Mention], text: &str, name: &str) -> bool {
    let start = text[..text.find(name).unwrap()].chars().count() as i32;
    let end = start + name.chars().count() as i32;
    mentions.iter().any(|m| m.start < end && m.end > start)
}

#[test]
fn mentions_are_found_where_they_are() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let text = "Marie Curie moved from Warsaw to Paris, where she worked at the Sorbonne.";
    let found = mentions(&mut client, text).unwrap();
    for name in ["Marie Curie", "Warsaw", "Paris", "Sorbonne"] {
        assert!(covers(&found, text, name), "{name} is not in {found:?}");
    }
    let dimensions = engine_status(&mut client).dimensions.unwrap() as usize;
    let mut end = 0;
    for mention in &found {
        assert!(
            mention.start >= end,
            "out of order or overlapping: {found:?}"
        );
        assert_eq!(mention.entity, substring(&mut client, text, mention));
        assert!((0.0..=1.0).contains(&mention.score));
        assert_eq!(mention.embedding.len(), dimensions);
        assert!((length(&mention.embedding) - 1.0).abs() < SAME);
        end = mention.end;
    }
}

/// How good the head is gets measured elsewhere; these are easy, and wrong if anything on the way
/// from the text to the rank is mixed up.
#[test]
fn a_type_ranks_its_entities_first() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let texts = [
        "Marie Curie moved from Warsaw to Paris, where she worked at the Sorbonne.",
        "A Triceratops skull came from Montana.",
        "Angela Merkel led the Christian Democratic Union of Germany.",
        "The museum shows a Velociraptor from the Gobi Desert.",
        "Toyota builds the Corolla in Kentucky.",
    ];
    let sql = "with found as materialized (select * from ner_entity_embeddings($1::text[]))
               select (select entity from found order by embedding <=> ner_type_embedding(name) limit 1)
               from unnest(array['dinosaur', 'university', 'politician']) as name";
    let rows = client.query(sql, &[&texts.as_slice()]).unwrap();
    let best: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert!(
        ["Triceratops", "Velociraptor"].contains(&best[0]),
        "{best:?}"
    );
    assert_eq!(best[1..], ["Sorbonne", "Angela Merkel"]);
}

#[test]
fn mentions_without_embeddings_are_the_same_mentions() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let text = sentences(0, 4);
    let with = mentions(&mut client, &text).unwrap();
    let rows = client
        .query("select * from ner_entities($1)", &[&text])
        .unwrap();
    assert_eq!(rows.len(), with.len());
    for (row, mention) in rows.iter().zip(&with) {
        assert_eq!(row.get::<_, &str>("entity"), mention.entity);
        assert_eq!(row.get::<_, i32>("start_char"), mention.start);
        assert_eq!(row.get::<_, i32>("end_char"), mention.end);
        assert!((row.get::<_, f32>("score") - mention.score).abs() < SAME);
        assert!(
            row.columns()
                .iter()
                .all(|column| column.name() != "embedding")
        );
    }
}

#[test]
fn a_text_of_nothing_sure_has_what_is_likeliest() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let text = "It was a good holiday.";
    let unsure = mentions(&mut client, text).unwrap();
    assert!(covers(&unsure, text, "holiday"), "{unsure:?}");
    assert!(unsure.iter().all(|mention| mention.score < 0.1));
    // A threshold of one's own has no floor below it, and beside a sure mention there is no unsure one.
    client
        .batch_execute("set ner_retriever.detection_threshold = 0.1")
        .unwrap();
    assert!(mentions(&mut client, text).unwrap().is_empty());
    client
        .batch_execute("reset ner_retriever.detection_threshold")
        .unwrap();
    let text = format!("{text} Ada Lovelace came from London.");
    let sure = mentions(&mut client, &text).unwrap();
    assert!(sure.iter().all(|mention| mention.score >= 0.1), "{sure:?}");
    assert!(covers(&sure, &text, "London"), "{sure:?}");
}

#[test]
fn texts_of_an_array_are_numbered_and_none_is_lost() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let (first, second) = (sentences(0, 1), sentences(1, 1));
    let texts = [
        None,
        Some(first.as_str()),
        Some(""),
        None,
        Some("  \n"),
        Some(second.as_str()),
    ];
    let found = mentions_of_texts(&mut client, &texts).unwrap();
    let numbers: BTreeSet<i32> = found.iter().map(|mention| mention.doc).collect();
    assert_eq!(numbers, BTreeSet::from([2, 6]));
    assert!(found.is_sorted_by_key(|mention| (mention.doc, mention.start)));
    for (doc, text) in [(2, &first), (6, &second)] {
        let alone = mentions(&mut client, text).unwrap();
        let together: Vec<_> = found.iter().filter(|mention| mention.doc == doc).collect();
        assert_eq!(together.len(), alone.len());
        for (a, b) in together.iter().zip(&alone) {
            assert!(a.agrees(&Mention { doc, ..b.clone() }, SAME), "{a:?} {b:?}");
        }
    }
    let sql = "select array_agg(distinct doc order by doc) \
               from ner_entity_embeddings(array[array[$1, null], array['', $2]])";
    let numbers: Vec<i32> = client.query_one(sql, &[&first, &second]).unwrap().get(0);
    assert_eq!(
        numbers,
        [1, 4],
        "an array of two dimensions counts as unnest does"
    );
}

#[test]
fn a_type_has_one_embedding_and_a_session_asks_for_it_once() {
    let server = SERVER.turn();
    let (mut one, mut other) = (server.connect(), server.connect());
    let dinosaur = type_embedding(&mut one, "dinosaur").unwrap();
    let asked = engine_status(&mut one);
    assert_eq!(dinosaur.len(), asked.dimensions.unwrap() as usize);
    assert!((length(&dinosaur) - 1.0).abs() < SAME);

    assert_eq!(type_embedding(&mut one, "dinosaur").unwrap(), dinosaur);
    let sql = "select count(distinct ner_type_embedding('dino' || substr('saur', 1, 4 + 0 * n))::text) \
               from generate_series(1, 100) n";
    assert_eq!(one.query_one(sql, &[]).unwrap().get::<_, i64>(0), 1);
    assert_eq!(engine_status(&mut one).requests, asked.requests);

    let again = type_embedding(&mut other, "dinosaur").unwrap();
    assert!(engine_status(&mut one).requests > asked.requests);
    assert!(distance(&again, &dinosaur) < SAME);
    let river = type_embedding(&mut other, "river").unwrap();
    assert!(distance(&river, &dinosaur) > 100.0 * SAME);
}

#[test]
fn a_type_needs_a_name() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for name in ["", "  \t\n"] {
        let error = failure(type_embedding(&mut client, name));
        error.expect("22023", "must not be empty", "Pass the name of a type");
    }
    let error = failure(type_embedding(&mut client, &"river ".repeat(2000)));
    error.expect(
        "54000",
        "the type's name has",
        "Name an entity type in at most",
    );
}
