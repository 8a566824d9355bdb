//! Blocks of files, within a budget of bytes.
//!
//! A block is kept only if nothing about its file's data changed since it was asked for: every
//! fetch remembers the epoch of its node, and a change first raises the epoch, then drops the
//! blocks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use p2pfs::id::NodeId;
use p2pfs::limits::BODY_BYTES_MAX;
use p2pfs::wire::errno::Errno;
use tokio::sync::watch;

use super::segments::Segments;
use crate::fs::Inode;
use crate::lock::lock;

/// A block, bytes.
pub(crate) const BLOCK: u64 = 8 << 10;
/// Blocks in one call.
const FETCH_BLOCKS_MAX: u64 = BODY_BYTES_MAX as u64 / BLOCK;

/// A block of a node, by its index.
pub(super) type Key = (NodeId, u64);

/// The blocks of one mount.
pub struct BlockCache {
    budget: u64,
    state: Mutex<State>,
}

struct State {
    blocks: Segments,
    hits: u64,
    misses: u64,
    under_way: BTreeMap<Key, Arc<Fetch>>,
}

/// A cache in numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
pub struct CacheStats {
    /// Bytes held.
    pub bytes: u64,
    /// At most so many.
    pub budget: u64,
    /// Blocks that were there, or already on their way, when a reader wanted them.
    pub hits: u64,
    /// Blocks that were not.
    pub misses: u64,
}

/// Blocks in a row that are being fetched with one call.
#[derive(Debug)]
pub(crate) struct Fetch {
    blocks: Range<u64>,
    pub(crate) epoch: u64,
    /// A reader waits for it: it is not read ahead.
    wanted: bool,
    result: watch::Sender<Option<Result<Fetched, Errno>>>,
}

/// What a fetch brought.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) data: Bytes,
    /// It may be of another version than what any other call brings, so it is joined with nothing.
    pub(crate) loose: bool,
}

/// Where a part of an answer comes from.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A cached block.
    Ready(u64, Bytes),
    /// Blocks that are being fetched; the range is what is wanted of them.
    UnderWay(Arc<Fetch>, Range<u64>),
}

impl Fetch {
    pub(crate) fn offset(&self) -> u64 {
        self.blocks.start * BLOCK
    }

    /// At most 1 MiB.
    pub(crate) fn len(&self) -> u32 {
        ((self.blocks.end - self.blocks.start) * BLOCK) as u32
    }
}

impl Piece {
    /// Where the piece starts in the file.
    pub(crate) fn start(&self) -> u64 {
        match self {
            Self::Ready(index, _) => index * BLOCK,
            Self::UnderWay(_, wanted) => wanted.start * BLOCK,
        }
    }

    /// Where the piece ends, if the file does not end before.
    pub(crate) fn end(&self) -> u64 {
        match self {
            Self::Ready(index, _) => (index + 1) * BLOCK,
            Self::UnderWay(_, wanted) => wanted.end * BLOCK,
        }
    }

    /// The data; waits for it.
    pub(crate) async fn data(self) -> Result<Fetched, Errno> {
        let (fetch, wanted) = match self {
            Self::Ready(_, data) => return Ok(Fetched { data, loose: false }),
            Self::UnderWay(fetch, wanted) => (fetch, wanted),
        };
        let mut result = fetch.result.subscribe();
        let done = result.wait_for(Option::is_some).await;
        let Fetched { data, loose } = match done.as_deref() {
            Ok(Some(Ok(fetched))) => fetched.clone(),
            Ok(Some(Err(error))) => return Err(*error),
            Ok(None) | Err(_) => return Err(Errno::EIO),
        };
        let from = (wanted.start - fetch.blocks.start) * BLOCK;
        let to = (wanted.end - fetch.blocks.start) * BLOCK;
        let len = data.len() as u64;
        let data = data.slice(from.min(len) as usize..to.min(len) as usize);
        Ok(Fetched { data, loose })
    }
}

