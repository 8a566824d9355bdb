//! Makes a tree like the ones that people have: sizes, depths, names, links, modes and times.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, utimensat,
};

use crate::world::{outcome::tool, programs};

/// Numbers that look random and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// At least 2,000 files, about 230 MB.
pub(super) fn tree(root: &Path) {
    fs::create_dir(root).unwrap();
    let mut dice = Dice(0x0070_3270_6673);
    many(&root.join("work"), &mut dice);
    sizes(&root.join("sizes"), &mut dice);
    deep(&root.join("deep"), &mut dice);
    fs::create_dir(root.join("odd")).unwrap();
    odd_names(&root.join("odd"));
    links(&root.join("links"), &mut dice);
    modes(&root.join("modes"));
    real(&root.join("real"));
    old_times(root, &mut dice);
}

/// 48 directories of 40 small files, as a source tree has them.
fn many(dir: &Path, dice: &mut Dice) {
    for group in 0..48 {
        let group = dir.join(format!("part-{:02}", group / 8)).join(format!("module-{group:02}"));
        fs::create_dir_all(&group).unwrap();
        for number in 0..40 {
            let size = match dice.below(10) {
                0 => 0,
                1..=6 => dice.below(4_000),
                7 | 8 => dice.below(40_000),
                _ => dice.below(200_000),
            };
            file(&group.join(format!("file-{number:03}.rs")), size, dice);
        }
    }
}

/// Every size around a boundary, and one of 200 MB.
fn sizes(dir: &Path, dice: &mut Dice) {
    fs::create_dir(dir).unwrap();
    for boundary in [1, 512, 4096, 65_536, 131_072, 1 << 20, 2 << 20] {
        for size in [boundary - 1, boundary, boundary + 1] {
            file(&dir.join(format!("{size}.bin")), size, dice);
        }
    }
    file(&dir.join("film.mkv"), 200_000_000, dice);
}

/// 60 levels, a file in each.
fn deep(dir: &Path, dice: &mut Dice) {
    let mut dir = dir.to_owned();
    for level in 0..60 {
        fs::create_dir(&dir).unwrap();
        file(&dir.join("note.txt"), level * 7, dice);
        dir.push(format!("level-{level}"));
    }
}

/// Names that are bytes: not UTF-8, spaces, newlines, quotes, the longest.
pub(super) fn odd_names(dir: &Path) {
    let longest = [b'x'; 255];
    let wide = "\u{1f980}".repeat(63);
    let names: [&[u8]; 14] = [
        b"with space",
        b" leading and trailing ",
        b"new\nline",
        b"tab\tand\x07bell",
        b"\xff\xfe not utf-8 \x80",
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"-rf",
        b"quote'\"`$(id)",
        b"back\\slash",
        b"*?[a-z]",
        b"...",
        &longest,
        wide.as_bytes(),
    ];
    for name in names {
        let path = dir.join(OsStr::from_bytes(name));
        fs::write(path, name).unwrap();
    }
    fs::create_dir(dir.join(OsStr::from_bytes(b"dir \xf0\x28"))).unwrap();
    fs::write(dir.join(OsStr::from_bytes(b"dir \xf0\x28/inner \xfe")), b"inner").unwrap();
}

/// Hard links within and across directories; symlinks of every kind.
fn links(dir: &Path, dice: &mut Dice) {
    fs::create_dir_all(dir.join("a")).unwrap();
    fs::create_dir_all(dir.join("b")).unwrap();
    for number in 0..10 {
        let first = dir.join(format!("a/original-{number}"));
        file(&first, 1_000 * number, dice);
        fs::hard_link(&first, dir.join(format!("a/second-{number}"))).unwrap();
        fs::hard_link(&first, dir.join(format!("b/third-{number}"))).unwrap();
    }
    let long = "x/".repeat(1_500);
    let targets: [&[u8]; 7] = [
        b"a/original-1",
        b"../links/b",
        b"/etc/hostname",
        b"nowhere/to be found",
        b"itself",
        b"\xff\xfe",
        long.as_bytes(),
    ];
    for (number, target) in targets.into_iter().enumerate() {
        let path = dir.join(format!("symlink-{number}"));
        symlink(OsStr::from_bytes(target), path).unwrap();
    }
    symlink("itself", dir.join("itself")).unwrap();
}

