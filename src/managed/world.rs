//! The settings of a worker, whatever configuration, database or role say.
//!
//! The database's owner, who need not be a superuser, decides what its sessions start with; a worker has a
//! superuser's rights, and must neither be stopped by a timeout nor work in another role.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Everything that the worker's statements depend on, with the value that they are written for.
const SETTINGS: &[(&CStr, &CStr)] = &[
    // Who it is, and what its statements mean.
    (c"role", c"none"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"row_security", c"on"),
    (c"session_replication_role", c"origin"),
    (c"check_function_bodies", c"on"),
    (c"standard_conforming_strings", c"on"),
    (c"transform_null_equals", c"off"),
    (c"array_nulls", c"on"),
    (c"default_tablespace", c""),
    (c"default_table_access_method", c"heap"),
    (c"restrict_nonsystem_relation_kind", c""),
    (c"event_triggers", c"on"),
    // Its transactions are short, read what is committed, and write.
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    // A step that a crash of the server undoes is done again. So nobody's commits have to share the disk
    // with the worker's.
    (c"synchronous_commit", c"off"),
    // Its steps end by themselves; building a vector index takes as long as it takes.
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"transaction_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"idle_session_timeout", c"0"),
    (c"ner_retriever.request_timeout", c"0"),
    // Where it and a user wait for each other, its own waits end before anybody looks for a deadlock.
    (c"deadlock_timeout", c"10s"),
    // Many short statements, which plans for large ones would not be worth their time.
    (c"jit", c"off"),
    (c"max_parallel_workers_per_gather", c"0"),
    (c"plan_cache_mode", c"auto"),
    (c"constraint_exclusion", c"partition"),
    (c"work_mem", c"32MB"),
    (c"hash_mem_multiplier", c"2"),
    // Keys and texts are found by indexes.
    (c"enable_indexscan", c"on"),
    (c"enable_indexonlyscan", c"on"),
    (c"enable_bitmapscan", c"on"),
    (c"enable_seqscan", c"on"),
    (c"enable_nestloop", c"on"),
    (c"enable_mergejoin", c"on"),
    (c"enable_hashjoin", c"on"),
    (c"enable_hashagg", c"on"),
    (c"enable_sort", c"on"),
    (c"enable_incremental_sort", c"on"),
    (c"enable_material", c"on"),
    (c"enable_tidscan", c"on"),
    (c"enable_partition_pruning", c"on"),
    (c"seq_page_cost", c"1"),
    (c"random_page_cost", c"1.1"),
    (c"cpu_tuple_cost", c"0.01"),
    (c"cpu_index_tuple_cost", c"0.005"),
    (c"cpu_operator_cost", c"0.0025"),
    (c"cursor_tuple_fraction", c"0.1"),
    (c"from_collapse_limit", c"8"),
    (c"join_collapse_limit", c"8"),
    // What it says goes to the server's log, as the server's does.
    (c"client_min_messages", c"error"),
    (c"log_min_duration_statement", c"-1"),
    (c"log_statement", c"none"),
    (c"log_duration", c"off"),
];

/// Gives this process its settings; those that the server does not have are left out.
pub fn settle() {
    for (name, value) in SETTINGS {
        // SAFETY: static strings; a name that is not known gives NULL. What has been set so stays, whatever
        // the configuration says when it is read again.
        unsafe {
            if pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() {
                continue;
            }
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}
