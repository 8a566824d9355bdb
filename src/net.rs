//! The I/O shell: the only place in this crate that touches tokio, quinn, sockets and clocks.

pub mod remote;
pub mod serve;

mod pathmux;
