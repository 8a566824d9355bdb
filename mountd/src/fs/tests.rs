//! The file system over a host that is a few values: what is asked, what is kept, what is told.

use std::collections::HashMap;

use p2pfs::net::remote::BoxFuture;
use p2pfs::wire::call::{DirEntry, DirPage, ReadVersion, StatFs, Time};
use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::cache::block::BLOCK;

const FILE: NodeId = NodeId { ino: 10, generation: 3 };
const READ: OpenMode =
    OpenMode { access: Access::ReadWrite, append: false, exclusive: false, truncate: false };

const SPACE: StatFs = StatFs {
    blocks: 1,
    bfree: 1,
    bavail: 1,
    files: 1,
    ffree: 1,
    bsize: 4096,
    frsize: 4096,
    namelen: 255,
};

/// A host with one file, `file`, in its root.
struct Host {
    state: Mutex<HostState>,
    /// Reads wait for one each; their data is from when they were asked.
    reads: Arc<Semaphore>,
}

#[derive(Default)]
struct HostState {
    data: Vec<u8>,
    time: i64,
    last: u64,
    hold: bool,
    /// Versions are so new that a change may be under way.
    recent: bool,
    held: Vec<Held>,
    refuse: Option<Errno>,
    counts: HashMap<&'static str, usize>,
    forgotten: Vec<NodeId>,
    undone: Vec<(NodeId, Errno)>,
}

/// A change that is not applied yet.
struct Held {
    mutation: Mutation,
    body: Bytes,
    done: oneshot::Sender<Result<Outcome, Errno>>,
}

impl Host {
    fn new(size: usize) -> Arc<Self> {
        let data = (0..size).map(|byte| (byte % 251) as u8).collect();
        let state = HostState { data, ..HostState::default() };
        Arc::new(Self { state: Mutex::new(state), reads: Arc::new(Semaphore::new(1 << 20)) })
    }

    /// A process on the host changes the file.
    fn change(&self, data: &[u8]) {
        let mut state = lock(&self.state);
        state.data = data.to_vec();
        state.time += 1;
    }

    fn count(&self, call: &'static str) -> usize {
        lock(&self.state).counts.get(call).copied().unwrap_or(0)
    }

    fn hold(&self) {
        lock(&self.state).hold = true;
    }

    /// Applies what was held.
    fn release(&self) {
        let mut state = lock(&self.state);
        state.hold = false;
        for Held { mutation, body, done } in std::mem::take(&mut state.held) {
            let _ = done.send(state.apply(&mutation, &body));
        }
    }
}

impl HostState {
    fn attr(&self) -> Attr {
        let time = Time { seconds: self.time, nanos: 0 };
        Attr {
            size: self.data.len() as u64,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        }
    }

    fn apply(&mut self, mutation: &Mutation, body: &[u8]) -> Result<Outcome, Errno> {
        if let Some(error) = self.refuse {
            return Err(error);
        }
        self.time += 1;
        match mutation {
            Mutation::Write { offset, .. } => {
                let start = *offset as usize;
                let end = start + body.len();
                let len = self.data.len().max(end);
                self.data.resize(len, 0);
                self.data[start..end].copy_from_slice(body);
            }
            Mutation::SetAttr { change, .. } => {
                if let Some(size) = change.size {
                    self.data.resize(size as usize, 0);
                }
            }
            Mutation::Append { .. } => {
                let offset = self.data.len() as u64;
                self.data.extend_from_slice(body);
                return Ok(Outcome::Appended { offset, attr: self.attr() });
            }
            _ => return Err(Errno::ENOSYS),
        }
        Ok(Outcome::Attr(self.attr()))
    }

