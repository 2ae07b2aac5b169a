//! Owners of tables and databases who try to have their code run with more rights than their own:
//! by the workers, which are superusers' processes, and by whoever changes or searches a table.

use std::time::Duration;

use ner_retriever_tests::managed::{problem, rows, run, settle, value};
use ner_retriever_tests::roles::{assert_no_superuser, create_roles, refusal, session};
use ner_retriever_tests::server::{PATIENCE, Server, SharedServer};
use ner_retriever_tests::session::failure;
use ner_retriever_tests::wait::wait_until;
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("managed-attacks", &[]);

/// A schema of mallory's with a function `strike(via)` that tries everything, and tells the table
/// `log` as whom and how that ended.
fn mallory(server: &Server, schema: &str) -> Client {
    create_roles(server, &["mallory", "victim"]);
    run(
        &mut server.connect(),
        &format!("create schema {schema} authorization mallory"),
    );
    let mut mallory = session(server, "mallory");
    run(
        &mut mallory,
        &format!(
            "set search_path = {schema}, public;
             grant usage on schema {schema} to public;
             create table log (via text, who name, attempt text, outcome text);
             grant insert, select on log to public;
             create function strike(via text) returns void language plpgsql as $$
             declare attempt text;
             begin
                 foreach attempt in array array[
                     'set role postgres', 'reset role', 'set session authorization postgres',
                     'reset session authorization', 'alter role mallory superuser',
                     'create temp table left_behind ()', 'prepare left_behind as select 1'] loop
                     begin
                         execute attempt;
                         insert into {schema}.log values (via, current_user, attempt, 'done');
                     exception when others then
                         insert into {schema}.log values (via, current_user, attempt, sqlstate);
                     end;
                 end loop;
             end $$;
             create function strike_on_change() returns trigger language plpgsql as $$
             begin perform {schema}.strike('trigger'); return null; end $$;"
        ),
    );
    mallory
}

/// A table `notes` of mallory's with a key whose conversions strike, indexed, with more that strikes
/// on the table of its mentions.
fn set_traps(mallory: &mut Client, schema: &str) {
    run(
        mallory,
        &format!(
            "create type mood as enum ('calm', 'wild');
             create function mood_text(mood) returns text language plpgsql as
             $$ begin perform {schema}.strike('cast to text'); return format('%s', $1); end $$;
             create function text_mood(text) returns mood language plpgsql as
             $$ declare m {schema}.mood; begin perform {schema}.strike('cast from text');
                execute format('select %L::{schema}.mood', $1) into m; return m; end $$;
             create function mood_json(mood) returns json language plpgsql as
             $$ begin perform {schema}.strike('cast to json'); return '1'; end $$;
             create function peek(text) returns text immutable language plpgsql as
             $$ begin perform {schema}.strike('index'); return $1; end $$;
             create cast (mood as text) with function mood_text(mood) as assignment;
             create cast (mood as json) with function mood_json(mood);
             create cast (text as mood) with function text_mood(text) as assignment;
             create function glance(text) returns text language plpgsql as
             $$ begin perform {schema}.strike('domain'); return $1; end $$;
             create domain checked as text check ({schema}.glance(value) is not null);
             create table notes (id mood primary key, body checked);
             select ner_index('{schema}.notes', 'body');
             create trigger strike after insert or delete on notes_body_mentions
                 execute function strike_on_change();
             create index on notes_body_mentions ({schema}.peek(mention));
             create function {schema}.convert_to(text, name) returns bytea language sql as
             $$ select ''::bytea from (select {schema}.strike('function')) as s $$;
             create function {schema}.unnest(anyarray) returns setof int language sql as
             $$ select 1 from (select {schema}.strike('function')) as s $$;
             insert into notes values ('calm', 'Marie Curie worked in Paris.');"
        ),
    );
    settle(mallory, &format!("{schema}.notes"));
}

/// Operators are found by their names: with an implicit conversion the name could mean another one.
#[test]
fn keys_are_compared_as_what_they_are() {
    let server = SERVER.turn();
    let mut mallory = mallory(&server, "compared");
    run(
        &mut mallory,
        "create type pair as (a int, b int);
         create function pair_text(pair) returns text language plpgsql as
         $$ begin perform compared.strike('implicit'); return format('%s', $1); end $$;
         create cast (pair as text) with function pair_text(pair) as implicit;
         create table notes (id pair primary key, body text)",
    );
    let expected = (
        "0A000".to_owned(),
        "type compared.pair of the key has an implicit conversion".to_owned(),
    );
    let index = "select ner_index('compared.notes', 'body')";
    assert_eq!(refusal(&mut mallory, index), expected);
    // Nor afterwards.
    run(
        &mut mallory,
        &format!(
            "drop cast (pair as text); {index};
             insert into notes values ((1, 2), 'Marie Curie worked in Paris.');"
        ),
    );
    settle(&mut mallory, "compared.notes");
    let mut postgres = server.connect();
    let search = "select key from ner_search('compared.notes', 'person', filter => 'true')";
    assert_eq!(
        rows(&mut postgres, search),
        ["(\"{\"\"id\"\": \"\"(1,2)\"\"}\")"]
    );
    run(
        &mut mallory,
        "create cast (pair as text) with function pair_text(pair) as implicit",
    );
    assert_eq!(refusal(&mut postgres, search), expected);
    assert_eq!(
        value::<i64>(&mut postgres, "select count(*) from compared.log"),
        0
    );
}

