//! The path in use: judged by whether data is answered, left for another when it is not.
//!
//! ```text
//!  data unanswered for T          ping, every 50 ms
//!  pings unanswered for T         send on a second path too, and ping that
//!  the second one answers,        leave the first
//!  the first one does not for T
//!  neither answers for T          ping all others, too, and take one that answers
//! ```
//!
//! T is 1.5 round trips, at least 100 ms. While no other path answers the first is kept for
//! [`SILENCE_MAX`]: nothing is known then, and it may be the network as a whole, or the peer.

use std::time::{Duration, Instant};

use super::{Candidate, Ladder, Output};
use crate::limits::KEEP_ALIVE;
use crate::proto::path::{Path, RelayUse, Rung};

/// The shortest T.
const PATIENCE_MIN: Duration = Duration::from_millis(100);
/// T of a TCP path at least, which repeats what is lost after 200 ms itself, and of a path whose
/// round-trip time is not known.
const PATIENCE_SLOW: Duration = Duration::from_millis(500);
/// While a ping is unanswered, it is repeated this often: at first, and then.
const DOUBT_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_millis(250));
/// A path whose pings stay unanswered this long is down.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// A path that was in use for so long has made good what it did before.
const PARDON: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct Active {
    pub(super) path: Path,
    pub(super) rung: Rung,
    pub(super) rtt: Option<Duration>,
    pub(super) since: Instant,
    pub(super) next_ping: Instant,
    /// The first ping since something was heard.
    pub(super) asked: Option<Instant>,
    pub(super) hedge: Option<Hedge>,
    /// A second path was looked for, whether there was one or not.
    hedge_tried: bool,
}

/// A second path that carries everything too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hedge {
    pub(super) path: Path,
    since: Instant,
}

impl Active {
    pub(super) fn new(path: Path, rung: Rung, rtt: Option<Duration>, now: Instant) -> Self {
        Self {
            path,
            rung,
            rtt,
            since: now,
            next_ping: now,
            asked: None,
            hedge: None,
            hedge_tried: false,
        }
    }

    fn patience(&self) -> Duration {
        let Some(rtt) = self.rtt else {
            return PATIENCE_SLOW;
        };
        let least = match self.path {
            Path::Tcp(_) => PATIENCE_SLOW,
            Path::Udp(_) | Path::Relay => PATIENCE_MIN,
        };
        rtt.mul_f64(1.5).max(least)
    }
}

impl Ladder {
    pub(super) fn check_active(&mut self, now: Instant) {
        let Some(active) = &mut self.active else {
            return;
        };
        let (path, patience) = (active.path, active.patience());
        let silent = self.unanswered.is_some_and(|since| now >= since + patience);
        if now >= active.next_ping || (silent && active.asked.is_none()) {
            let asked = *active.asked.get_or_insert(now);
            let quick = now < asked + SILENCE_MAX / 2;
            // not before an answer could be there
            let quickly = active.rtt.map_or(DOUBT_INTERVAL.0, |rtt| rtt.mul_f64(1.2));
            active.next_ping =
                now + if quick { quickly.max(DOUBT_INTERVAL.0) } else { DOUBT_INTERVAL.1 };
            let second = active.hedge.map(|hedge| hedge.path);
            let at_a_loss = active.hedge_tried && now >= asked + 2 * patience;
            self.ping(path, now);
            let answers = second.is_some_and(|second| self.answered_since(second, asked));
            let others = match at_a_loss && !answers {
                true => self.others(path),
                false => second.into_iter().collect(),
            };
            for other in others {
                self.ping(other, now);
            }
        }
        let Some(active) = &self.active else { return };
        let Some(asked) = active.asked else { return };
        match active.hedge {
            None if now >= asked + patience => self.hedge(now),
            Some(hedge)
                if now >= hedge.since + patience
                    && self.answered_since(hedge.path, hedge.since) =>
            {
                self.fail_over(now);
            }
            _ if now >= asked + 2 * patience => self.try_third(path, asked, now),
            _ => {}
        }
        let silent = |active: &Active| active.asked.is_some_and(|at| now >= at + SILENCE_MAX);
        if self.active.as_ref().is_some_and(silent) {
            self.lose(now);
        }
    }

    pub(super) fn active_wake(&self) -> Option<Instant> {
        let active = self.active.as_ref()?;
        let patience = active.patience();
        let silent = self.unanswered.filter(|_| active.asked.is_none()).map(|at| at + patience);
        let hedge = active.asked.filter(|_| !active.hedge_tried).map(|at| at + patience);
        let down = active.asked.map(|at| at + SILENCE_MAX);
        [silent, hedge, down].into_iter().flatten().chain([active.next_ping]).min()
    }