    fn answer(&mut self, call: &Call) -> Result<(Reply, Bytes), Errno> {
        let entry = Entry { node: FILE, attr: self.attr() };
        let (name, reply) = match call {
            Call::Lookup { .. } => ("lookup", Reply::Entry(entry)),
            Call::GetAttr { .. } => ("getattr", Reply::Attr(entry.attr)),
            Call::Open { .. } => match self.refuse {
                Some(error) => return Err(error),
                None => ("open", Reply::Attr(entry.attr)),
            },
            Call::ReadVersion { .. } => {
                let version = entry.attr.data_version();
                ("read", Reply::Version(ReadVersion { version, recent: self.recent }))
            }
            Call::ReadDir { .. } => {
                ("readdir", Reply::Dir(DirPage { entries: Vec::new(), end: true }))
            }
            Call::OpenDir { .. } => {
                let name = Name::new("file").unwrap();
                let page =
                    DirPage { entries: vec![DirEntry { name, cookie: 1, entry }], end: true };
                let attr = Attr { mode: 0o040_755, ..entry.attr };
                ("opendir", Reply::OpenDir(attr, page))
            }
            Call::Release { .. } => ("release", Reply::Done),
            Call::StatFs => ("statfs", Reply::StatFs(SPACE)),
            Call::Forget { nodes } => {
                self.forgotten.extend(nodes);
                ("forget", Reply::Done)
            }
            _ => ("other", Reply::Done),
        };
        *self.counts.entry(name).or_default() += 1;
        let body = match call {
            Call::ReadVersion { offset, len, .. } => {
                let start = self.data.len().min(*offset as usize);
                let end = self.data.len().min(start + *len as usize);
                Bytes::copy_from_slice(&self.data[start..end])
            }
            _ => Bytes::new(),
        };
        Ok((reply, body))
    }
}

impl Remote for Host {
    fn call(&self, call: Call) -> BoxFuture<Result<(Reply, Bytes), Errno>> {
        let answer = lock(&self.state).answer(&call);
        let reads = self.reads.clone();
        if matches!(call, Call::ReadVersion { .. }) {
            return Box::pin(async move {
                reads.acquire().await.map_err(|_| Errno::EIO)?.forget();
                answer
            });
        }
        Box::pin(async move { answer })
    }

    fn submit(&self, change: Change, body: Bytes) -> Submitted {
        let mutation = change.mutation;
        let (done, applied) = oneshot::channel();
        let mut state = lock(&self.state);
        state.last += 1;
        let seq = Seq(state.last);
        if state.hold {
            state.held.push(Held { mutation, body, done });
        } else {
            let _ = done.send(state.apply(&mutation, &body));
        }
        Submitted { seq, applied }
    }

    fn room(&self, _bytes: usize) -> BoxFuture<Result<(), Errno>> {
        Box::pin(async { Ok(()) })
    }

    fn given_up(&self) -> BoxFuture<Errno> {
        Box::pin(std::future::pending())
    }

    fn undone(&self) -> Vec<(NodeId, Errno)> {
        std::mem::take(&mut lock(&self.state).undone)
    }
}

#[derive(Default)]
struct Notices(Mutex<Vec<&'static str>>);

impl Kernel for Notices {
    fn drop_attributes(&self, _ino: u64) {
        lock(&self.0).push("attributes");
    }

    fn drop_pages(&self, _ino: u64) {
        lock(&self.0).push("pages");
    }
}

async fn looked_up(host: &Arc<Host>, budget: u64) -> Arc<Fs> {
    let fs = Fs::new(host.clone(), Arc::new(Notices::default()), budget);
    fs.lookup(1, Name::new("file").unwrap()).await.unwrap();
    fs
}

async fn read_all(fs: &Arc<Fs>, handle: HandleId) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let part = fs.read(handle, all.len() as u64, 128 << 10).await.unwrap();
        if part.is_empty() {
            return all;
        }
        all.extend_from_slice(&part);
    }
}

#[tokio::test]
async fn a_write_is_accepted_before_it_is_applied_and_shown_at_once() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    host.hold();
    assert_eq!(
        fs.write(handle, 90, Bytes::from_static(b"0123456789"), WriteMode::default()).await,
        Ok(10)
    );
    let found = fs.lookup(1, Name::new("file").unwrap()).await.unwrap();
    assert_eq!((found.attr.size, found.is_settled()), (100, false));

    let waiting = fs.clone();
    let getattr = tokio::spawn(async move { waiting.getattr(FILE.ino, None).await });
    let waiting = fs.clone();
    let flush = tokio::spawn(async move { waiting.flush(handle, 0).await });
    tokio::task::yield_now().await;
    assert!(!getattr.is_finished() && !flush.is_finished());
    host.release();
    let found = getattr.await.unwrap().unwrap();
    assert_eq!((found.attr.size, found.is_settled()), (100, true));
    assert_eq!(flush.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn an_error_of_an_accepted_write_is_told_once() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    let enospc = Errno::from_number(28);
    lock(&host.state).refuse = Some(enospc);
    assert_eq!(fs.write(handle, 0, Bytes::from_static(b"x"), WriteMode::default()).await, Ok(1));
    assert_eq!(fs.flush(handle, 0).await, Err(enospc));
    assert_eq!(fs.flush(handle, 0).await, Ok(()));
    // what the kernel holds is not what the host has
    lock(&host.state).refuse = None;
    assert!(!fs.open(FILE.ino, READ).await.unwrap().keep_pages);
}

