//! The I/O shell: the only place in this crate that touches tokio, quinn, sockets and clocks.

pub mod admin;
pub mod ask;
pub mod batch;
mod congestion;
pub mod daemon;
mod direct;
pub mod doctor;
pub mod endpoint;
pub mod host;
mod interfaces;
pub mod lan;
pub mod log;
mod nat;
mod outbox;
mod pathmux;
pub mod quic;
pub mod remote;
pub mod rendezvous;
pub mod serve;
pub mod session;
mod stream;
mod tcp;
pub mod tls;
