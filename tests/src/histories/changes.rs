//! Statements that change rows.

use super::generate::Gen;
use super::history::Role;
use super::values::quoted;

/// The literals of a row that is written.
fn row(g: &mut Gen, table: usize, n: usize) -> String {
    let text = g.text();
    let t = &g.tables[table];
    let mut values: Vec<String> = (0..t.key.len()).map(|c| t.key_literal(c, n)).collect();
    values.push(text);
    format!("({})", values.join(", "))
}

/// What a statement names: the table, or now and then a partition or a child.
fn target(g: &mut Gen, table: usize) -> String {
    let parts = g.tables[table].parts.len();
    if parts > 0 && g.rng.chance(25) {
        let part = g.rng.below(parts);
        let t = &g.tables[table];
        return t.part(&t.parts[part].name);
    }
    g.tables[table].q()
}

/// A table that rows of the session go to.
fn some_table(g: &mut Gen) -> usize {
    g.table()
}

pub fn insert_some(g: &mut Gen, session: usize) {
    let table = some_table(g);
    insert(g, session, table);
}

pub fn insert(g: &mut Gen, session: usize, table: usize) {
    let mut rows = Vec::new();
    for _ in 0..1 + g.rng.below(3) {
        let n = g.new_row(session, table);
        if g.tables[table].rows.insert(n) || g.rng.chance(10) {
            rows.push(row(g, table, n));
        }
    }
    if rows.is_empty() {
        return upsert_into(g, session, table);
    }
    let target = if g.tables[table].is_partitioned() {
        g.tables[table].q()
    } else {
        target(g, table)
    };
    let t = &g.tables[table];
    let returning = format!(" RETURNING {}", quoted(&t.text));
    let sql = format!(
        "INSERT INTO {target} ({}) VALUES {}",
        t.written(),
        rows.join(", ")
    );
    let returning = if g.rng.chance(20) {
        returning
    } else {
        String::new()
    };
    g.say(session, sql + &returning);
}

pub fn upsert(g: &mut Gen, session: usize) {
    let table = some_table(g);
    upsert_into(g, session, table);
}

fn upsert_into(g: &mut Gen, session: usize, table: usize) {
    let n = if g.rng.chance(60) {
        g.old_row(session, table)
    } else {
        g.new_row(session, table)
    };
    g.tables[table].rows.insert(n);
    let values = row(g, table, n);
    let t = &g.tables[table];
    let key: Vec<String> = t.key.iter().map(|column| quoted(&column.name)).collect();
    let source = quoted(&t.source);
    let action = match g.rng.below(4) {
        0 => "DO NOTHING".to_owned(),
        1 => format!(
            "({}) DO UPDATE SET {source} = EXCLUDED.{source} || ' in Oslo'",
            key.join(", ")
        ),
        2 => format!(
            "({}) DO UPDATE SET {source} = EXCLUDED.{source} WHERE false",
            key.join(", ")
        ),
        _ => format!(
            "({}) DO UPDATE SET {source} = EXCLUDED.{source}",
            key.join(", ")
        ),
    };
    let (q, written) = (t.q(), t.written());
    g.say(
        session,
        format!("INSERT INTO {q} ({written}) VALUES {values} ON CONFLICT {action}"),
    );
}

pub fn update_text(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let (n, text, target) = (g.old_row(session, table), g.text(), target(g, table));
    let everywhere = g.rng.chance(12);
    if everywhere {
        g.clear_way(session);
    }
    let t = &g.tables[table];
    let source = quoted(&t.source);
    let condition = if everywhere {
        "true".to_owned()
    } else {
        t.is_row(n)
    };
    let value = match g.rng.below(5) {
        0 => format!("{source} || ' and Tokyo'"),
        1 => format!("upper({source})"),
        _ => text,
    };
    g.say(
        session,
        format!("UPDATE {target} SET {source} = {value} WHERE {condition}"),
    );
}

pub fn update_nothing(g: &mut Gen, session: usize) {
    g.clear_way(session);
    let table = some_table(g);
    let t = &g.tables[table];
    let (q, source, key) = (t.q(), quoted(&t.source), quoted(&t.key[0].name));
    let sql = match g.rng.below(3) {
        0 => format!("UPDATE {q} SET {source} = {source}"),
        1 => format!("UPDATE {q} SET {source} = {source}, {key} = {key}"),
        _ => format!("UPDATE {q} SET {source} = {source} WHERE false"),
    };
    g.say(session, sql);
}

pub fn update_other(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let t = &g.tables[table];
    let Some(column) = t.others.first().cloned() else {
        return update_key(g, session);
    };
    g.clear_way(session);
    let t = &g.tables[table];
    let (q, name, value) = (
        t.q(),
        quoted(&column.name),
        column.kind.literal(g.rng.below(9)),
    );
    g.say(session, format!("UPDATE {q} SET {name} = {value}"));
}

