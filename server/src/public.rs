//! Under which name others reach us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::cli::PublicName;

/// A documentation address (RFC 5737): whatever lies beyond the default route.
const FAR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same of IPv6 (RFC 3849).
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What the server's address carries: what the owner said, or where we listen, or, for a wildcard,
/// the machine's own address.
pub(crate) fn address(public: Option<&PublicName>, listen: SocketAddr) -> (String, u16) {
    match public {
        Some(name) => (name.host.clone(), name.port.unwrap_or_else(|| listen.port())),
        None if listen.ip().is_unspecified() => {
            (own_address(listen.is_ipv6()).to_string(), listen.port())
        }
        None => (listen.ip().to_string(), listen.port()),
    }
}

/// The machine's own: of IPv4, which `[::]` takes too, or else, where we listen on IPv6, of that.
fn own_address(ipv6: bool) -> IpAddr {
    outgoing(Ipv4Addr::UNSPECIFIED.into(), FAR_V4.into())
        .or_else(|| first_local(&std::fs::read_to_string("/proc/net/fib_trie").ok()?))
        .or_else(|| ipv6.then(|| outgoing(Ipv6Addr::UNSPECIFIED.into(), FAR_V6.into()))?)
        .unwrap_or_else(|| Ipv4Addr::LOCALHOST.into())
}

/// The address that we would send from; nothing is sent.
fn outgoing(any: IpAddr, far: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

/// The first address of an interface but the loopback, from the kernel's routing table: without a
/// default route.
fn first_local(trie: &str) -> Option<IpAddr> {
    let mut last = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.filter(|address| !address.is_loopback())
        {
            return Some(address.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_knows_best_then_the_socket() {
        let listen = "203.0.113.5:4430".parse().unwrap();
        assert_eq!(address(None, listen), ("203.0.113.5".to_owned(), 4430));
        let named = "home.example".parse().unwrap();
        assert_eq!(address(Some(&named), listen), ("home.example".to_owned(), 4430));
        let named = "home.example:443".parse().unwrap();
        assert_eq!(address(Some(&named), listen), ("home.example".to_owned(), 443));
        assert_ne!(address(None, "0.0.0.0:1".parse().unwrap()).0, "0.0.0.0");
    }

    #[test]
    fn the_routing_table_names_the_first_interface() {
        let trie = [
            "Main:",
            "  +-- 0.0.0.0/0 3 0 5",
            "     |-- 0.0.0.0",
            "        /0 universe UNICAST",
            "     |-- 127.0.0.1",
            "        /32 host LOCAL",
            "     |-- 10.1.0.0",
            "        /24 link UNICAST",
            "     |-- 10.1.0.7",
            "        /32 host LOCAL",
        ];
        assert_eq!(first_local(&trie.join("\n")), Some(IpAddr::from([10, 1, 0, 7])));
        assert_eq!(first_local("Main:\n"), None);
    }
}
