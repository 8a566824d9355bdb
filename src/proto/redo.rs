//! The redo log: numbered changes, shipped without waiting for each other, applied once.
//!
//! [`log`] is the client's half, [`applier`] the host's. An entry names the entries that it must come
//! after, and nothing else keeps entries in order. The host acknowledges each entry twice: *applied*,
//! with the result, and *stable*, on its disk. An entry whose acknowledgement was lost with a
//! connection is shipped again; the host answers it from its record instead of applying it again.

pub mod applier;
pub mod log;