/// A row gets another key, its text or not; two rows swap; a row moves to another partition.
pub fn update_key(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let (old, new, text) = (
        g.old_row(session, table),
        g.new_row(session, table),
        g.text(),
    );
    let choice = g.rng.below(4);
    let partition = g.rng.below(5);
    let t = &g.tables[table];
    let (q, key, source) = (t.q(), quoted(&t.key[0].name), quoted(&t.source));
    let (here, value) = (t.is_row(old), t.key_literal(0, new));
    let spread = &t.key[t.spread_by];
    let sql = match choice {
        0 if t.is_partitioned() => format!(
            "UPDATE {q} SET {} = {} WHERE {here}",
            quoted(&spread.name),
            spread.kind.literal(partition)
        ),
        1 => format!("UPDATE {q} SET {key} = {value}, {source} = {text} WHERE {here}"),
        _ => format!("UPDATE {q} SET {key} = {value} WHERE {here}"),
    };
    if !sql.contains(&format!("SET {} =", quoted(&spread.name))) || t.spread_by == 0 {
        let rows = &mut g.tables[table].rows;
        if rows.remove(&old) {
            rows.insert(new);
        }
    }
    g.say(session, sql);
}

pub fn delete(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let (n, target) = (g.old_row(session, table), target(g, table));
    let here = g.tables[table].is_row(n);
    g.tables[table].rows.remove(&n);
    match g.rng.below(8) {
        0 => {
            g.clear_way(session);
            g.tables[table].rows.clear();
            g.say(session, format!("DELETE FROM {target}"));
        }
        // Gone and back in one transaction, perhaps with another text.
        1 => {
            g.tables[table].rows.insert(n);
            let values = row(g, table, n);
            let t = &g.tables[table];
            let (q, written) = (t.q(), t.written());
            g.say(
                session,
                format!(
                    "DELETE FROM {q} WHERE {here}; INSERT INTO {q} ({written}) VALUES {values}"
                ),
            );
        }
        _ => g.say(session, format!("DELETE FROM {target} WHERE {here}")),
    }
}

pub fn copy(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let mut lines = String::new();
    for _ in 0..1 + g.rng.below(3) {
        let n = g.new_row(session, table);
        g.tables[table].rows.insert(n);
        let t = &g.tables[table];
        // COPY's own quoting; what its values are does not matter here.
        let key: Vec<String> = (0..t.key.len())
            .map(|c| bare(&t.key_literal(c, n)))
            .collect();
        let text = g
            .rng
            .pick(&["Rome and Oslo", "\\N", "", "nothing", "Lake\\nBaikal"])
            .to_string();
        lines.push_str(&format!("{}\t{text}\n", key.join("\t")));
    }
    let target = if g.rng.chance(80) {
        g.tables[table].q()
    } else {
        target(g, table)
    };
    let freeze = if g.rng.chance(10) {
        " WITH (FREEZE)"
    } else {
        ""
    };
    let written = g.tables[table].written();
    g.copy(
        session,
        format!("COPY {target} ({written}) FROM STDIN{freeze}"),
        lines,
    );
}

/// A literal as a field of COPY.
fn bare(literal: &str) -> String {
    let literal = literal.strip_suffix("::bytea").unwrap_or(literal);
    let inside = literal
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''));
    let inside = inside.unwrap_or(literal).replace("''", "'");
    inside.replace('\\', "\\\\").replace('\t', "\\t")
}

pub fn merge(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let (a, b) = (g.old_row(session, table), g.new_row(session, table));
    g.tables[table].rows.extend([a, b]);
    let rows = [a, b].map(|n| {
        let text = g.text();
        let t = &g.tables[table];
        let key =
            (0..t.key.len()).map(|c| format!("{}::{}", t.key_literal(c, n), t.key[c].kind.bare()));
        let values: Vec<String> = key.chain([format!("{text}::text")]).collect();
        format!("({})", values.join(", "))
    });
    let matched = *g.rng.pick(&[
        "DELETE",
        "DO NOTHING",
        "UPDATE SET {} = n.{}",
        "UPDATE SET {} = n.{}",
    ]);
    let t = &g.tables[table];
    let (source, key) = (quoted(&t.source), quoted(&t.key[0].name));
    let inserted: Vec<String> = t
        .key
        .iter()
        .map(|c| format!("n.{}", quoted(&c.name)))
        .collect();
    let (q, written) = (t.q(), t.written());
    let sql = format!(
        "MERGE INTO {q} AS o USING (VALUES {}) AS n ({written}) ON o.{key} = n.{key}
         WHEN MATCHED THEN {} WHEN NOT MATCHED THEN INSERT ({written}) VALUES ({}, n.{source})",
        rows.join(", "),
        matched.replace("{}", &source),
        inserted.join(", ")
    );
    g.say(session, sql);
}

pub fn truncate(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let target = target(g, table);
    let whole = target == g.tables[table].q();
    let cascade = ["", " CASCADE", " RESTART IDENTITY"][g.rng.weighted([55, 35, 10].into_iter())];
    let only = if g.rng.chance(10) { "ONLY " } else { "" };
    if whole {
        g.tables[table].rows.clear();
    }
    g.say(session, format!("TRUNCATE {only}{target}{cascade}"));
}

/// Reading is a statement as well, and its rows are compared.
pub fn select(g: &mut Gen, session: usize) {
    let table = some_table(g);
    let lock = [
        "",
        " FOR UPDATE NOWAIT",
        " FOR SHARE",
        " FOR UPDATE SKIP LOCKED",
    ];
    let lock = lock[g.rng.weighted([50, 20, 15, 15].into_iter())];
    if lock.ends_with("SHARE") {
        g.clear_way(session);
    }
    let lock = if g.sessions[session].role == Role::Writer {
        ""
    } else {
        lock
    };
    let t = &g.tables[table];
    let (q, text, key) = (t.q(), quoted(&t.text), quoted(&t.key[0].name));
    g.say(
        session,
        format!("SELECT {key}, {text} FROM {q} ORDER BY 1{lock}"),
    );
}
