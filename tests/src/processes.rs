//! Processes as `/proc` shows them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Process ids as PostgreSQL writes them.
pub type ProcessId = i32;

/// Sends `signal` to a process, which must exist.
pub fn signal(pid: ProcessId, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a process id");
    kill_process(pid, signal).expect("the process exists");
}

/// Whether a process runs: a zombie does not.
pub fn is_alive(pid: ProcessId) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z")
}

/// The processes that `parent` has started and that run.
pub fn children(parent: ProcessId) -> Vec<ProcessId> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            state_and_parent(*pid).is_some_and(|(state, of)| of == parent && state != "Z")
        })
        .collect()
}

/// A process's command line; the server's processes put their titles there.
pub fn command_line(pid: ProcessId) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Memory that only this process has, whether written to or not, bytes.
pub fn private_bytes(pid: ProcessId) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process runs");
    rollup
        .lines()
        .filter_map(|line| {
            line.strip_prefix("Private_Clean:")
                .or_else(|| line.strip_prefix("Private_Dirty:"))
        })
        .map(|rest| {
            let kib = rest.trim().trim_end_matches(" kB").parse::<u64>();
            kib.expect("a number of kB") * 1024
        })
        .sum()
}

fn state_and_parent(pid: ProcessId) -> Option<(String, ProcessId)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
