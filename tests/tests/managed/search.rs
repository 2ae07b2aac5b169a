//! `ner_search`

use ner_retriever_tests::managed::{rows, run, settle, value};

use crate::SERVER;

const LIBRARY: &str = "create table library (shelf int, number int, title text, body text, year int,
                                             primary key (shelf, number));
    insert into library values
        (1, 1, 'a', 'Velociraptor and Triceratops, Stegosaurus and Iguanodon share a museum in Brussels.', 1990),
        (1, 2, 'b', 'Tyrannosaurus rex was found in Montana.', 2005),
        (2, 1, 'c', 'The Danube meets the Inn at Passau.', 1990),
        (2, 2, 'd', 'Lake Constance lies between Germany and Switzerland.', 2005),
        (3, 1, 'e', 'Angela Merkel met Emmanuel Macron in Berlin.', 2010),
        (3, 2, 'f', null, 2010);
    select ner_index('library', 'body')";

#[test]
fn the_best_rows_each_with_its_best_mention() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(&mut client, LIBRARY);
    settle(&mut client, "library");
    let found = "select rank, key->>'shelf' || '/' || (key->>'number'), mention, type
                 from ner_search('library', $$dinosaur$$, 2)";
    let found = rows(&mut client, found);
    assert_eq!(found.len(), 2);
    assert!(found.iter().any(|row| row.contains("1/1")), "{found:?}");
    assert!(
        found
            .iter()
            .any(|row| row.contains("1/2,\"Tyrannosaurus rex\",dinosaur")),
        "{found:?}"
    );
    // Offsets count the text's characters.
    let cut = "select bool_and(substr(l.body, s.start_char + 1, s.end_char - s.start_char) = s.mention)
               from ner_search('library', 'city', 5) as s
               join library as l on l.shelf = (s.key->>'shelf')::int and l.number = (s.key->>'number')::int";
    assert!(value::<bool>(&mut client, cut));
    // Several types: a row is as good as the better of them.
    let water = "select key->>'number', type from ner_search('library', array['river', 'lake'], 2) order by 1";
    assert_eq!(rows(&mut client, water), ["(1,river)", "(2,lake)"]);
    // All rows without duplicates; ranked by the type alone, in order of similarity.
    let all = |ordered: &str| {
        format!(
            "select count(*) = 5 and count(distinct key) = 5 and bool_and({ordered})
             from (select *, coalesce(lag(similarity) over (order by rank), 1) as before
                   from ner_search('library', 'politician', 100)) as q"
        )
    };
    assert!(value::<bool>(&mut client, &all("true")));
    run(&mut client, "set ner_retriever.feedback = off");
    assert!(value::<bool>(&mut client, &all("similarity <= before")));
    run(&mut client, "reset ner_retriever.feedback");
    let above =
        "select count(*) from ner_search('library', 'dinosaur', 100, min_similarity => 0.4)";
    assert_eq!(value::<i64>(&mut client, above), 2);
    run(&mut client, "drop table library");
}

#[test]
fn a_condition_on_the_table() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(&mut client, LIBRARY);
    settle(&mut client, "library");
    let old = "select key->>'number' from ner_search('library', 'dinosaur', 1, filter => 'year > 2000 and shelf = 1')";
    assert_eq!(rows(&mut client, old), ["(2)"]);
    let none = "select count(*) from ner_search('library', 'dinosaur', 10, filter => 'false')";
    assert_eq!(value::<i64>(&mut client, none), 0);
    // The condition may use what the session's search_path has.
    run(
        &mut client,
        "create schema tools; create function tools.recent(int) returns bool language sql as 'select $1 > 2000'",
    );
    run(&mut client, "set search_path = public, tools");
    let own =
        "select count(*) from ner_search('library', 'dinosaur', 10, filter => 'recent(year)')";
    assert_eq!(value::<i64>(&mut client, own), 3);
    run(
        &mut client,
        "reset search_path; drop schema tools cascade; drop table library",
    );
}

