//! The redo log: numbered changes, shipped without waiting for each other, applied once.
//!
//! ```text
//!  client                                           host
//!  log     append -> shipped -> applied -> stable   applier   order, once, poison, epochs
//!  order   what an entry comes after                execute   intent, check, system call, done
//!                                                   record    what a killed host remembers
//!                                                   opens     nodes that are open stay
//! ```
//!
//! An entry stays with the client until it is *stable*: on the host's disk. The host acknowledges
//! it twice: *applied*, with its result, and *stable*, with all before it.
//!
//! * **By identity.** An entry names objects by identity and says whom it expects at each name.
//!   Where it may have been carried out before ([`Sent::Again`](crate::wire::log::Sent::Again)),
//!   the state decides: the state after it means done, the state before it means do it, neither is
//!   a conflict, and nothing is overwritten.
//! * **Epochs.** Within an epoch of the host's machine nothing that was applied is forgotten, and a
//!   host that was killed knows from its [`record`] what it has done. In another epoch everything
//!   since *stable* is sent again, in order.
//! * **Partial order.** Per node; per (directory, name); parents before children; what publishes a
//!   node after all its earlier data.
//! * **Poison.** If an accepted entry fails, what comes after it is set aside with it, on the
//!   client; nothing else stops. Its data is kept in [conflict copies](copies).
//! * **Strike.** What was answered with an error does not happen later.

pub mod applier;
pub mod copies;
pub mod execute;
pub mod log;
pub mod opens;
pub mod order;
pub mod record;

#[cfg(test)]
mod tests;
