//! What was read before: blocks of files, and reading ahead.

pub mod block;
pub(crate) mod readahead;
mod segments;

pub use block::{BlockCache, CacheStats};
