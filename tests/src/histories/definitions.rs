//! Statements that change what a table is.

use super::generate::Gen;
use super::tables::{self, Table};
use super::values::{KEYS, quoted, string};

pub fn new_schema(g: &mut Gen, session: usize) {
    let name = g.name();
    let q = quoted(&name);
    g.say(
        session,
        format!("CREATE SCHEMA {q}; GRANT ALL ON SCHEMA {q} TO PUBLIC"),
    );
    g.add_schema(name);
}

/// One of the columns, by any role that it may have.
fn any_column(g: &mut Gen, table: usize) -> String {
    let t = &g.tables[table];
    let mut names: Vec<String> = t
        .others
        .iter()
        .chain(&t.key)
        .map(|column| column.name.clone())
        .collect();
    names.extend([t.text.clone(), t.source.clone()]);
    g.rng.pick(&names).clone()
}

pub fn add_column(g: &mut Gen, session: usize) {
    let table = g.table();
    let column = tables::column(g, &KEYS[5..]);
    let default = if g.rng.chance(40) {
        format!(" DEFAULT {}", column.kind.literal(1))
    } else {
        String::new()
    };
    let q = g.tables[table].q();
    g.say(
        session,
        format!(
            "ALTER TABLE {q} ADD COLUMN {} {}{default}",
            quoted(&column.name),
            column.kind.sql()
        ),
    );
    g.tables[table].others.push(column);
}

pub fn drop_column(g: &mut Gen, session: usize) {
    let table = g.table();
    let t = &mut g.tables[table];
    if t.others.is_empty() {
        return add_column(g, session);
    }
    let column = t.others.remove(0);
    let sql = format!("ALTER TABLE {} DROP COLUMN {}", t.q(), quoted(&column.name));
    g.say(session, sql);
}

/// The indexed column goes, with its index, and may come back.
pub fn drop_text(g: &mut Gen, session: usize) {
    let table = g.table();
    let cascade = if g.rng.chance(60) { " CASCADE" } else { "" };
    let t = &g.tables[table];
    let (q, text) = (t.q(), quoted(&t.text));
    g.say(
        session,
        format!("ALTER TABLE {q} DROP COLUMN {text}{cascade}"),
    );
    if g.rng.chance(70) {
        g.say(
            session,
            format!("ALTER TABLE {q} ADD COLUMN {text} text DEFAULT 'Rome'"),
        );
        let t = &mut g.tables[table];
        t.source = t.text.clone();
        t.text_type = "text".into();
        tables::index(g, session, table);
    }
}

pub fn rename_column(g: &mut Gen, session: usize) {
    let table = g.table();
    let (old, new) = (any_column(g, table), g.name());
    let t = &mut g.tables[table];
    let sql = format!(
        "ALTER TABLE {} RENAME COLUMN {} TO {}",
        t.q(),
        quoted(&old),
        quoted(&new)
    );
    let rename = |name: &mut String| {
        if *name == old {
            name.clone_from(&new);
        }
    };
    t.key
        .iter_mut()
        .chain(&mut t.others)
        .for_each(|column| rename(&mut column.name));
    rename(&mut t.text);
    rename(&mut t.source);
    t.text_type = t.text_type.replace(&quoted(&old), &quoted(&new));
    g.say(session, sql);
}

pub fn rename_table(g: &mut Gen, session: usize) {
    let (table, new) = (g.table(), g.name());
    let t = &mut g.tables[table];
    let sql = format!("ALTER TABLE {} RENAME TO {}", t.q(), quoted(&new));
    t.name = new;
    g.say(session, sql);
}

pub fn set_schema(g: &mut Gen, session: usize) {
    if g.rng.chance(40) {
        new_schema(g, session);
    }
    let (table, new) = (g.table(), g.schema());
    let t = &mut g.tables[table];
    let sql = format!("ALTER TABLE {} SET SCHEMA {}", t.q(), quoted(&new));
    // Partitions stay where they are, and are not found any more.
    if t.schema != new {
        t.parts.clear();
    }
    t.schema = new;
    g.say(session, sql);
}

pub fn owner(g: &mut Gen, session: usize) {
    let table = g.table();
    let q = g.tables[table].q();
    let role = *g.rng.pick(&["histories_group", "histories_owner"]);
    g.say(session, format!("ALTER TABLE {q} OWNER TO {role}"));
}

