//! What the SQL functions give, with the default model.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use ner_retriever_tests::server::SharedServer;
use ner_retriever_tests::session::{
    Mention, distance, engine_status, failure, mentions, mentions_at, mentions_of_texts,
    type_embedding,
};
use ner_retriever_tests::texts::{as_array, documents, sentences};
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("functions", &[]);

/// The same words twice give the same vectors up to the order of floating-point sums.
const SAME: f32 = 1e-4;

static MEGABYTE: LazyLock<String> = LazyLock::new(|| "Paris is a city. ".repeat(61_681));

const MULTILINGUAL: [&str; 7] = [
    "👩‍🔬 Dr. Ada Lovelace 🇩🇪 met Zoë in the Cafe\u{301} Süd in Berlin 🦕.",
    "زار الرئيس أنور السادات مدينة القاهرة أمس",
    "עופרה חזה נולדה בתל אביב",
    "昨日、山田太郎は東京都で佐藤花子に会いました。",
    "김연아는 부천에서 자랐다.",
    "नरेन्द्र मोदी दिल्ली में रहते हैं।",
    "Nguye\u{302}\u{303}n Va\u{306}n An lives in Ha\u{300} No\u{323}\u{302}i, e\u{301}e\u{301}.",
];

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
fn offsets_count_characters_in_every_script() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let texts = MULTILINGUAL.map(Some);
    let found = mentions_of_texts(&mut client, &texts).unwrap();
    assert!(!found.is_empty());
    for mention in &found {
        let text = MULTILINGUAL[mention.doc as usize - 1];
        assert_eq!(mention.entity, substring(&mut client, text, mention));
        assert_eq!(mention.entity.trim(), mention.entity);
        // No mention begins with what belongs to the character before it.
        let combining = |c: char| ('\u{300}'..='\u{36f}').contains(&c) || c == '\u{200d}';
        assert!(!mention.entity.starts_with(combining), "{mention:?}");
        let next = text.chars().nth(mention.end as usize);
        assert!(!next.is_some_and(combining), "{mention:?} in {text}");
    }
}

#[test]
fn given_spans_count_characters_in_every_script() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for (text, name) in MULTILINGUAL.iter().zip([
        "Ada Lovelace 🇩🇪",
        "القاهرة",
        "תל אביב",
        "山田太郎",
        "부천",
        "दिल्ली",
        "Ha\u{300} No\u{323}\u{302}i",
    ]) {
        let start = text[..text.find(name).unwrap()].chars().count();
        let end = start + name.chars().count();
        let found = mentions_at(&mut client, text, &format!("{{\"[{start},{end})\"}}")).unwrap();
        assert_eq!(found[0].entity, name);
        assert_eq!((found[0].start, found[0].end), (start as i32, end as i32));
    }
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
fn given_spans_keep_their_order_and_may_be_written_in_every_form() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let text = "Zoë met Ada 🦕 in Rome";
    let spans = r#"{"[17,21)","[0,2]","(11,12]","(7,11)","[0,3)","[0,21)"}"#;
    let found = mentions_at(&mut client, text, spans).unwrap();
    let names: Vec<&str> = found
        .iter()
        .map(|mention| mention.entity.as_str())
        .collect();
    assert_eq!(names, ["Rome", "Zoë", "🦕", "Ada", "Zoë", text]);
    let bounds: Vec<_> = found
        .iter()
        .map(|mention| (mention.start, mention.end))
        .collect();
    assert_eq!(
        bounds,
        [(17, 21), (0, 3), (12, 13), (8, 11), (0, 3), (0, 21)]
    );
    assert!(found.iter().all(|mention| mention.score == 1.0));
    assert!(distance(&found[1].embedding, &found[4].embedding) < SAME);
    assert!(distance(&found[0].embedding, &found[3].embedding) > 100.0 * SAME);
    assert!((length(&found[0].embedding) - 1.0).abs() < SAME);
}

#[test]
fn spans_that_are_no_part_of_the_text_are_refused() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for (spans, message) in [
        (r#"{"[0,1)","[2,6)"}"#, "span [2,6) lies outside its text"),
        (r#"{"[7,9)"}"#, "span [7,9) lies outside its text"),
        (r#"{"[0,2147483647)"}"#, "lies outside its text"),
        (r#"{"[0,1)","[-1,3)"}"#, "span 2 begins before the text"),
        (r#"{"[2,2)"}"#, "span 1 is NULL, empty or unbounded"),
        (r#"{"[0,1)",null}"#, "span 2 is NULL, empty or unbounded"),
        (r#"{"[3,)"}"#, "span 1 is NULL, empty or unbounded"),
        (r#"{"(,3)"}"#, "span 1 is NULL, empty or unbounded"),
        (r#"{"(,)"}"#, "span 1 is NULL, empty or unbounded"),
        (r#"{"[1,2)"}"#, "span [1,2) holds only white space"),
    ] {
        let error = failure(mentions_at(&mut client, "a bcd", spans));
        error.expect("22023", message, "count characters from 0");
    }
    let error = failure(mentions_at(&mut client, "", r#"{"[0,1)"}"#));
    error.expect(
        "22023",
        "lies outside its text",
        "this text has 0 characters",
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
fn control_characters_and_backslashes_are_plain_characters() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for text in [
        "\u{1}Paris\u{1}",
        "C:\\temp\\new \\0 \\x00 \\u0000 in Paris",
        "%s %n {0} $1 'Paris' \"Paris\" --",
        "\u{7f}\u{80}\u{9f} Paris \u{feff}\u{202e}\u{ffff}",
        "Paris\r\n\r\nParis\u{b}\u{c}",
    ] {
        let start = text[..text.find("Paris").unwrap()].chars().count();
        let spans = format!(
            "{{\"[{start},{})\",\"[0,{})\"}}",
            start + 5,
            text.chars().count()
        );
        let given = mentions_at(&mut client, text, &spans).unwrap();
        assert_eq!(
            (given[0].entity.as_str(), given[1].entity.as_str()),
            ("Paris", text)
        );
        for mention in mentions(&mut client, text).unwrap() {
            assert_eq!(mention.entity, substring(&mut client, text, &mention));
        }
    }
    let error = failure(client.query("select * from ner_entities(E'a\\x00b')", &[]));
    assert_eq!(
        error.sqlstate, "22021",
        "PostgreSQL itself has no NUL in texts"
    );
}

#[test]
fn names_of_special_tokens_are_plain_text() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let text = "Paris<|im_end|>\n<|im_start|>system <|endoftext|> Rome";
    let given = mentions_at(&mut client, text, r#"{"[0,5)","[5,15)","[49,53)"}"#).unwrap();
    let names: Vec<&str> = given
        .iter()
        .map(|mention| mention.entity.as_str())
        .collect();
    assert_eq!(names, ["Paris", "<|im_end|>", "Rome"]);
    let before = engine_status(&mut client).tokens.unwrap();
    mentions_at(&mut client, "<|im_end|>", r#"{"[0,10)"}"#).unwrap();
    let tokens = engine_status(&mut client).tokens.unwrap() - before;
    // The first token, and more than the one that it would be as a special token.
    assert!(tokens > 2, "{tokens} tokens");
}

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
