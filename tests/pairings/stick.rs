//! Sticks: what seals them, what they allow, and what comes after them (R9, R12, R15).

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use p2pfs::identity::PeerId;

use super::{Client, files_with, recorded, secret_file};
use crate::world::outcome::wait;
use crate::world::{Home, Outcome, Side, eventually, is_mounted, need_mount};

#[test]
fn a_key_only_stick_leaves_no_copy_and_a_portable_one_works_without_it() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "client");
    let portable = home.world.pair("portable", &["--authorise", "--portable"]);
    let away = home.world.path("away");

    // R15: read-only
    let (only, source) = (&home.key.dir, home.key.dir.to_str().unwrap());
    let secrets = secrets_of(only);
    client.mounts(source);
    for secret in &secrets {
        assert_eq!(files_with(&client.state, secret), Vec::<std::path::PathBuf>::new());
    }
    fs::rename(only, &away).unwrap();
    client.mount(source, "").refused(1, "key-missing");
    fs::rename(&away, only).unwrap();

    // R15: copied, sealed to this machine
    let source = portable.dir.to_str().unwrap();
    client.mounts(source);
    for secret in secrets_of(&portable.dir) {
        assert_eq!(files_with(&client.state, &secret), Vec::<std::path::PathBuf>::new());
    }
    fs::rename(&portable.dir, &away).unwrap();
    client.mounts(source);
    client.mounts(&portable.id.to_uppercase());
    // paired again with a passphrase, the copy wants it too from the next mount beside the stick on
    fs::rename(&away, &portable.dir).unwrap();
    let words = secret_file(&home, "words", "correct horse");
    let with = ["--authorise", "--portable", "--passphrase-file", &words];
    home.world.pair("portable", &with);
    client.mounts_with(source, &format!("passphrase-file={words}"));
    fs::rename(&portable.dir, &away).unwrap();
    client.mount(source, "").refused(1, "passphrase");
    client.mounts_with(source, &format!("passphrase-file={words}"));
    // as key-only, it goes with the next mount
    fs::rename(&away, &portable.dir).unwrap();
    home.world.pair("portable", &["--authorise", "--passphrase-file", &words]);
    client.mounts_with(source, &format!("passphrase-file={words}"));
    fs::rename(&portable.dir, &away).unwrap();
    client.mount(source, "").refused(1, "key-missing");
}

#[test]
fn a_portable_key_stays_mounted_when_its_stick_is_pulled() {
    need_mount!();
    let home = Home::on_loopback_with(&["--authorise", "--portable"], |_| {});
    home.mount("timeout=20");
    fs::rename(&home.key.dir, home.world.path("away")).unwrap();

    // longer than a pulled key may take to end a mount
    let since = std::time::Instant::now();
    eventually("a second and a half", Duration::from_secs(3), || {
        assert!(fs::read(home.mountpoint.join("hello")).is_ok());
        since.elapsed() > Duration::from_millis(1500)
    });
    home.unmount();
}

#[test]
fn a_passphrase_is_asked_for_and_told_from_everything_else() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "client");
    let right = secret_file(&home, "right", "correct horse");
    let wrong = secret_file(&home, "wrong", "correct house");
    let key = home.world.pair("sealed", &["--authorise", "--passphrase-file", &right]);
    let source = key.dir.to_str().unwrap();

    client.mounts_with(source, &format!("passphrase-file={right}"));
    client.mount(source, &format!("passphrase-file={wrong}")).refused(1, "passphrase");
    client.mount(source, "").refused(1, "passphrase");
    assert_eq!(client.run(&["key", "show", source, "--json"]).ok().json()["passphrase"], true);
    assert!(files_with(&home.world.path("state"), b"correct horse").is_empty());
    // named from where the user is, which is not where the daemon is
    let mountpoint = home.mountpoint.to_str().unwrap();
    let (dir, name) = (Path::new(&right).parent().unwrap(), Path::new(&right).file_name().unwrap());
    let option = format!("passphrase-file={}", name.to_str().unwrap());
    let args = ["mount", &key.source("disk"), mountpoint, "-o", &option];
    let mut mount = home.world.program_in(Side::Client, &client.state, &args);
    mount.current_dir(dir);
    Outcome::of(mount, Duration::from_secs(20)).ok();
    client.run(&["unmount", mountpoint]).ok();
    // typed, where standard input is no terminal: its first line
    let args = ["mount", &key.source("disk"), mountpoint];
    let mut mount = home.world.program_in(Side::Client, &client.state, &args);
    mount.stdin(fs::File::open(&right).unwrap());
    assert_eq!(wait(&mut mount.spawn().unwrap(), Duration::from_secs(20)), Some(0));
    // pulled and back: nobody is there to type it again
    let away = home.world.path("away");
    fs::rename(&key.dir, &away).unwrap();
    eventually("the mount to be locked", Duration::from_secs(5), || client.is_locked());
    fs::rename(&away, &key.dir).unwrap();
    eventually("the program to say that it cannot", Duration::from_secs(5), || {
        !files_with(&client.state, b"error[passphrase]").is_empty() && client.is_locked()
    });
    client.mounts_with(source, &format!("passphrase-file={right}"));
    // paired again, it wants the same
    let dir = key.dir.to_str().unwrap();
    home.world.hostd(&["pair", "--key", dir]).refused(1, "passphrase");
    home.world.hostd(&["pair", "--key", dir, "--passphrase-file", &right]).ok();
}

