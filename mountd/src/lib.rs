//! Mounts the disk at home: the p2pfs client.

pub mod cache;
pub mod fs;
pub mod fuse;
mod lock;
