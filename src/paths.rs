//! Where things are: the run-time directory below the data directory, and what `make install` puts
//! into the server's own directories.

use std::ffi::{CStr, OsStr, c_char};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ner_retriever_protocol::SOCKET_DIR;
use pgrx::pg_sys;
use rustix::process::Pid;

/// Holds the engine's process id while one runs.
pub const PID_FILE: &str = "ner_retriever/engine.pid";
/// Locked by the supervisor as long as it runs.
pub const SUPERVISOR_LOCK: &str = "ner_retriever/supervisor.lock";
/// Locked by the one session that is starting the supervisor.
pub const START_LOCK: &str = "ner_retriever/start.lock";

const ENGINE: &str = "ner-retriever-engine";
/// What the name of the engine for GPUs has behind that of the engine for the CPU.
pub const GPU_SUFFIX: &str = "-cuda";
const MODEL: &str = "ner_retriever/models/SmolLM2-135M-Instruct.Q4_1.gguf";
const HEAD: &str = "ner_retriever/heads/smollm2-135m";

/// Creates the run-time directory if it is not there; only the server's user may enter it.
pub fn create_runtime_dir() -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(SOCKET_DIR) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The process id of the engine that runs, or did before a crash of the server.
pub fn engine_pid() -> Option<Pid> {
    let pid = fs::read_to_string(PID_FILE).ok()?.parse().ok()?;
    Pid::from_raw(pid)
}

/// The engine program that is installed beside the library.
pub fn shipped_engine() -> PathBuf {
    // SAFETY: the server fills this NUL-terminated buffer at its start and never changes it.
    let directory = unsafe { CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) };
    to_path(directory).join(ENGINE)
}

/// The default model below the server's share directory.
pub fn shipped_model() -> PathBuf {
    share_dir().join(MODEL)
}

/// The default head below the server's share directory.
pub fn shipped_head() -> PathBuf {
    share_dir().join(HEAD)
}

fn share_dir() -> PathBuf {
    let mut buffer: [c_char; pg_sys::MAXPGPATH as usize] = [0; _];
    // SAFETY: `my_exec_path` is a NUL-terminated buffer that the server fills at its start; the
    // function writes a NUL-terminated path of at most MAXPGPATH bytes.
    let directory = unsafe {
        pg_sys::get_share_path(
            (&raw const pg_sys::my_exec_path).cast(),
            buffer.as_mut_ptr(),
        );
        CStr::from_ptr(buffer.as_ptr())
    };
    to_path(directory)
}

fn to_path(path: &CStr) -> PathBuf {
    Path::new(OsStr::from_bytes(path.to_bytes())).to_owned()
}
