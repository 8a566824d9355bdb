//! A real mount over a host in the same process: D1, D6 in their basic form.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod local;
mod stall;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use p2pfs::net::remote::Remote;
use p2pfs::net::serve::Export;
use p2pfs_hostd::export::{Share, View};
use p2pfs_mountd::fs::Fs;
use p2pfs_mountd::fuse::mount::{MountSettings, Mounted, find, mount};
use p2pfs_mountd::fuse::notify::KernelLink;
use p2pfs_mountd::fuse::{Presentation, serve};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A share, mounted; unmounted on drop.
struct World {
    host: TempDir,
    mountpoint: TempDir,
    mounted: Mounted,
    fs: Arc<Fs>,
    runtime: Runtime,
}

impl World {
    /// `None`, and a line that says so, where FUSE cannot be used; in CI that is a failure.
    fn new(budget: u64) -> Option<Self> {
        Self::with(budget, |view| view)
    }

    /// As [`Self::new`]; `wrap` puts something before the share.
    fn with<E: Export + 'static>(
        budget: u64,
        wrap: impl FnOnce(Arc<View>) -> Arc<E>,
    ) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            assert!(std::env::var_os("CI").is_none(), "FUSE is needed in CI");
            eprintln!("SKIPPED: needs root and /dev/fuse");
            return None;
        }
        let host = tempfile::tempdir().unwrap();
        let mountpoint = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let share = Share::open(host.path()).unwrap();
        let remote: Arc<dyn Remote> =
            Arc::new(local::LocalHost::new(wrap(share.view()), runtime.handle().clone()));
        let link = KernelLink::new().unwrap();
        let fs = Fs::new(remote, link.clone(), budget);
        let source = "/key:docs".as_ref();
        let settings = MountSettings::default();
        let (device, mounted) = mount(source, mountpoint.path(), &settings).unwrap();
        let handle = runtime.handle().clone();
        serve(fs.clone(), &link, device, Presentation::default(), Arc::default(), false, handle)
            .unwrap();
        runtime.block_on(async { fs.clone().keep_up() });
        Some(Self { host, mountpoint, mounted, fs, runtime })
    }

    fn client(&self, path: &str) -> PathBuf {
        self.mountpoint.path().join(path)
    }

    fn on_host(&self, path: &str) -> PathBuf {
        self.host.path().join(path)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.mounted.detach().unwrap();
    }
}

/// A tree of files of many sizes, odd names, links and times; as `cp -a` must keep it.
fn make_tree(root: &Path) {
    use std::os::unix::ffi::OsStrExt;
    fs::create_dir(root).unwrap();
    for directory in 0..4 {
        let directory = root.join(format!("directory {directory}"));
        fs::create_dir(&directory).unwrap();
        for (number, size) in [0, 1, 4095, 32_768, 32_769, 1_000_000, 3_500_001].iter().enumerate()
        {
            let data: Vec<u8> = (0..*size).map(|byte: usize| (byte * 7 + number) as u8).collect();
            let file = directory.join(format!("file-{number}"));
            fs::write(&file, data).unwrap();
            let mode = 0o600 + number as u32;
            fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        }
        for number in 0..300 {
            fs::write(directory.join(format!("small-{number}")), number.to_string()).unwrap();
        }
        symlink("file-3", directory.join("link")).unwrap();
        symlink("/nowhere/at/all", directory.join("dangling")).unwrap();
        fs::hard_link(directory.join("file-4"), directory.join("second name")).unwrap();
    }
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8")), "x").unwrap();
    fs::create_dir_all(root.join("a/b/c/d/e/f")).unwrap();
    // a hole, and a time before 1970
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(10_000_000).unwrap();
    sparse.write_at(b"end", 9_000_000).unwrap();
    let before = std::time::UNIX_EPOCH - std::time::Duration::new(100, 250_000_000);
    sparse.set_modified(before).unwrap();
}

