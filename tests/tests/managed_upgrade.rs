//! Managed indexes in a parallel restore and in a cluster that pg_upgrade has made.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use ner_retriever_tests::managed::{run, value};
use ner_retriever_tests::server::SharedServer;

static SERVER: SharedServer = SharedServer::new("managed-upgrade", &[]);

const SCRIPT: &str = include_str!("managed_upgrade.sh");

/// Of each of the two: what its indexes have after new rows.
const WORKS: [&str; 9] = [
    "Alan Turing|3",
    "Danube|2",
    "Marie Curie|1",
    "Ada Lovelace|1",
    "Grace Hopper|2",
    "London|1",
    "New York|2",
    "note|deferred|ready|0|0|",
    "shop|immediate|ready|0|0|",
];

#[test]
fn upgraded_and_restored_indexes_work_on() {
    let server = SERVER.turn();
    let mut client = server.connect();
    let folder = server.folder("upgrade");
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    let script = folder.join("managed_upgrade.sh");
    fs::write(&script, SCRIPT).unwrap();
    let binaries = server.exec(&["sh", "-c", "dirname $(command -v psql)"]);
    // A program that the server runs is its user's, which no other way to start a cluster is for root.
    // What a program that fails has printed is lost.
    let command = format!(
        r#"sh "{}" "{}" "{}" 2>&1 || echo "exit status $?""#,
        script.display(),
        binaries.trim(),
        folder.display()
    );
    run(
        &mut client,
        &format!("create table printed (line text); copy printed from program '{command}'"),
    );
    let printed: String = value(&mut client, "select string_agg(line, e'\\n') from printed");
    let found: Vec<&str> = printed
        .lines()
        .filter(|line| !line.starts_with("waited: "))
        .collect();
    let expected = [&WORKS[..], &WORKS[..], &["0", "0"]].concat();
    assert_eq!(found, expected, "{printed}");
}
