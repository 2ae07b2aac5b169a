//! Texts that are long, too long, or nothing.

use std::sync::LazyLock;

use ner_retriever_tests::session::{
    Mention, failure, mentions, mentions_at, mentions_of_texts, type_embedding,
};
use ner_retriever_tests::texts::sentences;

use crate::{SERVER, covers};

static MEGABYTE: LazyLock<String> = LazyLock::new(|| "Paris is a city. ".repeat(61_681));

#[test]
fn nothing_in_gives_nothing_out() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for call in [
        "ner_entity_embeddings(null::text)",
        "ner_entity_embeddings('')",
        "ner_entity_embeddings(E' \\n\\t ')",
        "ner_entity_embeddings(null::text[])",
        "ner_entity_embeddings('{}'::text[])",
        "ner_entity_embeddings(array[null, '', null])",
        "ner_entity_embeddings('Paris', null)",
        "ner_entity_embeddings(null, array[int4range(0, 1)])",
        "ner_entity_embeddings('Paris', '{}'::int4range[])",
        "ner_entities(null)",
        "ner_entities('')",
    ] {
        let rows = client.query(&format!("select * from {call}"), &[]).unwrap();
        assert_eq!(rows.len(), 0, "{call}");
    }
    let sql = "select ner_type_embedding(null) is null";
    assert!(client.query_one(sql, &[]).unwrap().get::<_, bool>(0));
}

#[test]
fn a_long_text_is_searched_to_its_end() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let filler = sentences(0, 240);
    let text = format!("{filler}Finally, Wilhelmina Abernathy flew to Ulaanbaatar.");
    assert!(text.len() > 20_000);
    let found = mentions(&mut client, &text).unwrap();
    for name in ["Wilhelmina Abernathy", "Ulaanbaatar"] {
        assert!(covers(&found, &text, name), "{name} is not found");
    }
    // Nothing is missing between windows: names are found in every thousandth part of the text.
    for part in 0..20_i32 {
        let within = |m: &&Mention| m.start < (part + 1) * 1000 && m.end > part * 1000;
        assert!(found.iter().any(|m| within(&m)), "nothing in part {part}");
    }
    let characters: Vec<char> = text.chars().collect();
    let mut end = 0;
    for mention in &found {
        assert!(mention.start >= end, "{mention:?} overlaps the one before");
        end = mention.end;
        let there = &characters[mention.start as usize..end as usize];
        assert_eq!(mention.entity, there.iter().collect::<String>());
    }

    let last = characters.len() - 12;
    let spans = format!("{{\"[{last},{})\",\"[7,8)\"}}", last + 11);
    let given = mentions_at(&mut client, &text, &spans).unwrap();
    assert_eq!(
        (given[0].entity.as_str(), given[1].entity.as_str()),
        ("Ulaanbaatar", "0")
    );
}

#[test]
fn a_megabyte_is_refused() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let text = MEGABYTE.as_str();
    let errors = [
        failure(mentions(&mut client, text)),
        failure(mentions_of_texts(&mut client, &[Some("Paris"), Some(text)])),
        failure(mentions_at(&mut client, text, r#"{"[0,5)"}"#)),
        failure(client.query("select * from ner_entities($1)", &[&text])),
        failure(type_embedding(&mut client, text)),
    ];
    for error in errors {
        let message = "a text of 1048577 bytes is larger than the limit of 262144 bytes";
        error.expect("54000", message, "raise ner_retriever.max_text_size");
    }
}
