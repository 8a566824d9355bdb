//! Peers that do not keep to the protocol: nobody gets what is not his, no daemon dies or grows
//! without bound, and whoever has mounted a hostile host can unmount it.

mod answers;
mod attacker;
mod clients;
mod curious;
mod host;
mod lies;
mod memory;
mod peer;
mod secrets;
mod servers;
mod strangers;

use std::process::Command;
use std::time::Duration;

use p2pfs::identity::SecretKey;
use p2pfs::usb;
use rustix::process::Pid;

use crate::world::{Outcome, World, need_mount};

use self::host::HostileHost;
use self::lies::{Case, Must};
use self::memory::Memory;

/// How long a command in the mount may take; the grace of the mount is shorter.
const COMMAND_S: u64 = 8;
/// How long unmounting may take.
const UNMOUNT: Duration = Duration::from_secs(3);
/// What a mount may grow by, KiB: the cache is 16 MiB.
const MOUNT_KIB_MAX: u64 = 192 << 10;

#[test]
fn a_mount_of_a_hostile_host_gives_errors_and_goes_away() {
    need_mount!();
    let world = World::on_loopback();
    let server = world.server("127.0.0.1:0");
    let hostile = HostileHost::start(&server.ready);
    let dir = world.directory("key");
    let device = usb::ensure_device(&dir).unwrap();
    usb::write_key(&dir, &device, &hostile.key, None).unwrap();
    let source = format!("{}:disk", dir.display());
    let mut wrong = Vec::new();
    for case in lies::cases() {
        wrong.extend(lied_to(&world, &hostile, &source, case).err());
    }
    hostile.stop();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_host_that_proves_another_key_than_the_paired_one_is_not_mounted() {
    need_mount!();
    let world = World::on_loopback();
    let server = world.server("127.0.0.1:0");
    // it knows the pair key and the MAC, and the server takes it for the host
    let impostor = HostileHost::start_as(&server.ready, &SecretKey::from_seed([0x67; 32]));
    let dir = world.directory("key");
    let device = usb::ensure_device(&dir).unwrap();
    usb::write_key(&dir, &device, &impostor.key, None).unwrap();
    let mountpoint = world.directory("home");
    let source = format!("{}:disk", dir.display());
    let mount = world.mount(&source, &mountpoint, "timeout=10").refused(1, "host-mismatch");
    let hint = "hint: if the host was reinstalled, pair the key again; else somebody is in its \
                place";
    assert!(mount.stderr.lines().any(|line| line == hint), "{mount:#?}");
    world.assert_nothing_left(&mountpoint);
    impostor.stop();
}

/// Mounts, does what the case says, unmounts; what was wrong with it.
fn lied_to(
    world: &World,
    hostile: &HostileHost,
    source: &str,
    case: Case,
) -> Result<(), (&'static str, Outcome)> {
    let Case { name, script, does, must } = case;
    let mountpoint = world.directory("home");
    // what is said unasked is said at once; what is asked is asked later
    let asked = script.lie;
    hostile.set(host::Script { unasked: script.unasked, ..host::Script::default() });
    let mounted = world.mount(source, &mountpoint, "timeout=5,grace=2,cache=16M");
    if mounted.code != Some(0) {
        println!("{name:<44} not mounted: {}", mounted.stderr.lines().next().unwrap_or_default());
        world.assert_nothing_left(&mountpoint);
        return if must == Must::End { Ok(()) } else { Err((name, mounted)) };
    }
    let pid = mountd(world);
    let before = Memory::of(pid);
    hostile.set(host::Script { lie: asked, ..host::Script::default() });
    let mut command = Command::new("timeout");
    command.args(["-k", "1", &COMMAND_S.to_string(), "sh", "-c", does]).current_dir(&mountpoint);
    let done = Outcome::of(command, Duration::from_secs(COMMAND_S + 4));
    let in_time = !matches!(done.code, Some(124 | 137));
    let good = match must {
        Must::Fail => in_time && done.code != Some(0),
        Must::End => in_time,
        Must::Say(text) => done.code == Some(0) && done.stdout.contains(text),
        Must::Wait => done.code == Some(0) && done.took < 2 * UNMOUNT,
    };
    assert_eq!(mountd(world), pid, "{name}: it was another process before");
    before.grown(pid, name, MOUNT_KIB_MAX);
    let unmount = world.mountd(&["unmount", mountpoint.to_str().unwrap()]);
    let (code, said) = (done.code, done.stdout.lines().next().unwrap_or_default());
    let (took, gone) = (done.took, unmount.took);
    println!("{:<44} {does:?}: {code:?} {said:?} in {took:?}; unmounted in {gone:?}", "");
    world.assert_nothing_left(&mountpoint);
    if unmount.code != Some(0) || unmount.took > UNMOUNT {
        return Err((name, unmount));
    }
    if good { Ok(()) } else { Err((name, done)) }
}

#[track_caller]
fn mountd(world: &World) -> Pid {
    let found = world.processes_of(b"p2pfs-mountd");
    *found.first().expect("mountd has died")
}