    /// Something came from a path.
    pub(super) fn hear(&mut self, from: Path, now: Instant) {
        let Some(active) = self.active.as_mut().filter(|active| active.path == from) else {
            return;
        };
        active.asked = None;
        active.hedge_tried = false;
        active.next_ping = now + KEEP_ALIVE;
        self.unanswered = None;
        if active.hedge.take().is_some() {
            self.outputs.push_back(Output::Hedge(None));
        }
        if now >= active.since + PARDON
            && let Some(candidate) = self.paths.get_mut(&from)
        {
            candidate.hold = Duration::ZERO;
        }
    }

    /// Sends on a second path too.
    fn hedge(&mut self, now: Instant) {
        let Some(active) = &mut self.active else { return };
        active.hedge_tried = true;
        let first = active.path;
        if first == Path::Relay {
            // the server takes nothing from an address that a NAT has just given us
            self.outputs.push_back(Output::CheckRelay);
        }
        let Some(second) = self.others(first).into_iter().next() else { return };
        if let Some(active) = &mut self.active {
            active.hedge = Some(Hedge { path: second, since: now });
        }
        tracing::debug!(%first, %second, "silent: sending on a second path too");
        if second == Path::Relay {
            self.outputs.push_back(Output::CheckRelay);
        }
        self.outputs.push_back(Output::Hedge(Some(second)));
        self.outputs.push_back(Output::Kick);
        self.ping(second, now);
        self.search_now(now);
    }

    /// What could take the place of a path, the best first.
    fn others(&self, path: Path) -> Vec<Path> {
        let others = self.paths.iter().filter(|(other, _)| **other != path);
        let mut others: Vec<_> = others
            .filter(|(other, _)| self.may_hedge(**other))
            .map(|(other, candidate)| (candidate.suspect, candidate.rung, *other))
            .collect();
        others.sort_unstable();
        others.into_iter().map(|(.., other)| other).collect()
    }

    fn may_hedge(&self, path: Path) -> bool {
        if path == Path::Relay {
            let may = match self.config.wanted.relay_use() {
                RelayUse::Never => false,
                RelayUse::First => true,
                RelayUse::Last => self.stage.is_none(),
            };
            return may && self.relay_ready;
        }
        self.stage.is_none() && self.works(path)
    }

    /// Neither the path nor the second one answers: another may.
    fn try_third(&mut self, path: Path, asked: Instant, now: Instant) {
        let mut others = self.others(path).into_iter();
        let Some(third) = others.find(|other| self.answered_since(*other, asked)) else { return };
        self.forget_silent(asked);
        if let Some(active) = &mut self.active {
            active.hedge = Some(Hedge { path: third, since: now });
            self.fail_over(now);
            self.outputs.push_back(Output::Kick);
        }
    }

    /// No path that was silent is known to work.
    fn forget_silent(&mut self, since: Instant) {
        let paths = self.paths.values_mut();
        paths.filter(|path| path.answered_at < Some(since)).for_each(Candidate::forget);
    }

    fn answered_since(&self, path: Path, since: Instant) -> bool {
        let answered = self.paths.get(&path).and_then(|candidate| candidate.answered_at);
        answered.is_some_and(|at| at >= since)
    }

    /// The second path answers, the first does not.
    fn fail_over(&mut self, now: Instant) {
        let Some(active) = &self.active else { return };
        let Some(hedge) = active.hedge else { return };
        let left = active.path;
        tracing::debug!(%left, to = %hedge.path, "path left");
        if let Some(candidate) = self.paths.get_mut(&left) {
            candidate.fail(now);
        }
        self.restart(now);
        self.take(hedge.path, now);
    }

    /// The path in use is gone, and no other has taken its place.
    pub(super) fn lose(&mut self, now: Instant) {
        let Some(active) = self.active.take() else {
            return;
        };
        tracing::debug!(path = %active.path, "path lost");
        let silent = active.asked.filter(|asked| now >= *asked + SILENCE_MAX);
        let answers = |since| self.paths.keys().any(|path| self.answered_since(*path, since));
        let all_silent = silent.is_some_and(|since| !answers(since));
        if let Some(candidate) = self.paths.get_mut(&active.path).filter(|_| !all_silent) {
            candidate.fail(now);
        }
        if let Some(since) = silent {
            self.forget_silent(since);
        }
        if active.hedge.is_some() {
            self.outputs.push_back(Output::Hedge(None));
        }
        self.restart(now);
        self.search_now(now);
        if let Some((.., path)) = self.best(now) {
            self.take(path, now);
            self.outputs.push_back(Output::Kick);
        } else {
            self.outputs.push_back(Output::Down);
        }
    }
}