impl BlockCache {
    /// A cache of at most `budget` bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            state: Mutex::new(State {
                blocks: Segments::new(budget),
                hits: 0,
                misses: 0,
                under_way: BTreeMap::new(),
            }),
        }
    }

    /// The cache in numbers.
    pub fn stats(&self) -> CacheStats {
        let state = lock(&self.state);
        CacheStats {
            bytes: state.blocks.bytes(),
            budget: self.budget,
            hits: state.hits,
            misses: state.misses,
        }
    }

    /// How far one handle may read ahead, bytes.
    pub(crate) fn ahead_max(&self) -> u64 {
        self.budget / 4
    }

    /// Where the data of these blocks comes from, and which fetches the caller must make for it;
    /// they count as under way from here on.
    pub(crate) fn plan(
        &self,
        inode: &Inode,
        epoch: u64,
        blocks: Range<u64>,
        count: bool,
    ) -> (Vec<Piece>, Vec<Arc<Fetch>>) {
        let mut state = lock(&self.state);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut fetches = Vec::new();
        let mut index = blocks.start;
        while index < blocks.end {
            let key = (inode.node, index);
            if let Some(data) = state.find(&key, count) {
                pieces.push(Piece::Ready(index, data));
                index += 1;
                continue;
            }
            let joined = state.under_way.get(&key).filter(|fetch| fetch.epoch == epoch);
            let (fetch, until, hit) = match joined.map(Arc::clone) {
                Some(fetch) => {
                    let until = fetch.blocks.end.min(blocks.end);
                    (fetch, until, true)
                }
                None => {
                    let until = state.gap_end(inode.node, index, blocks.end, epoch);
                    let fetch = Arc::new(Fetch {
                        blocks: index..until,
                        epoch,
                        wanted: count,
                        result: watch::Sender::new(None),
                    });
                    for index in index..until {
                        state.under_way.insert((inode.node, index), Arc::clone(&fetch));
                    }
                    fetches.push(Arc::clone(&fetch));
                    (fetch, until, false)
                }
            };
            if count && hit {
                state.hits += until - index;
            } else if count {
                state.misses += until - index;
            }
            pieces.push(Piece::UnderWay(fetch, index..until));
            index = until;
        }
        (pieces, fetches)
    }

    /// Ends a fetch: wakes its readers, keeps the blocks if they are still right.
    pub(crate) fn finish(&self, inode: &Inode, fetch: &Arc<Fetch>, result: Result<Fetched, Errno>) {
        let mut state = lock(&self.state);
        for index in fetch.blocks.clone() {
            let key = (inode.node, index);
            if state.under_way.get(&key).is_some_and(|other| Arc::ptr_eq(other, fetch)) {
                state.under_way.remove(&key);
            }
        }
        if let Ok(Fetched { data, loose: false }) = &result
            && inode.epoch() == fetch.epoch
        {
            for (index, block) in (fetch.blocks.start..).zip(data.chunks(BLOCK as usize)) {
                // a copy: a slice would keep the whole answer in memory
                let block = Bytes::copy_from_slice(block);
                state.blocks.insert((inode.node, index), block, fetch.wanted);
            }
            state.blocks.evict();
        }
        drop(state);
        fetch.result.send_replace(Some(result));
    }

    /// Keeps a whole file that came unasked, if nothing changed since `epoch`.
    pub(crate) fn fill(&self, inode: &Inode, epoch: u64, data: &Bytes) {
        let mut state = lock(&self.state);
        if inode.epoch() != epoch {
            return;
        }
        for (index, block) in (0..).zip(data.chunks(BLOCK as usize)) {
            state.blocks.insert((inode.node, index), Bytes::copy_from_slice(block), false);
        }
        state.blocks.evict();
    }

    /// Whether a block is here.
    pub(crate) fn holds(&self, node: NodeId, index: u64) -> bool {
        lock(&self.state).blocks.contains(&(node, index))
    }

    /// Drops a node's blocks.
    pub(crate) fn drop_node(&self, node: NodeId) {
        lock(&self.state).blocks.drop_blocks(node, 0, u64::MAX);
    }

    /// Drops the blocks that hold some of these bytes.
    pub(crate) fn drop_range(&self, node: NodeId, bytes: Range<u64>) {
        let (start, end) = (bytes.start / BLOCK, bytes.end.div_ceil(BLOCK));
        lock(&self.state).blocks.drop_blocks(node, start, end);
    }
}

impl State {
    fn find(&mut self, key: &Key, count: bool) -> Option<Bytes> {
        if !count {
            return self.blocks.peek(key);
        }
        let data = self.blocks.get(key)?;
        self.hits += 1;
        Some(data)
    }

    /// How far blocks from `index` on are neither here nor on their way.
    fn gap_end(&self, node: NodeId, index: u64, end: u64, epoch: u64) -> u64 {
        let most = end.min(index + FETCH_BLOCKS_MAX);
        let there = |index: &u64| {
            let key = (node, *index);
            let joined = self.under_way.get(&key);
            self.blocks.contains(&key) || joined.is_some_and(|fetch| fetch.epoch == epoch)
        };
        (index + 1..most).find(there).unwrap_or(most)
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BlockCache").field(&self.stats()).finish()
    }
}
