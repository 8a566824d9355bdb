//! Leases: permission to answer for the host, and to accept changes before it has seen them.
//!
//! [`holder`] is the client's half, [`grantor`] the host's (one for each share, over all its
//! sessions), [`locks`] both halves of file locks.
//!
//! * All leases of a session share one term. The holder counts it from the *sending* of a renewal,
//!   the grantor from its arrival, so the holder always stops first. Clocks are those that go on in
//!   suspend (`CLOCK_BOOTTIME`); all leases are dropped before a suspend and on wake.
//! * Nothing is accepted under a lease that has lapsed.
//! * A holder returns an exclusive lease when everything that was accepted under it is applied.
//! * The host never queues a holder's own calls behind its recall of that holder.
//! * A restarted host waits one term before it gives to others what it does not know to be free;
//!   until then sessions that come back reclaim what they had, if nobody has changed it.
//! * Missed events (an overflow) void all leases.

pub mod grantor;
pub mod holder;
pub mod locks;
pub mod uses;

#[cfg(test)]
mod tests;