/// The kernel closes also what only reads, and the descriptors that a child has inherited.
#[tokio::test]
async fn who_waits_for_the_disk_is_told_whoever_has_closed_the_file_before() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    let writer = fs.open(FILE.ino, READ).await.unwrap().handle;
    let other = fs.open(FILE.ino, READ).await.unwrap().handle;
    let only_reads = OpenMode { access: Access::Read, ..READ };
    let reader = fs.open(FILE.ino, only_reads).await.unwrap().handle;
    lock(&host.state).refuse = Some(Errno::EDQUOT);
    fs.write(writer, 0, Bytes::from_static(b"x"), WriteMode::default()).await.unwrap();
    assert_eq!(fs.flush(reader, 0).await, Ok(()));
    assert_eq!(fs.flush(other, 0).await, Err(Errno::EDQUOT));
    assert_eq!(fs.flush(writer, 0).await, Err(Errno::EDQUOT), "a child's descriptor");
    assert_eq!(fs.sync(writer, false).await, Err(Errno::EDQUOT));
    assert_eq!(fs.sync(writer, false).await, Ok(()));
}

/// By a host that lost its memory and carries out again what it had answered.
#[tokio::test]
async fn what_was_applied_and_is_refused_later_is_told_and_not_kept() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    fs.write(handle, 0, Bytes::from_static(b"x"), WriteMode::default()).await.unwrap();
    assert_eq!(fs.sync(handle, false).await, Ok(()));
    fs.open(FILE.ino, READ).await.unwrap();
    assert!(fs.open(FILE.ino, READ).await.unwrap().keep_pages);
    read_all(&fs, handle).await;
    assert_ne!(fs.cache().stats().bytes, 0);

    let another = NodeId { generation: FILE.generation + 1, ..FILE };
    lock(&host.state).undone = vec![(another, Errno::EIO), (FILE, Errno::ENOSPC)];
    assert_eq!(fs.sync(handle, false).await, Err(Errno::ENOSPC));
    assert_eq!(fs.sync(handle, false).await, Ok(()));
    assert_eq!(fs.cache().stats().bytes, 0);
    assert!(!fs.open(FILE.ino, READ).await.unwrap().keep_pages);
}

/// The host may have carried it out: it would keep the file open for ever.
#[tokio::test]
async fn what_may_have_been_opened_in_vain_is_closed() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    for (error, releases) in [(Errno::EACCES, 0), (Errno::ETIMEDOUT, 1), (Errno::EPROTO, 2)] {
        lock(&host.state).refuse = Some(error);
        assert_eq!(fs.open(FILE.ino, READ).await.unwrap_err(), error);
        let name = Name::new("new").unwrap();
        assert_eq!(fs.create(1, name, 0o644, READ).await.unwrap_err(), error);
        fs.released().await;
        assert_eq!(host.count("release"), 2 * releases, "{error:?}");
    }
}

#[tokio::test]
async fn the_end_of_the_session_is_an_error_of_what_was_accepted() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    host.hold();
    fs.write(handle, 0, Bytes::from_static(b"x"), WriteMode::default()).await.unwrap();
    lock(&host.state).held.clear();
    assert_eq!(fs.flush(handle, 0).await, Err(Errno::ENOTCONN));
}

#[tokio::test]
async fn what_was_read_is_not_asked_again_until_the_host_changes_it() {
    let host = Host::new(300_000);
    let fs = looked_up(&host, 16 << 20).await;
    let first = fs.open(FILE.ino, READ).await.unwrap();
    let data = lock(&host.state).data.clone();
    assert_eq!(read_all(&fs, first.handle).await, data);
    let asked = host.count("read");

    let second = fs.open(FILE.ino, READ).await.unwrap();
    assert!(second.keep_pages);
    assert_eq!(read_all(&fs, second.handle).await, data);
    // only the end of the file is asked once more
    assert!(host.count("read") <= asked + 1);

    let changed = vec![7; 250_000];
    host.change(&changed);
    let third = fs.open(FILE.ino, READ).await.unwrap();
    assert!(!third.keep_pages);
    assert_eq!(read_all(&fs, third.handle).await, changed);
}

