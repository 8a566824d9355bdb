//! Mount options: the words behind `-o`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::proto::path::{UnknownWord, Wanted};

use crate::fuse::Presentation;

/// The smallest block cache, bytes.
const CACHE_MIN: u64 = 1 << 20;

/// Every option, read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MountOptions {
    /// `ro`
    pub read_only: bool,
    /// `noexec`, which mount(8) adds for `user`.
    pub no_exec: bool,
    /// `allow_other`
    pub allow_other: bool,
    /// `uid=`, `gid=`, `umask=`
    pub presentation: Presentation,
    /// `cache=`, bytes.
    pub cache: u64,
    /// `grace=`: how long calls wait for a silent host; `None` for ever.
    pub grace: Option<Duration>,
    /// `timeout=`: how long mounting may take.
    pub timeout: Duration,
    /// `drain=`: how long what was accepted may take when the key is pulled.
    pub drain: Duration,
    /// `paths=`, `relay=`, `role=`, `auth-to=`
    pub wanted: Wanted,
    /// `wait`: try again after a denial until authorised.
    pub wait: bool,
    /// `login=`: the user of a key that is a login.
    pub login: Option<String>,
    /// `password-file=`: its password, instead of asking.
    pub password_file: Option<PathBuf>,
    /// `passphrase-file=`: the key's passphrase, instead of asking.
    pub passphrase_file: Option<PathBuf>,
    /// `state=`
    pub state: Option<PathBuf>,
}

/// Options that only have their default value so far, and the values that they will have.
const FIXED: [(&str, &str, &[&str]); 3] = [
    ("offline", "cached", &["cached", "fail"]),
    ("close", "leased", &["leased", "applied"]),
    ("excl", "leased", &["leased", "sync"]),
];
/// What every file system takes and nobody needs to know.
const IGNORED: [&str; 8] =
    ["noauto", "nofail", "_netdev", "auto", "defaults", "user", "nosuid", "nodev"];

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            no_exec: false,
            allow_other: false,
            presentation: Presentation::default(),
            cache: 512 << 20,
            grace: Some(Duration::from_secs(30)),
            timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            wanted: Wanted::default(),
            wait: false,
            login: None,
            password_file: None,
            passphrase_file: None,
            state: None,
        }
    }
}

