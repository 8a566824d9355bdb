//! The I/O shell: the only place in this crate that touches tokio, quinn, sockets and clocks.

pub mod admin;
pub mod daemon;
pub mod log;
pub mod remote;
pub mod rendezvous;
pub mod serve;
pub mod tls;
