//! Situations of ordinary tables and databases in which an index must lose nothing and stop nobody.

use ner_retriever_tests::managed::{problem, rows, run, settle, value};
use ner_retriever_tests::server::{PATIENCE, Server, SharedServer};
use ner_retriever_tests::session::{engine_status, failure};
use ner_retriever_tests::wait::wait_until;
use postgres::Client;

static SERVER: SharedServer =
    SharedServer::new("managed-cases", &[("max_prepared_transactions", "5")]);

fn new_database(server: &Server, name: &str, options: &str) -> Client {
    run(
        &mut server.connect(),
        &format!("create database {name} {options}"),
    );
    server.connect_as("postgres", name)
}

fn is_complete(client: &mut Client, table: &str) {
    settle(client, table);
    let check = format!("select * from ner_check('{table}')");
    assert_eq!(rows(client, &check), ["(0,0,0)"], "{table}");
}

fn mentions(client: &mut Client, table: &str) -> Vec<String> {
    rows(
        client,
        &format!("select mention from {table}_body_mentions order by id, start_char"),
    )
}

#[test]
fn partitions_come_and_go() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table event (day date, id int, body text, primary key (day, id)) partition by range (day);
         create table event_01 partition of event for values from ('2026-01-01') to ('2026-02-01');
         create table event_02 partition of event for values from ('2026-02-01') to ('2026-03-01');
         create table event_03 (body text, id int not null, day date not null);
         insert into event_03 values ('Oslo lies on a fjord.', 3, '2026-03-10');
         insert into event values ('2026-01-10', 1, 'Marie Curie worked in Paris.'),
             ('2026-02-10', 2, 'The Danube flows through Vienna.');
         select ner_index('event', 'body')",
    );
    is_complete(&mut client, "event");
    run(&mut client, "truncate event_01");
    is_complete(&mut client, "event");
    assert_eq!(mentions(&mut client, "event"), ["(Danube)", "(Vienna)"]);
    run(
        &mut client,
        "alter table event attach partition event_03 for values from ('2026-03-01') to ('2026-04-01');
         insert into event_03 values ('Rome', 4, '2026-03-11');
         alter table event detach partition event_02; drop table event_01",
    );
    is_complete(&mut client, "event");
    assert_eq!(mentions(&mut client, "event"), ["(Oslo)", "(Rome)"]);
    // What was detached is a table like any other.
    run(
        &mut client,
        "insert into event_02 values ('2026-02-11', 5, 'Lisbon'); truncate event_02; drop table event_02, event",
    );
}

#[test]
fn an_index_of_a_partition_sees_what_comes_through_the_parent() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table p (id int, r text, body text, primary key (r, id)) partition by list (r);
         create table p_n partition of p for values in ('n');
         create table p_s (id int, r text, body text, primary key (r, id));
         create table c0 (id int primary key, body text);
         create table c1 (primary key (id)) inherits (c0);
         insert into c1 values (1, 'Oslo lies on a fjord.'); insert into c0 values (7, 'Cairo');
         select ner_index('p_n', 'body'), ner_index('p_s', 'body'), ner_index('c1', 'body'), ner_index('c0', 'body')",
    );
    for table in ["p_n", "p_s", "c1", "c0"] {
        is_complete(&mut client, table);
    }
    run(
        &mut client,
        "alter table p attach partition p_s for values in ('s');
         insert into p values (1, 'n', 'Ada Lovelace'), (2, 's', 'The Danube flows through Vienna.');
         update c0 set body = 'Lisbon lies on the Tagus.' where id = 1",
    );
    for table in ["p_n", "p_s", "c1", "c0"] {
        is_complete(&mut client, table);
    }
    assert_eq!(mentions(&mut client, "p_n"), ["(\"Ada Lovelace\")"]);
    assert_eq!(mentions(&mut client, "p_s"), ["(Danube)", "(Vienna)"]);
    assert_eq!(mentions(&mut client, "c1"), ["(Lisbon)", "(Tagus)"]);
    // The parent's own rows alone.
    assert_eq!(mentions(&mut client, "c0"), ["(Cairo)"]);
    run(&mut client, "drop table p, c1, c0");
}

#[test]
fn generated_columns_are_followed() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let version: i32 = value(
        &mut client,
        "select current_setting('server_version_num')::int",
    );
    for kind in ["stored", "virtual"] {
        if kind == "virtual" && version < 180_000 {
            continue;
        }
        run(
            &mut client,
            &format!(
                "create table doc (id int primary key, rest text,
                                   body text generated always as ('Note: ' || rest) {kind});
                 insert into doc (id, rest) values (1, 'Marie Curie worked in Paris.');
                 select ner_index('doc', 'body')"
            ),
        );
        settle(&mut client, "doc");
        run(
            &mut client,
            "update doc set rest = 'Alan Turing ran to London.' where id = 1;
             insert into doc (id, rest) values (2, 'The Danube flows through Vienna.')",
        );
        is_complete(&mut client, "doc");
        let expected = ["(\"Alan Turing\")", "(London)", "(Danube)", "(Vienna)"];
        assert_eq!(mentions(&mut client, "doc"), expected, "{kind}");
        run(&mut client, "drop table doc");
    }
}

