//! Whether the key is there: told by the kernel where it tells, looked at now and then where it
//! does not.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::{KeyId, same_device};
use p2pfs::usb::{open_key, read_device, read_public};
use p2pfs::wire::session::DeviceId;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// How often to look where nobody tells: a stick that is pulled out leaves its mount for a moment,
/// and a folder may be renamed far above.
const LOOK: Duration = Duration::from_millis(200);
const EVENT_BYTES: usize = 4 << 10;

/// What a look at the key has shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Look {
    /// It is there.
    There,
    /// It is not, or it is another one.
    Gone,
    /// The look takes long: the machine, the disk or the stick is busy, or the stick is dying.
    Stalled,
}

/// Looks after a key's folder.
#[derive(Debug)]
pub(crate) struct KeyWatch {
    dir: PathBuf,
    /// Without it only the regular looks are left.
    events: Option<AsyncFd<OwnedFd>>,
}

impl KeyWatch {
    /// Watches `dir`, which need not be there. Needs a runtime around it.
    pub(crate) fn new(dir: &Path) -> Self {
        let events = events(dir);
        if let Err(error) = &events {
            tracing::debug!(%error, "the key's folder is only looked at now and then");
        }
        Self { dir: dir.to_owned(), events: events.ok() }
    }

    /// Whether the key `id` is there, on the same device.
    pub(crate) async fn has(&self, id: &KeyId, device: &DeviceId) -> Look {
        let (id, device) = (id.clone(), device.clone());
        self.look(move |dir| {
            let there = read_device(dir).is_ok_and(|there| same_device(&there, &device));
            there && read_public(dir).is_ok_and(|public| public.id == id)
        })
        .await
    }

    /// Whether a key is there, on its own device.
    pub(crate) async fn has_any(&self) -> bool {
        // one with a passphrase is there, though it does not open by itself
        let is_there = |opened: Result<_, Failure>| match opened {
            Ok(_) => true,
            Err(failure) => failure.code == Code::Passphrase,
        };
        self.look(move |dir| is_there(open_key(dir, None).map(drop))).await == Look::There
    }

    /// A stick that is dying may take for ever.
    async fn look(&self, look: impl FnOnce(&Path) -> bool + Send + 'static) -> Look {
        let dir = self.dir.clone();
        let looked = tokio::task::spawn_blocking(move || look(&dir));
        match tokio::time::timeout(LOOK, looked).await {
            Ok(Ok(true)) => Look::There,
            Ok(_) => Look::Gone,
            Err(_) => Look::Stalled,
        }
    }

    /// Resolves when it is time to look: something happened, or `until` or the regular look is due.
    pub(crate) async fn stir(&self, until: Option<Instant>) {
        let regular = Instant::now() + LOOK;
        let due = until.map_or(regular, |until| until.min(regular));
        tokio::select! {
            () = self.happened() => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }

    async fn happened(&self) {
        let Some(events) = &self.events else { return std::future::pending().await };
        if let Ok(mut ready) = events.readable().await {
            let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
            let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
            // what happened does not matter: the key is looked at
            while reader.next().is_ok() {}
            ready.clear_ready();
        }
    }
}

/// Told of what happens to the folder, its parts, and its name.
#[expect(deprecated, reason = "sound for a descriptor that is owned and never exchanged")]
fn events(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let events = inotify::init(flags)?;
    let wanted = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVE
        | inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MOVE_SELF;
    if let Some(above) = dir.parent() {
        inotify::add_watch(&events, above, wanted)?;
    }
    for path in [dir, &dir.join("p2pfs")] {
        // it need not be there yet
        let _ = inotify::add_watch(&events, path, wanted);
    }
    AsyncFd::new(events)
}
