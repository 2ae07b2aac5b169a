//! Calls of the extension's functions, and what is killed.

use super::generate::Gen;
use super::history::Action;
use super::tables;
use super::values::{quoted, string};

fn arguments(g: &mut Gen) -> (usize, String, String) {
    let table = g.table();
    let t = &g.tables[table];
    (table, t.regclass(), string(&t.text))
}

pub fn refresh(g: &mut Gen, session: usize) {
    let (table, regclass, column) = arguments(g);
    let n = g.old_row(session, table);
    let filter = match g.rng.below(3) {
        0 => string(&g.tables[table].is_row(n)),
        _ => "NULL".into(),
    };
    g.push(
        session,
        Action::Managed,
        format!("SELECT public.ner_refresh({regclass}, {filter}, {column})"),
    );
}

pub fn reindex(g: &mut Gen, session: usize) {
    let (_, regclass, column) = arguments(g);
    g.push(
        session,
        Action::Managed,
        format!("SELECT public.ner_reindex({regclass}, {column})"),
    );
}

pub fn check(g: &mut Gen, session: usize) {
    let (table, regclass, column) = arguments(g);
    let sql = format!("SELECT * FROM public.ner_check({regclass}, {column})");
    g.read(session, Action::Managed, sql, table);
}

pub fn wait(g: &mut Gen, session: usize) {
    let (_, regclass, column) = arguments(g);
    let time = *g.rng.pick(&["1 ms", "30 ms", "200 ms"]);
    g.push(
        session,
        Action::Managed,
        format!("SELECT public.ner_wait({regclass}, '{time}', {column})"),
    );
}

/// A search may miss what is not embedded yet, and never shows a row that is not there.
pub fn search(g: &mut Gen, session: usize) {
    let (table, regclass, column) = arguments(g);
    let t = &g.tables[table];
    let key = t.key.iter().map(|column| {
        let name = &column.name;
        format!("s.key->>{} = to_jsonb(t)->>{}", string(name), string(name))
    });
    let key: Vec<String> = key.collect();
    let from = if t.is_partitioned() {
        t.q()
    } else {
        format!("ONLY {}", t.q())
    };
    let sql = format!(
        "SELECT s.key FROM public.ner_search({regclass}, 'city', 20, \"column\" => {column}) AS s
         WHERE NOT EXISTS (SELECT FROM {from} AS t WHERE {})",
        key.join(" AND ")
    );
    g.read(session, Action::ManagedNoRows, sql, table);
}

/// The index goes and comes back, in one transaction or in two.
pub fn index_again(g: &mut Gen, session: usize) {
    let (table, regclass, column) = arguments(g);
    let drop = format!("public.ner_drop_index({regclass}, {column})");
    let call = tables::index_call(g, table);
    if g.rng.chance(50) {
        g.push(
            session,
            Action::Managed,
            format!("SELECT {drop}; SELECT {call}"),
        );
    } else {
        g.push(session, Action::Managed, format!("SELECT {drop}"));
        super::changes::insert(g, session, table);
        g.push(session, Action::Managed, format!("SELECT {call}"));
    }
}

/// Another column of the table is indexed as well.
pub fn second_index(g: &mut Gen, session: usize) {
    let table = g.table();
    let name = g.name();
    let t = &g.tables[table];
    let (q, regclass) = (t.q(), t.regclass());
    g.say(
        session,
        format!(
            "ALTER TABLE {q} ADD COLUMN {} text DEFAULT 'Vienna'",
            quoted(&name)
        ),
    );
    g.push(
        session,
        Action::Managed,
        format!("SELECT public.ner_index({regclass}, {})", string(&name)),
    );
}

pub fn kill_engine(g: &mut Gen, session: usize) {
    g.push(session, Action::KillEngine, String::new());
}

pub fn kill_workers(g: &mut Gen, session: usize) {
    g.push(session, Action::KillWorkers, String::new());
}

pub fn crash(g: &mut Gen, session: usize) {
    g.push(session, Action::Crash, String::new());
    // Whatever was open is gone.
    for other in 0..g.sessions.len() {
        if let Some(before) = g.sessions[other].block.take() {
            g.tables = before;
        }
    }
}

pub fn pause(g: &mut Gen, session: usize) {
    g.push(session, Action::Pause, String::new());
}
