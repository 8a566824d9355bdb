//! File locks: the host's table over all sessions, and what a client has to ask for again.
//!
//! What one connection carried of requests is not handed to the table any more once a newer
//! connection of the session is up: a lock that was let go must not come back.

mod client;
mod ranges;
mod table;

pub use client::{ClientOutput, Locks};
pub use table::{Output, Table};
