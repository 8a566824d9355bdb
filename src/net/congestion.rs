//! Congestion state that belongs to a path: a fresh controller when the path changes.
//!
//! QUIC does not know that its path has changed. Two books are kept by the time of sending: what
//! was sent before counts only as bytes that are still under way, and its losses and
//! acknowledgements say nothing about the new path. The window is what is left of the old book plus
//! the fresh one.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;

/// The first window, bytes: 32 packets of the least size. RFC 9002 (7.2) says 10 of them, for whom
/// nothing spreads over a round trip; QUIC's pacer does. On a thin link it is a queue of a third of
/// a second, on a long one it saves two round trips of every megabyte.
const INITIAL_WINDOW: u64 = 32 * 1200;

/// Counts a peer's paths.
#[derive(Debug, Default)]
pub(crate) struct PathEpoch(AtomicU64);

/// Builds controllers that start afresh with every path.
#[derive(Clone)]
pub(crate) struct PerPathConfig {
    epoch: Arc<PathEpoch>,
    inner: Arc<dyn ControllerFactory + Send + Sync>,
}

struct PerPath {
    config: PerPathConfig,
    epoch: u64,
    mtu: u16,
    fresh: Box<dyn Controller>,
    /// When the path changed.
    since: Option<Instant>,
    /// Bytes under way, as far as is known.
    in_flight: u64,
    /// The part of them that was sent before.
    old: u64,
}

impl PathEpoch {
    /// The path has changed.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl PerPathConfig {
    /// For the connections of one peer.
    pub(crate) fn new(epoch: Arc<PathEpoch>) -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW);
        Self { epoch, inner: Arc::new(cubic) }
    }
}

impl ControllerFactory for PerPathConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(PerPath {
            epoch: self.epoch.current(),
            mtu: current_mtu,
            fresh: Arc::clone(&self.inner).build(now, current_mtu),
            since: None,
            in_flight: 0,
            old: 0,
            config: (*self).clone(),
        })
    }
}

impl PerPath {
    /// Opens a fresh book if the path has changed.
    fn turn(&mut self, now: Instant) {
        let epoch = self.config.epoch.current();
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        self.fresh = Arc::clone(&self.config.inner).build(now, self.mtu);
        self.since = Some(now);
        self.old = self.in_flight;
    }

    fn is_old(&self, sent: Instant) -> bool {
        self.since.is_some_and(|since| sent < since)
    }
}

impl Controller for PerPath {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.turn(now);
        self.in_flight += bytes;
        self.fresh.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.turn(now);
        self.in_flight = self.in_flight.saturating_sub(bytes);
        if self.is_old(sent) {
            self.old = self.old.saturating_sub(bytes);
        } else {
            self.fresh.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.in_flight = in_flight;
        self.old = self.old.min(in_flight);
        let fresh = in_flight - self.old;
        self.fresh.on_end_acks(now, fresh, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.turn(now);
        self.in_flight = self.in_flight.saturating_sub(lost_bytes);
        if self.is_old(sent) {
            self.old = self.old.saturating_sub(lost_bytes);
        } else {
            self.fresh.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.fresh.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.config.epoch.current() == self.epoch {
            self.old + self.fresh.window()
        } else {
            self.in_flight + self.fresh.initial_window()
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { config: self.config.clone(), fresh: self.fresh.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.fresh.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl fmt::Debug for PerPathConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerPathConfig").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
