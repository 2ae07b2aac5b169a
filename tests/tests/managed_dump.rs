//! Dumps with managed indexes, the update from the version before them, and the extension's end.

use std::path::Path;

use ner_retriever_tests::managed::{rows, run, settle, value};
use ner_retriever_tests::roles::{create_roles, refusal};
use ner_retriever_tests::server::{PATIENCE, Server, SharedServer};
use ner_retriever_tests::wait::wait_until;
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("managed-dump", &[]);

const TABLE: &str = "'\"My Shop\".\"Notes\"'";
const MENTIONS: &str = "\"My Shop\".\"Notes_Body_mentions\"";
const SEARCH: &str =
    "select * from ner_search('\"My Shop\".\"Notes\"', array['person', 'river'], 20)";

fn new_database(server: &Server, name: &str) -> Client {
    run(&mut server.connect(), &format!("create database {name}"));
    server.connect_as("postgres", name)
}

fn drop_database(server: &Server, name: &str) {
    run(
        &mut server.connect(),
        &format!("drop database {name} with (force)"),
    );
}

/// A table with an index, with readers, and a second index whose number is not the first free one.
fn fill(server: &Server, client: &mut Client) {
    create_roles(server, &["alice", "bob"]);
    run(
        client,
        "create extension ner_retriever cascade;
         create schema \"My Shop\" authorization alice;
         grant usage on schema \"My Shop\" to bob;
         set role alice;
         create table \"My Shop\".\"Notes\" (
             \"Id\" int, \"Part\" date, \"Body\" text, author name default 'bob',
             primary key (\"Id\", \"Part\"));
         alter table \"My Shop\".\"Notes\" enable row level security;
         create policy own on \"My Shop\".\"Notes\" using (author = current_user);
         grant select on \"My Shop\".\"Notes\" to bob;
         create table \"My Shop\".gone (id int primary key, body text);
         create table \"My Shop\".other (id int primary key, body text);
         insert into \"My Shop\".\"Notes\" values
             (1, '2026-01-31', 'Marie Curie worked in Paris with Pierre Curie.'),
             (2, '2026-02-01', 'The Danube flows through Vienna and Budapest.');
         select ner_index('\"My Shop\".gone', 'body'), ner_drop_index('\"My Shop\".gone');
         select ner_index('\"My Shop\".\"Notes\"', 'Body');
         select ner_index('\"My Shop\".other', 'body', mode => 'manual', storage => 'vector');
         reset role;",
    );
    settle(client, "\"My Shop\".\"Notes\"");
}

/// What a dump must keep, but for the mentions.
fn definition(client: &mut Client) -> Vec<String> {
    run(client, "set search_path = pg_catalog");
    let mut found = rows(
        client,
        "select id, base, \"column\", mentions, mode, storage, dims, fingerprint, state, rows_total,
                created_at from ner_retriever.managed_index order by id",
    );
    for sql in [
        "select pg_get_triggerdef(oid), tgenabled from pg_trigger where not tgisinternal order by 1",
        "select * from pg_policies where schemaname = 'My Shop' order by tablename, policyname",
        "select c.oid::regclass, c.relacl, c.relowner::regrole, c.relrowsecurity from pg_class as c
         where relnamespace = '\"My Shop\"'::regnamespace order by c.oid::regclass::text collate \"C\"",
        "select last_value from ner_retriever.managed_index_id_seq",
    ] {
        found.extend(rows(client, sql));
    }
    run(client, "reset search_path");
    found
}

fn mentions(client: &mut Client) -> Vec<String> {
    rows(
        client,
        &format!("select * from {MENTIONS} order by 1, 2, 4"),
    )
}

fn waiting(client: &mut Client) -> i64 {
    value(client, "select count(*) from ner_retriever.pending")
}

/// The restored database works on where the dumped one was: nothing is embedded twice.
fn check_restored(server: &Server, name: &str, before: &[String], dumped: &[String]) {
    let mut client = server.connect_as("postgres", name);
    // Nobody has to ask: a worker comes by itself.
    let differences = format!("select missing + stale + orphaned from ner_check({TABLE})");
    wait_until("what waited is embedded", PATIENCE, || {
        value::<i64>(&mut client, &differences) == 0
    });
    let now = mentions(&mut client);
    assert!(
        dumped.iter().all(|row| now.contains(row)),
        "{dumped:#?} {now:#?}"
    );
    // All was restored in one transaction.
    let embedded_anew = format!(
        "select distinct m.\"Id\" from {MENTIONS} as m
         where m.xmin <> (select n.xmin from \"My Shop\".\"Notes\" as n where n.\"Id\" = 1)"
    );
    assert_eq!(rows(&mut client, &embedded_anew), ["(3)"]);
    assert_eq!(definition(&mut client), before);

    let mut bob = server.connect_as("bob", name);
    assert!(rows(&mut bob, SEARCH).len() > 1);
    run(
        &mut client,
        "set role alice;
         insert into \"My Shop\".\"Notes\" values (4, '2026-04-01', 'Ada Lovelace lived in London.');
         select ner_index('\"My Shop\".gone', 'body');
         alter table \"My Shop\".\"Notes\" rename \"Body\" to \"Text\";
         reset role;",
    );
    settle(&mut client, "\"My Shop\".\"Notes\"");
    let found = format!("select count(*) > 0 from {MENTIONS} where \"Id\" = 4");
    assert!(value::<bool>(&mut client, &found));
    let column =
        format!("select \"column\" from ner_retriever.indexes where \"table\" = {TABLE}::regclass");
    assert_eq!(rows(&mut client, &column), ["(Text)"]);

    run(
        &mut client,
        "drop table \"My Shop\".\"Notes\", \"My Shop\".other, \"My Shop\".gone",
    );
    let left = "select count(*) from pg_class where relnamespace = '\"My Shop\"'::regnamespace";
    assert_eq!(value::<i64>(&mut client, left), 0);
    let known = "select (select count(*) from ner_retriever.managed_index)
                      + (select count(*) from ner_retriever.failed_row)";
    assert_eq!(value::<i64>(&mut client, known), 0);
    assert_eq!(waiting(&mut client), 0);
}

#[test]
fn a_dump_restores_into_working_indexes() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "source");
    fill(&server, &mut client);
    let dumped = mentions(&mut client);
    // While someone has this lock, nothing is embedded.
    let mut holder = server.connect_as("postgres", "source");
    run(
        &mut holder,
        &format!("begin; lock table {MENTIONS} in exclusive mode"),
    );
    run(
        &mut client,
        "insert into \"My Shop\".\"Notes\" values (3, '2026-03-01', 'Alan Turing ran to London.')",
    );
    assert_eq!(waiting(&mut client), 1);
    let before = definition(&mut client);
    let folder = server.folder("dumps");
    let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let (archive, script) = (path("archive"), path("script.sql"));
    server.exec(&["pg_dump", "--format=custom", "--file", &archive, "source"]);
    server.exec(&["pg_dump", "--file", &script, "source"]);
    run(&mut holder, "rollback");
    assert!(Path::new(&script).exists());
    drop((holder, client));
    drop_database(&server, "source");

    drop(new_database(&server, "from_archive"));
    server.exec(&[
        "pg_restore",
        "-1",
        "--exit-on-error",
        "-d",
        "from_archive",
        &archive,
    ]);
    check_restored(&server, "from_archive", &before, &dumped);
    drop_database(&server, "from_archive");

    drop(new_database(&server, "from_script"));
    let psql = [
        "psql",
        "-X",
        "-q",
        "-1",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        "from_script",
        "-f",
        &script,
    ];
    server.exec(&psql);
    check_restored(&server, "from_script", &before, &dumped);
    drop_database(&server, "from_script");
}

