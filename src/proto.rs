//! State machines: what to do, never how.
//!
//! # The contract
//!
//! Every machine has the same vocabulary (a convention, not a trait):
//!
//! ```text
//! fn new(config, now: Instant) -> Self                       a seed too, where it draws
//! fn handle_<event>(&mut self, .., now: Instant)             input from outside
//! fn <verb>(&mut self, .., now: Instant)                     command from our side
//! fn handle_timeout(&mut self, now: Instant)
//! fn poll_output(&mut self) -> Option<Output>                drain until None after every mutation
//! fn poll_timeout(&self) -> Option<Instant>
//! ```
//!
//! * Time never runs backwards; equal instants may interleave.
//! * Randomness is a seed at construction; collections that are iterated are ordered.
//! * A refused input changes nothing, and is a [`PeerMisbehaved`] where the peer is to blame.
//! * No machine knows another: drivers connect them.

pub mod relay;
pub mod rendezvous;
pub mod shares;
pub mod stun;

/// The peer broke a rule: its session is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerMisbehaved {
    /// A number that is neither known nor next.
    #[error("an unexpected sequence number")]
    Sequence,
    /// More under way than agreed.
    #[error("more requests than the agreed bound")]
    TooMany,
    /// An answer to nothing.
    #[error("an answer to a request that was never made")]
    Unasked,
    /// A proof that does not fit.
    #[error("a proof that does not verify")]
    Proof,
}

pub mod calls;
pub mod ladder;
pub mod lease;
pub mod pairing;
pub mod path;
pub mod redo;
pub mod session;
