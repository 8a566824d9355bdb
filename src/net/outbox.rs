//! Frames on their way to a stream: written by whoever has them, as long as the stream takes them.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use quinn::{SendStream, WriteError};
use serde::Serialize;
use tokio::sync::Notify;

use crate::net::stream::{self, SendError};

/// Bodies up to this are copied behind their headers, bytes.
const COPY_BYTES: usize = 16 << 10;
/// Room for a header, bytes.
const HEADER_BYTES: usize = 256;

/// Frames for one stream, in order. `K` is kept for each until the stream has taken it.
#[derive(Debug)]
pub(crate) struct Outbox<K = ()> {
    shared: Arc<Shared<K>>,
}

#[derive(Debug)]
struct Shared<K> {
    inner: Mutex<Inner<K>>,
    /// The stream has not taken everything at once, or nobody sends any more.
    rest: Notify,
    /// The stream has taken something, or is gone.
    taken: Notify,
    senders: AtomicUsize,
}

#[derive(Debug)]
struct Inner<K> {
    /// Not before it is open.
    stream: Option<SendStream>,
    chunks: VecDeque<Bytes>,
    /// With the number of chunks up to the end of each frame, from the first chunk on.
    frames: VecDeque<(usize, K)>,
    /// The stream is gone.
    ended: bool,
}

impl<K> Clone for Outbox<K> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Send + 'static> Outbox<K> {
    /// What is put into it waits for the stream.
    pub(crate) fn new() -> Self {
        let inner =
            Inner { stream: None, chunks: VecDeque::new(), frames: VecDeque::new(), ended: false };
        let (inner, senders) = (Mutex::new(inner), AtomicUsize::new(1));
        let (rest, taken) = (Notify::new(), Notify::new());
        Self { shared: Arc::new(Shared { inner, rest, taken, senders }) }
    }

    /// Everything goes to `stream`, in a task as far as the stream makes it wait. The stream ends
    /// when nobody can put anything any more.
    pub(crate) fn open(&self, stream: SendStream) {
        self.shared.lock().stream = Some(stream);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            loop {
                let flushed = poll_fn(|context| {
                    let flushed = shared.lock().poll_flush(context);
                    shared.taken.notify_waiters();
                    flushed
                });
                if let Err(error) = flushed.await {
                    return tracing::debug!(%error, "a lane ended");
                }
                if shared.senders.load(Ordering::Acquire) == 0 {
                    return;
                }
                shared.rest.notified().await;
            }
        });
    }

    /// Whether fewer than `most` frames wait for the stream.
    pub(crate) fn has_room(&self, most: usize) -> bool {
        self.shared.lock().frames.len() < most
    }

    /// Waits for that, or until the stream is gone.
    pub(crate) async fn room(&self, most: usize) {
        while !self.has_room(most) {
            let mut taken = pin!(self.shared.taken.notified());
            taken.as_mut().enable();
            // it may have been between the look and the ear
            if self.has_room(most) {
                return;
            }
            taken.await;
        }
    }

    /// Puts a frame behind all others. In vain if the stream is gone.
    ///
    /// # Errors
    ///
    /// [`SendError::Encode`] or [`SendError::TooLong`]: it is not a frame. What was to be kept
    /// comes back.
    pub(crate) fn put<T: Serialize>(
        &self,
        value: &T,
        body: Bytes,
        keep: K,
    ) -> Result<(), (SendError, K)> {
        let is_small = body.len() <= COPY_BYTES;
        let copied = if is_small { body.len() } else { 0 };
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + copied);
        if let Err(error) = stream::put_header(&mut buffer, value, body.len()) {
            return Err((error, keep));
        }
        if is_small {
            buffer.extend_from_slice(&body);
        }
        let mut inner = self.shared.lock();
        if inner.ended {
            return Ok(());
        }
        let is_first = inner.chunks.is_empty();
        inner.chunks.push_back(buffer.freeze());
        if !is_small {
            inner.chunks.push_back(body);
        }
        let end = inner.chunks.len();
        inner.frames.push_back((end, keep));
        // what waits for the stream is in the task's hands
        if inner.stream.is_some() && is_first {
            let mut context = Context::from_waker(Waker::noop());
            if inner.poll_flush(&mut context).is_pending() {
                self.shared.rest.notify_one();
            }
        }
        Ok(())
    }
}

impl<K: Send + 'static> Outbox<K> {
    /// Ends the stream, and waits until the other side has all that was put; what is put from now
    /// on is lost. At once if there is no stream.
    pub(crate) async fn finish(self) {
        let flushed = poll_fn(|context| self.shared.lock().poll_flush(context)).await;
        let arrived = {
            let mut inner = self.shared.lock();
            inner.ended = true;
            let Some(stream) = inner.stream.as_mut().filter(|_| flushed.is_ok()) else { return };
            if stream.finish().is_err() {
                return;
            }
            stream.stopped()
        };
        // it fails with the connection
        let _ = arrived.await;
    }
}

impl<K> Drop for Outbox<K> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::Release) == 1 {
            self.shared.rest.notify_one();
        }
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Inner<K> {
    /// Gives the stream what it takes.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        while !self.chunks.is_empty() {
            let written = pin!(stream.write_chunks(self.chunks.make_contiguous())).poll(context);
            match written {
                Poll::Ready(Ok(written)) => {
                    self.chunks.drain(..written.chunks);
                    for (end, _) in &mut self.frames {
                        *end = end.saturating_sub(written.chunks);
                    }
                    while self.frames.front().is_some_and(|(end, _)| *end == 0) {
                        self.frames.pop_front();
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.ended = true;
                    self.chunks.clear();
                    self.frames.clear();
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}
