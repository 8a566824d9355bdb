//! Where keys appear.

use std::fs;
use std::path::{Path, PathBuf};

use p2pfs::failure::{Code, Failure};

use crate::fuse::mount::{TYPE, find};

/// Where sticks are mounted, by hand and by desktops.
const USUAL: [&str; 3] = ["/media", "/mnt", "/run/media"];
/// Directories that are looked into.
const LOOKED_INTO_MAX: usize = 1024;

/// Directories that are keys, or in which keys appear.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// With how many levels below belong to it.
    places: Vec<(PathBuf, usize)>,
    /// Not looked into: our own mounts.
    except: PathBuf,
}

impl Places {
    /// Without `given` ones, where sticks usually are.
    pub(super) fn new(given: Vec<PathBuf>, except: &Path) -> Result<Self, Failure> {
        let places = if given.is_empty() {
            // of desktops, the folder of a user is in between
            USUAL.iter().map(|place| (PathBuf::from(place), 2)).collect()
        } else {
            let absolute = given.iter().map(|place| {
                std::path::absolute(place).map(|place| (place, 1)).map_err(|error| {
                    let what = format!("{}: {error}", place.display());
                    Failure::new(Code::Usage, what, "name a directory")
                })
            });
            absolute.collect::<Result<_, _>>()?
        };
        Ok(Self { places, except: except.to_owned() })
    }

    /// The directories that look like keys. It blocks.
    pub(super) fn keys(&self) -> Vec<PathBuf> {
        let mut keys = Vec::new();
        let mut rest: Vec<(PathBuf, usize)> = self.places.iter().rev().cloned().collect();
        let mut left = LOOKED_INTO_MAX;
        while let Some((dir, levels)) = rest.pop() {
            if left == 0 {
                break;
            }
            left -= 1;
            // a mount of ours may wait for its host
            if dir == self.except || find(&dir).is_some_and(|mount| mount.kind == TYPE) {
                continue;
            }
            if dir.join("p2pfs/key").exists() {
                keys.push(dir);
            } else if levels > 0 {
                let below = fs::read_dir(&dir).into_iter().flatten().flatten();
                let mut below: Vec<PathBuf> = below
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path())
                    .collect();
                below.sort_unstable_by(|a, b| b.cmp(a));
                rest.extend(below.into_iter().map(|dir| (dir, levels - 1)));
            }
        }
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_where_they_are_and_one_level_below() {
        let top = tempfile::tempdir().unwrap();
        let key = |name: &str| {
            let dir = top.path().join(name);
            fs::create_dir_all(dir.join("p2pfs")).unwrap();
            fs::write(dir.join("p2pfs/key"), "").unwrap();
            dir
        };
        let (one, other, _deep, ours) =
            (key("keys/one"), key("other"), key("keys/far/deep"), key("keys/mounts"));
        let given = vec![top.path().join("keys"), other.clone(), top.path().join("missing")];
        assert_eq!(Places::new(given, &ours).unwrap().keys(), [one, other]);
    }
}
