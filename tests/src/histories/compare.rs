//! Compares each index, once all is quiet, with one made afresh: the mentions that the same engine
//! finds now in each row of the table.

use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, SimpleQueryMessage};

use super::place::MAX_TEXT_BYTES;
use super::run::{Fault, Kind};
use super::values::string;
use crate::stand_in::POISON;

/// How long differences may outlast `ner_wait`: what triggers did not tell is found in the background.
const RECONCILING: Duration = Duration::from_secs(3);
const WAIT: &str = "10 s";
/// Lines of a difference that are worth printing.
const LINES: usize = 12;

/// A managed index as the catalogue has it.
struct Index {
    id: i32,
    table: u32,
    /// As SQL names it, with ONLY where children are not indexed.
    from: String,
    column: String,
    mentions: String,
    mode: String,
    /// The key, an array of text: of the table's rows and of the mentions.
    table_key: String,
    mentions_key: String,
    /// Type of the embeddings.
    vector: String,
}

/// The first thing that is wrong, if any.
pub fn compare(main: &mut Client, twin: &mut Client, indexed: &[(u32, i16)]) -> Option<Fault> {
    for client in [&mut *main, &mut *twin] {
        end_prepared(client);
    }
    enable_triggers(main);
    if let Some(fault) = contents(main, twin).or_else(|| vanished(main, indexed)) {
        return Some(fault);
    }
    match indexes(main) {
        Ok(indexes) => indexes.iter().find_map(|index| index_fault(main, index.id)),
        Err(error) => Some(fault(
            Kind::State,
            format!("the indexes cannot be read: {error}"),
        )),
    }
}

/// Tables and columns that have an index now.
pub fn indexed_columns(client: &mut Client) -> Vec<(u32, i16)> {
    let [number, _] = numbers(client);
    let sql = format!(
        "select i.base::oid, {number} from ner_retriever.managed_index as i where {number} is not null"
    );
    let rows = client.query(&sql, &[]).unwrap_or_default();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// SQL for the numbers of an index's column and of its key's columns.
fn numbers(client: &mut Client) -> [&'static str; 2] {
    let known = "select from pg_attribute where attrelid = 'ner_retriever.managed_index'::regclass and attname = 'key_numbers'";
    if query(client, known).is_ok_and(|rows| !rows.is_empty()) {
        return ["i.column_number", "i.key_numbers"];
    }
    // Before 0.3.0 the column was known by its name, and the key by a foreign key.
    [
        "(select attnum from pg_attribute where attrelid = i.base and attname = i.\"column\")",
        "(select confkey from pg_constraint where conrelid = i.mentions and confrelid = i.base and conparentid = 0)",
    ]
}

fn fault(kind: Kind, text: impl Into<String>) -> Fault {
    let text = text.into();
    Fault { kind, text }
}

/// What a query gives, a line a row.
fn query(client: &mut Client, sql: &str) -> Result<Vec<String>, String> {
    let messages = client
        .simple_query(sql)
        .map_err(|error| match error.as_db_error() {
            Some(e) => format!("{} {} in: {sql}", e.code().code(), e.message()),
            None => error.to_string(),
        })?;
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values: Vec<&str> = (0..row.len())
                .map(|n| row.get(n).unwrap_or("NULL"))
                .collect();
            Some(values.join("\t"))
        }
        _ => None,
    };
    Ok(messages.iter().filter_map(line).collect())
}

/// Prepared transactions that the history has left hold their locks for ever.
fn end_prepared(client: &mut Client) {
    let sql = "select gid from pg_prepared_xacts where database = current_database() order by gid";
    for gid in query(client, sql).unwrap_or_default() {
        let _ = client.simple_query(&format!("COMMIT PREPARED {}", string(&gid)));
    }
}

/// What happened while triggers were off is found when they are on again, or within the hour of
/// `ner_retriever.reconcile_interval`, which no history has.
fn enable_triggers(client: &mut Client) {
    let sql = "select distinct t.tgrelid::regclass from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
         where t.tgenabled = 'D'";
    for table in query(client, sql).unwrap_or_default() {
        let _ = client.simple_query(&format!("ALTER TABLE {table} ENABLE TRIGGER ALL"));
    }
}

/// The user's own tables must be the twin's in every row.
fn contents(main: &mut Client, twin: &mut Client) -> Option<Fault> {
    let tables =
        "select format('%s%I.%I', case c.relkind when 'r' then 'ONLY ' end, n.nspname, c.relname)
         from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
         where c.relkind in ('r', 'p') and not c.relispartition
           and n.nspname not in ('pg_catalog', 'information_schema')
         order by n.nspname, c.relname";
    let tables = match query(twin, tables) {
        Ok(tables) => tables,
        Err(error) => return Some(fault(Kind::Contents, error)),
    };
    for table in tables {
        let sql = format!("select t::text from {table} as t order by 1");
        let (here, there) = (query(main, &sql), query(twin, &sql));
        if here != there {
            return Some(fault(
                Kind::Contents,
                format!("{table}\nwith the index:    {here:?}\nwithout an index:  {there:?}"),
            ));
        }
    }
    None
}

