//! Datagrams that came by another way than the UDP socket, and wait for quinn.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::task::{Context, Waker};

use bytes::Bytes;
use quinn::udp::RecvMeta;

use super::{PathMux, Virtual};

/// Batches that may wait; more are dropped, as a network would.
const BATCHES_MAX: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Pending {
    batches: VecDeque<Batch>,
    waker: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) peer: Virtual,
    pub(super) segment: usize,
    pub(super) bytes: Bytes,
}

impl PathMux {
    pub(super) fn put_pending(&self, batch: Batch) {
        let mut pending = self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if pending.batches.len() < BATCHES_MAX {
            pending.batches.push_back(batch);
        }
        let waker = pending.waker.take();
        drop(pending);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Fills buffers from the front; tells how many.
    pub(super) fn take_pending(
        &self,
        cx: &Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> usize {
        let mut pending = self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut filled = 0;
        while filled < buffers.len() {
            let Some(batch) = pending.batches.pop_front() else {
                pending.waker = Some(cx.waker().clone());
                break;
            };
            let length = batch.bytes.len();
            let Some(room) = buffers[filled].get_mut(..length) else {
                continue;
            };
            room.copy_from_slice(&batch.bytes);
            metas[filled] = RecvMeta {
                addr: batch.peer.address(),
                len: length,
                stride: batch.segment,
                ecn: None,
                dst_ip: None,
            };
            filled += 1;
        }
        filled
    }
}
