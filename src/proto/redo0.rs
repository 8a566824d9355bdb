//! The redo log: numbered changes, shipped without waiting for each other, applied once.
//!
//! [`log`] is the client's half, [`applier`] the host's. An entry names the entries that it must
//! come after, and nothing else keeps entries in order. The host acknowledges each entry twice:
//! *applied*, with the result, and *stable*, on its disk. An entry whose acknowledgement was lost
//! with a connection is shipped again; the host answers it from its record instead of applying it
//! again.

pub mod applier;
pub mod log;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::time::{Duration, Instant};

    use super::applier::{self, Applier};
    use super::log::{self, Log, Promise};
    use crate::id::{ConnectionId, Seq};
    use crate::limits::LOG_ENTRIES_UNAPPLIED_MAX;
    use crate::proto::PeerMisbehaved;
    use crate::wire::errno::Errno;

    /// SplitMix64: the same numbers from the same seed, everywhere.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }
    }

    enum Ack {
        Applied(Seq, Result<u64, Errno>),
        Stable(Seq),
    }

    /// Both halves, two lanes between them, one clock.
    struct World {
        dice: Dice,
        now: Instant,
        log: Log<u64, u64>,
        applier: Applier<u64, u64, u64>,
        lanes: [VecDeque<(Seq, Vec<Seq>, u64)>; 2],
        acks: VecDeque<Ack>,
        running: Vec<(Seq, u64)>,
        connection: u64,
        /// In the order of their application.
        applied: Vec<u64>,
        told: BTreeMap<Seq, Result<u64, Errno>>,
        after: BTreeMap<u64, Vec<Seq>>,
        reached: Vec<u64>,
        healing: bool,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let mut world = Self {
                dice: Dice(seed),
                now: Instant::now(),
                log: Log::new(0),
                applier: Applier::new(Seq(1)),
                lanes: [VecDeque::new(), VecDeque::new()],
                acks: VecDeque::new(),
                running: Vec::new(),
                connection: 0,
                applied: Vec::new(),
                told: BTreeMap::new(),
                after: BTreeMap::new(),
                reached: Vec::new(),
                healing: false,
            };
            world.reconnect();
            world
        }

        /// What was under way on the old connection is lost, at any point of the way.
        fn reconnect(&mut self) {
            self.log.handle_lost(ConnectionId(self.connection));
            self.lanes.iter_mut().for_each(VecDeque::clear);
            self.acks.clear();
            self.connection += 1;
            self.log.handle_connected(ConnectionId(self.connection), true);
            self.drain();
        }

        fn append(&mut self) {
            let last = self.log.last().0;
            let after: Vec<Seq> = (0..self.dice.below(4))
                .filter(|_| last > 0)
                .map(|_| Seq(last - self.dice.below(last.min(20))))
                .collect();
            let payload = last + 1;
            self.log.append(payload, 10, &after, Promise::Awaited);
            self.after.insert(payload, after);
            self.drain();
        }

        fn step(&mut self) {
            match self.dice.below(100) {
                0..20 if !self.healing && self.log.has_room(10) => self.append(),
                20..70 => {
                    let lane = self.dice.below(2) as usize;
                    if let Some((seq, after, payload)) = self.lanes[lane].pop_front() {
                        self.applier.handle_entry(seq, after, payload).unwrap();
                    }
                }
                70..85 if !self.running.is_empty() => {
                    let at = self.dice.below(self.running.len() as u64) as usize;
                    let (seq, payload) = self.running.swap_remove(at);
                    for before in &self.after[&payload] {
                        assert!(self.applied.contains(&before.0), "{before} before {seq}");
                    }
                    self.applied.push(payload);
                    self.applier.handle_result(seq, Ok(payload * 2), self.now);
                }
                85..98 => match self.acks.pop_front() {
                    Some(Ack::Applied(seq, result)) => {
                        self.log.handle_applied(seq, result).unwrap();
                    }
                    Some(Ack::Stable(upto)) => self.log.handle_stable(upto).unwrap(),
                    None => {}
                },
                98 => self.now += Duration::from_secs(3),
                99 if !self.healing => self.reconnect(),
                _ => {}
            }
            self.applier.handle_timeout(self.now);
            self.drain();
        }

        fn drain(&mut self) {
            while let Some(output) = self.log.poll_output() {
                match output {
                    log::Output::Ship { seq, after, payload, .. } => {
                        self.lanes[(payload % 2) as usize].push_back((seq, after, payload));
                    }
                    log::Output::Applied { seq, result } => {
                        assert_eq!(self.told.insert(seq, result), None, "{seq} told twice");
                    }
                    log::Output::Progress => {}
                }
            }
            while let Some(output) = self.applier.poll_output() {
                match output {
                    applier::Output::Apply { seq, payload } => self.running.push((seq, payload)),
                    applier::Output::Applied { seq, result } => {
                        self.acks.push_back(Ack::Applied(seq, result));
                    }
                    applier::Output::Reached(waiter) => self.reached.push(waiter),
                    applier::Output::Sync { upto } => {
                        self.applier.handle_synced(upto, true, self.now);
                    }
                    applier::Output::Stable { upto } => self.acks.push_back(Ack::Stable(upto)),
                }
            }
        }

        /// Faults are over: everything must arrive.
        fn heal(&mut self) {
            self.reconnect();
            self.healing = true;
            for _ in 0..200_000 {
                if self.told.len() as u64 == self.log.last().0 {
                    return;
                }
                self.step();
            }
            panic!("{} of {} entries were told", self.told.len(), self.log.last());
        }
    }

    #[test]
    fn every_entry_is_applied_once_in_its_order_and_told_whatever_the_network_does() {
        for seed in 0..300 {
            let mut world = World::new(seed);
            for _ in 0..3_000 {
                world.step();
            }
            world.heal();
            let mut once = world.applied.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), world.applied.len(), "seed {seed}: applied twice");
            for (seq, result) in &world.told {
                assert_eq!(*result, Ok(seq.0 * 2), "seed {seed}");
            }
        }
    }

    #[test]
    fn entries_are_stable_some_seconds_after_they_are_applied() {
        let mut world = World::new(1);
        world.append();
        while world.told.is_empty() {
            world.step();
        }
        world.now += Duration::from_secs(10);
        for _ in 0..1_000 {
            world.step();
        }
        assert!(world.log.stable() >= Seq(1));
    }

    #[test]
    fn a_barrier_waits_for_what_it_names() {
        let mut applier: Applier<u64, u64, u64> = Applier::new(Seq(1));
        let now = Instant::now();
        applier.wait_for(Seq(2), 7);
        applier.handle_entry(Seq(2), vec![], 0).unwrap();
        applier.handle_entry(Seq(1), vec![], 0).unwrap();
        applier.handle_result(Seq(2), Ok(0), now);
        let reached = |applier: &mut Applier<u64, u64, u64>| {
            std::iter::from_fn(|| applier.poll_output())
                .any(|output| output == applier::Output::Reached(7))
        };
        assert!(!reached(&mut applier));
        applier.handle_result(Seq(1), Ok(0), now);
        assert!(reached(&mut applier));
    }

    #[test]
    fn numbers_out_of_the_window_are_refused_and_change_nothing() {
        let mut applier: Applier<u64, u64, u64> = Applier::new(Seq(1));
        let beyond = Seq(LOG_ENTRIES_UNAPPLIED_MAX as u64 + 1);
        let sequence = Err(PeerMisbehaved::Sequence);
        assert_eq!(applier.handle_entry(Seq::ZERO, vec![], 0), sequence);
        assert_eq!(applier.handle_entry(beyond, vec![], 0), sequence);
        assert_eq!(applier.handle_entry(Seq(3), vec![Seq(3)], 0), sequence);
        let five = vec![Seq(1); 5];
        assert_eq!(applier.handle_entry(Seq(3), five, 0), Err(PeerMisbehaved::TooMany));
        assert_eq!(applier.poll_output(), None);
    }

    #[test]
    fn the_log_never_ships_beyond_the_window() {
        let mut log: Log<u64, u64> = Log::new(0);
        log.handle_connected(ConnectionId(1), false);
        for _ in 0..LOG_ENTRIES_UNAPPLIED_MAX + 5 {
            log.append(0, 0, &[], Promise::Awaited);
        }
        assert!(!log.has_room(0));
        assert_eq!(outputs(&mut log).len(), LOG_ENTRIES_UNAPPLIED_MAX);
        log.handle_applied(Seq(1), Ok(0)).unwrap();
        let applied = log::Output::Applied { seq: Seq(1), result: Ok(0) };
        let next = LOG_ENTRIES_UNAPPLIED_MAX as u64 + 1;
        assert_eq!(outputs(&mut log), [applied, ship(1, next, 0)]);
    }

    fn outputs(log: &mut Log<u64, u64>) -> Vec<log::Output<u64, u64>> {
        std::iter::from_fn(|| log.poll_output())
            .filter(|output| *output != log::Output::Progress)
            .collect()
    }

    fn told(seq: u64, errno: Errno) -> log::Output<u64, u64> {
        log::Output::Applied { seq: Seq(seq), result: Err(errno) }
    }

    fn ship(connection: u64, seq: u64, payload: u64) -> log::Output<u64, u64> {
        let connection = ConnectionId(connection);
        log::Output::Ship { connection, seq: Seq(seq), after: vec![], payload }
    }

    #[test]
    fn a_host_that_forgot_the_session_fails_what_it_may_have_seen_and_gets_the_rest() {
        let mut log: Log<u64, u64> = Log::new(0);
        log.handle_connected(ConnectionId(1), false);
        log.append(7, 10, &[], Promise::Accepted);
        log.handle_lost(ConnectionId(1));
        log.append(8, 10, &[], Promise::Awaited);
        outputs(&mut log);
        let next = log.unseen();
        log.handle_connected(ConnectionId(2), false);
        assert_eq!(outputs(&mut log), [told(1, Errno::EIO), ship(2, 2, 8)]);
        let mut applier: Applier<u64, u64, u64> = Applier::new(next);
        applier.handle_entry(Seq(2), vec![], 8).unwrap();
        applier.handle_result(Seq(2), Ok(16), Instant::now());
        assert_eq!(applier.cursor(), Seq(2));
    }

    #[test]
    fn a_silent_host_strikes_what_is_awaited_and_keeps_what_was_accepted() {
        let mut log: Log<u64, u64> = Log::new(0);
        log.append(7, 10, &[], Promise::Accepted);
        log.append(8, 10, &[], Promise::Awaited);
        log.give_up();
        log.append(9, 10, &[], Promise::Awaited);
        let timed_out = Errno::ETIMEDOUT;
        assert_eq!(outputs(&mut log), [told(2, timed_out), told(3, timed_out)]);
        assert_eq!(log.unapplied(), (3, 10));
        log.handle_connected(ConnectionId(1), false);
        assert_eq!(outputs(&mut log), [ship(1, 1, 7), ship(1, 2, 0), ship(1, 3, 0)]);
        log.handle_applied(Seq(2), Ok(0)).unwrap();
        assert_eq!(outputs(&mut log), [], "nobody is told twice");
    }

    #[test]
    fn an_acknowledgement_of_nothing_is_refused() {
        let mut log: Log<u64, u64> = Log::new(0);
        assert_eq!(log.handle_applied(Seq(1), Ok(0)), Err(PeerMisbehaved::Unasked));
        assert_eq!(log.handle_stable(Seq(1)), Err(PeerMisbehaved::Unasked));
    }
}
