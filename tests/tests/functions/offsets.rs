//! Where mentions are in texts of every kind.

use ner_retriever_tests::session::{
    distance, engine_status, failure, mentions, mentions_at, mentions_of_texts,
};

use crate::{SAME, SERVER, length, substring};

const MULTILINGUAL: [&str; 7] = [
    "👩‍🔬 Dr. Ada Lovelace 🇩🇪 met Zoë in the Cafe\u{301} Süd in Berlin 🦕.",
    "زار الرئيس أنور السادات مدينة القاهرة أمس",
    "עופרה חזה נולדה בתל אביב",
    "昨日、山田太郎は東京都で佐藤花子に会いました。",
    "김연아는 부천에서 자랐다.",
    "नरेन्द्र मोदी दिल्ली में रहते हैं।",
    "Nguye\u{302}\u{303}n Va\u{306}n An lives in Ha\u{300} No\u{323}\u{302}i, e\u{301}e\u{301}.",
];

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
