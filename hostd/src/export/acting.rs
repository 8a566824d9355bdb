//! As whom a call or change is carried out.
//!
//! Users, groups and capabilities belong to a thread on Linux, and a call or change is carried out
//! by one thread from beginning to end. So a thread takes over a caller's numbers, and gives them
//! back before it does anything else: [`Acts`] does so when it is dropped, also by a panic, and a
//! thread that could not go back would take the process down rather than serve anybody else.
//!
//! The effective user is changed, and not just the one for files: then all capabilities are gone as
//! well, so that the disk's reserve and quotas hold for the caller as they hold at home.

use std::cell::Cell;
use std::sync::OnceLock;

use p2pfs::limits::CALLER_GROUPS_MAX;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Caller, NewMode};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io;
use rustix::process::{getegid, geteuid, getgroups, umask};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use super::errno;

/// As whom a session's calls and changes are carried out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Acting {
    /// As this process: `map=squash` of an ordinary user, or of root for a directory of root's.
    Itself,
    /// As the owner of the share's root: `map=squash` of root for somebody's directory.
    Owner(Caller),
    /// As whoever asks: `map=identity`.
    Caller,
}

/// A thread that acts as somebody else, until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Acts(bool);

thread_local! {
    /// The user that this thread acts as, while it is not itself.
    static USER: Cell<Option<Uid>> = const { Cell::new(None) };
    /// Whether it acts for a caller, root among them.
    static FOR_CALLER: Cell<bool> = const { Cell::new(false) };
    /// Whether its umask is its own, and no longer the process's.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process may act as other users.
pub(crate) fn possible() -> bool {
    geteuid().is_root()
        && capabilities(None).is_ok_and(|sets| {
            sets.effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID)
        })
}

impl Acting {
    /// Acts as this says, for `caller`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a caller that nobody can be.
    pub(super) fn begin(&self, caller: Option<&Caller>) -> Result<Acts, Errno> {
        match (self, caller) {
            (Self::Owner(owner), _) => Acts::begin(owner),
            (Self::Caller, Some(caller)) => Acts::begin(caller),
            (Self::Itself, _) | (Self::Caller, None) => Ok(Acts(false)),
        }
    }
}

impl Acts {
    fn begin(caller: &Caller) -> Result<Self, Errno> {
        let Caller { uid, gid, groups } = caller;
        // -1 means "as it is" to the system
        if [*uid, *gid].contains(&u32::MAX) || groups.len() > CALLER_GROUPS_MAX {
            return Err(Errno::EINVAL);
        }
        let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let uid = Uid::from_raw(*uid);
        own_groups();
        // From here on whatever fails is undone
        let acts = Self(true);
        FOR_CALLER.set(true);
        set_thread_groups(&groups).map_err(errno)?;
        set_thread_res_gid(None, Gid::from_raw(*gid), None).map_err(errno)?;
        if !uid.is_root() {
            USER.set(Some(uid));
            set_thread_res_uid(None, uid, None).map_err(errno)?;
        }
        Ok(acts)
    }
}

impl Drop for Acts {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
        let user = match USER.take() {
            Some(_) => set_thread_res_uid(None, Uid::ROOT, None),
            None => Ok(()),
        };
        let back = user
            .and_then(|()| set_thread_res_gid(None, own_group(), None))
            .and_then(|()| set_thread_groups(own_groups()));
        or_abort(back);
        FOR_CALLER.set(false);
    }
}

/// Does what is this host's own business, whoever the thread acts as.
pub(super) fn as_itself<T>(work: impl FnOnce() -> T) -> T {
    /// Back to the user, also by a panic.
    struct Back(Uid);
    impl Drop for Back {
        fn drop(&mut self) {
            or_abort(set_thread_res_uid(None, self.0, None));
            USER.set(Some(self.0));
        }
    }

    let Some(user) = USER.get() else { return work() };
    or_abort(set_thread_res_uid(None, Uid::ROOT, None));
    USER.set(None);
    let _back = Back(user);
    work()
}

