//! Host, client and server on three machines of a small internet (R1, R2, R4, R5, D1).

use std::fs;
use std::time::Duration;

use crate::world::lab::{Kind, Lab, need_lab};
use crate::world::outcome::tool;
use crate::world::{Home, Side, eventually, need_mount};

#[test]
fn both_sides_behind_nat_meet_directly() {
    need_mount!();
    need_lab!();
    // Fig. 1(a)
    let home = Home::in_lab(Lab::new(Kind::Port, Kind::Port));

    exchange(&home);

    let mount = home.world.mount_status();
    assert_eq!(mount["path"]["kind"], "udp", "{mount:#}");
    assert_eq!(mount["path"]["rung"], "udp-public", "{mount:#}");
    let routing = mount["routing"].to_string();
    for address in ["203.0.113.10:", "203.0.113.20:", "10.1.0.2:", "10.2.0.2:"] {
        assert!(routing.contains(address), "no {address} in {mount:#}");
    }
    home.unmount();
}

#[test]
fn a_client_straight_on_the_wan_meets_a_host_behind_nat() {
    need_mount!();
    need_lab!();
    // Fig. 1(b)
    let home = Home::in_lab(Lab::new(Kind::Port, Kind::None));

    exchange(&home);

    let mount = home.world.mount_status();
    assert_eq!(mount["path"]["kind"], "udp", "{mount:#}");
    home.unmount();
}

/// A file of 20 MB crosses both ways, and not through the relay.
fn exchange(home: &Home) {
    let content: Vec<u8> =
        (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(home.disk.join("film"), &content).unwrap();
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    home.mount("timeout=30");
    eventually("the direct path", Duration::from_secs(10), || {
        home.world.mount_status()["path"]["kind"] == "udp"
    });
    let relayed = home.world.status(Side::Server)["relay"]["bytes"].clone();
    assert!(fs::read(home.mountpoint.join("film")).unwrap() == content);
    let film = home.mountpoint.join("film");
    let copy = home.mountpoint.join("copy");
    tool("cp", &["-a", film.to_str().unwrap(), copy.to_str().unwrap()]);
    home.sync();
    assert!(fs::read(home.disk.join("copy")).unwrap() == content);
    let server = home.world.status(Side::Server);
    assert_eq!(server["relay"]["bytes"], relayed, "{server:#}");
}
