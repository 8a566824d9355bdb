//! The hosts that were mounted here, `DIR/hosts.toml`: the client records the host's MAC (R22).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use p2pfs::address::ServerAddress;
use p2pfs::identity::{MacAddress, PeerId};
use p2pfs::net::daemon::write_private;
use serde::{Deserialize, Serialize};

const FILE: &str = "hosts.toml";

/// By the host's public key.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct KnownHosts {
    #[serde(default)]
    hosts: BTreeMap<String, KnownHost>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct KnownHost {
    name: String,
    mac: String,
    /// Where it was asked for.
    #[serde(default)]
    servers: Vec<String>,
}

impl KnownHosts {
    /// Reads what the file says.
    ///
    /// # Errors
    ///
    /// It is not in order.
    pub fn parse(text: &str) -> io::Result<Self> {
        toml::from_str(text).map_err(io::Error::other)
    }
}

/// Notes a host's name and MAC as it told them in an authenticated session, and its servers.
pub(crate) fn record(
    dir: &Path,
    id: PeerId,
    name: &str,
    mac: MacAddress,
    servers: &[ServerAddress],
) -> io::Result<()> {
    let path = dir.join(FILE);
    let mut known = read(&path)?;
    let servers = servers.iter().map(ToString::to_string).collect();
    let host = KnownHost { name: name.to_owned(), mac: mac.to_string(), servers };
    if known.hosts.get(&id.to_text()) == Some(&host) {
        return Ok(());
    }
    known.hosts.insert(id.to_text(), host);
    let text = toml::to_string(&known).map_err(io::Error::other)?;
    write_private(&path, text.as_bytes())
}

/// Where the hosts were asked for that were mounted here.
pub(crate) fn servers(dir: &Path) -> Vec<String> {
    let known = read(&dir.join(FILE)).unwrap_or_default();
    known.hosts.into_values().flat_map(|host| host.servers).collect()
}

fn read(path: &Path) -> io::Result<KnownHosts> {
    match std::fs::read_to_string(path) {
        Ok(text) => KnownHosts::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(KnownHosts::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_recorded_once_and_kept_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
        let server: ServerAddress =
            "p2pfs://203.0.113.5:443#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        record(dir.path(), one, "home", MacAddress([1; 6]), &[]).unwrap();
        record(dir.path(), other, "office", MacAddress([2; 6]), &[]).unwrap();
        let servers = [server.clone()];
        record(dir.path(), one, "home", MacAddress([3; 6]), &servers).unwrap();
        assert_eq!(super::servers(dir.path()), [server.to_string()]);
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let known: KnownHosts = toml::from_str(&text).unwrap();
        assert_eq!(known.hosts.len(), 2);
        assert_eq!(known.hosts[&one.to_text()].mac, "03:03:03:03:03:03");
    }
}