impl MountOptions {
    /// Reads words with commas between them; of two that contradict the later one counts.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`], which names the option that is unknown or has a wrong value. `sloppy`
    /// (`mount -s`) lets unknown ones pass.
    pub fn parse(text: &str, sloppy: bool) -> Result<Self, Failure> {
        let mut options = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            if IGNORED.contains(&name) || name.starts_with("x-") {
                continue;
            }
            let known = match value {
                None => options.set_flag(name),
                Some(value) => options.set_value(name, value)? || set_fixed(name, value)?,
            };
            if !known && !sloppy {
                return Err(unknown(word));
            }
        }
        Ok(options)
    }

    /// Whether a file is named by a relative path.
    pub(crate) fn has_relative_files(&self) -> bool {
        let files = [&self.password_file, &self.passphrase_file];
        files.into_iter().flatten().any(|file| file.is_relative())
    }

    /// Relative paths of files begin at `dir`.
    pub(crate) fn find_files_in(&mut self, dir: &Path) {
        for file in [&mut self.password_file, &mut self.passphrase_file].into_iter().flatten() {
            *file = dir.join(&*file);
        }
    }

    fn set_flag(&mut self, name: &str) -> bool {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "noexec" => self.no_exec = true,
            "exec" => self.no_exec = false,
            "allow_other" => self.allow_other = true,
            "wait" => self.wait = true,
            _ => return false,
        }
        true
    }

    fn set_value(&mut self, name: &str, value: &str) -> Result<bool, Failure> {
        let wrong = |wanted: &str| wrong_value(name, value, wanted);
        let number = || value.parse::<u32>().map_err(|_| wrong("a number"));
        match name {
            "uid" => self.presentation.uid = Some(number()?),
            "gid" => self.presentation.gid = Some(number()?),
            "umask" => {
                let umask = u32::from_str_radix(value, 8).ok().filter(|umask| *umask <= 0o777);
                self.presentation.umask = Some(umask.ok_or_else(|| wrong("octal, as 022"))?);
            }
            "cache" => {
                let bytes = parse_size(value).filter(|bytes| *bytes >= CACHE_MIN);
                self.cache = bytes.ok_or_else(|| wrong("a size of at least 1M, as 512M"))?;
            }
            "grace" if value == "inf" => self.grace = None,
            "grace" => self.grace = Some(Duration::from_secs(number()?.into())),
            "timeout" => self.timeout = Duration::from_secs(number()?.max(1).into()),
            "drain" => self.drain = Duration::from_secs(number()?.into()),
            "paths" => self.wanted.order = word(name, value)?,
            "relay" => self.wanted.relay = Some(word(name, value)?),
            "role" => self.wanted.side = word(name, value)?,
            "auth-to" => self.wanted.auth_to = Some(word(name, value)?),
            "login" if !value.is_empty() => self.login = Some(value.to_owned()),
            "login" => return Err(wrong("a user name")),
            "password-file" if !value.is_empty() => self.password_file = Some(value.into()),
            "passphrase-file" if !value.is_empty() => self.passphrase_file = Some(value.into()),
            "password-file" | "passphrase-file" => return Err(wrong("a file")),
            "state" if !value.is_empty() => self.state = Some(PathBuf::from(value)),
            "state" => return Err(wrong("a directory")),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// One of a few words.
fn word<T: FromStr<Err = UnknownWord>>(name: &str, value: &str) -> Result<T, Failure> {
    value.parse().map_err(|UnknownWord(wanted)| wrong_value(name, value, wanted))
}

fn set_fixed(name: &str, value: &str) -> Result<bool, Failure> {
    let Some((_, default, values)) = FIXED.iter().find(|(fixed, ..)| *fixed == name) else {
        return Ok(false);
    };
    if !values.contains(&value) {
        return Err(wrong_value(name, value, &values.join(", ")));
    }
    if value != *default {
        return Err(not_yet(name, value, default));
    }
    Ok(true)
}

/// A number of bytes, with `K`, `M` or `G` behind it.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn unknown(word: &str) -> Failure {
    Failure::new(
        Code::Usage,
        format!("unknown mount option {word}"),
        "p2pfs-mountd mount --help lists the options",
    )
}

fn wrong_value(name: &str, value: &str, wanted: &str) -> Failure {
    Failure::new(
        Code::Usage,
        format!("mount option {name}={value} has a wrong value"),
        format!("wanted: {wanted}"),
    )
}

fn not_yet(name: &str, value: &str, default: &str) -> Failure {
    Failure::new(
        Code::Usage,
        format!("mount option {name}={value} is not supported yet"),
        format!("leave {name}= away; this version knows only {default}"),
    )
}

#[cfg(test)]
mod tests {
    use p2pfs::proto::path::{AuthTo, Order, RelayUse, Side};

    use super::*;

    #[test]
    fn the_list_of_a_machine_is_read() {
        let text = "ro,noauto,x-systemd.automount,uid=1000,umask=077,cache=8M,grace=inf,timeout=5";
        let options = MountOptions::parse(text, false).unwrap();
        assert!(options.read_only);
        assert_eq!((options.cache, options.grace), (8 << 20, None));
        assert_eq!(options.timeout, Duration::from_secs(5));
        let presentation = Presentation { uid: Some(1000), gid: None, umask: Some(0o77) };
        assert_eq!(options.presentation, presentation);
    }

    #[test]
    fn what_every_file_system_takes_is_ignored() {
        let text = "noauto,nofail,_netdev,auto,defaults,user,x-a=b,offline=cached,close=leased,\
                    excl=leased,paths=auto,role=both,drain=5";
        assert_eq!(MountOptions::parse(text, false), Ok(MountOptions::default()));
    }

    #[test]
    fn what_the_paths_are_to_be_is_read() {
        let text = "paths=tcp-first,relay=never,role=listen,auth-to=tcp-public";
        let wanted = Wanted {
            order: Order::TcpFirst,
            relay: Some(RelayUse::Never),
            side: Side::Listen,
            auth_to: Some(AuthTo::TcpPublic),
        };
        assert_eq!(MountOptions::parse(text, false).unwrap().wanted, wanted);
        assert_eq!(Wanted::default().relay_use(), RelayUse::First);
    }

    #[test]
    fn an_option_that_is_unknown_or_wrong_is_named() {
        for bad in [
            "frobnicate",
            "frobnicate=1",
            "cache=lots",
            "cache=1K",
            "cache=99999999999G",
            "grace=-1",
            "umask=9",
            "offline=fail",
            "offline=perhaps",
            "auth-to=everywhere",
            "paths=tcp",
            "relay=no",
            "role=host",
            "login=",
            "passphrase-file=",
            "state=",
            "ro=1",
        ] {
            let failure = MountOptions::parse(&format!("rw,{bad}"), false).unwrap_err();
            assert_eq!(failure.code, Code::Usage);
            let name = bad.split('=').next().unwrap();
            assert!(failure.what.contains(name), "{failure}");
        }
        assert!(MountOptions::parse("frobnicate", true).is_ok());
    }
}