#[test]
fn large_tables_are_searched_through_the_index_until_there_are_enough_rows() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table large (id int primary key, body text, part int);
         insert into large values (0, 'Iguanodon', 0);
         select ner_index('large', 'body', mode => 'manual')",
    );
    settle(&mut client, "large");
    // Mentions as the engine makes them are too slow to make here; these are around the first.
    run(
        &mut client,
        "select setseed(0.5);
         insert into large select n, 'x', n % 100 from generate_series(1, 4000) n;
         insert into large_body_mentions
         select n, 'x', m, m + 1, 1,
                (select array_agg(case when i > 8 then v else v + random() - 0.5 end order by i)::vector(384)::halfvec(384)
                 from unnest(s.v) with ordinality as u (v, i) where n + m > 0), fingerprint
         from (select embedding::vector::real[] as v, fingerprint from large_body_mentions) as s,
              generate_series(1, 4000) n, generate_series(0, 1) m where m = 0 or n <= 200;
         analyze large_body_mentions",
    );
    let statement = |filter: &str| {
        format!(
            "select ner_retriever.search_statement('large', array['dinosaur'], {filter}, null, false)"
        )
    };
    let mut plan = |filter: &str| -> String {
        let sql: String = value(&mut client, &statement(filter));
        let sql = sql
            .replace("$1", "10")
            .replace("$2", "40")
            .replace("$3", "-1");
        rows_of_plan(&mut client, &sql)
    };
    let index = "Index Scan using large_body_mentions_embedding_idx";
    assert!(plan("null").contains(index));
    assert!(plan("'part < 50'").contains(index));

    let agrees = |filter: &str| {
        format!(
            "with exact as (
                 select id from large_body_mentions join large using (id) where {filter}
                 group by id order by min((embedding <=> ner_type_embedding('dinosaur')::halfvec) + 0) limit 50)
             select count(*) from ner_search('large', 'dinosaur', 50, filter => '{filter}')
             where (key->>'id')::int in (select id from exact)"
        )
    };
    let ids = "select key->>'id' from ner_search('large', 'dinosaur', 50)";
    let followed = rows(&mut client, ids);
    // The nearest to the refined type, of all mentions: as they are, and by what they are like.
    let nearest = |ranked_by: &str| {
        format!(
            "with name as (select ner_type_embedding('dinosaur') as q),
                  near as (select embedding::vector as e from large_body_mentions, name
                           order by (embedding <=> q::halfvec) + 0 limit 100),
                  refined as (select ner_retriever.feedback(
                                  (select q::real[] from name), array_agg(e))::vector::halfvec as q from near),
                  n as (select id, embedding, embedding <=> q as distance,
                               row_number() over (order by (embedding <=> q) + 0) as place
                        from large_body_mentions, refined order by 4 limit 200),
                  s as (select ner_retriever.smooth(
                            array_agg((1 - distance)::real order by place),
                            array_agg(embedding::vector order by place)) as smoothed from n)
             select id::text from n, s group by id order by min({ranked_by}) limit 50"
        )
    };
    let mut agreed = |ranked_by: &str| {
        let expected = rows(&mut client, &nearest(ranked_by));
        followed.iter().filter(|id| expected.contains(id)).count()
    };
    let (by_like, as_they_are) = (agreed("1 - smoothed[place]"), agreed("distance"));
    assert!(
        by_like >= 48 && as_they_are < by_like,
        "{by_like} {as_they_are}"
    );
    run(&mut client, "set ner_retriever.feedback = off");
    assert_ne!(followed, rows(&mut client, ids));
    for filter in ["true", "part < 50", "part = 7"] {
        let found = value::<i64>(&mut client, &agrees(filter));
        let there = if filter == "part = 7" { 40 } else { 50 };
        assert!(found >= there - 1, "{filter}: {found} of {there}");
    }
    // More than are smoothed; the farthest mentions follow, each row still once.
    run(
        &mut client,
        "reset ner_retriever.feedback;
         insert into large select id + n * 5000, body, part from large, generate_series(1, 2) n;
         insert into large_body_mentions
         select id + n * 5000, mention, start_char, end_char, score, embedding, fingerprint
         from large_body_mentions, generate_series(1, 2) n",
    );
    let many = "select count(*) = 11000 and count(distinct key) = 11000
                       and max(similarity) filter (where rank > 10500)
                           < min(similarity) filter (where rank <= 100)
                from ner_search('large', 'dinosaur', 11000)";
    assert!(value::<bool>(&mut client, many));
    run(&mut client, "drop table large");
}

