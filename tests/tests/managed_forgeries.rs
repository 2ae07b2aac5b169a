//! The catalogue, the internal functions and the triggers' function in the wrong hands, and names
//! that are not what names usually are.

use ner_retriever_tests::managed::{problem, rows, run, settle, value};
use ner_retriever_tests::roles::{create_roles, denied, refusal, session};
use ner_retriever_tests::server::{PATIENCE, Server, SharedServer};
use ner_retriever_tests::session::failure;
use ner_retriever_tests::wait::wait_until;
use postgres::Client;

static SERVER: SharedServer = SharedServer::new("managed-forgeries", &[]);

/// A table `notes` of the role with an index.
fn notes(server: &Server, role: &str, schema: &str) -> Client {
    create_roles(server, &[role]);
    run(
        &mut server.connect(),
        &format!(
            "create schema {schema} authorization {role}; grant usage on schema {schema} to public"
        ),
    );
    let mut client = session(server, role);
    run(
        &mut client,
        &format!(
            "set search_path = {schema}, public;
             create table notes (id int primary key, body text);
             insert into notes values (1, 'Marie Curie worked in Paris.');
             select ner_index('{schema}.notes', 'body');"
        ),
    );
    settle(&mut client, &format!("{schema}.notes"));
    client
}

fn index_id(server: &Server, table: &str) -> i32 {
    let sql =
        format!("select id from ner_retriever.managed_index where base = '{table}'::regclass");
    value(&mut server.connect(), &sql)
}

#[test]
fn internal_functions_are_the_workers() {
    let server = SERVER.turn();
    let mut mallory = notes(&server, "mallory", "inside");
    for (name, arguments) in [
        ("embed_rows", "1, '{1}'"),
        ("execute_as", "10, 'alter role mallory superuser'"),
        ("depend_on", "1259, 1259, 1259, 1259, 0, true"),
        ("count_as", "10, 'select 1'"),
        ("forget_dependency", "1259, 1259"),
        ("follow_owner", "1"),
        ("work", "0, 10, true"),
        ("work_on", "1, 10, true"),
        ("take_up", "1"),
        ("take_turn", "1"),
        ("compare_some", "1"),
        ("before_column_change", "1259"),
        ("before_type_change", "1259"),
        ("after_column_change", "1259"),
        ("after_tree_change", "1259"),
        ("request_pass", "1"),
        ("arrive", ""),
        ("tell_last_error", "'no'"),
        ("compact_queue", ""),
        ("finish_filling", "1"),
        ("pause", "1, 'no'"),
        ("embed_batch", "1, 10"),
        ("embed_claimed", "1, '{}'"),
        ("fail", "'(0,1)', 'XX000', 'no'"),
    ] {
        denied(
            &mut mallory,
            &format!("select ner_retriever.{name}({arguments})"),
            &format!("permission denied for function {name}"),
        );
    }
    // What anyone may call does nothing that the caller may not do.
    let id = index_id(&server, "inside.notes");
    create_roles(&server, &["trudy"]);
    let mut trudy = session(&server, "trudy");
    run(&mut trudy, &format!("select ner_retriever.adopt({id})"));
    run(
        &mut trudy,
        &format!(
            "select ner_retriever.create_memory({id}, false), ner_retriever.create_memory({id}, true)"
        ),
    );
    let generations = format!("select * from ner_retriever.generations({id})");
    assert_eq!(rows(&mut trudy, &generations), Vec::<String>::new());
    denied(
        &mut trudy,
        "select ner_retriever.share_mentions('inside.notes', 'body', '{1}', 'inside.notes_body_mentions')",
        "must be owner of table notes_body_mentions",
    );
    // Not even a superuser by a function of the extension's that does not ask who calls.
    let error = refusal(&mut trudy, "select ner_retriever.on_change()");
    assert_eq!(
        error.1,
        "this function is for the triggers of a managed index"
    );
}

