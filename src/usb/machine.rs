//! What this machine says of itself, for keys of clients without a stick.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::identity::MacAddress;
use crate::identity::sealed;
use crate::wire::session::DeviceId;

/// The product of a `device` file that is tied to this machine.
pub(super) const PRODUCT: &str = "machine";
const VENDOR: &str = "p2pfs";
/// `ARPHRD_ETHER`
const ETHERNET: &str = "1";
/// Two of them fit into an identifier.
const SERIAL_BYTES_MAX: usize = 64;

/// Ties a `device` file with the product `machine` to this machine: elsewhere the same file says
/// something else, and what is sealed to it does not open.
pub(super) fn bind(device: DeviceId) -> DeviceId {
    if device.vendor != VENDOR || device.product != PRODUCT {
        return device;
    }
    let mut digest = Sha256::new();
    digest.update(b"p2pfs machine 1\0");
    // systemd wants the id itself not to be shown to anybody: what comes of it tells nothing
    digest.update(id().unwrap_or_default().trim());
    digest.update(b"\0");
    digest.update(&device.serial);
    let serial = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    DeviceId { serial, ..device }
}

/// The id of this installation; `None` on a machine that has none.
fn id() -> Option<String> {
    let files = ["/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/product_uuid"];
    files.iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        (!text.trim().is_empty()).then_some(text)
    })
}

/// The machine's serial numbers: its maker's, where this user may read it, and one that comes of
/// the installation's id.
pub fn serials() -> Vec<String> {
    let files = [
        "/sys/class/dmi/id/product_serial",
        "/sys/class/dmi/id/board_serial",
        "/sys/firmware/devicetree/base/serial-number",
    ];
    let makers = files.iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        let text: String = text.chars().filter(|c| !c.is_control() && *c != ',').collect();
        let text = text.trim();
        (sealed::serial_weakness(text).is_none() && text.len() <= SERIAL_BYTES_MAX)
            .then(|| text.to_owned())
    });
    let own = id().map(|id| {
        let digest = Sha256::digest(format!("p2pfs serial 1 {}", id.trim()));
        digest[..8].iter().map(|byte| format!("{byte:02X}")).collect()
    });
    makers.into_iter().chain(own).collect()
}

/// The MAC addresses of this machine's network interfaces, those with hardware behind them first.
pub fn mac_addresses() -> Vec<MacAddress> {
    addresses_in(Path::new("/sys/class/net"))
}

fn addresses_in(interfaces: &Path) -> Vec<MacAddress> {
    let mut found = Vec::new();
    for entry in fs::read_dir(interfaces).into_iter().flatten().flatten() {
        let dir = entry.path();
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        if let Some(mac) = MacAddress::from_text(&read("address"))
            && read("type").trim() == ETHERNET
            && mac != MacAddress([0; 6])
        {
            let index: u32 = read("ifindex").trim().parse().unwrap_or(u32::MAX);
            found.push((!dir.join("device").exists(), index, mac));
        }
    }
    found.sort_unstable();
    let mut addresses: Vec<MacAddress> = Vec::new();
    for (_, _, mac) in found {
        if !addresses.contains(&mac) {
            addresses.push(mac);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_tied_to_the_machine_says_something_else() {
        let device = |product: &str| DeviceId {
            serial: "A1B2C3D4".into(),
            vendor: VENDOR.into(),
            product: product.into(),
        };
        assert_eq!(bind(device("directory")), device("directory"));
        let bound = bind(device(PRODUCT));
        assert_eq!(bound.serial.len(), 64);
        assert_eq!(bound, bind(device(PRODUCT)));
    }

    #[test]
    fn hardware_comes_before_what_is_virtual() {
        let net = tempfile::tempdir().unwrap();
        let interface = |name: &str, index: u32, hardware: bool| {
            let dir = net.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("type"), "1\n").unwrap();
            fs::write(dir.join("address"), format!("02:00:00:00:00:0{index}\n")).unwrap();
            fs::write(dir.join("ifindex"), format!("{index}\n")).unwrap();
            if hardware {
                fs::create_dir(dir.join("device")).unwrap();
            }
        };
        interface("br0", 1, false);
        interface("eth0", 2, true);
        let last = |mac: MacAddress| mac.0[5];
        assert_eq!(addresses_in(net.path()).into_iter().map(last).collect::<Vec<_>>(), [2, 1]);
    }
}