/// Modes of files and directories; owners, where the test may give files away.
fn modes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let root = programs::is_root();
    for mode in [0o400, 0o444, 0o600, 0o640, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1644] {
        let path = dir.join(format!("{mode:04o}"));
        fs::write(&path, "x").unwrap();
        if root {
            chown(&path, Some(1_000 + mode), Some(2_000)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    for mode in [0o500, 0o700, 0o1777, 0o2775] {
        let path = dir.join(format!("dir-{mode:04o}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inner"), "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
}

/// All that a node can have besides data: owners and modes, attributes of every namespace, ACLs,
/// holes, special files, links, old times. Only root can make it.
pub(super) fn everything(root: &Path) {
    let mut dice = Dice(0x0070_3270_6674);
    modes(&root.join("modes"));
    links(&root.join("links"), &mut dice);
    let attributes = root.join("attributes");
    fs::create_dir(&attributes).unwrap();
    for (number, name) in ["user.note", "trusted.note", "security.note"].iter().enumerate() {
        let path = attributes.join(format!("file-{number}"));
        file(&path, 100, &mut dice);
        for size in [0, 1, 3_000] {
            let name = format!("{name}-{size}");
            rustix::fs::setxattr(&path, name, &vec![7; size], XattrFlags::empty()).unwrap();
        }
    }
    rustix::fs::setxattr(&attributes, "user.of a directory", b"x", XattrFlags::empty()).unwrap();
    symlink("nowhere", attributes.join("link")).unwrap();
    let link = attributes.join("link");
    rustix::fs::lsetxattr(&link, "trusted.note", b"x", XattrFlags::empty()).unwrap();
    let able = attributes.join("able");
    file(&able, 10, &mut dice);
    tool("setcap", &["cap_net_raw+ep", able.to_str().unwrap()]);

    let acls = root.join("acls");
    fs::create_dir_all(acls.join("dir")).unwrap();
    file(&acls.join("file"), 10, &mut dice);
    let (dir, acl) = (acls.join("dir"), acls.join("file"));
    tool("setfacl", &["-d", "-m", "u:1:rwx,g:2:rx,o::-", dir.to_str().unwrap()]);
    tool("setfacl", &["-m", "u:65534:rw,g:7:r,m::rwx", acl.to_str().unwrap()]);
    file(&dir.join("inherits"), 10, &mut dice);

    let special = root.join("special");
    fs::create_dir(&special).unwrap();
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("large", FileType::CharacterDevice, makedev(300, 70_000)),
        ("loop", FileType::BlockDevice, makedev(7, 200)),
    ] {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, special.join(name), kind, mode, device).unwrap();
        chown(special.join(name), Some(3), Some(4)).unwrap();
    }

    let holes = File::create(root.join("holes")).unwrap();
    holes.write_all_at(b"begin", 0).unwrap();
    holes.write_all_at(b"end", 40 << 20).unwrap();
    old_times(root, &mut dice);
}

/// What the machine has: part of the Rust toolchain, and licence texts.
fn real(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let sysroot = tool("rustc", &["--print", "sysroot"]).stdout;
    let toolchain = format!("{}/lib/rustlib/etc", sysroot.trim());
    let to = dir.to_str().unwrap();
    for source in [&toolchain, "/usr/share/common-licenses"] {
        if Path::new(source).is_dir() {
            tool("cp", &["-r", source, to]);
        }
    }
}

/// Times: with nanoseconds, before 1970, far ahead; directories too, after their entries.
fn old_times(dir: &Path, dice: &mut Dice) {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in &paths {
        if fs::symlink_metadata(path).unwrap().is_dir() {
            old_times(path, dice);
        }
        let seconds = match dice.below(20) {
            0 => -86_400 * 365,
            1 => 4_102_444_800,
            _ => 1_000_000_000 + i64::try_from(dice.below(700_000_000)).unwrap(),
        };
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: i64::try_from(dice.below(1_000_000_000)).unwrap(),
        };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn file(path: &Path, size: u64, dice: &mut Dice) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path).unwrap());
    let mut left = size;
    while left > 0 {
        let bytes = dice.roll().to_le_bytes();
        let part = left.min(8);
        file.write_all(&bytes[..usize::try_from(part).unwrap()]).unwrap();
        left -= part;
    }
    file.flush().unwrap();
}