fn vanished(client: &mut Client, indexed: &[(u32, i16)]) -> Option<Fault> {
    let present = indexed_columns(client);
    let gone = indexed.iter().find(|column| {
        let (table, number) = column;
        let sql = format!(
            "select from pg_attribute where attrelid = {table} and attnum = {number} and not attisdropped"
        );
        !present.contains(column) && query(client, &sql).is_ok_and(|rows| !rows.is_empty())
    });
    gone.map(|(table, number)| {
        let name = query(client, &format!("select {table}::regclass"));
        fault(
            Kind::Vanished,
            format!("{name:?}, column {number}: the index has gone"),
        )
    })
}

/// The indexes that can be right: whose table has a unique index on the key. Of others the extension says
/// that they wait for one.
fn indexes(client: &mut Client) -> Result<Vec<Index>, String> {
    let [number, key_numbers] = numbers(client);
    let sql = format!(
        "select i.id, i.base::oid, format('%s%I.%I', case b.relkind when 'r' then 'ONLY ' end, n.nspname, b.relname),
             a.attname::text, format('%I.%I', mn.nspname, m.relname), i.mode, k.of_table, k.of_mentions,
             (select format_type(a.atttypid, a.atttypmod) from pg_attribute as a
              where a.attrelid = i.mentions and a.attname = 'embedding')
         from (select *, {key_numbers} as numbers from ner_retriever.managed_index as i) as i
         join pg_class as b on b.oid = i.base join pg_namespace as n on n.oid = b.relnamespace
         join pg_class as m on m.oid = i.mentions join pg_namespace as mn on mn.oid = m.relnamespace
         join pg_attribute as a on a.attrelid = i.base and a.attnum = {number} and not a.attisdropped
         cross join lateral (
             select string_agg(format('t.%I::text', t.attname), ', ' order by u.n) as of_table,
                    string_agg(format('t.%I::text', o.attname), ', ' order by u.n) as of_mentions,
                    bool_and(t.attnotnull) as whole
             from unnest(i.numbers) with ordinality as u (number, n)
             join pg_attribute as t on t.attrelid = i.base and t.attnum = u.number and not t.attisdropped
             join pg_attribute as o on o.attrelid = i.mentions and o.attnum = u.n) as k
         where k.whole and exists (
             select from pg_index as x
             where x.indrelid = i.base and x.indisunique and x.indisvalid and x.indimmediate
               and x.indpred is null and x.indexprs is null
               and (select array_agg(v order by v) from unnest((x.indkey::smallint[])[0:x.indnkeyatts - 1]) as v)
                   = (select array_agg(v order by v) from unnest(i.numbers) as v))
         order by i.id"
    );
    let rows = client
        .query(&sql, &[])
        .map_err(|error| format!("{error:?}"))?;
    let index = |row: &postgres::Row| {
        let part = |n: usize| row.get::<_, Option<String>>(n).unwrap_or_default();
        Index {
            id: row.get(0),
            table: row.get(1),
            from: part(2),
            column: part(3),
            mentions: part(4),
            mode: part(5),
            table_key: part(6),
            mentions_key: part(7),
            vector: part(8),
        }
    };
    Ok(rows.iter().map(index).collect())
}

