//! Where keys appear.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KeyId;
use p2pfs::usb::read_public;

use crate::fuse::mount::{TYPE, find};
use crate::lock::lock;

/// Where sticks are mounted, by hand and by desktops.
const USUAL: [&str; 3] = ["/media", "/mnt", "/run/media"];
/// Directories that are looked into.
const LOOKED_INTO_MAX: usize = 1024;
/// How long a look into one may take: a stick may be slow, a server that is gone never answers.
const LOOK: Duration = Duration::from_secs(1);

/// Directories that are keys, or in which keys appear.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// With how many levels below belong to it.
    places: Vec<(PathBuf, usize)>,
    /// Not looked into: our own mounts.
    except: PathBuf,
    /// Those that are being looked into: one that does not answer is left alone until it does.
    busy: Arc<Mutex<HashSet<PathBuf>>>,
}

/// A directory that is a key.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) dir: PathBuf,
    /// Its id and the name of its host, if it can be read.
    pub(super) public: Option<(KeyId, String)>,
    /// See [`identity`].
    pub(super) place: Option<Identity>,
}

/// Device, number and change of a directory: another one, or one that was moved, is a key that was
/// plugged in again.
pub(super) type Identity = (u64, u64, i64, i64);

/// What is seen in a directory.
enum Seen {
    Key(Found),
    Below(Vec<PathBuf>),
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
        Ok(Self { places, except: except.to_owned(), busy: Arc::default() })
    }

    /// The keys that are there.
    pub(super) async fn keys(&self) -> Vec<Found> {
        self.keys_seen(look).await
    }

    async fn keys_seen(&self, look: fn(&Path) -> Option<Seen>) -> Vec<Found> {
        let mut keys: Vec<Found> = Vec::new();
        let mut rest: Vec<(PathBuf, usize)> = self.places.iter().rev().cloned().collect();
        let mut left = LOOKED_INTO_MAX;
        while let Some((dir, levels)) = rest.pop() {
            if left == 0 {
                break;
            }
            left -= 1;
            if dir == self.except {
                continue;
            }
            match self.within_time(dir, look).await {
                Some(Seen::Key(key)) => keys.push(key),
                Some(Seen::Below(below)) if levels > 0 => {
                    rest.extend(below.into_iter().map(|dir| (dir, levels - 1)));
                }
                Some(Seen::Below(_)) | None => {}
            }
        }
        keys.dedup_by(|one, other| one.dir == other.dir);
        keys
    }

    /// Nothing is seen of a directory that does not answer.
    async fn within_time(&self, dir: PathBuf, look: fn(&Path) -> Option<Seen>) -> Option<Seen> {
        if !lock(&self.busy).insert(dir.clone()) {
            return None;
        }
        let busy = Arc::clone(&self.busy);
        let looked = tokio::task::spawn_blocking(move || {
            let seen = look(&dir);
            lock(&busy).remove(&dir);
            seen
        });
        tokio::time::timeout(LOOK, looked).await.ok()?.ok()?
    }
}

/// It may block for ever.
fn look(dir: &Path) -> Option<Seen> {
    // a mount of ours may wait for its host
    if find(dir).is_some_and(|mount| mount.kind == TYPE) {
        return None;
    }
    if dir.join("p2pfs/key").exists() {
        let public = read_public(dir).ok().map(|public| (public.id, public.host_name));
        return Some(Seen::Key(Found { dir: dir.to_owned(), public, place: identity(dir) }));
    }
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut below: Vec<PathBuf> = below
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    below.sort_unstable_by(|a, b| b.cmp(a));
    Some(Seen::Below(below))
}

fn identity(dir: &Path) -> Option<Identity> {
    let found = fs::metadata(dir).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_found_where_they_are_and_one_level_below() {
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
        let found = Places::new(given, &ours).unwrap().keys().await;
        assert_eq!(found.into_iter().map(|key| key.dir).collect::<Vec<_>>(), [one, other]);
    }

    #[test]
    fn a_directory_that_never_answers_keeps_nobody() {
        let stuck_or_look = |dir: &Path| {
            while dir.ends_with("gone") {
                std::thread::park();
            }
            look(dir)
        };
        let top = tempfile::tempdir().unwrap();
        for dir in ["gone", "key/p2pfs"] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        fs::write(top.path().join("key/p2pfs/key"), "").unwrap();
        let places = Places::new(vec![top.path().to_owned()], Path::new("/none")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for _ in 0..2 {
            let found = runtime.block_on(places.keys_seen(stuck_or_look));
            assert_eq!(found.len(), 1);
        }
        assert_eq!(lock(&places.busy).len(), 1, "it is asked once");
        runtime.shutdown_background();
    }
}
