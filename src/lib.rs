//! The PostgreSQL extension: SQL functions that ask the engine, and the background worker that
//! starts it. No model code runs inside the server; docs/architecture.md says why.

mod backoff;
mod client;
mod engine_process;
mod engines;
mod errors;
mod functions;
mod gucs;
mod latch;
mod managed;
mod paths;
mod start;
mod status;
mod supervisor;
mod text;
mod type_cache;
mod types;
mod vector;
mod visits;

use pgrx::prelude::*;

#[cfg(not(target_os = "linux"))]
compile_error!("the engine's life is tied to the server's by means that only Linux has");

pgrx::pg_module_magic!(name, version);

/// PostgreSQL calls this when it loads the library.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    errors::disable_backtraces();
    gucs::define();
    // SAFETY: a plain flag that the server sets before it loads libraries; this process has one
    // thread.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        start::register_with_the_server();
    }
}