/// What is wrong with an index, which may take some time to find the last differences by itself.
fn index_fault(client: &mut Client, id: i32) -> Option<Fault> {
    let started = Instant::now();
    let mut refreshed = false;
    loop {
        // Names and the table of the mentions may change while the index catches up.
        let index = match indexes(client) {
            Ok(indexes) => indexes.into_iter().find(|index| index.id == id)?,
            Err(error) => return Some(fault(Kind::State, error)),
        };
        if index.mode == "manual" && !refreshed {
            refreshed = true;
            let sql = format!(
                "select public.ner_refresh({}, NULL, {})",
                index.regclass(),
                string(&index.column)
            );
            if let Err(error) = query(client, &sql) {
                return Some(fault(Kind::Call("refresh".into()), error));
            }
        }
        let found = waited(client, &index)
            .or_else(|| mentions(client, &index))
            .or_else(|| failures(client, &index))
            .or_else(|| at_rest(client, &index))?;
        if matches!(found.kind, Kind::Wait | Kind::Call(_)) || started.elapsed() > RECONCILING {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn waited(client: &mut Client, index: &Index) -> Option<Fault> {
    let sql = format!(
        "select public.ner_wait({}, '{WAIT}', {})",
        index.regclass(),
        string(&index.column)
    );
    match query(client, &sql) {
        Ok(done) if done == ["t"] => None,
        Ok(_) => Some(fault(Kind::Wait, state(client, index))),
        Err(error) => Some(fault(Kind::Call("wait".into()), error)),
    }
}

impl Index {
    fn regclass(&self) -> String {
        format!("{}::oid::regclass", self.table)
    }
}

fn state(client: &mut Client, index: &Index) -> String {
    let sql = format!(
        "select i::text from ner_retriever.indexes as i where \"table\" = {}::oid and \"column\" = {}",
        index.table,
        string(&index.column)
    );
    format!(
        "{} ({}): {:?}",
        index.from,
        index.column,
        query(client, &sql)
    )
}

/// The rows with their keys, and whether the engine refuses them.
fn rows_cte(index: &Index) -> String {
    format!(
        "with source as materialized (
             select array[{key}] as key, t.{column}::text as body,
                    coalesce(octet_length(t.{column}::text) > {MAX_TEXT_BYTES}
                        or strpos(t.{column}::text, '{POISON}') > 0, false) as poisoned
             from {from} as t)",
        key = index.table_key,
        column = super::values::quoted(&index.column),
        from = index.from,
    )
}

/// What is stored and what the texts have, bit for bit; mentions of poisoned rows may be anything.
fn mentions(client: &mut Client, index: &Index) -> Option<Fault> {
    let sql = format!(
        "{source}, should as materialized (
             select s.key, e.entity, e.start_char, e.end_char, e.embedding::{vector}::text
             from source as s cross join lateral public.ner_entity_embeddings(s.body) as e
             where not s.poisoned),
         present as materialized (
             select array[{key}] as key, t.mention, t.start_char, t.end_char, t.embedding::text
             from {mentions} as t),
         counted as (
             select * from present where key not in (select key from source where poisoned))
         (select 'missing' as what, q.* from (table should except all table counted) as q
          union all select 'too much', q.* from (table counted except all table should) as q)
         order by 2, 4, 1",
        source = rows_cte(index),
        vector = index.vector,
        key = index.mentions_key,
        mentions = index.mentions,
    );
    match query(client, &sql) {
        Ok(lines) if lines.is_empty() => None,
        Ok(lines) => Some(fault(Kind::Mentions, listed(client, index, &lines))),
        Err(error) => Some(fault(Kind::Mentions, error)),
    }
}

/// Failed rows are the poisoned ones.
fn failures(client: &mut Client, index: &Index) -> Option<Fault> {
    let sql = format!(
        "{source}, failed as (
             select key from ner_retriever.failed
             where \"table\" = {table}::oid and \"column\" = {column}),
         poisoned as (select key from source where poisoned)
         (select 'failed for no reason' as what, q.* from (table failed except table poisoned) as q
          union all select 'poisoned and not failed', q.* from (table poisoned except table failed) as q)",
        source = rows_cte(index),
        table = index.table,
        column = string(&index.column),
    );
    match query(client, &sql) {
        Ok(lines) if lines.is_empty() => None,
        Ok(lines) => Some(fault(Kind::Failed, listed(client, index, &lines))),
        Err(error) => Some(fault(Kind::Failed, error)),
    }
}

/// The index says itself that nothing is left to do.
fn at_rest(client: &mut Client, index: &Index) -> Option<Fault> {
    let here = format!(
        "\"table\" = {}::oid and \"column\" = {}",
        index.table,
        string(&index.column)
    );
    let sql = format!(
        "select from ner_retriever.indexes where {here} and (state <> 'ready' or rows_waiting > 0)"
    );
    if query(client, &sql).is_ok_and(|rows| !rows.is_empty()) {
        return Some(fault(Kind::State, state(client, index)));
    }
    let known = "select from pg_proc where proname = 'ner_check'";
    if query(client, known).is_ok_and(|rows| rows.is_empty()) {
        return None;
    }
    let sql = format!(
        "select * from public.ner_check({}::oid::regclass, {})",
        index.table,
        string(&index.column)
    );
    // What the engine refuses stays a difference.
    let failed =
        format!("select format(E'%s\t0\t0', count(*)) from ner_retriever.failed where {here}");
    match (query(client, &sql), query(client, &failed)) {
        (Ok(lines), Ok(failed)) if lines == ["0\t0\t0"] || lines == failed => None,
        (other, _) => Some(fault(
            Kind::State,
            format!("{}: ner_check gives {other:?}", index.from),
        )),
    }
}

fn listed(client: &mut Client, index: &Index, lines: &[String]) -> String {
    let mut text = state(client, index);
    for line in lines.iter().take(LINES) {
        let line: String = line.chars().take(300).collect();
        text.push_str(&format!("\n  {line}"));
    }
    if lines.len() > LINES {
        text.push_str(&format!("\n  and {} more", lines.len() - LINES));
    }
    text
}