#[test]
fn the_catalogue_takes_no_forgeries() {
    let server = SERVER.turn();
    let mut victim = notes(&server, "victim", "honest");
    let mut mallory = notes(&server, "mallory", "forged");
    let id = index_id(&server, "honest.notes");
    let own = index_id(&server, "forged.notes");
    let columns = "(base, \"column\", mentions, mode, storage, dims, fingerprint)";
    let rls =
        |table: &str| format!("new row violates row-level security policy for table \"{table}\"");
    run(
        &mut mallory,
        "create table bait (id int primary key, body text)",
    );
    for (base, mentions) in [
        ("honest.notes", "forged.bait"),
        ("forged.bait", "honest.notes_body_mentions"),
        ("pg_authid", "forged.bait"),
    ] {
        denied(
            &mut mallory,
            &format!(
                "insert into ner_retriever.managed_index {columns}
                 values ('{base}', 'x', '{mentions}', 'deferred', 'halfvec', 1, 'x')"
            ),
            &rls("managed_index"),
        );
    }
    denied(
        &mut mallory,
        "update ner_retriever.managed_index set next_mentions = 'honest.notes'",
        &rls("managed_index"),
    );
    for table in [
        "pending",
        "pending (index_id, backfill, key) select index_id, true, key from ner_retriever.pending; insert into ner_retriever.pending",
    ] {
        denied(
            &mut mallory,
            &format!("insert into ner_retriever.{table} (index_id, key) values ({id}, '{{1}}')"),
            &rls("pending"),
        );
    }
    // What a number or a counter of one's own could do to others: another's number taken in advance,
    // an overflow in the worker, an index that every ALTER TABLE trips over.
    for (statement, table) in [
        ("insert into ner_retriever.managed_index (id, base, \"column\", mentions, mode, storage, dims, fingerprint)
          overriding system value
          values (999, 'forged.bait', 'body', 'forged.bait', 'manual', 'halfvec', 1, 'x')", "managed_index"),
        ("update ner_retriever.managed_index set base = 'forged.bait'", "managed_index"),
        ("update ner_retriever.managed_index set \"column\" = 'id'", "managed_index"),
        ("update ner_retriever.managed_index set mentions = 'forged.bait'", "managed_index"),
        ("update ner_retriever.managed_index set rows_total = -9223372036854775808", "managed_index"),
        ("delete from ner_retriever.managed_index", "managed_index"),
        ("update ner_retriever.pending set attempts = 2147483647", "pending"),
        ("insert into ner_retriever.pending (index_id, key, attempts) values (0, '{1}', 2147483647)", "pending"),
        ("insert into ner_retriever.failed_row (index_id, key, attempts, sqlstate, message) values (0, '{1}', 1, '', '')", "failed_row"),
        ("update ner_retriever.managed_index set memory = 'forged.bait'", "managed_index"),
        ("update ner_retriever.managed_index set key_numbers = '{7}'", "managed_index"),
        ("update ner_retriever.managed_index set readers = '{victim}'", "managed_index"),
        ("insert into ner_retriever.last_place values (1, 1)", "last_place"),
        ("insert into ner_retriever.turn values (1)", "turn"),
        ("truncate ner_retriever.pending", "pending"),
    ] {
        let message = format!("permission denied for table {table}");
        denied(&mut mallory, statement, &message);
    }
    run(
        &mut mallory,
        "update ner_retriever.managed_index set pauses = 2147483647",
    );
    run(
        &mut mallory,
        &format!(
            "insert into ner_retriever.pending (index_id, key) values ({own}, '{{1,2,3}}'), ({own}, '{{nought}}')"
        ),
    );
    run(
        &mut victim,
        "insert into notes values (2, 'Ada Lovelace lived in London.')",
    );
    settle(&mut victim, "honest.notes");
    let found = "select count(*) > 0 from notes_body_mentions where id = 2";
    assert!(value::<bool>(&mut victim, found));
}

#[test]
fn the_triggers_function_serves_its_own_triggers() {
    let server = SERVER.turn();
    let _victim = notes(&server, "victim", "own");
    let mut mallory = notes(&server, "mallory", "alien");
    let id = index_id(&server, "own.notes");
    run(
        &mut mallory,
        "create table bait (id int primary key, body text)",
    );
    let before: i64 = value(
        &mut server.connect(),
        "select count(*) from ner_retriever.pending",
    );
    let mut insert = |arguments: &str| {
        run(
            &mut mallory,
            &format!(
                "drop trigger if exists alien on bait; drop trigger if exists of_rows on bait; delete from bait;
                 create trigger alien after insert on bait
                 for each statement execute function ner_retriever.on_change({arguments});
                 create trigger of_rows after insert on bait
                 for each row execute function ner_retriever.on_change({arguments})"
            ),
        );
        mallory.batch_execute("insert into bait values (1, 'Marie Curie')")
    };
    // A table that was restored without the extension's rows has such triggers: they do nothing.
    for arguments in [
        format!("'{id}', 'deferred'"),
        format!("'{id}', 'immediate'"),
        "'999', 'deferred'".to_owned(),
    ] {
        assert!(insert(&arguments).is_ok(), "{arguments}");
    }
    for arguments in ["'1; drop table own.notes', 'deferred'", ""] {
        let error = failure(insert(arguments));
        assert_eq!(error.sqlstate, "39P01", "{arguments}: {error:?}");
        assert!(error.message.contains("trigger"), "{arguments}: {error:?}");
    }
    let after: i64 = value(
        &mut server.connect(),
        "select count(*) from ner_retriever.pending",
    );
    assert_eq!(after, before);
}

/// What the owner cannot read cannot be indexed, and must not look as if it were gone.
#[test]
fn policies_forced_on_the_owner_are_told() {
    let server = SERVER.turn();
    let mut owner = notes(&server, "victim", "forced");
    let before = rows(&mut owner, "select * from notes_body_mentions");
    let force = "create policy hidden on notes using (false) with check (true);
                 alter table notes enable row level security, force row level security;";
    run(&mut owner, force);
    run(
        &mut owner,
        "insert into notes values (2, 'Ada Lovelace lived in London.')",
    );
    let expected = "row-level security of table forced.notes is forced on its owner";
    wait_until("the index is paused", PATIENCE, || {
        problem(&mut owner, "forced.notes").1.as_deref() == Some(expected)
    });
    for statement in [
        "select ner_refresh('notes')",
        "select ner_index('notes', 'also')",
    ] {
        let (sqlstate, message) = refusal(&mut owner, statement);
        assert_eq!((sqlstate.as_str(), message.as_str()), ("55000", expected));
    }
    run(&mut owner, "alter table notes no force row level security");
    settle(&mut owner, "forced.notes");
    let after = rows(&mut owner, "select * from notes_body_mentions");
    assert!(after.len() > before.len() && before.iter().all(|row| after.contains(row)));
}

/// A session that knows how to reach a table does not go on to another one of that name.
#[test]
fn a_renamed_schema_is_followed() {
    let server = SERVER.turn();
    let mut owner = notes(&server, "victim", "moved");
    run(
        &mut owner,
        "select ner_drop_index('notes'); select ner_index('notes', 'body', mode => 'immediate');
         insert into notes values (2, 'Ada Lovelace lived in London.');",
    );
    run(
        &mut server.connect(),
        "alter schema moved rename to moved_away; create schema moved authorization victim;
         create table moved.notes (id int primary key, body text);
         alter table moved.notes owner to victim;",
    );
    run(
        &mut owner,
        "insert into moved_away.notes values (3, 'Marie Curie worked in Paris.');
         update moved_away.notes set body = 'Grace Hopper lived in Arlington.' where id = 2;",
    );
    let found = "select distinct id, fingerprint is null or mention like 'Ada%'
                 from moved_away.notes_body_mentions where id > 1 order by id";
    assert_eq!(rows(&mut owner, found), ["(2,f)", "(3,f)"]);
}

/// Every name in every statement is quoted as what it is.
#[test]
fn names_are_only_names() {
    let server = SERVER.turn();
    create_roles(&server, &["mallory"]);
    let mut client = session(&server, "mallory");
    run(
        &mut server.connect(),
        "create schema \"sch'e\"\"ma;%s\" authorization mallory; create role \"ro;'l\"\"e %I\"",
    );
    let schema = "\"sch'e\"\"ma;%s\"";
    for (n, (key, column)) in [
        ("\"it'em.\"\"id;%L\"", "\"bo%sdy;\"\"--\""),
        ("key", "\"text'\n$1\""),
        ("\"type\"", "\"distance\""),
        ("mention", "\"embedding\""),
        ("i", "\"SELECT\""),
    ]
    .into_iter()
    .enumerate()
    {
        for partitioned in [false, true] {
            let table = format!("{schema}.\"t'a\"\"b;l%I\n-- {n} {partitioned}\"");
            let by = if partitioned {
                format!("partition by hash ({key})")
            } else {
                String::new()
            };
            run(
                &mut client,
                &format!(
                    "create table {table} ({key} text, \"also %s\" date, {column} text, primary key ({key}, \"also %s\")) {by}"
                ),
            );
            if partitioned {
                let part = format!("{schema}.\"p'%s\"\" {n}\"");
                run(
                    &mut client,
                    &format!(
                        "create table {part} partition of {table} for values with (modulus 1, remainder 0)"
                    ),
                );
            }
            for mode in ["deferred", "immediate"] {
                names_in_mode(&mut client, &table, key, column, mode);
            }
        }
    }
}

fn names_in_mode(client: &mut Client, table: &str, key: &str, column: &str, mode: &str) {
    let literal = |name: &str| format!("'{}'", name.replace('\'', "''"));
    let plain = |name: &str| {
        let name = name
            .strip_prefix('"')
            .and_then(|name| name.strip_suffix('"'));
        name.map(|name| name.replace("\"\"", "\""))
    };
    let table_name = literal(table);
    let column_name = literal(&plain(column).unwrap_or_else(|| column.to_owned()));
    run(
        client,
        &format!(
            "set datestyle = 'ISO'; truncate {table};
             grant select on {table} to \"ro;'l\"\"e %I\";
             insert into {table} values (E'a,''\"{{\\\\', '2026-02-01', 'Marie Curie lived in Paris.');
             select ner_index({table_name}, {column_name}, mode => '{mode}');
             insert into {table} values ('%s', '2026-03-04', 'Ada Lovelace lived in London.');"
        ),
    );
    settle(client, table);
    let search =
        format!("select * from ner_search({table_name}, array['person', 'it''s; %s'], 10)");
    assert_eq!(rows(client, &search).len(), 2, "{table}");
    let filter = literal(&format!("{key} = '%s'"));
    let search =
        format!("select key ->> 'also %s' from ner_search({table_name}, 'person', 10, {filter})");
    assert_eq!(rows(client, &search), ["(2026-03-04)"], "{table}");
    run(
        client,
        &format!(
            "update {table} set {column} = 'Grace Hopper lived in Arlington.' where {key} = '%s';
             delete from {table} where {key} <> '%s';"
        ),
    );
    settle(client, table);
    // Keys are told to the worker in one way of writing, whatever the session's is.
    run(client, "set datestyle = 'SQL, DMY'");
    let refreshed: i64 = value(client, &format!("select ner_refresh({table_name})"));
    assert_eq!(refreshed, 1);
    settle(client, table);
    let search = format!("select key ->> 'also %s' from ner_search({table_name}, 'person', 10)");
    assert_eq!(rows(client, &search), ["(2026-03-04)"], "{table}");
    let failed = format!(
        "select count(*) from ner_retriever.failed where \"table\" = {table_name}::regclass"
    );
    assert_eq!(value::<i64>(client, &failed), 0, "{table}");
    run(client, &format!("select ner_drop_index({table_name})"));
    let error = failure(client.query(&search, &[]));
    assert_eq!(error.sqlstate, "42704");
}
