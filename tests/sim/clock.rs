//! One virtual time in microseconds, and what each machine's clock makes of it.

use std::time::{Duration, Instant};

/// A machine's clock: it began elsewhere, and runs a little wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: Instant,
    /// Microseconds that it is ahead.
    offset: u64,
    /// Parts per million that it is too fast.
    fast: u64,
    /// Microseconds that it stood still, while its machine was suspended.
    slept: u64,
}

impl Clock {
    pub(crate) fn new(base: Instant, offset: u64, fast: u64) -> Self {
        Self { base, offset, fast, slept: 0 }
    }

    /// Its machine wakes after so long.
    pub(crate) fn sleep(&mut self, long: u64) {
        self.slept += long;
    }

    /// What it shows at a time.
    pub(crate) fn at(&self, now: u64) -> Instant {
        let now = now - self.slept;
        self.base + Duration::from_micros(self.offset + now + now * self.fast / 1_000_000)
    }

    /// When it shows this, or a little later.
    pub(crate) fn when(&self, shown: Instant) -> u64 {
        let shown = shown.saturating_duration_since(self.base).as_micros() as u64;
        let shown = shown.saturating_sub(self.offset) + 1;
        shown * 1_000_000 / (1_000_000 + self.fast) + 1 + self.slept
    }
}
