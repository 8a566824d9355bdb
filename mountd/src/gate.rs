//! The key gates the mount (D3): in, it is there; out, nothing of it can be read any more.
//!
//! ```text
//!  open --gone, or cannot be looked at--> frozen --back soon enough--> open
//!                                            `-----otherwise---------> shut
//! ```
//!
//! [`Gate`] decides, from what [`watch`] sees of the key; [`valve`] stops the kernel's requests.
//! What being shut means is in `mounted`: calls fail, the kernel's pages are dropped, the
//! connection to the kernel is aborted, the mount is taken away, what was accepted is delivered,
//! and then the program replaces itself, which wipes its memory. A key that comes back is a new
//! mount; descriptors from before stay dead.

pub(crate) mod valve;
pub(crate) mod watch;

use std::time::{Duration, Instant};

use p2pfs::identity::sealed::KeyId;
use p2pfs::wire::session::DeviceId;

use self::valve::Valve;
use self::watch::{KeyWatch, Look};

/// A removal that is shorter only freezes: sticks have loose contacts. What follows must be done
/// within a second of the removal.
const HOLD: Duration = Duration::from_millis(700);

/// A look at the key that takes long only freezes for so long: the machine or the stick may be
/// busy, and that is no removal. A removal is told at once.
const STALL: Duration = Duration::from_secs(5);

/// Decides when the mount freezes, thaws and is shut.
#[derive(Debug)]
pub(crate) struct Gate {
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// `gone`: since when it is known to be gone.
    Frozen {
        since: Instant,
        gone: Option<Instant>,
    },
    Shut,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Requests wait from now on.
    Freeze,
    /// Those that wait go on.
    Thaw,
    /// The key is pulled: for ever.
    Shut,
}

impl Gate {
    /// Open: the key was there a moment ago.
    pub(crate) fn new() -> Self {
        Self { state: State::Open }
    }

    /// Somebody looked whether the key is there.
    pub(crate) fn handle_look(&mut self, look: Look, now: Instant) -> Option<Step> {
        match (self.state, look) {
            (State::Open, Look::Gone | Look::Stalled) => {
                let gone = (look == Look::Gone).then_some(now);
                self.state = State::Frozen { since: now, gone };
                Some(Step::Freeze)
            }
            (State::Frozen { since, gone }, _) if is_over(since, gone, now) => {
                self.state = State::Shut;
                Some(Step::Shut)
            }
            (State::Frozen { .. }, Look::There) => {
                self.state = State::Open;
                Some(Step::Thaw)
            }
            (State::Frozen { since, gone: None }, Look::Gone) => {
                self.state = State::Frozen { since, gone: Some(now) };
                None
            }
            _ => None,
        }
    }

    /// When to look again at the latest, if it matters.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Frozen { since, gone } => {
                Some(gone.map_or(since + STALL, |gone| (gone + HOLD).min(since + STALL)))
            }
            State::Open | State::Shut => None,
        }
    }
}

fn is_over(since: Instant, gone: Option<Instant>, now: Instant) -> bool {
    let gone_for = gone.map_or(Duration::ZERO, |gone| now.duration_since(gone));
    gone_for >= HOLD || now.duration_since(since) >= STALL
}

/// Watches the key and works the valve; resolves when the key is pulled and the valve shut.
pub(crate) async fn pulled(watch: &KeyWatch, id: &KeyId, device: &DeviceId, valve: &Valve) {
    let mut gate = Gate::new();
    loop {
        let look = watch.has(id, device).await;
        match gate.handle_look(look, Instant::now()) {
            Some(Step::Freeze) => {
                tracing::info!(?look, "the key cannot be seen: requests wait");
                valve.freeze();
            }
            Some(Step::Thaw) => {
                tracing::info!("the key is back");
                valve.thaw();
            }
            Some(Step::Shut) => {
                tracing::info!("the key is pulled");
                return valve.shut();
            }
            None => {}
        }
        watch.stir(gate.poll_timeout()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loose_contact_only_freezes() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        assert_eq!(gate.handle_look(Look::There, start), None);
        assert_eq!(gate.handle_look(Look::Gone, start), Some(Step::Freeze));
        assert_eq!(gate.handle_look(Look::Gone, start + HOLD / 2), None);
        assert_eq!(gate.handle_look(Look::There, start + HOLD / 2), Some(Step::Thaw));
        assert_eq!(gate.poll_timeout(), None);
    }

    #[test]
    fn a_key_that_stays_away_shuts_for_ever() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        gate.handle_look(Look::Gone, start);
        assert_eq!(gate.poll_timeout(), Some(start + HOLD));
        assert_eq!(gate.handle_look(Look::Gone, start + HOLD), Some(Step::Shut));
        assert_eq!(gate.handle_look(Look::There, start + 2 * HOLD), None);
    }

    #[test]
    fn a_key_that_is_only_slow_to_look_at_freezes_for_longer() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        assert_eq!(gate.handle_look(Look::Stalled, start), Some(Step::Freeze));
        assert_eq!(gate.handle_look(Look::Stalled, start + 2 * HOLD), None);
        assert_eq!(gate.handle_look(Look::There, start + 3 * HOLD), Some(Step::Thaw));
        assert_eq!(gate.handle_look(Look::Stalled, start + 4 * HOLD), Some(Step::Freeze));
        // then it is told to be gone
        assert_eq!(gate.handle_look(Look::Gone, start + 5 * HOLD), None);
        assert_eq!(gate.poll_timeout(), Some(start + 6 * HOLD));
        assert_eq!(gate.handle_look(Look::Stalled, start + 6 * HOLD), Some(Step::Shut));
    }

    #[test]
    fn a_key_that_cannot_be_looked_at_for_long_is_pulled() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        gate.handle_look(Look::Stalled, start);
        assert_eq!(gate.poll_timeout(), Some(start + STALL));
        assert_eq!(gate.handle_look(Look::Stalled, start + STALL), Some(Step::Shut));
    }

    #[test]
    fn a_key_that_comes_back_too_late_is_a_new_mount() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        gate.handle_look(Look::Gone, start);
        assert_eq!(gate.handle_look(Look::There, start + HOLD), Some(Step::Shut));
    }
}