/// Tables that a dump brings without the extension's own rows are ordinary ones.
#[test]
fn a_table_restored_alone_works_without_an_index() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "whole");
    fill(&server, &mut client);
    let script = server.folder("dumps").join("table.sql");
    let script = script.to_str().expect("UTF-8");
    server.exec(&[
        "pg_dump",
        "--schema",
        "\"My Shop\"",
        "--file",
        script,
        "whole",
    ]);
    let mut part = new_database(&server, "part");
    run(&mut part, "create extension ner_retriever cascade");
    server.exec(&[
        "psql",
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        "part",
        "-f",
        script,
    ]);
    run(
        &mut part,
        "insert into \"My Shop\".\"Notes\" values (9, '2026-01-01', 'x');
         update \"My Shop\".\"Notes\" set \"Body\" = 'y'; delete from \"My Shop\".\"Notes\" where \"Id\" = 1",
    );
    assert_eq!(refusal(&mut part, SEARCH).0, "42704");
    // The mentions that are there are in the way, and it says so.
    let index = format!("select ner_index({TABLE}, 'Body')");
    assert_eq!(refusal(&mut part, &index).0, "42P07");
    run(&mut part, &format!("drop table {MENTIONS}; {index}"));
    settle(&mut part, "\"My Shop\".\"Notes\"");
    drop((client, part));
    drop_database(&server, "whole");
    drop_database(&server, "part");
}

