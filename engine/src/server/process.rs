//! The engine as a process: what it takes over from the supervisor, and how it ends.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, io};

use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};

use super::ServeError;

/// Added to the process's badness, so that the kernel that runs out of memory ends the engine and
/// not the database. Range: -1000..=1000.
const OOM_SCORE_ADJ: i32 = 800;

/// Makes the process a good child of the server: it dies with its parent, goes first when memory
/// runs out, and may open as many connections as its hard limit allows. Call it first, on the main
/// thread. SIGTERM keeps its default, to end at once; Rust's runtime already ignores SIGPIPE.
///
/// # Errors
/// `ParentGone` when the parent ended meanwhile; `Io` when the system refuses to tell us of it.
pub fn prepare_process() -> Result<(), ServeError> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| ServeError::Io {
        action: "ask to end with the parent process",
        source: error.into(),
    })?;
    // The signal is sent at the parent's death only: one that came earlier shows here.
    if getppid() != parent {
        return Err(ServeError::ParentGone);
    }
    raise_oom_score();
    raise_descriptor_limit();
    Ok(())
}

/// Failures are of no consequence: the engine then ranks like the server's processes.
fn raise_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let current = fs::read_to_string(FILE)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok());
    if current.is_some_and(|current| current < OOM_SCORE_ADJ) {
        let _ = fs::write(FILE, OOM_SCORE_ADJ.to_string());
    }
}

/// The usual soft limit of 1024 is below the default number of connections. On failure, the accept
/// loop pauses when it runs out.
fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

/// What was freed and is kept for the next allocation goes back to the system: glibc keeps some of it for each
/// thread that once had it, more than 100 MB after loading and large batches. Elsewhere nothing happens.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes ownership of descriptor `fd`, the listening socket that the parent process opened. Call it
/// once.
///
/// # Errors
/// `Descriptor` when it is not a listening Unix stream socket.
pub fn inherited_listener(fd: i32) -> Result<UnixListener, ServeError> {
    let problem = |problem| ServeError::Descriptor { fd, problem };
    if fd < 3 {
        return Err(problem("is reserved for standard input and output"));
    }
    let metadata = fs::metadata(format!("/proc/self/fd/{fd}"));
    let file_type = metadata.map_err(|_| problem("is not open"))?.file_type();
    if !file_type.is_socket() {
        return Err(problem("is not a socket"));
    }
    // SAFETY: the descriptor is open, as was just seen. The parent process handed it over by its
    // number on the command line, so nothing else in this process owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let is_unix_stream = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if !is_unix_stream {
        return Err(problem("is not a Unix stream socket"));
    }
    if sockopt::socket_acceptconn(&socket) != Ok(true) {
        return Err(problem("does not listen"));
    }
    Ok(UnixListener::from(socket))
}

/// Listens at `path`, where an engine that ended may have left its socket. The folder is the
/// server's data directory, so whoever can take the path's place can do anything already.
///
/// # Errors
/// `Io` when the socket cannot be made.
pub fn own_listener(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Io {
        action: "listen on the engine's own socket",
        source,
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_listening_unix_socket_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let fd = UnixListener::bind(&path).unwrap().into_raw_fd();
        let listener = inherited_listener(fd).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn the_socket_of_an_engine_that_ended_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.sock");
        drop(own_listener(&path).unwrap());
        UnixStream::connect(&path).unwrap_err();
        let listener = own_listener(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn any_other_descriptor_is_refused() {
        let refusal = |fd| inherited_listener(fd).unwrap_err().to_string();
        let file = File::open("/proc/self/status").unwrap().into_raw_fd();
        let stream = UnixStream::pair().unwrap().0.into_raw_fd();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        assert!(refusal(-1).contains("is reserved"));
        assert!(refusal(2).contains("is reserved"));
        assert!(refusal(1_000_000).contains("is not open"));
        assert!(refusal(file).contains("is not a socket"));
        assert!(refusal(stream).contains("does not listen"));
        assert!(refusal(tcp).contains("is not a Unix stream socket"));
    }

    #[test]
    fn the_process_is_the_first_to_go_when_memory_runs_out() {
        prepare_process().unwrap();
        let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert!(score.trim().parse::<i32>().unwrap() >= OOM_SCORE_ADJ);
        let limits = getrlimit(Resource::Nofile);
        assert_eq!(limits.current, limits.maximum);
    }
}