#[tokio::test]
async fn our_own_writes_keep_the_kernels_pages() {
    let host = Host::new(1000);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    for offset in 0..10 {
        fs.write(handle, offset * 500, Bytes::from_static(b"data"), WriteMode::default())
            .await
            .unwrap();
    }
    fs.flush(handle, 0).await.unwrap();
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    assert!(fs.setattr(FILE.ino, None, change).await.unwrap().is_settled());
    assert!(fs.open(FILE.ino, READ).await.unwrap().keep_pages);
    host.change(b"other");
    assert!(!fs.open(FILE.ino, READ).await.unwrap().keep_pages);
}

#[tokio::test]
async fn a_read_sees_the_writes_before_it_and_never_what_was_cached_before_them() {
    let host = Host::new(5 * BLOCK as usize);
    let fs = looked_up(&host, 16 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    read_all(&fs, handle).await;
    for round in 0..50_u64 {
        let data = Bytes::from(vec![round as u8; 1000]);
        fs.write(handle, round * 3001, data.clone(), WriteMode::default()).await.unwrap();
        assert_eq!(fs.read(handle, round * 3001, 1000).await.unwrap(), data);
    }
    let expected = lock(&host.state).data.clone();
    assert_eq!(read_all(&fs, handle).await, expected);
}

#[tokio::test]
async fn readers_join_one_fetch_and_a_write_in_between_voids_it() {
    let host = Host::new(100);
    let fs = looked_up(&host, 16 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    host.reads.forget_permits(usize::MAX);
    let readers = [(); 2].map(|()| {
        let fs = fs.clone();
        tokio::spawn(async move { fs.read(handle, 0, 100).await })
    });
    while host.count("read") == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert_eq!(host.count("read"), 1);
    fs.write(handle, 0, Bytes::from_static(b"new"), WriteMode::default()).await.unwrap();
    fs.flush(handle, 0).await.unwrap();
    host.reads.add_permits(100);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap()[..3], *b"new");
    }
    assert_eq!(fs.read(handle, 0, 3).await.unwrap(), b"new"[..]);
}