/// All that an extension consists of, as text.
fn objects(client: &mut Client) -> Vec<String> {
    run(client, "set search_path = pg_catalog");
    let member = |class: &str, object: &str| {
        format!(
            "exists (select from pg_depend as d join pg_extension as e on e.oid = d.refobjid
                     where d.classid = 'pg_{class}'::regclass and d.objid = {object}
                       and d.refclassid = 'pg_extension'::regclass and e.extname = 'ner_retriever')"
        )
    };
    let mut found = Vec::new();
    for sql in [
        "select pg_describe_object(d.classid, d.objid, d.objsubid) from pg_depend as d
         join pg_extension as e on e.oid = d.refobjid where d.refclassid = 'pg_extension'::regclass
           and e.extname = 'ner_retriever' and d.deptype = 'e' order by 1".to_owned(),
        format!("select pg_get_functiondef(p.oid), p.proacl, p.procost, p.prorows,
                        obj_description(p.oid, 'pg_proc')
                 from pg_proc as p where p.prokind = 'f' and {} order by 1", member("proc", "p.oid")),
        format!("select c.oid::regclass, c.relkind, c.relacl, c.reloptions, c.relrowsecurity,
                        obj_description(c.oid, 'pg_class')
                 from pg_class as c where {} order by 1", member("class", "c.oid")),
        format!("select a.attrelid::regclass, a.attname, a.atttypid::regtype, a.attnotnull,
                        a.attidentity, a.attacl, pg_get_expr(d.adbin, d.adrelid)
                 from pg_attribute as a left join pg_attrdef as d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
                 where a.attnum > 0 and {} order by a.attrelid::regclass, a.attnum", member("class", "a.attrelid")),
        format!("select c.oid::regclass, pg_get_viewdef(c.oid) from pg_class as c
                 where c.relkind = 'v' and {} order by 1", member("class", "c.oid")),
        format!("select pg_get_constraintdef(c.oid) from pg_constraint as c where {} order by 1", member("class", "c.conrelid")),
        "select * from pg_policies where schemaname = 'ner_retriever' order by tablename".to_owned(),
        "select evtname, evtevent, evtfoid::regproc, evtenabled, evttags from pg_event_trigger order by 1".to_owned(),
        "select extversion, extnamespace::regnamespace, extrelocatable, cardinality(extconfig), extcondition
         from pg_extension where extname = 'ner_retriever'".to_owned(),
    ] {
        let part = rows(client, &sql);
        assert!(!part.is_empty(), "{sql}");
        found.extend(part);
    }
    found
}

#[test]
fn an_update_gives_what_a_fresh_install_gives() {
    let server = SERVER.turn();
    let mut fresh = new_database(&server, "fresh");
    run(&mut fresh, "create extension ner_retriever cascade");
    let mut updated = new_database(&server, "updated");
    run(
        &mut updated,
        "create extension ner_retriever version '0.1.0' cascade;
         create table notes (id int primary key, body text);
         insert into notes values (1, 'Marie Curie worked in Paris.')",
    );
    assert_eq!(
        refusal(&mut updated, "select ner_index('notes', 'body')").0,
        "42883"
    );
    run(
        &mut updated,
        "alter extension ner_retriever update to '0.2.0';
         alter extension ner_retriever update",
    );
    assert_eq!(objects(&mut updated), objects(&mut fresh));
    run(
        &mut updated,
        "reset search_path; select ner_index('notes', 'body')",
    );
    settle(&mut updated, "notes");
    let found = "select key ->> 'id' from ner_search('notes', 'person')";
    assert_eq!(rows(&mut updated, found), ["(1)"]);
    drop((fresh, updated));
    drop_database(&server, "fresh");
    drop_database(&server, "updated");
}

#[test]
fn the_extension_leaves_ordinary_tables() {
    let server = SERVER.turn();
    let mut client = new_database(&server, "ending");
    fill(&server, &mut client);
    let found = mentions(&mut client);
    let error = client
        .batch_execute("drop extension ner_retriever")
        .expect_err("triggers use it");
    let error = error.as_db_error().expect("an error of the server");
    assert_eq!(error.code().code(), "2BP01");
    let detail = error.detail().unwrap_or_default();
    assert!(detail.contains("trigger ner_retriever_"), "{detail}");

    run(&mut client, "drop extension ner_retriever cascade");
    assert_eq!(mentions(&mut client), found);
    run(
        &mut client,
        &format!(
            "insert into \"My Shop\".\"Notes\" values (8, '2026-03-01', '');
             update \"My Shop\".\"Notes\" set \"Body\" = 'Alan Turing ran to London.' where \"Id\" = 8;
             delete from \"My Shop\".\"Notes\" where \"Id\" = 1;
             delete from {MENTIONS};"
        ),
    );
    run(&mut client, "create extension ner_retriever");
    let index = format!("select ner_index({TABLE}, 'Body')");
    let (sqlstate, message) = refusal(&mut client, &index);
    assert_eq!(sqlstate, "42P07", "{message}");
    run(&mut client, &format!("drop table {MENTIONS}; {index}"));
    settle(&mut client, "\"My Shop\".\"Notes\"");
    assert!(
        mentions(&mut client)
            .iter()
            .any(|row| row.contains("Alan Turing"))
    );
    run(&mut client, "drop table \"My Shop\".\"Notes\"");
    let left = format!("select to_regclass('{MENTIONS}') is null");
    assert!(value::<bool>(&mut client, &left));
    drop(client);
    drop_database(&server, "ending");
}
