//! How far to read ahead of a handle.

use std::ops::Range;

/// The first window, bytes.
const WINDOW_MIN: u64 = 256 << 10;
/// The largest window, bytes: 1 Gbit/s for 64 ms.
const WINDOW_MAX: u64 = 8 << 20;
/// How far a read may lie from where it was expected, bytes: the kernel's own read-ahead asks in
/// parallel, so its requests arrive in any order.
const SLACK: u64 = 2 << 20;

/// Watches where a handle reads.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// Where the reads seen so far end.
    next: u64,
    /// Up to where was fetched.
    fetched: u64,
    /// 0: the handle reads here and there.
    window: u64,
}

impl ReadAhead {
    /// Notes a read; tells what to fetch beyond it. `window_max` bounds the window, bytes.
    pub(crate) fn advance(&mut self, offset: u64, len: u64, window_max: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len);
        let expected = offset <= self.next.saturating_add(len.min(SLACK))
            && end.saturating_add(SLACK) >= self.next;
        let goes_on = if self.window == 0 { offset == self.next } else { expected };
        if !goes_on {
            *self = Self { next: end, fetched: end, window: 0 };
            return None;
        }
        self.next = self.next.max(end);
        self.fetched = self.fetched.max(self.next);
        let most = WINDOW_MAX.min(window_max);
        if self.window == 0 {
            self.window = WINDOW_MIN.min(most);
        }
        if self.fetched - self.next > self.window / 2 {
            return None;
        }
        let range = self.fetched..self.next.saturating_add(self.window);
        self.fetched = range.end;
        self.window = (self.window * 2).min(most);
        (!range.is_empty()).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 128 << 10;

    #[test]
    fn sequential_reads_double_the_window_up_to_the_bound() {
        let mut ahead = ReadAhead::default();
        let mut fetched = CHUNK;
        for step in 0..1000 {
            let offset = step * CHUNK;
            if let Some(range) = ahead.advance(offset, CHUNK, u64::MAX) {
                assert!(range.start <= fetched.max(offset + CHUNK), "no gap");
                assert!(range.end <= offset + CHUNK + WINDOW_MAX);
                fetched = range.end;
            }
            assert!(fetched > offset + CHUNK, "always ahead");
        }
        assert!(fetched > 1000 * CHUNK + WINDOW_MAX / 2);
    }

    #[test]
    fn random_reads_fetch_nothing_more() {
        let mut ahead = ReadAhead::default();
        ahead.advance(0, 4096, u64::MAX);
        for offset in [900 << 20, 3 << 20, 512 << 20, 70 << 20] {
            assert_eq!(ahead.advance(offset, 4096, u64::MAX), None);
        }
    }

    #[test]
    fn requests_out_of_order_are_still_sequential() {
        let mut ahead = ReadAhead::default();
        for offset in [0, 2, 1, 4, 3, 6, 5] {
            ahead.advance(offset * CHUNK, CHUNK, u64::MAX);
        }
        assert!(ahead.window > WINDOW_MIN);
    }

    #[test]
    fn a_small_cache_bounds_the_window() {
        let mut ahead = ReadAhead::default();
        for step in 0..100 {
            let range = ahead.advance(step * CHUNK, CHUNK, CHUNK);
            assert!(range.is_none_or(|range| range.end <= (step + 2) * CHUNK));
        }
    }
}
