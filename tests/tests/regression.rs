//! SQL scripts as users run them in psql, and what they print: `sql/NAME.sql`, `expected/NAME.out`.
//!
//! With NER_RETRIEVER_UPDATE_EXPECTED=1 in the environment, what is printed becomes what is expected.

use std::path::Path;
use std::{env, fs};

use ner_retriever_tests::server::{SharedServer, Turn};

static SERVER: SharedServer = SharedServer::new("regression", &[]);

/// Runs a script in a server that has just started.
fn check(name: &str) {
    let server: Turn = SERVER.turn();
    server.restart(&[]);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(here.join(format!("sql/{name}.sql"))).unwrap();
    let printed = server.psql(&script);
    let file = here.join(format!("expected/{name}.out"));
    if env::var_os("NER_RETRIEVER_UPDATE_EXPECTED").is_some() {
        fs::write(&file, &printed).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap();
    let mut lines = printed.lines().zip(expected.lines());
    let difference = lines.find(|(printed, expected)| printed != expected);
    assert!(
        printed == expected,
        "{name}.out, first difference (printed, expected): {difference:?}\n\
         --- all that was printed:\n{printed}"
    );
}

#[test]
fn surface() {
    check("surface");
}

#[test]
fn results() {
    check("results");
}

#[test]
fn errors() {
    check("errors");
}
