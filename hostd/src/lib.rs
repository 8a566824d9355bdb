//! Serves the disk at home: the p2pfs host.

pub mod export;
