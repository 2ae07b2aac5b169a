//! Who may do what with managed indexes.

use ner_retriever_tests::managed::{rows, run, settle, value};
use ner_retriever_tests::roles::{create_roles, denied, refusal, session};
use ner_retriever_tests::server::{Server, SharedServer};
use ner_retriever_tests::session::{engine_status, failure, type_embedding};
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("managed-rights", &[]);

/// A table `notes (id, author, body)` of alice in a schema of its own that everyone may use.
fn notes(server: &Server, schema: &str) -> Client {
    create_roles(server, &["alice", "bob", "carol", "dave", "erin", "frank"]);
    run(
        &mut server.connect(),
        &format!(
            "create schema {schema} authorization alice; grant usage on schema {schema} to public;"
        ),
    );
    let mut alice = session(server, "alice");
    run(
        &mut alice,
        &format!(
            "set search_path = {schema}, public;
             create table notes (id bigint generated always as identity primary key,
                                 author text not null, body text);
             insert into notes (author, body) values
                 ('alice', 'Ada Lovelace wrote to Charles Babbage from London.'),
                 ('bob', 'Marie Curie worked in Paris with Pierre Curie.'),
                 ('bob', 'The Danube flows through Vienna and Budapest.');"
        ),
    );
    alice
}

fn index(owner: &mut Client, schema: &str) {
    run(
        owner,
        &format!("select ner_index('{schema}.notes', 'body')"),
    );
    settle(owner, &format!("{schema}.notes"));
}

fn search(schema: &str) -> String {
    format!("select key, mention from ner_search('{schema}.notes', 'person', 100)")
}

/// The statements that manage an index.
fn managing(table: &str) -> [String; 4] {
    [
        format!("select ner_drop_index('{table}')"),
        format!("select ner_reindex('{table}')"),
        format!("select ner_refresh('{table}')"),
        format!("select ner_retry_failed('{table}')"),
    ]
}

/// What the catalogue tells a role of this table's index: rows of all tables and views.
fn known_of(client: &mut Client) -> i64 {
    value(
        client,
        "select (select count(*) from ner_retriever.managed_index)
              + (select count(*) from ner_retriever.pending)
              + (select count(*) from ner_retriever.failed_row)
              + (select count(*) from ner_retriever.indexes)
              + (select count(*) from ner_retriever.queue)
              + (select count(*) from ner_retriever.failed)",
    )
}

/// Gives the index of `schema.notes` a row that waits and one that failed.
fn add_rows_that_wait(server: &Server, schema: &str) {
    run(
        &mut server.connect(),
        &format!(
            "insert into ner_retriever.pending (index_id, key, not_before)
             select id, '{{1}}', 'infinity' from ner_retriever.managed_index
             where base = '{schema}.notes'::regclass;
             insert into ner_retriever.failed_row (index_id, key, attempts, sqlstate, message)
             select id, '{{2}}', 5, 'XX000', 'told to' from ner_retriever.managed_index
             where base = '{schema}.notes'::regclass;"
        ),
    );
}

#[test]
fn a_stranger_can_do_nothing_and_sees_nothing() {
    let server = SERVER.turn();
    let mut alice = notes(&server, "strange");
    index(&mut alice, "strange");
    add_rows_that_wait(&server, "strange");
    let known = known_of(&mut alice);
    assert!(known >= 6, "{known}");

    let mut carol = session(&server, "carol");
    assert_eq!(known_of(&mut carol), 0);
    let table = "permission denied for table strange.notes";
    denied(
        &mut carol,
        "select ner_index('strange.notes', 'author')",
        "must be owner of table strange.notes",
    );
    denied(&mut carol, &search("strange"), table);
    denied(&mut carol, "select ner_wait('strange.notes')", table);
    for statement in managing("strange.notes") {
        denied(&mut carol, &statement, table);
    }
    for privilege in ["select * from", "delete from", "truncate"] {
        denied(
            &mut carol,
            &format!("{privilege} strange.notes_body_mentions"),
            "permission denied for table notes_body_mentions",
        );
    }
    // Nothing of it to be changed either: not even that it is there can be told.
    let changed = carol.execute("delete from ner_retriever.pending", &[]);
    assert_eq!(changed.unwrap(), 0);
    assert_eq!(known_of(&mut alice), known);
}