/// As whom mallory's code ran, and what it could do that it must not.
fn outcome(server: &Server, schema: &str) -> (Vec<String>, Vec<String>) {
    let mut client = server.connect();
    let who = rows(
        &mut client,
        &format!("select distinct who from {schema}.log order by who"),
    );
    let done = format!(
        "select distinct attempt from {schema}.log where who <> 'mallory' and outcome = 'done'
             or attempt not like 'reset%' and attempt not like '%left_behind%' and outcome = 'done'"
    );
    assert_no_superuser(server, &["mallory"]);
    (who, rows(&mut client, &done))
}

#[test]
fn the_worker_does_what_the_owner_may_do() {
    let server = SERVER.turn();
    let mut mallory = mallory(&server, "traps");
    set_traps(&mut mallory, "traps");
    let ways = "select distinct via from log where attempt = 'reset role' and outcome = '42501'";
    let ways = rows(&mut mallory, ways);
    for way in ["trigger", "index", "cast from text"] {
        assert!(
            ways.iter().any(|found| found.contains(way)),
            "{way}: {ways:?}"
        );
    }
    run(&mut mallory, "select ner_reindex('traps.notes')");
    settle(&mut mallory, "traps.notes");
    let nothing = Vec::<String>::new();
    let only_mallory = vec!["(mallory)".to_owned()];
    assert_eq!(outcome(&server, "traps"), (only_mallory, nothing));
}

/// Superusers who search or manage someone's index, and others who change the table.
#[test]
fn nobody_elses_rights_are_used() {
    let server = SERVER.turn();
    let mut mallory = mallory(&server, "lures");
    set_traps(&mut mallory, "lures");
    run(
        &mut mallory,
        "grant select, insert on notes to victim; grant select on notes_body_mentions to victim",
    );
    let search = "select * from ner_search('lures.notes', 'person', filter => 'body is not null')";
    let mut victim = session(&server, "victim");
    run(
        &mut victim,
        "insert into lures.notes values ('wild', 'Ada Lovelace lived in London.')",
    );
    settle(&mut mallory, "lures.notes");
    assert_eq!(rows(&mut victim, search).len(), 2);
    let mut postgres = server.connect();
    assert_eq!(rows(&mut postgres, search).len(), 2);
    for statement in [
        "select ner_refresh('lures.notes')",
        "select ner_retry_failed('lures.notes')",
        "select ner_reindex('lures.notes')",
    ] {
        run(&mut postgres, statement);
        settle(&mut mallory, "lures.notes");
    }
    let who = outcome(&server, "lures");
    // The domain's check is on the table: it is for whoever writes there, as anywhere.
    let by_others = "select distinct via from lures.log where who <> 'mallory' and via <> 'domain'";
    assert_eq!(
        rows(&mut postgres, by_others),
        Vec::<String>::new(),
        "{who:?}"
    );

    // A table of mentions whose columns are not what they were made as.
    run(
        &mut mallory,
        "create type words as (words text);
         create function words_text(words) returns text language plpgsql as
         $$ begin perform lures.strike('mention'); return 'x'; end $$;
         create cast (words as text) with function words_text(words) as implicit;
         alter table notes_body_mentions alter mention type words using row(mention)::words;",
    );
    let expected = (
        "55000".to_owned(),
        "table lures.notes_body_mentions is not as ner_index made it".to_owned(),
    );
    for searcher in [&mut victim, &mut postgres] {
        let error = failure(searcher.query(search, &[]));
        assert_eq!((error.sqlstate, error.message), expected);
    }
    let struck = "select count(*) from lures.log where via = 'mention'";
    assert_eq!(value::<i64>(&mut postgres, struck), 0);
    run(&mut mallory, "select ner_drop_index('lures.notes')");
    assert_no_superuser(&server, &["mallory"]);
}

/// A deferred trigger would run after the worker has its own rights back.
#[test]
fn deferred_triggers_do_not_outlive_the_sandbox() {
    let server = SERVER.turn();
    let mut mallory = mallory(&server, "later");
    run(
        &mut mallory,
        "create table notes (id int primary key, body text);
         select ner_index('later.notes', 'body');
         create constraint trigger strike after insert on notes_body_mentions
             deferrable initially deferred for each row execute function strike_on_change();
         insert into notes values (1, 'Marie Curie worked in Paris.');",
    );
    wait_until("the index is paused", PATIENCE, || {
        problem(&mut mallory, "later.notes").1.is_some()
    });
    let (_, error) = problem(&mut mallory, "later.notes");
    let expected = "cannot fire deferred trigger within security-restricted operation";
    assert_eq!(error.as_deref(), Some(expected));
    assert_eq!(value::<i64>(&mut mallory, "select count(*) from log"), 0);
    run(&mut mallory, "drop trigger strike on notes_body_mentions");
    settle(&mut mallory, "later.notes");
    assert_no_superuser(&server, &["mallory"]);
}