#[tokio::test]
async fn a_hole_behind_the_old_end_is_not_read_from_the_cache() {
    let host = Host::new(100);
    let fs = looked_up(&host, 16 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    assert_eq!(read_all(&fs, handle).await.len(), 100);
    fs.write(handle, 10 * BLOCK, Bytes::from_static(b"end"), WriteMode::default()).await.unwrap();
    let start = fs.read(handle, 0, BLOCK as u32).await.unwrap();
    assert_eq!(start.len(), BLOCK as usize);
}

#[tokio::test]
async fn an_append_goes_where_the_host_says_the_end_is() {
    let host = Host::new(100);
    let fs = looked_up(&host, 1 << 20).await;
    let how = OpenMode { append: true, ..READ };
    let opened = fs.open(FILE.ino, how).await.unwrap();
    assert!(opened.direct);
    let append = WriteMode { append: true, ..WriteMode::default() };
    for _ in 0..3 {
        lock(&host.state).data.extend_from_slice(b"other");
        // the kernel's offset is out of date
        fs.write(opened.handle, 100, Bytes::from_static(b"line"), append).await.unwrap();
    }
    assert_eq!(lock(&host.state).data[100..], *b"otherlineotherlineotherline");
    assert_eq!(fs.getattr(FILE.ino, None).await.unwrap().attr.size, 127);
}

#[tokio::test]
async fn one_read_never_joins_cached_blocks_with_newer_ones() {
    let host = Host::new(0);
    host.change(&[1; 4 * BLOCK as usize]);
    let fs = looked_up(&host, 16 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    for recent in [false, true] {
        lock(&host.state).recent = false;
        fs.read(handle, 2 * BLOCK, BLOCK as u32).await.unwrap();
        let next = lock(&host.state).data[0] + 1;
        host.change(&[next; 4 * BLOCK as usize]);
        lock(&host.state).recent = recent;
        let read = fs.read(handle, 0, 4 * BLOCK as u32).await.unwrap();
        assert!(read.iter().all(|byte| *byte == next), "mixed");
    }
    // what may have been read in the middle of a change is not kept, and the kernel's pages neither
    assert!(!fs.open(FILE.ino, READ).await.unwrap().keep_pages);
    assert_eq!(fs.cache().stats().bytes, 0);
}

#[tokio::test]
async fn near_the_end_of_the_space_the_host_answers_each_write() {
    let host = Host::new(10);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    lock(&host.state).refuse = Some(Errno::ENOSPC);
    let data = || Bytes::from_static(b"x");
    fs.write(handle, 0, data(), WriteMode::default()).await.unwrap();
    assert_eq!(fs.flush(handle, 0).await, Err(Errno::ENOSPC));
    assert_eq!(fs.write(handle, 0, data(), WriteMode::default()).await, Err(Errno::ENOSPC));
    assert_eq!(fs.flush(handle, 0).await, Ok(()));
}

#[tokio::test]
async fn random_reads_fetch_single_blocks_and_sequential_ones_fetch_ahead() {
    let host = Host::new(20 << 20);
    let fs = looked_up(&host, 64 << 20).await;
    let random = fs.open(FILE.ino, READ).await.unwrap().handle;
    for block in [400_u64, 17, 300, 99, 612] {
        fs.read(random, block * BLOCK, 4096).await.unwrap();
    }
    assert_eq!(fs.cache().stats().bytes, 5 * BLOCK);

    let sequential = fs.open(FILE.ino, READ).await.unwrap().handle;
    let data = lock(&host.state).data.clone();
    assert!(read_all(&fs, sequential).await == data);
    // 640 blocks and the end, in calls of up to 1 MiB
    assert!(host.count("read") < 100, "{}", host.count("read"));
    let stats = fs.cache().stats();
    assert!(stats.hits > stats.misses, "{stats:?}");
}

#[tokio::test]
async fn the_cache_stays_within_its_budget() {
    let host = Host::new(8 << 20);
    let fs = looked_up(&host, 1 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    let data = lock(&host.state).data.clone();
    assert!(read_all(&fs, handle).await == data);
    let stats = fs.cache().stats();
    assert!(stats.bytes <= stats.budget && stats.bytes > 0, "{stats:?}");
}

#[tokio::test]
async fn what_was_seen_as_the_mount_began_answers_once_unless_it_was_changed_since() {
    let host = Host::new(10);
    let begun = || async {
        let fs = Fs::new(host.clone(), Arc::new(Notices::default()), 1 << 20);
        fs.check().await.unwrap();
        fs
    };
    let file = || Name::new("file").unwrap();
    let fs = begun().await;
    let found = fs.lookup(1, file()).await.unwrap();
    assert_eq!((found.node, found.attr.size, found.is_settled()), (FILE, 10, true));
    assert_eq!(host.count("lookup"), 0);
    fs.lookup(1, file()).await.unwrap();
    assert_eq!(host.count("lookup"), 1);
    fs.lookup(1, Name::new("other").unwrap()).await.unwrap();
    assert_eq!(host.count("lookup"), 2);

    let fs = begun().await;
    let _ = fs.unlink(1, Name::new("other").unwrap()).await;
    fs.lookup(1, file()).await.unwrap();
    assert_eq!(host.count("lookup"), 3);
}

#[tokio::test]
async fn what_the_kernel_let_go_is_told_to_the_host_unless_it_came_back() {
    let host = Host::new(1);
    let fs = looked_up(&host, 1 << 20).await;
    fs.forget(FILE.ino, 1);
    fs.lookup(1, Name::new("file").unwrap()).await.unwrap();
    fs.forget_idle().await;
    assert_eq!(host.count("forget"), 0);
    fs.forget(FILE.ino, 1);
    fs.forget_idle().await;
    assert_eq!(lock(&host.state).forgotten, [FILE]);
    assert_eq!(fs.getattr(FILE.ino, None).await, Err(Errno::ESTALE));
}

#[tokio::test]
async fn a_truncation_reaches_the_cache_and_the_size() {
    let host = Host::new(3 * BLOCK as usize);
    let fs = looked_up(&host, 16 << 20).await;
    let handle = fs.open(FILE.ino, READ).await.unwrap().handle;
    read_all(&fs, handle).await;
    fs.write(handle, 0, Bytes::from_static(b"first"), WriteMode::default()).await.unwrap();
    let change = AttrChange { size: Some(3), ..AttrChange::default() };
    let found = fs.setattr(FILE.ino, Some(handle), change).await.unwrap();
    assert_eq!((found.attr.size, found.is_settled()), (3, true));
    assert_eq!(read_all(&fs, handle).await, b"fir");
}
