//! `mount.p2pfs`, as mount(8) starts it: `mount.p2pfs SPEC DIR [-sfnv] [-N NS] [-o OPTIONS] [-t
//! TYPE]`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use p2pfs::failure::{Code, Failure};

use crate::daemonise;
use crate::fuse::mount::check_mountpoint;
use crate::mounted::{MountRequest, Words};
use crate::options::MountOptions;
use crate::secrets::Secrets;
use crate::spec::Spec;

/// The name that makes this program mount(8)'s helper.
pub(crate) const NAME: &str = "mount.p2pfs";

/// mount(8): wrong usage.
const EXIT_USAGE: u8 = 1;
/// mount(8): mount failure.
const EXIT_FAILED: u8 = 32;

#[derive(Debug, Default, Eq, PartialEq)]
struct Arguments {
    places: Vec<OsString>,
    options: String,
    sloppy: bool,
    fake: bool,
}

pub(crate) fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.report());
            ExitCode::from(match failure.code {
                Code::Usage => EXIT_USAGE,
                _ => EXIT_FAILED,
            })
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let arguments = Arguments::parse(arguments)?;
    let [spec, mountpoint] = arguments.places.as_slice() else {
        return Err(usage("a key and a mount point are needed".to_owned()));
    };
    let spec = Spec::parse(spec)?;
    let options = MountOptions::parse(&arguments.options, arguments.sloppy)?;
    if arguments.fake {
        return check_mountpoint(mountpoint.as_ref()).map(drop);
    }
    let words = Words { options: arguments.options, sloppy: arguments.sloppy, from: None };
    let mut request = MountRequest::new(spec, PathBuf::from(mountpoint), options, words)?;
    request = request.check()?;
    request.secrets = Secrets::gather(&request)?;
    daemonise::mount_in_background(&request)
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, Failure> {
        let mut parsed = Self::default();
        while let Some(word) = words.next() {
            let letters = word.to_str().and_then(|word| word.strip_prefix('-'));
            let Some(letters) = letters.filter(|letters| !letters.is_empty()) else {
                parsed.places.push(word);
                continue;
            };
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    's' => parsed.sloppy = true,
                    'f' => parsed.fake = true,
                    // /etc/mtab is a link to what the kernel says; there is nothing to be wordy
                    // about
                    'n' | 'v' => {}
                    'o' | 't' | 'N' => {
                        let rest = OsString::from(letters.as_str());
                        let value = Some(rest).filter(|rest| !rest.is_empty());
                        let value = value.or_else(|| words.next());
                        let value = value.as_deref().and_then(OsStr::to_str);
                        let Some(value) = value else {
                            return Err(usage(format!("-{letter} needs a value")));
                        };
                        if letter == 'o' {
                            parsed.options.push(',');
                            parsed.options.push_str(value);
                        }
                        break;
                    }
                    _ => return Err(usage(format!("unknown flag -{letter}"))),
                }
            }
        }
        Ok(parsed)
    }
}

fn usage(what: String) -> Failure {
    let hint = "use it through mount(8): mount -t p2pfs KEY:SHARE MOUNTPOINT -o OPTIONS";
    Failure::new(Code::Usage, what, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, Failure> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_taken_as_mount_gives_them() {
        let parsed = parse(&["/key:docs", "/mnt", "-sn", "-o", "ro,cache=1M", "-t", "p2pfs"]);
        let parsed = parsed.unwrap();
        assert_eq!(parsed.places, ["/key:docs", "/mnt"]);
        assert_eq!((parsed.options.as_str(), parsed.sloppy), (",ro,cache=1M", true));
    }

    #[test]
    fn what_is_not_understood_is_usage() {
        for bad in [&["/key"][..], &[], &["/key", "/mnt", "-x"], &["/key", "/mnt", "-o"]] {
            let failure = run(bad.iter().map(OsString::from)).unwrap_err();
            assert_eq!(failure.code, Code::Usage);
        }
    }
}
