//! This machine's own addresses: the private candidates; and how everybody on its links is reached.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The addresses of this machine that a peer might reach: no loopback, no link-local ones.
///
/// Read from `/proc`, so that no message to the kernel is needed; empty where that cannot be read.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses: Vec<IpAddr> = local_v4(&v4).into_iter().map(IpAddr::V4).collect();
    addresses.extend(global_v6(&v6).into_iter().map(IpAddr::V6));
    addresses
}

/// `fib_trie` names an address (`|-- 192.0.2.1`) and, on a line below, what it is
/// (`/32 host LOCAL`).
fn local_v4(fib_trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut current = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            current = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = current
            && !address.is_loopback()
            && !address.is_link_local()
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// Where a datagram reaches everybody on every link of this machine: broadcast addresses, and all
/// nodes by IPv6 on each interface.
pub(crate) fn everybody(port: u16) -> Vec<SocketAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut all: Vec<SocketAddr> =
        broadcasts(&v4).into_iter().map(|ip| SocketAddr::new(ip.into(), port)).collect();
    let links = link_indices(&v6).into_iter();
    all.extend(links.map(|index| SocketAddr::V6(SocketAddrV6::new(ALL_NODES, port, 0, index))));
    all
}

/// `fib_trie` says `/32 link BROADCAST` below an address that is one.
fn broadcasts(fib_trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut current = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            current = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 link BROADCAST")
            && let Some(address) = current
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The interfaces with a link-local address: scope 20.
fn link_indices(if_inet6: &str) -> Vec<u32> {
    let index = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let index = u32::from_str_radix(fields.next()?, 16).ok()?;
        (fields.nth(1)? == "20").then_some(index)
    };
    let mut found: Vec<u32> = if_inet6.lines().filter_map(index).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// `if_inet6`: address in hex, index, prefix length, scope (00 is global), flags, name.
fn global_v6(if_inet6: &str) -> Vec<Ipv6Addr> {
    let global = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        (fields.nth(2)? == "00").then(|| Ipv6Addr::from(address))
    };
    if_inet6.lines().filter_map(global).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_told_from_networks_and_broadcasts() {
        let trie = [
            "Main:",
            "  +-- 0.0.0.0/0 3 0 5",
            "     |-- 10.1.0.0",
            "        /16 link UNICAST",
            "     |-- 10.1.0.7",
            "        /32 host LOCAL",
            "     |-- 10.1.255.255",
            "        /32 link BROADCAST",
            "     |-- 127.0.0.1",
            "        /32 host LOCAL",
        ];
        assert_eq!(local_v4(&trie.join("\n")), [Ipv4Addr::new(10, 1, 0, 7)]);
        assert_eq!(broadcasts(&trie.join("\n")), [Ipv4Addr::new(10, 1, 255, 255)]);
    }

    #[test]
    fn only_global_ipv6_addresses_count() {
        let table = "20010db8000000000000000000000001 02 40 00 80     eth0\n\
                     fe800000000000000000000000000001 02 40 20 80     eth0\n";
        assert_eq!(link_indices(table), [2]);
        assert_eq!(global_v6(table), ["2001:db8::1".parse::<Ipv6Addr>().unwrap()]);
    }
}
