//! The house rules that a program can check: layout, size, who may import what.

#![expect(clippy::unwrap_used, reason = "a file of this checkout that cannot be read is a failure")]

/// Licences, bans and sources of the dependencies.
mod dependencies;

use std::fs;
use std::path::{Path, PathBuf};

/// What may stand at the top, beside dot files and the build directory.
const TOP_LEVEL: [&str; 10] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "hostd",
    "mountd",
    "server",
    "src",
    "tests",
];

/// Bytes of a fuzzer's making.
const FUZZ_CORPUS: &str = "tests/fuzz/corpus";

/// A file that is longer wants a design talk.
const LINES_WANTED: usize = 500;
/// No file is longer.
const LINES_MAX: usize = 800;
/// `main.rs` only calls.
const MAIN_LINES_MAX: usize = 40;
const COLUMNS_MAX: usize = 100;

/// Who may not import what: files below these paths; crates and paths that they may not name; the
/// files below these paths that may.
const IMPORTS: [(&[&str], &[&str], &[&str]); 12] = [
    (
        &[
            "src/address.rs",
            "src/failure.rs",
            "src/id.rs",
            "src/identity",
            "src/limits.rs",
            "src/proto",
            "src/wire",
        ],
        &[
            "getrandom",
            "libc",
            "quinn",
            "rusb",
            "rustix",
            "rustls",
            "socket2",
            "std::env",
            "std::fs",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::process",
            "std::thread",
            "tokio",
            "Instant::now",
            "SystemTime::now",
        ],
        &[],
    ),
    // iteration over these is another one in every run
    (&["src/proto"], &["HashMap", "HashSet"], &[]),
    (
        &["src/id.rs", "src/limits.rs"],
        &["crate::identity", "crate::net", "crate::proto", "crate::wire"],
        &[],
    ),
    (&["src/identity", "src/wire"], &["crate::net", "crate::proto"], &[]),
    (&["src/proto"], &["crate::net"], &[]),
    (&["src", "mountd", "hostd", "server"], &["bincode"], &["src/wire/codec.rs"]),
    (&["src", "hostd", "server", "mountd"], &["fuser"], &["mountd/src/fuse"]),
    (&["src", "mountd", "hostd", "server"], &["rusb"], &["src/usb"]),
    (
        &["src", "mountd", "hostd", "server"],
        &["lru"],
        &["hostd/src/export/node.rs", "mountd/src/cache"],
    ),
    (&["mountd", "hostd", "server"], &["quinn", "rustls"], &[]),
    // it panics on what it does not expect: only in a process of its own
    (
        &["src", "mountd", "hostd", "server"],
        &["stun_client", "async_std"],
        &["src/net/doctor/second.rs"],
    ),
    (
        &["src", "mountd", "hostd", "server"],
        &["p2pfs_hostd", "p2pfs_mountd", "p2pfs_server"],
        &["hostd/src/main.rs", "mountd/src/main.rs", "server/src/main.rs"],
    ),
];

/// What no file of ours says, and why. In two parts, so that this file does not say it.
const NOT_SAID: [([&str; 2], &str); 10] = [
    (["TO", "DO"], "do it, or write an issue"),
    (["FIX", "ME"], "do it, or write an issue"),
    (["todo", "!("], "do it"),
    (["unimplemented", "!("], "do it"),
    (["#[al", "low("], "use expect, with a reason"),
    (["pub ty", "pe "], "use a newtype"),
    (["fn ge", "t_"], "a getter is a noun"),
    (["shar", "ed/"], "this tree stands alone"),
    (["crates", ".io"], "no registry's host"),
    (["deb.deb", "ian"], "no registry's host"),
];

/// Aliases that say less in longer words, not another thing.
const ALIASES: [&str; 1] = ["type BoxFuture<T>"];

#[test]
fn the_top_level_is_for_readers() {
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let fits = name.starts_with('.') || name == "target" || TOP_LEVEL.contains(&name.as_str());
        assert!(fits, "{name} is not on the list of the top level");
    }
}

#[test]
fn files_are_short_and_narrow_and_plain() {
    let mut wrong = Vec::new();
    for file in sources() {
        let lines: Vec<&str> = file.text.lines().collect();
        let path = &file.path;
        if lines.len() > LINES_MAX {
            wrong.push(format!("{path}: {} lines", lines.len()));
        } else if lines.len() > LINES_WANTED {
            eprintln!("{path}: {} lines, wanted are {LINES_WANTED}", lines.len());
        }
        if path.ends_with("/main.rs") && !path.starts_with("tests") && lines.len() > MAIN_LINES_MAX
        {
            wrong.push(format!("{path}: {} lines, a main.rs only calls", lines.len()));
        }
        if path.ends_with("/mod.rs") {
            wrong.push(format!("{path}: foo.rs and foo/, never mod.rs"));
        }
        for (number, line) in lines.iter().enumerate() {
            let literal = line.trim_start().starts_with('"');
            if line.chars().count() > COLUMNS_MAX && !literal {
                wrong.push(format!("{path}:{}: over {COLUMNS_MAX} columns", number + 1));
            }
            if !line.is_ascii() {
                wrong.push(format!("{path}:{}: not ASCII", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_follow_the_table() {
    let mut wrong = Vec::new();
    for file in sources() {
        let code = code_without_tests(&file);
        for (units, names, allowed) in IMPORTS {
            let starts = |prefixes: &[&str]| prefixes.iter().any(|unit| is_in(&file.path, unit));
            if !starts(units) || allowed.iter().any(|unit| file.path.starts_with(unit)) {
                continue;
            }
            for (number, line) in code.iter().enumerate() {
                for name in names {
                    if names_it(line, name) {
                        wrong.push(format!("{}:{}: {name}", file.path, number + 1));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_is_said_that_should_not_be() {
    let mut wrong = Vec::new();
    for file in files() {
        for (parts, why) in NOT_SAID {
            let said = parts.concat();
            for (number, line) in file.text.lines().enumerate() {
                if line.contains(&said) && !ALIASES.iter().any(|alias| line.contains(alias)) {
                    wrong.push(format!("{}:{}: {said}: {why}", file.path, number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A text file of ours.
struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file but what others made: Cargo.lock, the licence, the build directory.
fn files() -> Vec<Source> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = vec![root().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if matches!(name.as_str(), ".git" | "target" | "LICENSE" | FUZZ_CORPUS)
                || name.ends_with("Cargo.lock")
            {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push(Source { path: name, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn sources() -> Vec<Source> {
    let mut files = files();
    files.retain(|file| file.path.ends_with(".rs"));
    files
}

/// `src/wire` holds `src/wire.rs` and `src/wire/...`, not `src/wired.rs`.
fn is_in(path: &str, unit: &str) -> bool {
    path.strip_prefix(unit)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == ".rs")
}

/// The lines without comments, up to the tests at the end of the file.
fn code_without_tests(file: &Source) -> Vec<&str> {
    let path = &file.path;
    if path.ends_with("/tests.rs") || path.contains("/tests/") || path.starts_with("tests/") {
        return Vec::new();
    }
    file.text
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect()
}

/// Whether a line names a crate or path: `name::` or `use name`, as whole words.
fn names_it(line: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let ends = !after.starts_with(word);
        let is_path = name.contains("::") || !name.starts_with(char::is_lowercase);
        let used = is_path || after.starts_with("::") || line.trim_start().starts_with("use ");
        before.is_none_or(|c| !word(c) && c != '.' && c != '"') && ends && used
    })
}