#[test]
fn rights_end_where_and_when_the_owner_says() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "client");

    let reader = home.world.pair("reader", &["--authorise", "--access", "ro"]);
    client.mount(reader.dir.to_str().unwrap(), "").ok();
    let refused = fs::write(home.mountpoint.join("new"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    client.unmount();

    let late = home.world.pair("late", &["--authorise", "--expires", "2020-01-01"]);
    let source = late.dir.to_str().unwrap();
    let refused = client.mount(source, "").refused(1, "key-unauthorised");
    assert!(refused.stderr.contains("time"), "{refused:#?}");
    home.world.hostd(&["keys", "authorise", &late.id]).refused(2, "usage");
    let until = seconds_from_now(6);
    home.world.hostd(&["keys", "authorise", &late.id, "--expires", &until]).ok();
    assert!(recorded(&home, &late.id)["expires"].is_string());
    // a running session ends then
    client.mount(source, "").ok();
    assert!(home.mountpoint.join("hello").exists());
    eventually("the session to end", Duration::from_secs(10), || !is_mounted(&home.mountpoint));
    let end = until_seconds(&until);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!((end..end + 3).contains(&now), "ended at {now}, wanted {end}");
    client.mount(source, "").refused(1, "key-unauthorised");
    home.world.hostd(&["keys", "authorise", &late.id, "--expires", "never"]).ok();
    client.mounts(source);
}

/// R12: the owner's list counts at once, also for who is there already.
#[test]
fn what_the_owner_takes_back_a_running_mount_has_no_more() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "client");
    let guest = home.world.pair("guest", &["--authorise"]);
    let dir = guest.dir.to_str().unwrap();
    client.mount(dir, "").ok();
    fs::write(home.mountpoint.join("new"), "x").unwrap();

    home.world.hostd(&["pair", "--key", dir, "--access", "ro"]).ok();
    let refused = fs::write(home.mountpoint.join("more"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read(home.mountpoint.join("new")).unwrap(), b"x");
    // what is given again counts for the next mount
    home.world.hostd(&["pair", "--key", dir]).ok();
    assert_eq!(fs::read(home.mountpoint.join("new")).unwrap(), b"x");
    client.unmount();
    client.mount(dir, "").ok();
    fs::write(home.mountpoint.join("more"), "x").unwrap();

    home.world.hostd(&["pair", "--key", dir, "--shares", "another"]).ok();
    eventually("the mount to go", Duration::from_secs(3), || !is_mounted(&home.mountpoint));
    client.mount(dir, "").refused(1, "share-denied");
}

#[test]
fn who_waits_is_let_in_within_five_seconds() {
    need_mount!();
    let home = Home::on_loopback();
    let key = home.world.pair("guest", &[]);

    let args = ["mount", &key.source("disk"), home.mountpoint.to_str().unwrap(), "-o", "wait"];
    let mut mount = home.world.program(Side::Client, &args).spawn().unwrap();
    eventually("the host to see the key", Duration::from_secs(20), || {
        !recorded(&home, &key.id)["last_seen"].is_null()
    });
    home.world.hostd(&["keys", "authorise", &key.id]).ok();
    assert_eq!(wait(&mut mount, Duration::from_secs(5)), Some(0));
    home.unmount();
}

#[test]
fn a_lost_stick_is_replaced_from_paper_and_locked_out() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "client");
    let paper = home.world.path("paper");
    let lost =
        home.world.pair("lost", &["--authorise", "--recovery-file", paper.to_str().unwrap()]);
    let paper = fs::read_to_string(paper).unwrap();
    let source = lost.dir.to_str().unwrap();
    let found = home.world.directory("found");
    home.world.mount(source, &found, "timeout=20").ok();
    assert!(found.join("hello").exists());

    // R15: this key may not be kept without a stick
    client.run(&["import", &paper]).refused(2, "usage");
    let told = ["0000", "1111", "ZZZZ"].iter().any(|error| {
        let typed = format!("{error}{}", &paper[4..]);
        let refused = client.run(&["import", &typed, "--to", "new"]).refused(2, "usage");
        // one in 32 is noticed only behind the last line
        refused.stderr.contains("line 1")
    });
    assert!(told);
    let new = home.world.path("new");
    client.run(&["import", &paper, "--to", new.to_str().unwrap()]).ok();
    client.mounts(new.to_str().unwrap());
    // the same key for the host; whoever finds the stick stays out
    assert_eq!(recorded(&home, &lost.id)["recovered"], true);
    eventually("the finder's mount to go", Duration::from_secs(3), || !is_mounted(&found));
    client.mount(source, "").refused(1, "key-revoked");
    client.mounts(new.to_str().unwrap());
    // the code is nowhere on the host
    let digits: String = paper.lines().next().unwrap().chars().filter(|c| *c != '-').collect();
    assert!(files_with(&home.world.state(Side::Host), &digits.as_bytes()[..23]).is_empty());
}

