//! Sessions of roles with few rights, and what they are refused.

use postgres::Client;

use crate::managed::{run, value};
use crate::server::Server;
use crate::session::failure;

/// Creates roles that may log in and nothing else, unless they exist.
pub fn create_roles(server: &Server, names: &[&str]) {
    let mut client = server.connect();
    for name in names {
        let known: bool = value(
            &mut client,
            &format!("select count(*) > 0 from pg_roles where rolname = '{name}'"),
        );
        if !known {
            run(&mut client, &format!("create role {name} login"));
        }
    }
}

/// A role's session in the instance's database.
pub fn session(server: &Server, role: &str) -> Client {
    let database: String = value(&mut server.connect(), "select current_database()");
    server.connect_as(role, &database)
}

/// The SQLSTATE and the message of statements that must fail.
#[track_caller]
pub fn refusal(client: &mut Client, sql: &str) -> (String, String) {
    let error = failure(client.batch_execute(sql));
    (error.sqlstate, error.message)
}

/// Checks that statements fail for want of a right, with this message.
#[track_caller]
pub fn denied(client: &mut Client, sql: &str, message: &str) {
    let expected = ("42501".to_owned(), message.to_owned());
    assert_eq!(refusal(client, sql), expected, "{sql}");
}

/// Checks that nobody has become a superuser.
#[track_caller]
pub fn assert_no_superuser(server: &Server, roles: &[&str]) {
    let mut client = server.connect();
    let rows = client
        .query(
            "select rolname::text from pg_roles where rolsuper and rolname = any ($1)",
            &[&roles],
        )
        .expect("a superuser may do this");
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(names, Vec::<String>::new());
}