/// Changes a file's data. Who is not root on the client must not leave setuid and setgid on it, and
/// where this host is root for everybody it cannot tell who that is: then nobody does.
pub(super) fn writing<T>(work: impl FnOnce() -> T) -> T {
    /// The capabilities come back, also by a panic.
    struct Back(rustix::thread::CapabilitySets);
    impl Drop for Back {
        fn drop(&mut self) {
            or_abort(set_capabilities(None, self.0));
        }
    }

    if FOR_CALLER.get() || !geteuid().is_root() {
        return work();
    }
    let Ok(before) = capabilities(None) else { return work() };
    let without = before.effective - CapabilitySet::FSETID;
    let sets = rustix::thread::CapabilitySets { effective: without, ..before };
    let _back = set_capabilities(None, sets).is_ok().then_some(Back(before));
    work()
}

/// Makes something with the permission bits and the umask of `mode`. The kernel applies the umask,
/// or a default ACL instead.
pub(super) fn masked<T>(mode: u32, make: impl FnOnce(Mode) -> T) -> T {
    /// The umask that was there before, also by a panic.
    struct Back(Mode);
    impl Drop for Back {
        fn drop(&mut self) {
            umask(self.0);
        }
    }

    let mode = NewMode(mode);
    let permissions = Mode::from_raw_mode(mode.permissions());
    let mask = Mode::from_raw_mode(mode.umask());
    if mask.is_empty() {
        return make(permissions);
    }
    if !has_own_umask() {
        return make(permissions - mask);
    }
    let _back = Back(umask(mask));
    make(permissions)
}

/// Whether this thread's umask is its own; makes it so.
#[expect(unsafe_code, reason = "a umask of a thread's own: rustix has no safe call")]
fn has_own_umask() -> bool {
    if !OWN_UMASK.get() {
        // SAFETY: only the working directory, the root and the umask are this thread's own from now
        // on; descriptors stay common.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::FS) };
        OWN_UMASK.set(unshared.is_ok());
    }
    OWN_UMASK.get()
}

/// The group of this process.
fn own_group() -> Gid {
    static GROUP: OnceLock<Gid> = OnceLock::new();
    *GROUP.get_or_init(getegid)
}

/// The other groups of this process. Asked before a thread acts for the first time.
fn own_groups() -> &'static [Gid] {
    static GROUPS: OnceLock<Vec<Gid>> = OnceLock::new();
    own_group();
    GROUPS.get_or_init(|| getgroups().unwrap_or_default())
}

fn or_abort(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("p2pfs-hostd: a thread cannot go back to its own user: {error}");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::export::tests::lacks_root;

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn a_thread_acts_as_the_caller_and_is_itself_again() {
        if lacks_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let groups = getgroups().unwrap();
        {
            let _acts = Acting::Caller.begin(Some(&caller(4711, 4712, &[4713]))).unwrap();
            fs::write(dir.path().join("theirs"), "x").unwrap();
            assert!(fs::read(&secret).is_err());
            assert_eq!(as_itself(|| fs::read(&secret).unwrap()), b"x");
            assert!(fs::read(&secret).is_err());
            assert_eq!(getgroups().unwrap(), [Gid::from_raw(4713)]);
        }
        let made = fs::metadata(dir.path().join("theirs")).unwrap();
        assert_eq!((made.uid(), made.gid()), (4711, 4712));
        assert!(geteuid().is_root());
        assert_eq!(getgroups().unwrap(), groups);
        assert_eq!(fs::read(&secret).unwrap(), b"x");
    }

    #[test]
    fn a_panic_does_not_leave_a_thread_that_is_somebody_else() {
        if lacks_root() {
            return;
        }
        let panicked = std::panic::catch_unwind(|| {
            let _acts = Acting::Caller.begin(Some(&caller(4711, 4711, &[]))).unwrap();
            as_itself(|| panic!("by the test"));
        });
        assert!(panicked.is_err());
        assert!(geteuid().is_root());
        assert!(getegid().is_root());
    }

    #[test]
    fn nobody_stays_root_by_a_number_that_means_nothing() {
        for (uid, gid, groups) in [(u32::MAX, 1, 0), (1, u32::MAX, 0), (1, 1, 65)] {
            let caller = caller(uid, gid, &vec![1; groups]);
            assert_eq!(Acting::Caller.begin(Some(&caller)).unwrap_err(), Errno::EINVAL);
        }
    }

    #[test]
    fn a_umask_holds_for_one_creation() {
        let dir = tempfile::tempdir().unwrap();
        let made = masked(NewMode::new(0o777, 0o027).0, |mode| {
            rustix::fs::mkdir(dir.path().join("made"), mode)
        });
        made.unwrap();
        let mode = fs::metadata(dir.path().join("made")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o750);
    }
}
