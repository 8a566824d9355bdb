//! Which blocks go when room is needed.
//!
//! Blocks come into a probation segment; those that are used again later move to a protected one,
//! which may have four fifths of the budget. Probation is emptied first, so that what is read once
//! (a copy of a large file) passes through without pushing out what is used daily. Keys of blocks
//! that left probation are remembered for a while: who is wanted again soon goes straight to the
//! protected segment, however small probation has become.

use std::collections::BTreeSet;

use bytes::Bytes;
use lru::LruCache;
use p2pfs::id::NodeId;

use super::block::{BLOCK, Key};

/// Uses of one block count as two if so many uses of blocks lie between them: a reader whose steps
/// are smaller than a block touches each one several times in a row.
const APART: u64 = 32;

/// The blocks, in two segments, each least recently used first.
pub(super) struct Segments {
    budget: u64,
    probation: LruCache<Key, Block>,
    protected: LruCache<Key, Bytes>,
    protected_bytes: u64,
    bytes: u64,
    /// Who left probation lately.
    gone: LruCache<Key, ()>,
    /// The keys of both segments in order, to find a node's blocks.
    order: BTreeSet<Key>,
    /// Counts uses.
    clock: u64,
}

struct Block {
    data: Bytes,
    /// When it was first used; read ahead of its use it was not.
    used: Option<u64>,
}

impl Segments {
    /// At most `budget` bytes.
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            probation: LruCache::unbounded(),
            protected: LruCache::unbounded(),
            protected_bytes: 0,
            bytes: 0,
            gone: LruCache::unbounded(),
            order: BTreeSet::new(),
            clock: 0,
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.protected.contains(key) || self.probation.contains(key)
    }

    /// A block that nobody uses yet.
    pub(super) fn peek(&self, key: &Key) -> Option<Bytes> {
        let protected = self.protected.peek(key);
        protected.or_else(|| self.probation.peek(key).map(|block| &block.data)).cloned()
    }

    /// A block that is used.
    pub(super) fn get(&mut self, key: &Key) -> Option<Bytes> {
        self.clock += 1;
        if let Some(data) = self.protected.get(key) {
            return Some(data.clone());
        }
        let block = self.probation.get_mut(key)?;
        let data = block.data.clone();
        match block.used {
            None => block.used = Some(self.clock),
            Some(first) if self.clock - first >= APART => {
                self.probation.pop(key);
                self.protect(*key, data.clone());
            }
            Some(_) => {}
        }
        Some(data)
    }

    /// Takes a block in; `wanted`: somebody waits for it, it is not read ahead.
    pub(super) fn insert(&mut self, key: Key, data: Bytes, wanted: bool) {
        self.remove(&key);
        self.bytes += data.len() as u64;
        self.order.insert(key);
        if wanted && self.gone.pop(&key).is_some() {
            self.protect(key, data);
        } else {
            let used = wanted.then_some(self.clock);
            self.probation.put(key, Block { data, used });
        }
    }

    fn protect(&mut self, key: Key, data: Bytes) {
        self.protected_bytes += data.len() as u64;
        self.protected.put(key, data);
        while self.protected_bytes > self.budget / 5 * 4 {
            let Some((key, data)) = self.protected.pop_lru() else { return };
            self.protected_bytes -= data.len() as u64;
            self.probation.put(key, Block { data, used: Some(self.clock) });
        }
    }

    /// Drops what is over the budget.
    pub(super) fn evict(&mut self) {
        while self.bytes > self.budget {
            let (key, len) = if let Some((key, block)) = self.probation.pop_lru() {
                self.gone.put(key, ());
                (key, block.data.len() as u64)
            } else if let Some((key, data)) = self.protected.pop_lru() {
                self.protected_bytes -= data.len() as u64;
                (key, data.len() as u64)
            } else {
                return;
            };
            self.order.remove(&key);
            self.bytes -= len;
        }
        // as many as half the budget holds
        while self.gone.len() as u64 > self.budget / BLOCK / 2 {
            self.gone.pop_lru();
        }
    }

    /// Drops a node's blocks from `start` to before `end`.
    pub(super) fn drop_blocks(&mut self, node: NodeId, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let keys: Vec<Key> = self.order.range((node, start)..(node, end)).copied().collect();
        for key in keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if !self.order.remove(key) {
            return;
        }
        if let Some(block) = self.probation.pop(key) {
            self.bytes -= block.data.len() as u64;
        } else if let Some(data) = self.protected.pop(key) {
            self.bytes -= data.len() as u64;
            self.protected_bytes -= data.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 1000 * BLOCK;
    const HOT: NodeId = NodeId { ino: 2, generation: 0 };
    const BIG: NodeId = NodeId { ino: 3, generation: 0 };

    /// Uses a block; whether it was there.
    fn read(cache: &mut Segments, node: NodeId, index: u64) -> bool {
        let key = (node, index);
        let there = cache.get(&key).is_some();
        if !there {
            cache.insert(key, Bytes::from(vec![0; BLOCK as usize]), true);
            cache.evict();
        }
        assert!(cache.bytes() <= BUDGET);
        there
    }

    fn hits(cache: &mut Segments, blocks: u64) -> usize {
        (0..blocks).filter(|index| read(cache, HOT, *index)).count()
    }

    #[test]
    fn what_is_used_daily_survives_a_scan_of_ten_times_the_budget() {
        let mut cache = Segments::new(BUDGET);
        hits(&mut cache, 500);
        assert_eq!(hits(&mut cache, 500), 500);
        for index in 0..10_000 {
            // a reader with small steps, as `cp` is not
            assert!(!read(&mut cache, BIG, index));
            assert!(read(&mut cache, BIG, index));
        }
        assert_eq!(hits(&mut cache, 500), 500);
    }

    #[test]
    fn what_is_read_ahead_of_a_scan_pushes_nothing_out_either() {
        let mut cache = Segments::new(BUDGET);
        hits(&mut cache, 500);
        hits(&mut cache, 500);
        for index in 0..10_000 {
            cache.insert((BIG, index), Bytes::from(vec![0; BLOCK as usize]), false);
            cache.evict();
            assert!(cache.get(&(BIG, index)).is_some());
        }
        assert_eq!(hits(&mut cache, 500), 500);
    }

    #[test]
    fn a_set_that_is_hot_later_takes_the_place_of_the_one_before() {
        let mut cache = Segments::new(BUDGET);
        for _ in 0..3 {
            for index in 0..800 {
                read(&mut cache, BIG, index);
            }
        }
        // larger than what the old one leaves, and used often
        for _ in 0..6 {
            hits(&mut cache, 500);
        }
        assert_eq!(hits(&mut cache, 500), 500);
    }

    #[test]
    fn a_nodes_blocks_are_dropped_from_both_segments() {
        let mut cache = Segments::new(BUDGET);
        hits(&mut cache, 100);
        hits(&mut cache, 50);
        cache.drop_blocks(HOT, 10, 90);
        assert_eq!(cache.bytes(), 20 * BLOCK);
        assert_eq!(hits(&mut cache, 100), 20);
        cache.drop_blocks(HOT, 0, u64::MAX);
        assert_eq!((cache.bytes(), cache.protected_bytes), (0, 0));
    }
}