fn run(program: &str, arguments: &[&Path]) {
    let mut command = Command::new(program);
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Every name, type, mode, time, link and byte; times of directories change while files are made.
fn assert_same(one: &Path, other: &Path) {
    let (a, b) = (fs::symlink_metadata(one).unwrap(), fs::symlink_metadata(other).unwrap());
    let shown = one.display();
    assert_eq!((a.mode(), a.uid(), a.gid()), (b.mode(), b.uid(), b.gid()), "{shown}");
    assert_eq!((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec()), "{shown}");
    if a.is_symlink() {
        assert_eq!(fs::read_link(one).unwrap(), fs::read_link(other).unwrap());
    } else if a.is_dir() {
        let list = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(list(one), list(other), "{shown}");
        for name in list(one) {
            assert_same(&one.join(&name), &other.join(&name));
        }
    } else {
        assert_eq!((a.len(), a.nlink()), (b.len(), b.nlink()), "{shown}");
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{shown}: other data");
    }
}

#[test]
fn a_tree_is_copied_in_and_out_unchanged() {
    for budget in [1 << 20, 512 << 20] {
        let Some(world) = World::new(budget) else { return };
        let local = tempfile::tempdir().unwrap();
        let tree = local.path().join("tree");
        make_tree(&tree);

        run("cp", &["-a".as_ref(), &tree, &world.client("in")]);
        world.runtime.block_on(world.fs.sync_all()).unwrap();
        assert_same(&tree, &world.on_host("in"));
        assert_same(&tree, &world.client("in"));
        run("cp", &["-a".as_ref(), &world.client("in"), &local.path().join("out")]);
        assert_same(&tree, &local.path().join("out"));
        run("rm", &["-rf".as_ref(), &world.client("in")]);
        assert!(!world.on_host("in").exists());
        if Command::new("rsync").arg("--version").output().is_ok() {
            let from = tree.join("");
            run("rsync", &["-aH".as_ref(), &from, &world.client("synced")]);
            assert_same(&tree, &world.on_host("synced"));
        }
    }
}

#[test]
fn the_mount_shows_its_type_and_source() {
    let Some(world) = World::new(1 << 20) else { return };
    let info = find(world.mountpoint.path()).unwrap();
    assert_eq!((info.kind.as_str(), info.source.to_str()), ("fuse.p2pfs", Some("/key:docs")));
    let ino = fs::metadata(world.on_host("")).unwrap().ino();
    assert_ne!(ino, 0);
    fs::write(world.on_host("file"), "x").unwrap();
    let ino = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(world.client("file")), ino(world.on_host("file")));
}

#[test]
fn an_open_sees_what_the_host_wrote_before_it() {
    let Some(world) = World::new(64 << 20) else { return };
    for round in 0..50 {
        let text = format!("{round}").repeat(1 + round * 997 % 50_000);
        fs::write(world.on_host("file"), &text).unwrap();
        assert!(fs::read_to_string(world.client("file")).unwrap() == text, "round {round}");
        let client = text.to_uppercase() + "client";
        fs::write(world.client("file"), &client).unwrap();
        assert!(fs::read_to_string(world.on_host("file")).unwrap() == client, "round {round}");
        assert!(fs::read_to_string(world.client("file")).unwrap() == client, "round {round}");
    }
}

#[test]
fn attributes_include_writes_that_are_under_way() {
    let Some(world) = World::new(64 << 20) else { return };
    let file = fs::File::create(world.client("file")).unwrap();
    for step in 1..=200_u64 {
        file.write_at(&[1; 1000], (step - 1) * 1000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), step * 1000);
        assert_eq!(fs::metadata(world.client("file")).unwrap().len(), step * 1000);
        let listed = fs::read_dir(world.client("")).unwrap().next().unwrap().unwrap();
        assert_eq!(listed.metadata().unwrap().len(), step * 1000);
    }
    file.set_len(10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
}

#[test]
fn appends_and_unlinked_files_work_as_on_a_disk() {
    use std::io::Write;
    let Some(world) = World::new(64 << 20) else { return };
    let path = world.client("log");
    let mut log = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for line in 0..500 {
        writeln!(log, "line {line}").unwrap();
    }
    drop(log);
    let expected: String = (0..500).map(|line| format!("line {line}\n")).collect();
    assert_eq!(fs::read_to_string(world.on_host("log")).unwrap(), expected);

    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_at(b"LINE", 0).unwrap();
    let mut start = [0; 6];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"LINE 0");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn a_large_directory_is_listed_once_and_completely() {
    let Some(world) = World::new(1 << 20) else { return };
    fs::create_dir(world.on_host("many")).unwrap();
    for number in 0..5000 {
        fs::write(world.on_host(&format!("many/{number}")), "").unwrap();
    }
    let mut seen: Vec<usize> = fs::read_dir(world.client("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..5000).collect::<Vec<_>>());
}

#[test]
fn a_file_that_hangs_on_the_host_does_not_slow_the_others() {
    const READERS: u64 = 24;
    let mut stall = None;
    let wrap = |view| Arc::clone(stall.insert(stall::Stall::new(view)));
    let Some(world) = World::with(64 << 20, wrap) else { return };
    let stall = stall.unwrap();
    let data = vec![7; READERS as usize * 200_000];
    fs::write(world.on_host("slow"), &data).unwrap();
    fs::write(world.on_host("quick"), "quick").unwrap();
    stall.hold_reads_of(fs::metadata(world.on_host("slow")).unwrap().ino());

    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let path = world.client("slow");
            std::thread::spawn(move || {
                let mut piece = vec![0; 100_000];
                let file = fs::File::open(path).unwrap();
                file.read_exact_at(&mut piece, number * 200_000).unwrap();
                piece
            })
        })
        .collect();
    stall.wait_for_reads();
    // more readers hang than there are threads of any kind on their way
    for round in 0..50 {
        assert_eq!(fs::read_to_string(world.client("quick")).unwrap(), "quick");
        let other = format!("other {round}");
        fs::write(world.client(&other), &other).unwrap();
        assert_eq!(fs::read_to_string(world.on_host(&other)).unwrap(), other);
    }
    assert_eq!(fs::read_dir(world.client("")).unwrap().count(), 52);
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    stall.let_go();
    for reader in readers {
        assert!(reader.join().unwrap().iter().all(|byte| *byte == 7));
    }
}