#[test]
fn a_search_follows_what_is_nearest() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table museum (id int primary key, body text);
         select ner_index('museum', 'body')",
    );
    settle(&mut client, "museum");
    let search = "select key->>'id', mention, round(similarity::numeric, 4)
                  from ner_search('museum', 'dinosaur', 10)";
    assert!(rows(&mut client, search).is_empty());
    run(
        &mut client,
        "insert into museum values
             (1, 'A Stegosaurus skeleton stands in the hall.'),
             (2, 'Visitors from Vienna come on Sundays.'),
             (3, 'Iguanodon was found by Gideon Mantell.'),
             (4, 'Trams stop at the Danube.'),
             (5, 'A Diplodocus, the dinosaur of 1898, was a gift of Andrew Carnegie.'),
             (6, 'Über ''🦕 dinosaur 🦕'' schrieb im Jahr, in dem es keine weiteren Funde gab, Friedrich von Huene.')",
    );
    settle(&mut client, "museum");
    let exact = |query: &str, ranked_by: &str| {
        format!(
            "with n as (select id, mention, embedding, embedding <=> {query} as distance,
                               right(left(body, start_char), 50) || mention || left(substr(body, end_char + 1), 50)
                                   ~* 'dinosaur' as named,
                               row_number() over (order by embedding <=> {query}) as place
                        from museum_body_mentions join museum using (id)),
                  s as (select ner_retriever.smooth(
                            array_agg((1 - distance)::real order by place),
                            array_agg(embedding::vector order by place)) as smoothed from n),
                  ranked as (select id, mention, embedding, {ranked_by} as ranked_by from n, s),
                  best as (select distinct on (id) * from ranked order by id, ranked_by)
             select id::text, mention,
                    round((1 - (embedding <=> ner_type_embedding('dinosaur')::halfvec))::real::numeric, 4)
             from best order by ranked_by"
        )
    };
    let name = "ner_type_embedding('dinosaur')::halfvec";
    let refined = "(select ner_retriever.feedback(ner_type_embedding('dinosaur')::real[],
                      array_agg(m.embedding::vector)) from museum_body_mentions as m)::vector::halfvec";
    let rescored = "1 - smoothed[place] - case when named then 0.08 else 0 end";
    let followed = rows(&mut client, search);
    assert_eq!(followed, rows(&mut client, &exact(refined, rescored)));
    run(&mut client, "set ner_retriever.feedback = off");
    let by_name = rows(&mut client, search);
    assert_eq!(by_name, rows(&mut client, &exact(name, "distance")));
    run(
        &mut client,
        "reset ner_retriever.feedback; drop table museum",
    );
}

#[test]
fn a_type_s_words_count_near_a_mention() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let mut near = |arguments: &str| {
        let sql = format!("select ner_retriever.words_near({arguments})::text");
        value::<String>(&mut client, &sql)
    };
    assert_eq!(near("'hotel', 'at the Hotel Adlon', 13, 18"), "0.08");
    assert_eq!(
        near("'a grand hotel', 'at the Hotel Adlon', 13, 18"),
        "0.04"
    );
    // Up to 50 characters before and after the mention "x", however many bytes they have.
    let before = |n: u32| {
        format!(
            "'hotel', 'hotel' || repeat('🦕', {n}) || 'x', {}, {}",
            5 + n,
            6 + n
        )
    };
    let after = |n: u32| format!("'hotel', '🦕x' || repeat('é', {n}) || ' hotel', 1, 2");
    assert_eq!([45, 46].map(|n| near(&before(n))), ["0.08", "0"]);
    assert_eq!([44, 45].map(|n| near(&after(n))), ["0.08", "0"]);
    // What is no place of a text, and names without a word.
    for arguments in [
        "'hotel', '', 0, 5",
        "'hotel', 'hotel', 2147483647, 2147483647",
        "'hotel', repeat('. ', 60) || 'hotel', -5, -2147483648",
        "'hotel', repeat('. ', 60) || 'hotel', 9, 3",
        "'🦕', '🦕', 0, 1",
        "'', 'hotel', 0, 5",
    ] {
        assert_eq!(near(arguments), "0", "{arguments}");
    }
}

#[test]
fn what_cannot_be_smoothed_stays() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let mut smoothed = |arguments: &str| {
        let sql = format!("select array_to_string(ner_retriever.smooth({arguments}), ' ')");
        value::<String>(&mut client, &sql)
    };
    assert_eq!(smoothed("'{}', '{}'"), "");
    assert_eq!(smoothed("'{0.5,0.25}', '{}'"), "0.5 0.25");
    assert_eq!(smoothed("'{0.5}', array['[0,0]']::vector[]"), "0.5");
    assert_eq!(
        smoothed("'{0.5,0.5}', array['[1,0,0]']::vector[]"),
        "0.5 0.5"
    );
}

fn rows_of_plan(client: &mut postgres::Client, sql: &str) -> String {
    let rows = client
        .query(&format!("explain (costs off) {sql}"), &[])
        .unwrap();
    rows.iter()
        .map(|row| row.get::<_, String>(0) + "\n")
        .collect()
}
