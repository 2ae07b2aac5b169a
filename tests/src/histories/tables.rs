//! The generator's idea of the tables: what it made, as long as everything went as it should.

use std::collections::BTreeSet;

use super::generate::Gen;
use super::history::Action;
use super::rng::Rng;
use super::values::{KEYS, Kind, quoted, string};

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
}

/// How a table is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Plain,
    Unlogged,
    Parent,
    List,
    Range,
    Hash,
}

/// A partition or a child.
#[derive(Debug, Clone)]
pub struct Part {
    pub name: String,
    /// `FOR VALUES ...` or `DEFAULT`; empty for a child.
    pub bounds: String,
    pub attached: bool,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub key: Vec<Column>,
    /// Number of the key column that rows are spread by.
    pub spread_by: usize,
    /// The indexed column, and its type or what it is generated from.
    pub text: String,
    pub text_type: String,
    /// The column that is written for it.
    pub source: String,
    pub others: Vec<Column>,
    pub shape: Shape,
    pub parts: Vec<Part>,
    /// Name of the primary key's constraint.
    pub primary: String,
    /// Keys that are thought to be there, by number.
    pub rows: BTreeSet<usize>,
    pub alive: bool,
}

impl Table {
    pub fn q(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// The table as an argument of the extension's functions.
    pub fn regclass(&self) -> String {
        string(&self.q())
    }

    pub fn part(&self, name: &str) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(name))
    }

    pub fn is_partitioned(&self) -> bool {
        matches!(self.shape, Shape::List | Shape::Range | Shape::Hash)
    }

    /// The literal of column `column` of the key of row `n`: the first column alone tells rows apart.
    pub fn key_literal(&self, column: usize, n: usize) -> String {
        let value = match column {
            0 => n,
            _ if column == self.spread_by && self.is_partitioned() => n % 5,
            _ => n * 7 % 4,
        };
        self.key[column].kind.literal(value)
    }

    /// A condition for row `n`.
    pub fn is_row(&self, n: usize) -> String {
        format!("{} = {}", quoted(&self.key[0].name), self.key_literal(0, n))
    }

    /// The columns that a row is written with.
    pub fn written(&self) -> String {
        let key = self.key.iter().map(|column| quoted(&column.name));
        key.chain([quoted(&self.source)])
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Definitions of the columns, of a table that is to be attached in another order and plainer.
    pub fn definitions(&self, to_attach: bool) -> Vec<String> {
        let plain = |kind: Kind| match kind {
            kind if to_attach => kind.bare(),
            kind => kind.sql(),
        };
        let mut columns: Vec<String> = Vec::new();
        for column in &self.key {
            columns.push(format!(
                "{} {} NOT NULL",
                quoted(&column.name),
                plain(column.kind)
            ));
        }
        for column in &self.others {
            columns.push(format!("{} {}", quoted(&column.name), column.kind.sql()));
        }
        if self.source != self.text {
            columns.push(format!("{} text", quoted(&self.source)));
        }
        columns.push(format!("{} {}", quoted(&self.text), self.text_type));
        if to_attach {
            columns.reverse();
        }
        columns
    }
}

/// Makes a table with some rows and its index; says so in steps of session 0.
pub fn create(g: &mut Gen) {
    let table = invent(g);
    let mut columns = table.definitions(false);
    let keys: Vec<String> = table
        .key
        .iter()
        .map(|column| quoted(&column.name))
        .collect();
    // Where a column stands must not matter.
    for n in (1..columns.len()).rev() {
        let other = g.rng.below(n + 1);
        columns.swap(n, other);
    }
    let persistence = if table.shape == Shape::Unlogged {
        "UNLOGGED "
    } else {
        ""
    };
    let spread = quoted(&table.key[table.spread_by].name);
    let partitioned = match table.shape {
        Shape::List => format!(" PARTITION BY LIST ({spread})"),
        Shape::Range => format!(" PARTITION BY RANGE ({spread})"),
        Shape::Hash => format!(" PARTITION BY HASH ({spread})"),
        _ => String::new(),
    };
    g.say(
        0,
        format!(
            "CREATE {persistence}TABLE {} ({}, CONSTRAINT {} PRIMARY KEY ({})){partitioned}",
            table.q(),
            columns.join(", "),
            quoted(&table.primary),
            keys.join(", "),
        ),
    );
    g.tables.push(table);
    let table = g.tables.len() - 1;
    super::partitions::populate(g, table);
    let index_first = g.rng.chance(50);
    if index_first {
        index(g, 0, table);
    }
    for _ in 0..g.rng.below(4) {
        super::changes::insert(g, 0, table);
    }
    if !index_first {
        index(g, 0, table);
    }
    let q = g.tables[table].q();
    g.say(
        0,
        format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {q} TO histories_writer"),
    );
}

