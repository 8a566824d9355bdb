//! Serves the disk at home: the p2pfs host.
//!
//! ```text
//! cli -> serve   the daemon: shares (config, export), sessions (policy), the owner's requests
//!     -> pair    makes a key            \
//!     -> keys    the owner's list        > through the running daemon, else on its files (owner)
//!     -> status  what goes on           /
//!     -> backup  who the host is and whom it knows, in one file
//! ```

mod accounts;
pub mod backup;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod expires;
pub mod export;
pub mod keys;
pub mod machine;
pub mod owner;
pub mod pair;
pub mod policy;
pub mod record;
pub mod serve;
pub mod status;
