//! Settings that somebody may have made for a database, a role or a session.

use super::generate::Gen;
use super::history::{Action, Role};

/// For a whole database, whose workers they reach as well. Users' sessions have their own time limits.
/// `event_triggers` is not among them: with it a superuser says that renames are nobody's business, and an
/// index learns of them within the hour of `ner_retriever.reconcile_interval`, which no history has. Nor is
/// `synchronous_commit`: a crash may then take back what the twin keeps.
const DATABASE: [(&str, &str, u32); 42] = [
    ("statement_timeout", "'1ms'", 15),
    ("lock_timeout", "'1ms'", 15),
    ("transaction_timeout", "'2ms'", 17),
    ("idle_in_transaction_session_timeout", "'1ms'", 15),
    ("idle_session_timeout", "'20ms'", 15),
    ("default_transaction_read_only", "on", 15),
    ("default_transaction_isolation", "serializable", 15),
    ("default_transaction_isolation", "'repeatable read'", 15),
    ("default_transaction_deferrable", "on", 15),
    ("search_path", "''", 15),
    ("search_path", "pg_temp", 15),
    ("search_path", "nowhere, public", 15),
    ("role", "histories_reader", 15),
    ("row_security", "off", 15),
    ("DateStyle", "'German, DMY'", 15),
    ("DateStyle", "'SQL, MDY'", 15),
    ("TimeZone", "'America/New_York'", 15),
    ("IntervalStyle", "sql_standard", 15),
    ("IntervalStyle", "iso_8601", 15),
    ("extra_float_digits", "-15", 15),
    ("bytea_output", "escape", 15),
    ("array_nulls", "off", 15),
    ("transform_null_equals", "on", 15),
    ("quote_all_identifiers", "on", 15),
    ("check_function_bodies", "off", 15),
    ("standard_conforming_strings", "off", 15),
    ("work_mem", "64kB", 15),
    ("enable_seqscan", "off", 15),
    ("enable_indexscan", "off", 15),
    ("enable_bitmapscan", "off", 15),
    ("enable_hashjoin", "off", 15),
    ("enable_nestloop", "off", 15),
    ("enable_sort", "off", 15),
    ("enable_partition_pruning", "off", 15),
    ("enable_partitionwise_join", "on", 15),
    ("plan_cache_mode", "force_generic_plan", 15),
    ("plan_cache_mode", "force_custom_plan", 15),
    ("jit_above_cost", "0", 15),
    ("debug_parallel_query", "on", 16),
    ("client_min_messages", "debug5", 15),
    ("default_toast_compression", "pglz", 15),
    ("default_table_access_method", "heap", 15),
];

/// Names above that only a database should have: a session would be another history with them.
const NOT_FOR_SESSIONS: [&str; 8] = [
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "default_transaction_read_only",
    "role",
    "client_min_messages",
];

/// Settings of the database, before anybody connects.
pub fn of_database(g: &mut Gen) {
    if g.without("settings") || g.rng.chance(35) {
        return;
    }
    for _ in 0..=g.rng.below(4) {
        let (name, value) = setting(g);
        if name == "role" {
            // The users' sessions would have it as well, and could do nothing.
            let sql = format!("ALTER ROLE postgres IN DATABASE {{db}} SET {name} = {value}");
            g.push(0, Action::Setting, sql);
        } else {
            g.push(
                0,
                Action::Setting,
                format!("ALTER DATABASE {{db}} SET {name} = {value}"),
            );
        }
    }
}

/// Settings of the sessions, when they connect.
pub fn of_sessions(g: &mut Gen) {
    if g.without("settings") {
        return;
    }
    for session in 0..g.sessions.len() {
        while g.rng.chance(30) {
            let (name, value) = setting(g);
            if !NOT_FOR_SESSIONS.contains(&name) {
                g.push(
                    session,
                    Action::SessionSetting,
                    format!("SET {name} = {value}"),
                );
            }
        }
        if g.sessions[session].role == Role::Superuser && !g.without("replica") && g.rng.chance(15)
        {
            g.push(
                session,
                Action::SessionSetting,
                "SET session_replication_role = replica".into(),
            );
        }
    }
}

fn setting(g: &mut Gen) -> (&'static str, &'static str) {
    loop {
        let (name, value, since) = *g.rng.pick(&DATABASE);
        if g.major >= since {
            return (name, value);
        }
    }
}
