//! This machine's own addresses: the private candidates.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    }

    #[test]
    fn only_global_ipv6_addresses_count() {
        let table = "20010db8000000000000000000000001 02 40 00 80     eth0\n\
                     fe800000000000000000000000000001 02 40 20 80     eth0\n";
        assert_eq!(global_v6(table), ["2001:db8::1".parse::<Ipv6Addr>().unwrap()]);
    }
}
