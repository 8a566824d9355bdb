//! This machine: its name, its MAC address, its limits.

use std::path::Path;
use std::{fs, io};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::MacAddress;
use p2pfs::limits::LABEL_BYTES_MAX;
use p2pfs::net::daemon;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MAC_FILE: &str = "mac";
/// `ARPHRD_ETHER`
const ETHERNET: &str = "1";

/// The MAC address that keys record (R22): the first wired interface's, read once and remembered,
/// so that keys survive a new network card. A machine without one gets a random, locally
/// administered address.
///
/// # Errors
///
/// The state directory cannot be read or written.
pub fn mac(state: &Path) -> Result<MacAddress, Failure> {
    let path = state.join(MAC_FILE);
    let known = fs::read_to_string(&path);
    if !known.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return known.ok().and_then(|text| MacAddress::from_text(&text)).ok_or_else(|| {
            Failure::new(
                Code::Internal,
                format!("{} holds no MAC address, or cannot be read", path.display()),
                "write the address that the keys were made with into it: p2pfs-mountd key show K",
            )
        });
    }
    let mac = first_wired(Path::new("/sys/class/net")).unwrap_or_else(|| {
        let [first, rest @ ..] = daemon::random::<6>();
        let [b, c, d, e, f] = rest;
        MacAddress([(first | 0x02) & 0xfe, b, c, d, e, f])
    });
    daemon::write_private(&path, format!("{mac}\n").as_bytes()).map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("cannot write {}: {error}", path.display()),
            "check the owner of the state directory and the space on its disk",
        )
    })?;
    Ok(mac)
}

/// The machine's name, for people.
pub fn name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    label(&name).unwrap_or_else(|| "host".into())
}

/// A text cut to what a label may hold; `None` if nothing is left.
pub fn label(text: &str) -> Option<String> {
    let text = text.trim();
    let text = &text[..text.floor_char_boundary(LABEL_BYTES_MAX)];
    (!text.is_empty()).then(|| text.to_owned())
}

/// Allows as many open files as the machine grants: each node in use has a descriptor.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The first Ethernet interface with hardware behind it that is not wireless.
fn first_wired(interfaces: &Path) -> Option<MacAddress> {
    let mut wired = Vec::new();
    for entry in fs::read_dir(interfaces).ok()?.flatten() {
        let dir = entry.path();
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let is_wired = read("type").trim() == ETHERNET
            && dir.join("device").exists()
            && !dir.join("wireless").exists()
            && !dir.join("phy80211").exists();
        if let Some(mac) = MacAddress::from_text(&read("address"))
            && is_wired
            && mac != MacAddress([0; 6])
        {
            // 0: as the hardware says; anything else was set by somebody and may change
            let set = read("addr_assign_type").trim() != "0";
            let index: u32 = read("ifindex").trim().parse().unwrap_or(u32::MAX);
            wired.push((set, index, mac));
        }
    }
    wired.into_iter().min().map(|(_, _, mac)| mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_once() {
        let state = tempfile::tempdir().unwrap();
        let first = mac(state.path()).unwrap();
        assert_eq!(mac(state.path()).unwrap(), first);
        fs::write(state.path().join(MAC_FILE), "02:00:00:00:00:09\n").unwrap();
        assert_eq!(mac(state.path()).unwrap(), MacAddress([2, 0, 0, 0, 0, 9]));
        fs::write(state.path().join(MAC_FILE), "nonsense").unwrap();
        assert!(mac(state.path()).is_err());
    }

    #[test]
    fn wired_comes_before_wireless_and_hardware_before_what_was_set() {
        let net = tempfile::tempdir().unwrap();
        let interface = |name: &str, index: u32, address: &str, assigned: &str| {
            let dir = net.path().join(name);
            fs::create_dir_all(dir.join("device")).unwrap();
            fs::write(dir.join("type"), "1\n").unwrap();
            fs::write(dir.join("address"), format!("{address}\n")).unwrap();
            fs::write(dir.join("ifindex"), format!("{index}\n")).unwrap();
            fs::write(dir.join("addr_assign_type"), format!("{assigned}\n")).unwrap();
            dir
        };
        let wireless = interface("wlan0", 2, "02:00:00:00:00:02", "0");
        fs::create_dir(wireless.join("wireless")).unwrap();
        interface("eth0", 3, "02:00:00:00:00:03", "3");
        let virtual_one = interface("br0", 1, "02:00:00:00:00:01", "0");
        fs::remove_dir(virtual_one.join("device")).unwrap();
        assert_eq!(first_wired(net.path()).unwrap().0[5], 3);
        interface("eth1", 4, "02:00:00:00:00:04", "0");
        assert_eq!(first_wired(net.path()).unwrap().0[5], 4);
    }
}
