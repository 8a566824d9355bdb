//! What is done, and with what probability.

use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::sample::select;

/// A path: one of a few.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place(pub(super) usize);

/// An open file: one of a few.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Slot(pub(super) usize);

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct How {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) create: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
    pub(super) append: bool,
    pub(super) synchronous: bool,
    pub(super) follows: bool,
}

/// One system call, or a few.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    Open { slot: Slot, place: Place, how: How, mode: u32 },
    Close(Slot),
    Read { slot: Slot, offset: u64, len: usize },
    ReadOn { slot: Slot, len: usize },
    Write { slot: Slot, offset: u64, len: usize },
    WriteOn { slot: Slot, len: usize },
    Truncate { slot: Slot, size: u64 },
    TruncatePlace { place: Place, size: u64 },
    Allocate { slot: Slot, mode: u32, offset: u64, len: u64 },
    Seek { slot: Slot, data: bool, offset: u64 },
    Copy { from: Slot, from_offset: u64, to: Slot, offset: u64, len: usize },
    Sync { slot: Slot, data_only: bool },
    Rename { from: Place, to: Place, flags: u32 },
    Link { from: Place, to: Place },
    Unlink(Place),
    Symlink { target: Place, place: Place },
    ReadLink(Place),
    MakeDir { place: Place, mode: u32 },
    MakeFifo { place: Place, mode: u32 },
    RemoveDir(Place),
    SetMode { place: Place, mode: u32 },
    SetTimes { place: Place, seconds: i64, nanos: i64 },
    SetXattr { place: Place, name: usize, len: usize, flags: u32 },
    GetXattr { place: Place, name: usize },
    RemoveXattr { place: Place, name: usize },
    ListXattrs(Place),
    List(Place),
    Stat(Place),
    StatOpen(Slot),
}

const FALLOC_PUNCH: u32 = 3;

impl Operation {
    pub(super) fn is_skipped(&self, seeks: bool) -> bool {
        match self {
            Self::Seek { .. } => !seeks,
            Self::Allocate { mode, .. } => seeks && *mode != FALLOC_PUNCH,
            _ => false,
        }
    }
}

/// What open files are named, and what the paths are, see `side`.
pub(super) const SLOTS: usize = 3;
pub(super) const PLACES: usize = 11;
pub(super) const XATTRS: usize = 4;

fn place() -> impl Strategy<Value = Place> {
    // the first few more often: operations are to meet
    prop_oneof![5 => 0..3_usize, 2 => 0..PLACES].prop_map(Place)
}

fn slot() -> impl Strategy<Value = Slot> {
    (0..SLOTS).prop_map(Slot)
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..100_000_u64,
        2 => select(vec![0, 4096, 8192, 8191, 65_536, 131_072]),
        1 => Just(1 << 40),
    ]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..10_000_usize, 1 => 0..150_000_usize, 1 => select(vec![4096, 8192, 1])]
}

/// Without setuid and setgid: a write takes them away, also root's, where the host acts as the
/// owner of the share.
fn mode() -> impl Strategy<Value = u32> {
    select(vec![0o644, 0o600, 0o444, 0o755, 0o1777, 0])
}

fn dir_mode() -> impl Strategy<Value = u32> {
    select(vec![0o700, 0o755, 0o2755, 0o1777])
}

fn how() -> impl Strategy<Value = How> {
    (any::<[bool; 4]>(), 0..6_u8, 0..6_u8, 0..8_u8).prop_map(|(bits, one, two, three)| How {
        read: bits[0] || !bits[1],
        write: bits[1],
        create: bits[2],
        exclusive: one == 0,
        truncate: two == 0,
        append: bits[3] && one > 2,
        synchronous: three == 0,
        follows: two > 0,
    })
}

/// Any operation.
pub(super) fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![10 => of_open_files(), 7 => of_places()]
}

fn of_open_files() -> impl Strategy<Value = Operation> {
    let allocation = select(vec![0, 1, 2, 3, 16, 17, 64, 128]);
    prop_oneof![
        6 => (slot(), place(), how(), mode())
            .prop_map(|(slot, place, how, mode)| Operation::Open { slot, place, how, mode }),
        1 => slot().prop_map(Operation::Close),
        4 => (slot(), offset(), len())
            .prop_map(|(slot, offset, len)| Operation::Read { slot, offset, len }),
        1 => (slot(), len()).prop_map(|(slot, len)| Operation::ReadOn { slot, len }),
        5 => (slot(), offset(), len())
            .prop_map(|(slot, offset, len)| Operation::Write { slot, offset, len }),
        2 => (slot(), len()).prop_map(|(slot, len)| Operation::WriteOn { slot, len }),
        2 => (slot(), offset()).prop_map(|(slot, size)| Operation::Truncate { slot, size }),
        4 => (slot(), allocation, offset(), 0..50_000_u64).prop_map(
            |(slot, mode, offset, len)| Operation::Allocate { slot, mode, offset, len }
        ),
        3 => (slot(), any::<bool>(), offset())
            .prop_map(|(slot, data, offset)| Operation::Seek { slot, data, offset }),
        3 => (slot(), offset(), slot(), offset(), len()).prop_map(
            |(from, from_offset, to, offset, len)| {
                Operation::Copy { from, from_offset, to, offset, len }
            }
        ),
        1 => (slot(), any::<bool>())
            .prop_map(|(slot, data_only)| Operation::Sync { slot, data_only }),
        3 => slot().prop_map(Operation::StatOpen),
    ]
}

fn of_places() -> impl Strategy<Value = Operation> {
    prop_oneof![names(), attributes()]
}

fn names() -> impl Strategy<Value = Operation> {
    // no RENAME_WHITEOUT (4): the mount refuses it, only layered file systems make it
    let flags = select(vec![0, 0, 0, 1, 2, 2, 3, 8]);
    prop_oneof![
        4 => (place(), place(), flags)
            .prop_map(|(from, to, flags)| Operation::Rename { from, to, flags }),
        2 => (place(), place()).prop_map(|(from, to)| Operation::Link { from, to }),
        2 => place().prop_map(Operation::Unlink),
        2 => (place(), place())
            .prop_map(|(target, place)| Operation::Symlink { target, place }),
        1 => place().prop_map(Operation::ReadLink),
        3 => (place(), dir_mode()).prop_map(|(place, mode)| Operation::MakeDir { place, mode }),
        1 => (place(), mode()).prop_map(|(place, mode)| Operation::MakeFifo { place, mode }),
        1 => place().prop_map(Operation::RemoveDir),
        2 => place().prop_map(Operation::List),
        3 => place().prop_map(Operation::Stat),
    ]
}

fn attributes() -> impl Strategy<Value = Operation> {
    let name = || 0..XATTRS;
    let times = (-1000..1000_i64, select(vec![0, 1, 999_999_999]));
    prop_oneof![
        2 => (place(), mode()).prop_map(|(place, mode)| Operation::SetMode { place, mode }),
        2 => (place(), times).prop_map(
            |(place, (seconds, nanos))| Operation::SetTimes { place, seconds, nanos }
        ),
        1 => (place(), offset())
            .prop_map(|(place, size)| Operation::TruncatePlace { place, size }),
        3 => (place(), name(), 0..300_usize, select(vec![0, 0, 1, 2, 3])).prop_map(
            |(place, name, len, flags)| Operation::SetXattr { place, name, len, flags }
        ),
        2 => (place(), name()).prop_map(|(place, name)| Operation::GetXattr { place, name }),
        1 => (place(), name()).prop_map(|(place, name)| Operation::RemoveXattr { place, name }),
        1 => place().prop_map(Operation::ListXattrs),
    ]
}
