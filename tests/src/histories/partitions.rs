//! Partitions and children: how tables get them, and how they come and go.

use super::generate::Gen;
use super::tables::{Part, Shape, Table};
use super::values::{Kind, quoted};

/// Bounds of partition `n` of a table, which begin anew after the third.
fn bounds(shape: Shape, n: usize) -> String {
    match (shape, n % 3) {
        (Shape::List, 0) => "FOR VALUES IN (0, 1)".into(),
        (Shape::List, 1) => "FOR VALUES IN (2, 3)".into(),
        (Shape::Range, 0) => "FOR VALUES FROM (0) TO (2)".into(),
        (Shape::Range, 1) => "FOR VALUES FROM (2) TO (4)".into(),
        (Shape::Hash, n) => format!("FOR VALUES WITH (MODULUS 3, REMAINDER {n})"),
        _ => "DEFAULT".into(),
    }
}

/// The partitions or children that a new table begins with.
pub fn populate(g: &mut Gen, table: usize) {
    match g.tables[table].shape {
        Shape::Plain | Shape::Unlogged => {}
        Shape::Parent => {
            for _ in 0..=g.rng.below(2) {
                child(g, 0, table);
            }
        }
        shape => {
            let count = if shape == Shape::Hash {
                3
            } else {
                2 + g.rng.below(2)
            };
            for n in 0..count {
                let how = g.rng.weighted([50, 30, 20].into_iter());
                make(g, 0, table, bounds(shape, n), how);
            }
        }
    }
}

fn child(g: &mut Gen, session: usize, table: usize) {
    let (name, extra) = (g.name(), g.name());
    let t = &g.tables[table];
    let key = if g.rng.chance(50) {
        format!(", PRIMARY KEY ({})", quoted(&t.key[0].name))
    } else {
        String::new()
    };
    let sql = format!(
        "CREATE TABLE {} ({} integer{key}) INHERITS ({})",
        t.part(&name),
        quoted(&extra),
        t.q()
    );
    g.say(session, sql);
    add(g, table, name, String::new());
}

fn add(g: &mut Gen, table: usize, name: String, bounds: String) {
    g.tables[table].parts.push(Part {
        name,
        bounds,
        attached: true,
    });
}

/// A partition: made in its place (0), made aside in another order and attached (1), or with
/// partitions of its own (2).
fn make(g: &mut Gen, session: usize, table: usize, bounds: String, how: usize) {
    let name = g.name();
    let (q, part) = (g.tables[table].q(), g.tables[table].part(&name));
    match how {
        0 => g.say(
            session,
            format!("CREATE TABLE {part} PARTITION OF {q} {bounds}"),
        ),
        1 => aside(g, session, table, &name, &bounds),
        _ => {
            // Enums are hashed by numbers that are others in the other database.
            let t = &g.tables[table];
            let of_enum = t.key[0].kind == Kind::Enum;
            let key = &t.key[if of_enum { t.spread_by } else { 0 }];
            let key = quoted(&key.name);
            g.say(
                session,
                format!("CREATE TABLE {part} PARTITION OF {q} {bounds} PARTITION BY HASH ({key})"),
            );
            for n in 0..2 {
                let leaf = g.name();
                let leaf = g.tables[table].part(&leaf);
                g.say(session, format!(
                    "CREATE TABLE {leaf} PARTITION OF {part} FOR VALUES WITH (MODULUS 2, REMAINDER {n})"
                ));
            }
        }
    }
    add(g, table, name, bounds);
}

fn aside(g: &mut Gen, session: usize, table: usize, name: &str, bounds: &str) {
    let t = &g.tables[table];
    let (q, part, columns) = (t.q(), t.part(name), t.definitions(true).join(", "));
    g.say(
        session,
        format!("CREATE TABLE {part} (gone text, {columns})"),
    );
    g.say(session, format!("ALTER TABLE {part} DROP COLUMN gone"));
    if g.rng.chance(50) {
        let n = g.new_row(session, table);
        let text = g.text();
        let t = &g.tables[table];
        let key: Vec<String> = (0..t.key.len()).map(|c| t.key_literal(c, n)).collect();
        let written = t.written();
        g.say(
            session,
            format!(
                "INSERT INTO {part} ({written}) VALUES ({}, {text})",
                key.join(", ")
            ),
        );
        g.tables[table].rows.insert(n);
    }
    g.say(
        session,
        format!("ALTER TABLE {q} ATTACH PARTITION {part} {bounds}"),
    );
}