/// The call that makes a table's index.
pub fn index(g: &mut Gen, session: usize, table: usize) {
    let call = index_call(g, table);
    g.push(session, Action::Managed, format!("SELECT {call}"));
}

pub fn index_call(g: &mut Gen, table: usize) -> String {
    let mode = ["deferred", "immediate", "manual"][g.rng.weighted([82, 13, 5].into_iter())];
    let storage = ["halfvec", "vector"][g.rng.weighted([80, 20].into_iter())];
    let t = &g.tables[table];
    format!(
        "public.ner_index({}, {}, mode => '{mode}', storage => '{storage}')",
        t.regclass(),
        string(&t.text)
    )
}

fn invent(g: &mut Gen) -> Table {
    let shapes = [
        Shape::Plain,
        Shape::Unlogged,
        Shape::Parent,
        Shape::List,
        Shape::Range,
        Shape::Hash,
    ];
    let weights = if g.without("partition") {
        [80, 10, 10, 0, 0, 0]
    } else {
        [45, 7, 8, 15, 15, 10]
    };
    let shape = shapes[g.rng.weighted(weights.into_iter())];
    let mut key: Vec<Column> = (0..1 + g.rng.weighted([70, 20, 10].into_iter()))
        .map(|_| column(g, &KEYS))
        .collect();
    if matches!(shape, Shape::List | Shape::Range | Shape::Hash) {
        key.push(column(g, &[Kind::Int]));
    }
    // The first column tells rows apart: an enum has too few labels for some, and all others follow.
    let others = (0..g.rng.below(3))
        .map(|_| column(g, &KEYS[3..]))
        .filter(|c| c.kind != Kind::Identity)
        .collect();
    let text = g.name();
    let (source, text_type) = text_type(g, &text);
    Table {
        schema: g.schema(),
        name: g.name(),
        spread_by: key.len() - 1,
        key,
        text,
        text_type,
        source,
        others,
        shape,
        parts: Vec::new(),
        primary: g.name(),
        rows: BTreeSet::new(),
        alive: true,
    }
}

pub fn column(g: &mut Gen, kinds: &[Kind]) -> Column {
    Column {
        name: g.name(),
        kind: *g.rng.pick(kinds),
    }
}

/// The column that is written, and the type or generation of the indexed column `text`.
fn text_type(g: &mut Gen, text: &str) -> (String, String) {
    let generated = |rng: &mut Rng, source: &str, how: &str| {
        let expression = *rng.pick(&["{} || ' in Oslo'", "upper({})", "coalesce({}, 'Rome')"]);
        let expression = expression.replace("{}", &quoted(source));
        format!("text GENERATED ALWAYS AS ({expression}) {how}")
    };
    let choice = g.rng.weighted([50, 10, 6, 8, 4, 14, 8].into_iter());
    let plain = [
        "text",
        "varchar(9000)",
        "char(90)",
        "public.prose",
        "public.citext",
    ];
    match choice {
        0..=4 => (text.to_owned(), plain[choice].to_owned()),
        6 if g.major >= 18 => {
            let source = g.name();
            let generated = generated(&mut g.rng, &source, "VIRTUAL");
            (source, generated)
        }
        _ => {
            let source = g.name();
            let generated = generated(&mut g.rng, &source, "STORED");
            (source, generated)
        }
    }
}
