//! What the tests share: private servers, their processes, and what a session says.
//!
//! The tests need an installed extension and `scripts/server.sh`; `make test` gives them both.

pub mod histories;
pub mod managed;
pub mod processes;
pub mod roles;
pub mod server;
pub mod session;
pub mod stand_in;
pub mod texts;
pub mod wait;