#[test]
fn names_and_keys_in_another_encoding() {
    let server = SERVER.turn();
    let options =
        "encoding 'LATIN1' locale_provider libc lc_collate 'C' lc_ctype 'C' template template0";
    let mut client = new_database(&server, "latin", options);
    run(
        &mut client,
        "create extension ner_retriever cascade;
         create table \"Straße\" (\"Schlüssel\" text primary key, \"Körper\" text) partition by hash (\"Schlüssel\");
         create table teil partition of \"Straße\" for values with (modulus 1, remainder 0);
         select ner_index('\"Straße\"', 'Körper');
         insert into \"Straße\" values ('Düsseldorf', 'Heinrich Heine was born in Düsseldorf.')",
    );
    settle(&mut client, "\"Straße\"");
    let found = "select \"Schlüssel\", mention from \"Straße_Körper_mentions\" order by start_char";
    let expected = ["(Düsseldorf,\"Heinrich Heine\")", "(Düsseldorf,Düsseldorf)"];
    assert_eq!(rows(&mut client, found), expected);
    let mut ascii = new_database(&server, "ascii", &options.replace("LATIN1", "SQL_ASCII"));
    let error = failure(ascii.batch_execute("create extension ner_retriever cascade"));
    error.expect("0A000", "SQL_ASCII", "UTF8");
}

#[test]
fn a_worker_has_settings_of_its_own() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "settings", "");
    run(
        &mut client,
        "create extension ner_retriever cascade; create role app; grant all on schema public to app;
         alter database settings set role = app;
         alter database settings set statement_timeout = '20ms';
         alter database settings set lock_timeout = '1ms';
         alter database settings set default_transaction_isolation = serializable;
         alter database settings set default_transaction_read_only = on;
         alter database settings set session_replication_role = replica;
         alter database settings set search_path = nowhere;
         alter database settings set idle_in_transaction_session_timeout = '1ms'",
    );
    let version: i32 = value(
        &mut client,
        "select current_setting('server_version_num')::int",
    );
    if version >= 170_000 {
        run(
            &mut client,
            "alter database settings set transaction_timeout = '30ms'",
        );
    }
    run(
        &mut client,
        "create table note (id int primary key, body text);
         insert into note select n, 'Ada Lovelace lived in London, ' || n from generate_series(1, 40) as n;
         select ner_index('note', 'body');
         create table seen (name text, setting text);
         create function look() returns trigger language plpgsql as $$ begin
             insert into public.seen select name, setting from pg_catalog.pg_settings; return null; end $$;
         create trigger look after insert on note_body_mentions execute function look()",
    );
    settle(&mut client, "note");
    let unlike = "select distinct s.name, s.setting from seen as s join (values
            ('role', 'none'), ('statement_timeout', '0'), ('transaction_timeout', '0'), ('search_path', 'pg_catalog, pg_temp'),
            ('idle_in_transaction_session_timeout', '0'), ('default_transaction_isolation', 'read committed'),
            ('transaction_isolation', 'read committed'), ('default_transaction_read_only', 'off'),
            ('session_replication_role', 'origin'), ('jit', 'off'), ('row_security', 'on')) as w (name, setting)
            using (name) where s.setting <> w.setting";
    assert_eq!(rows(&mut client, unlike), Vec::<String>::new());
    assert!(value::<i64>(&mut client, "select count(*) from seen") > 0);
}

#[test]
fn waiting_is_right_in_any_transaction() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table waited (id int primary key, body text); select ner_index('waited', 'body')",
    );
    for isolation in ["repeatable read", "serializable"] {
        run(
            &mut client,
            &format!(
                "set default_transaction_isolation = '{isolation}';
                 insert into waited values ((select count(*) from waited), 'Ada Lovelace')"
            ),
        );
        assert!(value::<bool>(
            &mut client,
            "select ner_wait('waited', '30 s')"
        ));
    }
    run(&mut client, "drop table waited");
}

