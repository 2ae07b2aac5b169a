//! Queues in which others do what they can to be in the way.

use std::thread;
use std::time::Duration;

use ner_retriever_tests::managed::{run, settle, value};
use ner_retriever_tests::roles::{create_roles, session};
use ner_retriever_tests::server::{PATIENCE, SharedServer};
use ner_retriever_tests::wait::wait_until;
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("managed-sabotage", &[]);

/// One owner's mischief is nobody else's trouble.
#[test]
fn others_do_not_wait_for_a_saboteur() {
    let server = SERVER.turn();
    create_roles(&server, &["mallory", "victim"]);
    run(
        &mut server.connect(),
        "create schema sabotage authorization mallory",
    );
    let mut mallory = session(&server, "mallory");
    run(&mut mallory, "set search_path = sabotage, public");
    run(
        &mut mallory,
        "create table notes (id int primary key, body text);
         select ner_index('sabotage.notes', 'body');
         create function fail() returns trigger language plpgsql as
         $$ begin execute 'set local statement_timeout = 0'; if tg_argv[0] = 'assert' then assert false; end if;
            raise exception 'no' using errcode = tg_argv[0]; end $$;",
    );
    run(
        &mut server.connect(),
        "create schema safe authorization victim",
    );
    let mut victim = session(&server, "victim");
    run(
        &mut victim,
        "create table safe.notes (id int primary key, body text);
         select ner_index('safe.notes', 'body');",
    );
    settle(&mut victim, "safe.notes");
    let mut id = 0;
    let mut is_served = |victim: &mut Client, how: &str| {
        id += 1;
        let sql = format!("insert into safe.notes values ({id}, 'Ada Lovelace lived in London.')");
        run(victim, &sql);
        let sql = "select ner_wait('safe.notes', '30 s')";
        assert!(value::<bool>(victim, sql), "{how}");
    };
    for how in ["assert", "57014", "40001", "XX000"] {
        run(
            &mut mallory,
            &format!(
                "drop trigger if exists fail on notes_body_mentions;
                 create trigger fail before insert on notes_body_mentions
                     for each row execute function fail('{how}');
                 insert into notes values ((select count(*) from notes), 'Alan Turing ran to London.')"
            ),
        );
        thread::sleep(Duration::from_millis(500));
        is_served(&mut victim, how);
    }
    run(
        &mut mallory,
        "begin; drop trigger fail on notes_body_mentions;
         select ner_refresh('sabotage.notes'); lock table notes_body_mentions; commit;
         begin; lock table notes_body_mentions;",
    );
    is_served(&mut victim, "a lock");
    run(&mut mallory, "commit");
    // Of all users' GRANTs a superuser's alone look at her table.
    run(
        &mut mallory,
        "grant select on notes to victim; revoke select on notes_body_mentions from victim;
         begin; grant select on notes_body_mentions to victim;",
    );
    let granting = std::time::Instant::now();
    run(&mut victim, "grant select on safe.notes to mallory");
    run(
        &mut server.connect(),
        "grant select on safe.notes to public",
    );
    assert!(granting.elapsed() < Duration::from_secs(10));
    run(&mut mallory, "commit");
    settle(&mut mallory, "sabotage.notes");
}

/// Whoever drops, truncates or alters a table at any moment of the worker's gets neither an error nor
/// a deadlock.
#[test]
fn tables_change_under_the_workers_hands() {
    let server = SERVER.turn();
    let mut client = server.connect();
    for round in 0..24 {
        run(
            &mut client,
            "create table brief (id int primary key, body text);
             insert into brief select n, 'Ada Lovelace lived in London for ' || n || ' years.'
             from generate_series(1, 40) as n;
             select ner_index('brief', 'body');",
        );
        thread::sleep(Duration::from_millis(round * 25));
        run(&mut client, "alter table brief rename body to story");
        let last = [
            "truncate brief cascade; drop table brief",
            "drop table brief",
            "select ner_reindex('brief'); drop table brief",
        ];
        run(
            &mut client,
            last[usize::try_from(round).unwrap_or(0) % last.len()],
        );
    }
    let left = "select (select count(*) from ner_retriever.pending as p
                        where not exists (select from ner_retriever.managed_index as i where i.id = p.index_id))
                     + (select count(*) from pg_class where relname like 'brief%')";
    wait_until("nothing is left", PATIENCE, || {
        value::<i64>(&mut client, left) == 0
    });
}
