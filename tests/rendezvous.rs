//! The rendezvous goes on for ever (R2, R6, R20): NATs that change or forget are noticed, or never
//! get to forget.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::lab::{Kind, Lab, Plan, need_lab};
use crate::world::{Home, Side, eventually, need_mount};

#[test]
fn an_idle_host_follows_its_nats_new_address_within_25_seconds() {
    need_mount!();
    need_lab!();
    let home = Home::in_lab(Lab::new(Kind::Port, Kind::Port));
    let seen_at = |address: &str, ip: &str| {
        let status = home.world.status(Side::Host);
        let own = status["routing"]["own"][address].as_str().unwrap_or_default().to_owned();
        own.starts_with(&format!("{ip}:"))
    };
    eventually("the host to know where it is", Duration::from_secs(20), || {
        seen_at("udp_public", "203.0.113.10") && seen_at("tcp_public", "203.0.113.10")
    });
    home.world.lab().rebind(Side::Host);
    eventually("the host to follow", Duration::from_secs(25), || {
        seen_at("udp_public", "203.0.113.15")
    });
    eventually("the registration to follow", Duration::from_secs(40), || {
        seen_at("tcp_public", "203.0.113.15")
    });
    // whoever looks for it finds it there
    home.mount("timeout=20");
    assert_eq!(fs::read(home.mountpoint.join("hello")).unwrap(), b"from home\n");
    home.unmount();
}

/// In a NAT that forgets sooner, so that it takes seconds.
#[test]
fn an_idle_mount_keeps_its_way_through_nats_that_forget() {
    need_mount!();
    need_lab!();
    keeps_its_way(7, Duration::from_secs(16));
}

#[test]
#[ignore = "three minutes: what the test above shows, with a NAT that forgets after 30 s"]
fn an_idle_mount_keeps_its_way_for_three_minutes() {
    need_mount!();
    need_lab!();
    keeps_its_way(30, Duration::from_secs(180));
}

fn keeps_its_way(forgets_after: u32, idle: Duration) {
    let mut plan = Plan::new(Kind::Port, Kind::Port);
    plan.forget_udp = (forgets_after, forgets_after);
    let home = Home::in_lab(Lab::build(plan));
    fs::create_dir(home.disk.join("cellar")).unwrap();
    fs::write(home.disk.join("cellar/wine"), "").unwrap();
    home.mount("timeout=20");
    eventually("a direct path", Duration::from_secs(15), || {
        home.world.mount_status()["path"]["kind"] == "udp"
    });
    let way = |mount: &Value| {
        let path = &mount["path"];
        ["kind", "rung", "address", "tried"].map(|field| path[field].clone())
    };
    let before = home.world.mount_status();
    let end = Instant::now() + idle;
    while Instant::now() < end {
        // in use: the registration is repeated all the while
        let status = home.world.mount_status();
        let age = status["rendezvous"]["age_s"].as_f64();
        assert!(age.is_some_and(|age| age < 25.0), "{status:#}");
        let host = home.world.status(Side::Host);
        let age = host["rendezvous"]["age_s"].as_f64();
        assert!(age.is_some_and(|age| age < 130.0), "{host:#}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let start = Instant::now();
    let names: Vec<_> = fs::read_dir(home.mountpoint.join("cellar"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["wine"]);
    assert!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    let after = home.world.mount_status();
    assert_eq!(after["connection_id"], before["connection_id"]);
    assert_eq!(way(&after), way(&before), "another path was looked for");
    home.unmount();
}