#[test]
fn a_key_may_be_as_long_as_the_table_takes() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table page (url text primary key, body text); select ner_index('page', 'body');
         insert into page select left(string_agg(encode(sha512((random() + n)::text::bytea), 'base64'), ''), 2688), 'Ada Lovelace'
         from generate_series(1, 40) as n",
    );
    is_complete(&mut client, "page");
    let found = "select count(*) from page_body_mentions";
    assert_eq!(value::<i64>(&mut client, found), 1);
    run(&mut client, "delete from page");
    is_complete(&mut client, "page");
    assert_eq!(value::<i64>(&mut client, found), 0);
    run(&mut client, "drop table page");
}

#[test]
fn a_text_that_is_known_is_not_embedded_again() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table known (id int primary key, body text);
         insert into known values (1, 'Kyoto in spring'), (2, 'Osaka in autumn');
         select ner_index('known', 'body')",
    );
    settle(&mut client, "known");
    let before = engine_status(&mut client).requests;
    run(
        &mut client,
        "update known set id = id + 100; insert into known values (3, 'Osaka in autumn');
         update known set body = case body when 'Kyoto in spring' then 'Osaka in autumn' else 'Kyoto in spring' end;
         select ner_refresh('known'); alter table known alter body type varchar(100);
         alter table known alter id type bigint",
    );
    is_complete(&mut client, "known");
    assert_eq!(engine_status(&mut client).requests, before);
    let found =
        "select mention, array_agg(id order by id) from known_body_mentions group by 1 order by 1";
    assert_eq!(
        rows(&mut client, found),
        ["(Kyoto,\"{3,102}\")", "(Osaka,{101})"]
    );
    run(&mut client, "drop table known");
}

#[test]
fn what_no_trigger_tells_of_is_found() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create type mood as enum ('calm', 'wild');
         create table quiet (id mood primary key, body text); select ner_index('quiet', 'body');
         set session_replication_role = replica; insert into quiet values ('calm', 'Oslo'); reset session_replication_role",
    );
    is_complete(&mut client, "quiet");
    assert_eq!(mentions(&mut client, "quiet"), ["(Oslo)"]);
    // Behind everybody's back.
    run(
        &mut client,
        "update pg_trigger set tgenabled = 'D' where tgrelid = 'quiet'::regclass;
         update pg_class set relname = relname where oid = 'quiet'::regclass",
    );
    let mut other = server.connect();
    run(
        &mut other,
        "insert into quiet values ('wild', 'Rome'); update quiet set body = 'Lima' where id = 'calm'",
    );
    let check = "select * from ner_check('quiet')";
    assert_eq!(rows(&mut client, check), ["(1,1,0)"]);
    assert_eq!(value::<i64>(&mut client, "select ner_refresh('quiet')"), 2);
    is_complete(&mut client, "quiet");
    run(
        &mut client,
        "alter type mood rename value 'wild' to 'mild';
         begin; insert into quiet values ('mild', 'Quito') on conflict (id) do update set body = 'Quito';
         prepare transaction 'two'",
    );
    run(&mut client, "commit prepared 'two'");
    wait_until("the prepared transaction is followed", PATIENCE, || {
        mentions(&mut client, "quiet").contains(&"(Quito)".to_owned())
    });
    is_complete(&mut client, "quiet");
    run(&mut client, "drop table quiet; drop type mood");
}

#[test]
fn a_reindex_tells_what_depends_and_keeps_rights() {
    let server = SERVER.turn();
    let mut client = server.connect();
    run(
        &mut client,
        "create table kept (id int primary key, body text); insert into kept values (1, 'Ada Lovelace');
         select ner_index('kept', 'body'); create role reader; grant select on kept_body_mentions to reader;
         create publication pub for table kept, kept_body_mentions;
         create view shown as select mention from kept_body_mentions",
    );
    settle(&mut client, "kept");
    let error = client
        .batch_execute("select ner_reindex('kept')")
        .expect_err("a view depends on the mentions");
    let error = error.as_db_error().expect("an error of the server");
    assert_eq!(error.code().code(), "2BP01");
    assert_eq!(error.detail(), Some("view public.shown."));
    run(&mut client, "drop view shown; select ner_reindex('kept')");
    is_complete(&mut client, "kept");
    assert_eq!(problem(&mut client, "kept"), ("ready".into(), None));
    let right = "select has_table_privilege('reader', 'kept_body_mentions', 'select')
                     and exists (select from pg_publication_tables where tablename = 'kept_body_mentions')";
    assert!(value::<bool>(&mut client, right));
    for filter in ["kept.id > 0", "id > 0 -- all"] {
        let search = format!("select key from ner_search('kept', 'person', filter => '{filter}')");
        assert_eq!(rows(&mut client, &search).len(), 1);
        let refresh = format!("select ner_refresh('kept', '{filter}')");
        assert_eq!(value::<i64>(&mut client, &refresh), 1);
    }
    settle(&mut client, "kept");
    run(
        &mut client,
        "drop publication pub; drop table kept; drop role reader",
    );
}
