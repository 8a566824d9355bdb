//! The core and the network library of p2pfs: *plug in your USB key, and the disk at home appears
//! as a local directory*.
//!
//! # Layers
//!
//! ```text
//!  id, limits <- wire <- identity <- proto <- net <- mountd | hostd | server
//! ```
//!
//! Arrows point at what is imported. Everything left of [`net`] is the *pure core*: it never looks
//! at the clock, the network, the disk or the dice, and builds without tokio or quinn
//! (`cargo check -p p2pfs --lib --no-default-features`). State machines follow one contract,
//! written down in [`proto`].
//!
//! # Three things that are not the same
//!
//! * A **session** is what the file system talks to ([`proto::session`], `net::session`). It
//!   outlives
//! * its **connections**, QUIC connections with both keys checked (`net::quic`). These outlive
//! * their **paths**, the addresses that datagrams travel between (`net::pathmux`).

#![warn(missing_docs)]

pub mod address;
pub mod failure;
pub mod id;
pub mod identity;
pub mod limits;
#[cfg(feature = "net")]
pub mod net;
pub mod proto;
#[cfg(feature = "usb")]
pub mod usb;
pub mod wire;
