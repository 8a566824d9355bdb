//! What crosses the network, as bytes.
//!
//! # Framing
//!
//! A file frame is `u32 header length | u32 body length | header | body`, little-endian. The header
//! is one value, encoded by [`codec`]; the body is file data, which never goes through the codec.
//!
//! # Rules
//!
//! * Every length is checked against [`crate::limits`] before anything is allocated, and a value
//!   must use all its bytes.
//! * Enums that cross the wire only grow at the end: **the order of variants is the format.**
//! * Every settled message has golden bytes for each [`version`]; growth goes through the version
//!   number, which ALPN negotiates.

pub mod branch;
pub mod call;
pub mod codec;
pub mod datagrams;
pub mod errno;
pub mod frame;
pub mod lease;
pub mod log;
pub mod name;
pub mod nat;
pub mod pairing;
pub mod probe;
pub mod relay;
pub mod rendezvous;
pub mod session;
pub mod stun;
pub mod version;