#[test]
fn readers_search_what_they_may_read() {
    let server = SERVER.turn();
    let mut alice = notes(&server, "read");
    run(
        &mut alice,
        "alter table notes enable row level security;
         create policy own on notes using (author = current_user);
         grant select on notes to bob;",
    );
    index(&mut alice, "read");
    run(&mut alice, "grant select on notes to dave");

    let keys = "select distinct id from read.notes_body_mentions order by id";
    assert_eq!(rows(&mut alice, keys), ["(1)", "(2)", "(3)"]);
    let mut bob = session(&server, "bob");
    assert_eq!(rows(&mut bob, keys), ["(2)", "(3)"]);
    let found = rows(&mut bob, &search("read"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        !found.iter().any(|row| row.contains("Lovelace")),
        "{found:?}"
    );

    let mut dave = session(&server, "dave");
    assert_eq!(rows(&mut dave, &search("read")), Vec::<String>::new());
    assert_eq!(rows(&mut dave, keys), Vec::<String>::new());
    run(&mut alice, "update notes set author = 'dave' where id = 3");
    assert_eq!(rows(&mut dave, keys), ["(3)"]);
    assert_eq!(rows(&mut bob, keys), ["(2)"]);

    // Readers do not manage, and see progress but no failed rows.
    add_rows_that_wait(&server, "read");
    for statement in managing("read.notes") {
        denied(&mut bob, &statement, "must be owner of table read.notes");
    }
    denied(
        &mut bob,
        "select ner_index('read.notes', 'author')",
        "must be owner of table read.notes",
    );
    let progress = "select rows_waiting, rows_failed from ner_retriever.indexes
                    where \"table\" = 'read.notes'::regclass";
    assert_eq!(rows(&mut bob, progress), ["(1,1)"]);
    for hidden in ["managed_index", "pending", "failed_row", "failed"] {
        let count = format!("select count(*) from ner_retriever.{hidden}");
        assert_eq!(value::<i64>(&mut bob, &count), 0, "{hidden}");
    }
}

/// The condition of a search is the caller's: it sees what the caller may see, and only that.
#[test]
fn a_condition_reads_with_the_callers_rights() {
    let server = SERVER.turn();
    let mut alice = notes(&server, "condition");
    run(
        &mut alice,
        "alter table notes enable row level security;
         create policy own on notes using (author = current_user);
         grant select on notes to bob;
         create table secret (id bigint); insert into secret values (1), (2);",
    );
    index(&mut alice, "condition");
    let mut bob = session(&server, "bob");
    let found = |bob: &mut Client, condition: &str| {
        let sql = "select mention from ner_search('condition.notes', 'person', 100, $1)";
        let found = bob.query(sql, &[&condition]);
        found.map(|rows| {
            rows.iter()
                .map(|row| row.get::<_, String>(0))
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(found(&mut bob, "id = 2").unwrap().len(), 1);
    assert_eq!(found(&mut bob, "id = 1").unwrap().len(), 0);
    let error = failure(found(&mut bob, "id in (select id from condition.secret)"));
    assert_eq!(error.message, "permission denied for table secret");
    // A function that sees rows before the policy does would tell of them.
    run(
        &mut bob,
        "create temp table seen (body text);
         create function pg_temp.tell(body text) returns boolean language plpgsql cost 0.0001 as
         $$ begin insert into pg_temp.seen values (body); return true; end $$;",
    );
    assert_eq!(found(&mut bob, "pg_temp.tell(body)").unwrap().len(), 2);
    let seen = "select count(*) filter (where body like 'Ada%'), count(*) > 0 from seen";
    assert_eq!(rows(&mut bob, seen), ["(0,t)"]);
    // Out of the parentheses there is still nothing but the caller's rights.
    let escape = "true)) as b) as n union select (null, body, 1, 1, 1, '')::ner_retriever.hit \
                  from condition.notes where ((true";
    assert!(found(&mut bob, escape).is_err());
}

/// The policy reads the text's column: who may not read it does not see what is mentioned there.
#[test]
fn the_key_alone_shows_no_mentions() {
    let server = SERVER.turn();
    let mut alice = notes(&server, "columns");
    index(&mut alice, "columns");
    run(
        &mut alice,
        "grant select (id) on notes to erin; grant select on notes_body_mentions to erin",
    );
    let mut erin = session(&server, "erin");
    assert_eq!(
        value::<i64>(&mut erin, "select count(*) from columns.notes"),
        3
    );
    denied(
        &mut erin,
        "select mention from columns.notes_body_mentions",
        "permission denied for table notes",
    );
    denied(
        &mut erin,
        &search("columns"),
        "permission denied for table columns.notes",
    );
    run(&mut alice, "grant select (body) on notes to erin");
    let readable: i64 = value(
        &mut erin,
        "select count(*) from columns.notes_body_mentions",
    );
    assert!(readable > 0);
}

#[test]
fn who_inserts_needs_no_other_right() {
    let server = SERVER.turn();
    for (schema, mode) in [("inserted", "deferred"), ("inserted_at_once", "immediate")] {
        let mut alice = notes(&server, schema);
        run(
            &mut alice,
            &format!(
                "grant insert on notes to frank;
                 select ner_index('{schema}.notes', 'body', mode => '{mode}')"
            ),
        );
        settle(&mut alice, &format!("{schema}.notes"));
        let mut frank = session(&server, "frank");
        // Dumps are loaded with this setting.
        run(&mut frank, "set row_security = off");
        let insert = format!(
            "insert into {schema}.notes (author, body)
             values ('frank', 'Nikola Tesla left Belgrade for New York.')"
        );
        run(&mut frank, &insert);
        settle(&mut alice, &format!("{schema}.notes"));
        let found = "select count(*) > 0 from notes_body_mentions where id = 4";
        assert!(value::<bool>(&mut alice, found), "{mode}");
        run(&mut frank, "reset row_security");
        assert_eq!(known_of(&mut frank), 0, "{mode}");
        let select = format!("select * from {schema}.notes_body_mentions");
        denied(
            &mut frank,
            &select,
            "permission denied for table notes_body_mentions",
        );
    }
}

/// Whoever calls it, what it makes belongs to the table's owner.
#[test]
fn objects_belong_to_the_tables_owner() {
    let server = SERVER.turn();
    let mut postgres = server.connect();
    create_roles(&server, &["crew", "greta"]);
    run(
        &mut postgres,
        "grant crew to greta; create schema crew authorization crew",
    );
    let of_a_member = session(&server, "greta");
    for (name, mut caller) in [
        ("by_member", of_a_member),
        ("by_superuser", server.connect()),
    ] {
        run(
            &mut postgres,
            &format!(
                "create table crew.{name} (id int primary key, body text);
                 alter table crew.{name} owner to crew;
                 insert into crew.{name} values (1, 'Grace Hopper lived in Arlington.')"
            ),
        );
        run(
            &mut caller,
            &format!("select ner_index('crew.{name}', 'body')"),
        );
        settle(&mut caller, &format!("crew.{name}"));
        run(&mut caller, &format!("select ner_reindex('crew.{name}')"));
        settle(&mut caller, &format!("crew.{name}"));
        let owners = format!(
            "select distinct pg_get_userbyid(relowner) from pg_class
             where relnamespace = 'crew'::regnamespace and relname like '{name}%'"
        );
        assert_eq!(rows(&mut postgres, &owners), ["(crew)"]);
        let indexes = format!(
            "select count(*) from pg_index as i join pg_class as c on c.oid = i.indexrelid
             join pg_am as a on a.oid = c.relam
             where i.indrelid = 'crew.{name}_body_mentions'::regclass and a.amname = 'hnsw'"
        );
        assert_eq!(value::<i64>(&mut postgres, &indexes), 1);
        let rights = format!(
            "select distinct grantor::regrole, grantee::regrole from pg_class, aclexplode(relacl)
             where oid = 'crew.{name}_body_mentions'::regclass and grantor <> relowner"
        );
        assert_eq!(rows(&mut postgres, &rights), Vec::<String>::new());
    }
}

#[test]
fn only_superusers_create_the_extension() {
    let server = SERVER.turn();
    create_roles(&server, &["alice"]);
    let mut postgres = server.connect();
    run(&mut postgres, "create database of_alice owner alice");
    run(
        &mut server.connect_as("postgres", "of_alice"),
        "create extension vector",
    );
    let mut alice = server.connect_as("alice", "of_alice");
    let error = failure(alice.batch_execute("create extension ner_retriever"));
    error.expect(
        "42501",
        "permission denied to create extension \"ner_retriever\"",
        "Must be superuser",
    );
    drop(alice);
    run(&mut postgres, "drop database of_alice");
}

/// The paths are read, and the program run, by the server's user.
#[test]
fn users_do_not_set_paths() {
    let server = SERVER.turn();
    create_roles(&server, &["alice"]);
    let mut client = server.connect();
    type_embedding(&mut client, "city").unwrap();
    let model = engine_status(&mut client).model;
    for setting in ["model", "head", "engine"] {
        let name = format!("ner_retriever.{setting}");
        // Before the session has loaded the library, any name is as good as another.
        let mut early = session(&server, "alice");
        denied(
            &mut early,
            &format!("alter role alice set {name} = '/tmp/own'"),
            &format!("permission denied to set parameter \"{name}\""),
        );
        denied(
            &mut early,
            &format!("alter system set {name} = '/tmp/own'"),
            &format!("permission denied to set parameter \"{name}\""),
        );
        run(&mut early, &format!("set {name} = '/tmp/own'"));
        type_embedding(&mut early, "city").unwrap();
        assert_eq!(value::<String>(&mut early, &format!("show {name}")), "");

        let cannot = format!("parameter \"{name}\" cannot be changed now");
        let change = format!("set {name} = '/tmp/own'");
        let expected = ("55P02".to_owned(), cannot);
        assert_eq!(refusal(&mut early, &change), expected);
        let change = format!("alter role alice set {name} = '/tmp/own'");
        let (sqlstate, _) = refusal(&mut early, &change);
        assert!(
            ["55P02", "42501"].contains(&sqlstate.as_str()),
            "{sqlstate}"
        );
    }
    assert_eq!(engine_status(&mut client).model, model);
}
