//! Managed indexes as a session sees them.

use postgres::Client;

/// Waits until the index of `table` has all changes; the table has one index.
#[track_caller]
pub fn settle(client: &mut Client, table: &str) {
    let sql = "select ner_wait($1::text::regclass, '3 minutes')";
    let row = client
        .query_one(sql, &[&table])
        .expect("the index is there");
    if !row.get::<_, bool>(0) {
        panic!("{table}: {:?}", problem(client, table));
    }
}

/// The state and the last error of an index.
pub fn problem(client: &mut Client, table: &str) -> (String, Option<String>) {
    let sql =
        "select state, last_error from ner_retriever.indexes where \"table\" = $1::text::regclass";
    let row = client
        .query_one(sql, &[&table])
        .expect("the index is there");
    (row.get(0), row.get(1))
}

/// A query's only value.
#[track_caller]
pub fn value<T: for<'a> postgres::types::FromSql<'a>>(client: &mut Client, sql: &str) -> T {
    match client.query_one(sql, &[]) {
        Ok(row) => row.get(0),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

/// A query's rows, their columns as text side by side.
#[track_caller]
pub fn rows(client: &mut Client, sql: &str) -> Vec<String> {
    let sql = format!("select q::text from ({sql}) as q");
    match client.query(&sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

/// Runs statements that must work.
#[track_caller]
pub fn run(client: &mut Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql) {
        panic!("{sql}: {error:?}");
    }
}

/// The rows of `table` (a table `(id, body)` with an index of column `body`) whose mentions are not
/// those of their text, orphans among the mentions, and changes that wait: all are empty when the
/// index is right. `exact` is a query `(id, mention, start_char, end_char)` of what should be there.
pub fn differences(table: &str, exact: &str) -> String {
    let stored = format!("select id, mention, start_char, end_char from {table}_body_mentions");
    format!(
        "select count(*) from (
             (({stored}) except all ({exact})) union all (({exact}) except all ({stored}))) as q"
    )
}