/// Traps stay when a table gets a new owner: they must not catch that one.
#[test]
fn a_new_owner_is_not_caught_in_the_old_ones_traps() {
    let server = SERVER.turn();
    let mut mallory = mallory(&server, "gift");
    run(
        &mut mallory,
        "create table notes (id int primary key, body text);
         select ner_index('gift.notes', 'body');
         create trigger strike after insert or delete on notes_body_mentions
             execute function strike_on_change();",
    );
    settle(&mut mallory, "gift.notes");
    let mut postgres = server.connect();
    run(
        &mut postgres,
        "alter table gift.notes owner to postgres;
         insert into gift.notes values (1, 'Ada Lovelace lived in London.')",
    );
    wait_until("the index is paused", PATIENCE, || {
        problem(&mut postgres, "gift.notes").1.is_some()
    });
    let (_, error) = problem(&mut postgres, "gift.notes");
    let expected =
        "table gift.notes_body_mentions does not belong to the owner of table gift.notes";
    assert_eq!(error.as_deref(), Some(expected));
    let struck = "select count(*) from gift.log";
    assert_eq!(value::<i64>(&mut postgres, struck), 0);
    run(
        &mut postgres,
        "drop trigger strike on gift.notes_body_mentions;
         alter table gift.notes_body_mentions owner to postgres",
    );
    settle(&mut postgres, "gift.notes");
    let found = "select count(*) > 0 from gift.notes_body_mentions where id = 1";
    assert!(value::<bool>(&mut postgres, found));
    assert_eq!(value::<i64>(&mut postgres, struck), 0);
    assert_no_superuser(&server, &["mallory"]);
}

/// The owner of a database sets what every session there starts with, the workers' included, and may
/// create whatever schema is not there.
#[test]
fn the_owner_of_a_database_does_not_own_its_workers() {
    let server = SERVER.turn();
    create_roles(&server, &["mallory"]);
    let mut postgres = server.connect();
    run(&mut postgres, "create database lair owner mallory");
    let mut admin = server.connect_as("postgres", "lair");
    run(&mut admin, "create extension ner_retriever cascade");
    let mut mallory = server.connect_as("mallory", "lair");
    let strike = "returns boolean language plpgsql as $$ begin
                      begin execute 'alter role mallory superuser'; exception when others then null; end;
                      insert into evil.log values (current_user);
                      return $1 operator(pg_catalog.=) $2; end $$";
    run(
        &mut mallory,
        &format!(
            "create schema evil; create table evil.log (who name);
             create function evil.eq(text, text) {strike};
             create function evil.ne(text, text) {strike};
             create operator evil.= (leftarg = text, rightarg = text, function = evil.eq);
             create operator evil.<> (leftarg = text, rightarg = text, function = evil.ne);
             alter database lair set search_path = evil, pg_catalog, public;
             alter database lair set default_transaction_isolation = 'serializable';
             alter database lair set default_transaction_read_only = on;
             create table notes (id int primary key, body text);
             insert into notes values (1, 'Marie Curie worked in Paris.');
             set search_path = public; select ner_index('notes', 'body');"
        ),
    );
    settle(&mut mallory, "notes");
    let log = "select * from evil.log";
    assert_eq!(rows(&mut admin, log), Vec::<String>::new());
    assert_no_superuser(&server, &["mallory"]);

    // The worker is still there when the extension is not any more.
    let worker = "select count(*) from pg_stat_activity
                  where datname = 'lair' and backend_type = 'ner_retriever queue worker'";
    assert!(value::<i64>(&mut postgres, worker) > 0);
    let strike = "language plpgsql as $$ begin execute 'alter role mallory superuser'; end $$";
    let fakes = format!(
        "set default_transaction_read_only = off;
         create schema ner_retriever;
         create table ner_retriever.pending (id int);
         create table ner_retriever.managed_index (id int, state text);
         insert into ner_retriever.managed_index values (1, 'new');
         create function ner_retriever.adopt(int) returns void {strike};
         create function ner_retriever.work(int, int, out index_id int, out rows_done int) {strike};"
    );
    run(
        &mut admin,
        "set default_transaction_read_only = off; drop extension ner_retriever cascade",
    );
    run(&mut mallory, &fakes);
    wait_until("the worker leaves", PATIENCE, || {
        value::<i64>(&mut postgres, worker) == 0
    });
    assert_no_superuser(&server, &["mallory"]);
    // Nor is it there after a restart; and the extension does not take over what it finds.
    let error = failure(admin.batch_execute("create extension ner_retriever"));
    assert_eq!(error.message, "schema \"ner_retriever\" already exists");
    drop((admin, mallory));
    server.restart(&[]);
    std::thread::sleep(Duration::from_secs(3));
    assert_no_superuser(&server, &["mallory"]);
    run(&mut server.connect(), "drop database lair");
}
