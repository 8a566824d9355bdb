//! Listing directories: pages of the host, handed to the kernel in its smaller portions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use p2pfs::id::HandleId;
use p2pfs::limits::DIR_PAGE_ENTRIES_MAX;
use p2pfs::wire::call::{Call, DirEntry, DirPage, Reply};
use p2pfs::wire::errno::Errno;

use super::{Found, Fs};

/// Where the listing goes on behind `.`: no file system's cookie is so large.
pub const COOKIE_DOT: u64 = (1 << 63) - 8;
/// Where the listing goes on behind `..`.
pub const COOKIE_DOT_DOT: u64 = (1 << 63) - 9;

/// How long the page that came with an opening is one that was asked for now.
const PAGE_FRESH: Duration = Duration::from_secs(1);

/// The page that a directory's handle is at.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    page: Option<Arc<Page>>,
    /// It came with the opening, and nobody has read it yet.
    is_first: bool,
    /// Why the directory could not be opened, which whoever opened it has not waited for.
    failed: Option<Errno>,
}

#[derive(Debug)]
struct Page {
    /// The cookie that it was asked with.
    from: u64,
    entries: Vec<DirEntry>,
    end: bool,
    /// The file system's tick when it was asked.
    asked: u64,
    at: Instant,
}

/// A portion of a directory: the rest of a page.
#[derive(Debug)]
pub struct Portion {
    page: Arc<Page>,
    start: usize,
    /// The directory's own number.
    pub ino: u64,
    /// Its parent's number.
    pub parent: u64,
    /// Which of `.` (0) and `..` (1) come first; 2: neither.
    pub dots_from: u8,
}

impl Listing {
    /// The page that came with the opening, which was asked for at tick `asked`.
    pub(super) fn begin(&mut self, page: DirPage, asked: u64) {
        self.page = Some(Arc::new(Page::new(0, page, asked)));
        self.is_first = true;
    }

    /// It could not be opened.
    pub(super) fn fail(&mut self, error: Errno) -> Errno {
        self.failed = Some(error);
        error
    }

    /// The page that goes on behind a cookie, and where in it. A rewound directory is a fresh one,
    /// and names that we changed since tick `names` are not in an older page.
    fn at(&mut self, cookie: u64, host_cookie: u64, names: u64) -> Option<(Arc<Page>, usize)> {
        let is_first = std::mem::take(&mut self.is_first);
        let page = self.page.clone().filter(|page| page.asked >= names)?;
        if cookie == 0 && !(is_first && page.at.elapsed() <= PAGE_FRESH) {
            return None;
        }
        let start = page.position(host_cookie)?;
        (start < page.entries.len() || page.end).then_some((page, start))
    }
}

impl Page {
    fn new(from: u64, page: DirPage, asked: u64) -> Self {
        Self { from, entries: page.entries, end: page.end, asked, at: Instant::now() }
    }

    /// The index of the first entry behind `cookie`.
    fn position(&self, cookie: u64) -> Option<usize> {
        if cookie == self.from {
            return Some(0);
        }
        let found = self.entries.iter().position(|entry| entry.cookie == cookie);
        found.map(|index| index + 1)
    }
}

impl Portion {
    /// The entries; empty at the directory's end.
    pub fn entries(&self) -> &[DirEntry] {
        self.page.entries.get(self.start..).unwrap_or_default()
    }
}

/// A page is no longer than was asked for, and leads on from the cookie that it was asked with.
pub(super) fn check(page: &DirPage, cookie: u64) -> Result<(), Errno> {
    let leads_on = page.entries.last().is_none_or(|last| last.cookie != cookie);
    let fits = page.entries.len() <= DIR_PAGE_ENTRIES_MAX;
    if leads_on && fits { Ok(()) } else { Err(Errno::EPROTO) }
}

impl Fs {
    /// The entries behind `cookie`, which is 0 at the start.
    pub async fn list(&self, handle: HandleId, cookie: u64) -> Result<Portion, Errno> {
        let handle = self.handles.get(handle)?;
        handle.inode.forget_opened();
        let (dots_from, host_cookie) = match cookie {
            0 => (0, 0),
            COOKIE_DOT => (1, 0),
            COOKIE_DOT_DOT => (2, 0),
            other => (2, other),
        };
        let mut listing = handle.listing.lock().await;
        if let Some(error) = listing.failed {
            return Err(error);
        }
        let kept = listing.at(cookie, host_cookie, handle.inode.names());
        let (page, start) = match kept {
            Some(kept) => kept,
            None => {
                let asked = self.tick();
                let call = Call::ReadDir {
                    node: handle.inode.node,
                    handle: handle.id,
                    cookie: host_cookie,
                    entries_max: DIR_PAGE_ENTRIES_MAX as u32,
                };
                let (Reply::Dir(page), _) = self.remote.call(call).await? else {
                    return Err(Errno::EPROTO);
                };
                check(&page, host_cookie)?;
                (Arc::new(Page::new(host_cookie, page, asked)), 0)
            }
        };
        listing.page = Some(Arc::clone(&page));
        Ok(Portion {
            page,
            start,
            ino: handle.inode.node.ino,
            parent: handle.inode.parent(),
            dots_from,
        })
    }

    /// An entry of a portion as the kernel is told of it; counts a reference, as a look-up does.
    pub fn show(&self, portion: &Portion, entry: &DirEntry) -> Found {
        let mut found = self.found(entry.entry, portion.ino, portion.page.asked);
        found.keep = found.keep.saturating_sub(portion.page.at.elapsed());
        found
    }
}
