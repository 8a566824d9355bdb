//! The relay: two sides of a match that cannot reach each other yet, or not at all.
//!
//! The server's [`table`] forwards between the two sides of a match and nowhere else; a side's
//! [`binding`] proves its UDP address to it. A side that UDP does not reach is served over its
//! registration's connection: whichever it used last.

pub mod binding;
pub mod table;
