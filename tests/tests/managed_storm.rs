//! A managed index under fire: concurrent changes while engine and server are killed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ner_retriever_tests::managed::{run, settle, value};
use ner_retriever_tests::processes::{is_alive, signal};
use ner_retriever_tests::server::{PATIENCE, Server};
use ner_retriever_tests::wait::wait_until;
use postgres::Client;
use rustix::process::Signal;

const SESSIONS: usize = 8;
const ROWS: usize = 5000;
const ENGINE_KILLS: usize = 10;
const SERVER_KILLS: usize = 3;
/// Every so many rows one is larger than the engine takes.
const POISON: usize = 1250;

const TEXTS: [&str; 12] = [
    "The Danube at Vienna",
    "Angela Merkel",
    "A Boeing 747 over Oslo",
    "Mount Etna",
    "nothing at all",
    "Tokyo and Kyoto",
    "Lake Baikal 🚀",
    "Zürich, Genève, São Paulo",
    "FC Barcelona won",
    "Marie Curie in Paris",
    "The Rhine",
    "",
];

/// A session that goes on after the server was restarted.
struct Stubborn<'a> {
    server: &'a Server,
    client: Option<Client>,
}

impl Stubborn<'_> {
    /// Runs a statement until it has worked. It must be one that may work twice.
    fn run(&mut self, sql: &str) {
        loop {
            let client = match &mut self.client {
                Some(client) => client,
                None => match self.server.try_connect() {
                    Ok(client) => self.client.insert(client),
                    Err(_) => {
                        thread::sleep(Duration::from_millis(50));
                        continue;
                    }
                },
            };
            match client.batch_execute(sql) {
                Ok(()) => return,
                // The server has gone or is going; its own errors are none that this test makes.
                Err(error)
                    if error
                        .as_db_error()
                        .is_none_or(|e| e.code().code().starts_with("57P")) =>
                {
                    self.client = None;
                }
                Err(error) => panic!("{sql}: {error:?}"),
            }
        }
    }
}

/// What session number `session` does; sessions change rows of their own only, in a fixed order.
fn changes(server: &Server, session: usize, done: &AtomicUsize) {
    let mut client = Stubborn {
        server,
        client: None,
    };
    for n in 0..ROWS / SESSIONS {
        let id = n * SESSIONS + session;
        // A text that another row has is not embedded again: most are of their own.
        let text = |n: usize| format!("{} {n}", TEXTS[n % TEXTS.len()]);
        if id % POISON == POISON - 1 {
            client.run(&format!(
                "insert into storm values ({id}, repeat('Rome ', 60000)) on conflict do nothing"
            ));
        } else {
            client.run(&format!(
                "insert into storm values ({id}, '{}') on conflict do nothing",
                text(id)
            ));
        }
        let before = |back: usize| n.checked_sub(back).map(|n| n * SESSIONS + session);
        if let Some(other) = before(3).filter(|id| id % 5 == 0 && id % POISON != POISON - 1) {
            client.run(&format!(
                "update storm set body = '{}' where id = {other}",
                text(other + 1)
            ));
        }
        if let Some(other) = before(7).filter(|id| id % 7 == 0) {
            client.run(&format!("delete from storm where id = {other}"));
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

fn kill_engine(server: &Server) {
    wait_until("an engine runs", PATIENCE, || !server.engines().is_empty());
    // It may end by itself before the signal.
    for engine in server.engines().into_iter().filter(|pid| is_alive(*pid)) {
        signal(engine, Signal::KILL);
    }
}

fn crash_server(server: &Server) {
    let postmaster = server.postmaster();
    signal(postmaster, Signal::KILL);
    wait_until("the server is gone", PATIENCE, || !is_alive(postmaster));
    server.start_again();
}

#[test]
fn every_row_has_the_mentions_of_its_last_text_whatever_is_killed() {
    let server = Server::start(
        "storm",
        &[
            ("shared_preload_libraries", "ner_retriever"),
            ("ner_retriever.max_attempts", "3"),
        ],
    );
    run(
        &mut server.connect(),
        "create table storm (id int primary key, body text);
         select ner_index('storm', 'body')",
    );
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (server, done) = (&server, &done);
        for session in 0..SESSIONS {
            scope.spawn(move || changes(server, session, done));
        }
        let mut server_kills = 0;
        for kill in 0..ENGINE_KILLS {
            thread::sleep(Duration::from_millis(1500));
            kill_engine(server);
            if kill % (ENGINE_KILLS / SERVER_KILLS) == 1 && server_kills < SERVER_KILLS {
                server_kills += 1;
                crash_server(server);
            }
        }
        assert_eq!(server_kills, SERVER_KILLS);
    });
    assert_eq!(done.into_inner(), ROWS / SESSIONS * SESSIONS);

    let mut client = server.connect();
    for _ in 0..10 {
        if value::<bool>(&mut client, "select ner_wait('storm', '1 minute')") {
            break;
        }
    }
    settle(&mut client, "storm");
    let count = |client: &mut Client, sql: &str| value::<i64>(client, sql);
    assert_eq!(
        count(&mut client, "select count(*) from ner_retriever.pending"),
        0
    );
    // Poisoned on purpose, and no other; those that were deleted later are no failures.
    let poisoned = "select count(*) from ner_retriever.failed full join
             (select array[id::text] as key from storm where length(body) > 100000) as p using (key)
         where \"table\" is null or p.key is null or sqlstate <> '54000'";
    assert_eq!(count(&mut client, poisoned), 0);
    assert!(count(&mut client, "select count(*) from ner_retriever.failed") > 0);

    // The mentions of every text, found once for all rows that have it.
    let different = "
        with texts as (select distinct body from storm where length(body) < 100000),
             expected as (select t.body, e.* from texts t cross join lateral ner_entity_embeddings(t.body) e),
             should as (select s.id, e.entity, e.start_char, e.end_char from storm s join expected e using (body)),
             is_ as (select id, mention, start_char, end_char from storm_body_mentions)
        select count(*) from ((table should except all table is_) union all (table is_ except all table should)) as q";
    assert_eq!(count(&mut client, different), 0);
    // The vectors are those of the text as well: the same ones wherever the text is the same.
    let unlike = "
        select count(*) from storm_body_mentions as m join storm as s using (id)
        join (select distinct on (body, start_char) body, start_char, embedding from storm_body_mentions join storm using (id)) as f
          on f.body = s.body and f.start_char = m.start_char
        where (m.embedding <=> f.embedding) > 0.001";
    assert_eq!(count(&mut client, unlike), 0);
    assert!(count(&mut client, "select count(*) from storm_body_mentions") > 3000);
}
