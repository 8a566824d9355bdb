//! How often an address may come: a token bucket for each.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Addresses that are remembered at once.
const ADDRESSES_MAX: usize = 65_536;

/// Token buckets by address (IPv4) or by network (IPv6: /64, which is what one customer has).
#[derive(Debug)]
pub(crate) struct Quota {
    burst: Duration,
    every: Duration,
    /// When a bucket is full again; a full bucket need not be kept.
    full_at: HashMap<IpAddr, Instant>,
    /// Forgetting looks at all of them, so it is not done for every forged packet.
    forget_at: Option<Instant>,
}

impl Quota {
    /// `burst` at once, then one more after each `every`.
    pub(crate) fn new(burst: u32, every: Duration) -> Self {
        Self { burst: every * burst, every, full_at: HashMap::new(), forget_at: None }
    }

    /// Takes a token of `address`, if there is one.
    pub(crate) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        let address = subject(address);
        if self.full_at.len() >= ADDRESSES_MAX && !self.full_at.contains_key(&address) {
            if self.forget_at.is_some_and(|at| at > now) {
                return false;
            }
            self.forget_at = Some(now + self.every);
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let full_at = self.full_at.entry(address).or_insert(now);
        let after = (*full_at).max(now) + self.every;
        if after - now > self.burst {
            return false;
        }
        *full_at = after;
        true
    }
}

fn subject(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    fn admitted(quota: &mut Quota, address: &str, tries: usize, now: Instant) -> usize {
        let address = address.parse().unwrap();
        (0..tries).filter(|_| quota.admit(address, now)).count()
    }

    #[test]
    fn a_burst_is_admitted_then_one_by_one() {
        let mut quota = Quota::new(5, EVERY);
        let now = Instant::now();
        assert_eq!(admitted(&mut quota, "203.0.113.1", 9, now), 5);
        assert_eq!(admitted(&mut quota, "203.0.113.1", 9, now + EVERY * 2), 2);
        assert_eq!(admitted(&mut quota, "203.0.113.1", 9, now + EVERY * 90), 5);
    }

    #[test]
    fn one_network_is_one_subject_and_others_are_not_touched() {
        let mut quota = Quota::new(5, EVERY);
        let now = Instant::now();
        assert_eq!(admitted(&mut quota, "2001:db8::1", 9, now), 5);
        assert_eq!(admitted(&mut quota, "2001:db8::ffff:2", 9, now), 0);
        assert_eq!(admitted(&mut quota, "2001:db8:0:1::1", 9, now), 5);
        assert_eq!(admitted(&mut quota, "203.0.113.1", 9, now), 5);
        assert_eq!(admitted(&mut quota, "::ffff:203.0.113.1", 9, now), 0);
    }

    #[test]
    fn forged_addresses_do_not_fill_the_memory_nor_lock_others_out_for_long() {
        let mut quota = Quota::new(5, EVERY);
        let now = Instant::now();
        for forged in 0..70_000_u32 {
            quota.admit(IpAddr::V4(forged.into()), now);
        }
        assert!(quota.full_at.len() <= ADDRESSES_MAX);
        assert_eq!(admitted(&mut quota, "203.0.113.1", 1, now + EVERY), 1);
    }
}