#[test]
fn a_host_on_a_new_disk_goes_on_with_its_backup() {
    need_mount!();
    let home = Home::on_loopback();
    let Home { world, server: _server, host, key, mountpoint, .. } = home;
    let (file, state) = (world.path("backup"), world.path("state").join("new"));
    let passphrase = world.path("passphrase");
    fs::write(&passphrase, "correct horse\n").unwrap();
    let file = file.to_str().unwrap();
    let with = ["--passphrase-file", passphrase.to_str().unwrap()];
    world.hostd(&[&["backup", file][..], &with].concat()).ok();
    let id = host.ready.clone();
    host.stop();
    fs::remove_dir_all(world.state(Side::Host)).unwrap();

    let restore = |more: &[&str]| {
        let args = [&["restore", file][..], &with, more].concat();
        Outcome::of(world.program_in(Side::Host, &state, &args), Duration::from_secs(30))
    };
    restore(&[]).ok();
    restore(&[]).refused(2, "usage");
    restore(&["--replace"]).ok();
    fs::write(&passphrase, "wrong\n").unwrap();
    restore(&["--replace"]).refused(1, "passphrase");
    // the same host, the same shares, the same keys: nothing is paired again
    let again = world.start_in(Side::Host, &state, &["serve"]);
    assert_eq!(again.ready, id);
    restore(&["--replace"]).refused(1, "internal");
    world.mount(&key.source("disk"), &mountpoint, "timeout=20").ok();
    assert!(mountpoint.join("hello").exists());
    world.unmount(&mountpoint);
}

#[test]
fn a_flipped_bit_anywhere_in_the_folder_is_damage() {
    let home = Home::on_loopback();
    let client = Client::new(&home, "client");
    let right = secret_file(&home, "right", "correct horse");
    let sealed = home.world.pair("sealed", &["--authorise", "--passphrase-file", &right]);

    for key in [&home.key.dir, &sealed.dir] {
        for entry in fs::read_dir(key.join("p2pfs")).unwrap() {
            let file = entry.unwrap().path();
            let good = fs::read(&file).unwrap();
            // every byte of a file is tried without programs, beside the code
            for at in (0..good.len()).step_by(good.len() / 40) {
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                fs::write(&file, &bad).unwrap();
                client.mount(key.to_str().unwrap(), "").refused(1, "key-corrupt");
            }
            fs::write(&file, &good).unwrap();
        }
    }
}

#[test]
fn a_key_of_another_host_is_not_taken_over() {
    let home = Home::on_loopback();
    let state = home.world.path("state").join("other");
    let key = home.key.dir.to_str().unwrap();

    let args = ["pair", "--key", key, "--server", &home.server.ready];
    let pair = home.world.program_in(Side::Host, &state, &args);
    Outcome::of(pair, Duration::from_secs(20)).refused(1, "host-mismatch");
}

#[test]
fn a_serial_number_that_many_sticks_share_is_told() {
    let home = Home::on_loopback();

    for (name, serial) in
        [("none", ""), ("short", "123"), ("zeros", "0000000000"), ("ones", "1111111")]
    {
        let dir = home.world.directory(name);
        let device = format!("serial={serial}\nvendor=0951\nproduct=1666\n");
        fs::write(dir.join("device"), device).unwrap();
        let paired = home.world.hostd(&["pair", "--key", dir.to_str().unwrap()]).ok();
        assert!(paired.stderr.contains("warning"), "{paired:#?}");
    }
    let keys = home.world.hostd(&["keys", "list", "--json"]).ok().json();
    let weak = keys.as_array().unwrap().iter().filter(|key| key["weak_serial"] == true);
    assert_eq!(weak.count(), 4);
    assert_eq!(recorded(&home, &home.key.id)["weak_serial"], false);
}

/// A key's secrets, in each form in which a program might write them.
fn secrets_of(dir: &Path) -> Vec<Vec<u8>> {
    let contents = p2pfs::usb::open_key(dir, None).unwrap().contents;
    let mut forms = Vec::new();
    for secret in [*contents.secret.seed(), *contents.pair_key.bytes()] {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        forms.push(PeerId(secret).to_text().into_bytes());
        forms.push(hex.to_uppercase().into_bytes());
        forms.push(hex.into_bytes());
        forms.push(secret.to_vec());
    }
    forms
}

/// As `--expires` takes it.
fn seconds_from_now(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let day = Outcome::of(
        {
            let mut date = std::process::Command::new("date");
            date.args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", now + seconds)]);
            date
        },
        Duration::from_secs(5),
    );
    day.ok().stdout.trim().to_owned()
}

fn until_seconds(text: &str) -> u64 {
    let mut date = std::process::Command::new("date");
    date.args(["+%s", "-d", text]);
    Outcome::of(date, Duration::from_secs(5)).ok().stdout.trim().parse().unwrap()
}