pub fn text_type(g: &mut Gen, session: usize) {
    let table = g.table();
    let new = *g.rng.pick(&[
        "text",
        "varchar(8000)",
        "varchar",
        "public.prose",
        "char(2000)",
    ]);
    let t = &mut g.tables[table];
    let using = if g.rng.chance(25) && t.source == t.text {
        format!(" USING upper({})", quoted(&t.text))
    } else {
        String::new()
    };
    let sql = format!(
        "ALTER TABLE {} ALTER COLUMN {} TYPE {new}{using}",
        t.q(),
        quoted(&t.text)
    );
    g.say(session, sql);
}

pub fn other_type(g: &mut Gen, session: usize) {
    let table = g.table();
    let t = &g.tables[table];
    let key = g.rng.chance(40);
    let column = match t.others.first() {
        Some(column) if !key => column,
        _ => &t.key[0],
    };
    let (q, name) = (t.q(), quoted(&column.name));
    let new = match column.kind {
        super::values::Kind::Int | super::values::Kind::Identity => {
            *g.rng.pick(&["bigint", "integer", "text"])
        }
        _ => "text",
    };
    g.say(
        session,
        format!("ALTER TABLE {q} ALTER COLUMN {name} TYPE {new} USING {name}::{new}"),
    );
}

pub fn expression(g: &mut Gen, session: usize) {
    let table = g.table();
    let t = &g.tables[table];
    if t.source == t.text {
        return storage(g, session);
    }
    let (q, text, source) = (t.q(), quoted(&t.text), quoted(&t.source));
    let what = *g
        .rng
        .pick(&["SET EXPRESSION AS ({} || ' and Tokyo')", "DROP EXPRESSION"]);
    g.say(
        session,
        format!(
            "ALTER TABLE {q} ALTER COLUMN {text} {}",
            what.replace("{}", &source)
        ),
    );
}

/// What changes how a table is stored and not what it holds.
pub fn storage(g: &mut Gen, session: usize) {
    let table = g.table();
    let t = &g.tables[table];
    let (text, primary) = (quoted(&t.text), quoted(&t.primary));
    let changes = [
        "SET UNLOGGED".to_owned(),
        "SET LOGGED".to_owned(),
        "REPLICA IDENTITY FULL".to_owned(),
        "REPLICA IDENTITY DEFAULT".to_owned(),
        format!("REPLICA IDENTITY USING INDEX {primary}"),
        format!("CLUSTER ON {primary}"),
        "SET ACCESS METHOD heap".to_owned(),
        format!("ALTER COLUMN {text} SET STORAGE EXTERNAL"),
        format!("ALTER COLUMN {text} SET COMPRESSION pglz"),
        format!("ALTER COLUMN {text} SET STATISTICS 10"),
        format!("ALTER COLUMN {text} SET DEFAULT 'Rome'"),
        format!("ALTER COLUMN {text} SET NOT NULL"),
        format!("ALTER COLUMN {text} DROP NOT NULL"),
        "SET (fillfactor = 50)".to_owned(),
        "SET WITHOUT CLUSTER".to_owned(),
    ];
    let q = t.q();
    let change = g.rng.pick(&changes).clone();
    g.say(session, format!("ALTER TABLE {q} {change}"));
}

pub fn rewrite(g: &mut Gen, session: usize) {
    let table = g.table();
    let t = &g.tables[table];
    let (q, primary) = (t.q(), quoted(&t.primary));
    let sql = match g.rng.below(5) {
        0 => format!("CLUSTER {q} USING {primary}"),
        1 => format!("VACUUM FULL {q}"),
        2 => format!("VACUUM FREEZE {q}"),
        3 => format!("REINDEX TABLE {q}"),
        _ => format!("ANALYZE {q}"),
    };
    g.say(session, sql);
}

pub fn triggers(g: &mut Gen, session: usize) {
    let table = g.table();
    let q = g.tables[table].q();
    let who = *g.rng.pick(&["ALL", "USER"]);
    g.say(session, format!("ALTER TABLE {q} DISABLE TRIGGER {who}"));
    for _ in 0..g.rng.below(3) {
        super::changes::insert(g, session, table);
    }
    if g.rng.chance(80) {
        g.say(session, format!("ALTER TABLE {q} ENABLE TRIGGER {who}"));
    }
}

