//! How much of something one address may have at once, so that nobody gets all of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// What one customer has of IPv6 at least, bits.
const NETWORK_BITS: u32 = 64;
/// What a site has of IPv6 at most, bits.
const SITE_BITS: u32 = 48;

/// How many each has, of those who have any.
#[derive(Debug)]
pub struct Tally<K>(BTreeMap<K, usize>);

impl<K: Ord> Tally<K> {
    /// How many `holder` has.
    pub fn of(&self, holder: &K) -> usize {
        self.0.get(holder).copied().unwrap_or_default()
    }

    /// It has one more.
    pub fn add(&mut self, holder: K) {
        *self.0.entry(holder).or_default() += 1;
    }

    /// It has one less, if it has any.
    pub fn take_back(&mut self, holder: &K) {
        if let Some(held) = self.0.get_mut(holder) {
            *held -= 1;
            if *held == 0 {
                self.0.remove(holder);
            }
        }
    }

    /// Who has any.
    pub fn holders(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Who has how much. An IPv4 address is one holder, an IPv6 network of 64 bits another; the
/// networks of a site of 48 bits have a bound together too.
#[derive(Debug)]
pub struct Shares {
    of_address: usize,
    of_site: usize,
    held: Tally<Holder>,
}

/// Who is counted together: the address without its last bits, and how many are left.
type Holder = (IpAddr, u32);

impl Shares {
    /// Nobody has anything; each address may have `of_address`, each site `of_site`.
    pub fn new(of_address: usize, of_site: usize) -> Self {
        Self { of_address, of_site, held: Tally::default() }
    }

    /// Takes one more for `address`; tells whether there was one left for it.
    pub fn take(&mut self, address: IpAddr) -> bool {
        let holders = holders(address);
        let bounds = [self.of_address, self.of_site];
        let has_room = |(holder, bound)| self.held.of(holder) < bound;
        if !holders.iter().flatten().zip(bounds).all(has_room) {
            return false;
        }
        for holder in holders.into_iter().flatten() {
            self.held.add(holder);
        }
        true
    }

    /// Gives back one that was taken for `address`.
    pub fn give_back(&mut self, address: IpAddr) {
        for holder in holders(address).into_iter().flatten() {
            self.held.take_back(&holder);
        }
    }
}

/// The address's own, and that of its site.
fn holders(address: IpAddr) -> [Option<Holder>; 2] {
    match address.to_canonical() {
        IpAddr::V4(address) => [Some((address.into(), 32)), None],
        IpAddr::V6(address) => [NETWORK_BITS, SITE_BITS].map(|bits| {
            let network = address.to_bits() & !(u128::MAX >> bits);
            Some((Ipv6Addr::from_bits(network).into(), bits))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(shares: &mut Shares, address: &str, tries: usize) -> usize {
        let address = address.parse().unwrap();
        (0..tries).filter(|_| shares.take(address)).count()
    }

    #[test]
    fn nobody_gets_more_than_his_share_and_what_is_given_back_is_there_again() {
        let mut shares = Shares::new(5, 8);
        assert_eq!(take(&mut shares, "203.0.113.1", 9), 5);
        assert_eq!(take(&mut shares, "::ffff:203.0.113.1", 9), 0);
        assert_eq!(take(&mut shares, "203.0.113.2", 9), 5);
        assert_eq!(take(&mut shares, "2001:db8:0:1::1", 9), 5);
        assert_eq!(take(&mut shares, "2001:db8:0:1:ffff::2", 9), 0);
        // another network of that site, and of another site
        assert_eq!(take(&mut shares, "2001:db8:0:2::1", 9), 3);
        assert_eq!(take(&mut shares, "2001:db8:1:2::1", 9), 5);
        shares.give_back("2001:db8:0:1::9".parse().unwrap());
        assert_eq!(take(&mut shares, "2001:db8:0:1::1", 9), 1);
        for _ in 0..5 {
            shares.give_back("203.0.113.1".parse().unwrap());
        }
        shares.give_back("203.0.113.1".parse().unwrap());
        assert_eq!(take(&mut shares, "203.0.113.1", 9), 5);
        assert_eq!(shares.held.holders().count(), 7);
    }
}