/// A table that has partitions, and the number of one of them.
fn some_part(g: &mut Gen) -> Option<(usize, usize)> {
    let has_parts = |t: &Table| t.alive && !t.parts.is_empty();
    let tables: Vec<usize> = (0..g.tables.len())
        .filter(|n| has_parts(&g.tables[*n]))
        .collect();
    if tables.is_empty() {
        return None;
    }
    let table = *g.rng.pick(&tables);
    let part = g.rng.below(g.tables[table].parts.len());
    Some((table, part))
}

/// Attaches what was detached, detaches what is attached.
pub fn attach_or_detach(g: &mut Gen, session: usize) {
    let Some((table, part)) = some_part(g) else {
        return super::changes::update_text(g, session);
    };
    let t = &g.tables[table];
    let p = &t.parts[part];
    let (q, name, bounds) = (t.q(), t.part(&p.name), p.bounds.clone());
    let sql = match (p.attached, t.is_partitioned()) {
        (true, true) if g.rng.chance(20) => {
            format!("ALTER TABLE {q} DETACH PARTITION {name} CONCURRENTLY")
        }
        (true, true) => format!("ALTER TABLE {q} DETACH PARTITION {name}"),
        (false, true) => format!("ALTER TABLE {q} ATTACH PARTITION {name} {bounds}"),
        (true, false) => format!("ALTER TABLE {name} NO INHERIT {q}"),
        (false, false) => format!("ALTER TABLE {name} INHERIT {q}"),
    };
    let p = &mut g.tables[table].parts[part];
    p.attached = !p.attached;
    g.say(session, sql);
}

/// What is detached changes, and comes back.
pub fn change_aside(g: &mut Gen, session: usize) {
    let Some((table, part)) = some_part(g) else {
        return super::changes::insert_some(g, session);
    };
    let text = g.text();
    let t = &g.tables[table];
    let (name, source) = (t.part(&t.parts[part].name), quoted(&t.source));
    let (q, is_partitioned) = (t.q(), t.is_partitioned());
    let bounds = t.parts[part].bounds.clone();
    let (detach, attach) = match is_partitioned {
        true => (
            format!("ALTER TABLE {q} DETACH PARTITION {name}"),
            format!("ALTER TABLE {q} ATTACH PARTITION {name} {bounds}"),
        ),
        false => (
            format!("ALTER TABLE {name} NO INHERIT {q}"),
            format!("ALTER TABLE {name} INHERIT {q}"),
        ),
    };
    if g.tables[table].parts[part].attached {
        g.say(session, detach);
    }
    g.say(session, format!("UPDATE {name} SET {source} = {text}"));
    g.say(session, attach);
    g.tables[table].parts[part].attached = true;
}

pub fn drop_part(g: &mut Gen, session: usize) {
    let Some((table, part)) = some_part(g) else {
        return super::changes::delete(g, session);
    };
    let t = &mut g.tables[table];
    let removed = t.parts.remove(part);
    let sql = format!("DROP TABLE {}", t.part(&removed.name));
    g.say(session, sql);
}

/// One more partition or child.
pub fn add_part(g: &mut Gen, session: usize) {
    let Some((table, _)) = some_part(g) else {
        return super::changes::merge(g, session);
    };
    let shape = g.tables[table].shape;
    if shape == Shape::Parent {
        return child(g, session, table);
    }
    // The bounds of one that has gone, if one has; else they overlap, which is an error like another.
    let parts = &g.tables[table].parts;
    let free = (0..3).find(|n| parts.iter().all(|part| part.bounds != bounds(shape, *n)));
    let how = g.rng.below(3);
    make(g, session, table, bounds(shape, free.unwrap_or(2)), how);
}