pub fn constraint(g: &mut Gen, session: usize) {
    let (table, name) = (g.table(), g.name());
    let t = &g.tables[table];
    let (q, text, name) = (t.q(), quoted(&t.text), quoted(&name));
    let sql = match g.rng.below(3) {
        0 => format!("ALTER TABLE {q} ADD CONSTRAINT {name} CHECK ({text} <> 'x') NOT VALID"),
        1 => format!(
            "ALTER TABLE {q} ADD CONSTRAINT {name} CHECK ({text} <> 'x'); ALTER TABLE {q} DROP CONSTRAINT {name}"
        ),
        _ => format!(
            "ALTER TABLE {q} ADD CONSTRAINT {name} UNIQUE ({})",
            key_list(t)
        ),
    };
    g.say(session, sql);
}

/// The key goes, mostly to come back: under another name, or as it was.
pub fn key(g: &mut Gen, session: usize) {
    let (table, new) = (g.table(), g.name());
    let cascade = if g.rng.chance(50) { " CASCADE" } else { "" };
    let t = &mut g.tables[table];
    let (q, old, columns) = (t.q(), quoted(&t.primary), key_list(t));
    t.primary.clone_from(&new);
    let sql = match g.rng.below(3) {
        0 => format!(
            "ALTER TABLE {q} RENAME CONSTRAINT {old} TO {}",
            quoted(&new)
        ),
        1 => format!(
            "ALTER TABLE {q} DROP CONSTRAINT {old}{cascade}, ADD CONSTRAINT {} PRIMARY KEY ({columns})",
            quoted(&new)
        ),
        _ => format!("ALTER TABLE {q} DROP CONSTRAINT {old}{cascade}"),
    };
    g.say(session, sql);
}

fn key_list(t: &Table) -> String {
    t.key
        .iter()
        .map(|column| quoted(&column.name))
        .collect::<Vec<_>>()
        .join(", ")
}

pub fn index(g: &mut Gen, session: usize) {
    let (table, name) = (g.table(), g.name());
    let t = &g.tables[table];
    let (q, text, name) = (t.q(), quoted(&t.text), quoted(&name));
    let drop = g
        .rng
        .chance(30)
        .then(|| format!("; DROP INDEX {}.{name}", quoted(&t.schema)));
    let concurrently = if drop.is_none() && g.rng.chance(25) {
        "CONCURRENTLY "
    } else {
        ""
    };
    let sql = format!("CREATE INDEX {concurrently}{name} ON {q} (left({text}, 10))");
    g.say(session, sql + &drop.unwrap_or_default());
}

pub fn rights(g: &mut Gen, session: usize) {
    let table = g.table();
    let q = g.tables[table].q();
    let what = *g.rng.pick(&[
        "GRANT SELECT ON {} TO histories_reader",
        "REVOKE ALL ON {} FROM histories_reader",
        "REVOKE DELETE ON {} FROM histories_writer",
        "GRANT ALL ON {} TO histories_writer WITH GRANT OPTION",
        "ALTER TABLE {} ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE {} DISABLE ROW LEVEL SECURITY",
    ]);
    g.say(session, what.replace("{}", &q));
}

pub fn labels(g: &mut Gen, session: usize) {
    let (a, number) = (g.rng.below(super::values::LABELS), g.number());
    let (a, new) = (
        string(&format!("label {a}")),
        string(&format!("label n{number}")),
    );
    let sql = match g.rng.below(2) {
        0 => format!("ALTER TYPE public.\"Mood\" RENAME VALUE {a} TO {new}"),
        _ => format!("ALTER TYPE public.\"Mood\" ADD VALUE {new} BEFORE {a}"),
    };
    g.say(session, sql);
}

pub fn drop_table(g: &mut Gen, session: usize) {
    let table = g.table();
    let t = &mut g.tables[table];
    t.alive = false;
    let cascade = if g.rng.chance(60) { " CASCADE" } else { "" };
    let sql = format!("DROP TABLE {}{cascade}", t.q());
    g.say(session, sql);
    if g.rng.chance(60) {
        tables::create(g);
    }
}
