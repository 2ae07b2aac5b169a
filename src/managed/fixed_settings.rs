//! One way of writing values as text, whatever the session prefers.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::role::set_for_now;

/// The queue keeps keys as text; these settings decide how their types are written and read.
const SETTINGS: [(&CStr, &CStr); 6] = [
    (c"datestyle", c"ISO, YMD"),
    (c"intervalstyle", c"postgres"),
    (c"timezone", c"UTC"),
    (c"extra_float_digits", c"1"),
    (c"bytea_output", c"hex"),
    // Mode `immediate` waits for a worker's moments with a row; a limit of the session's is for its own locks.
    (c"lock_timeout", c"0"),
];

/// Undoes the settings of a level when dropped, also by an error that unwinds.
struct Level(std::ffi::c_int);

impl Drop for Level {
    fn drop(&mut self) {
        // SAFETY: ends the level that `with_fixed_settings` began.
        unsafe { pg_sys::AtEOXact_GUC(false, self.0) };
    }
}

/// Runs `work` with the settings that keys are written and read with.
pub fn with_fixed_settings<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: a level of its own, which `Level` ends.
    let _level = Level(unsafe { pg_sys::NewGUCNestLevel() });
    for (name, value) in SETTINGS {
        set_for_now(name, value);
    }
    work()
}
