//! A cable with delay between two TAP devices, for kernels without netem.
//!
//!   delay NAME NAME MICROSECONDS     each way; ends when its input does
//!
//! Prints `ready` when both devices are there; they may be moved into namespaces afterwards.
//! First in, first out; nothing is lost but what a full queue drops.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Frames on their way in one direction: 1 Gbit/s for 200 ms.
const QUEUE: usize = 16_384;
const FRAME_BYTES: usize = 2048;

const TUNSETIFF: u64 = 0x4004_54ca;
const IFF_TAP_NO_PI: u16 = 0x0002 | 0x1000;

/// `struct ifreq`, as far as TUNSETIFF looks at it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

fn tap(name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TAP_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request has the layout that the kernel reads and writes.
    let result = unsafe { ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(file) }
}

/// Reads frames and says when each is due.
fn take_in(mut from: File, queue: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut frame = [0; FRAME_BYTES];
    loop {
        match from.read(&mut frame) {
            Ok(len) => drop(queue.try_send((Instant::now() + delay, frame[..len].to_vec()))),
            // The device is not up yet
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn give_out(mut to: File, queue: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, frame)) = queue.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let _ = to.write(&frame);
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [one, other, delay] = arguments.as_slice() else {
        eprintln!("usage: delay NAME NAME MICROSECONDS");
        std::process::exit(2);
    };
    let delay = Duration::from_micros(delay.parse().map_err(Error::other)?);
    let (one, other) = (tap(one)?, tap(other)?);
    for (from, to) in [(one.try_clone()?, other.try_clone()?), (other, one)] {
        let (queue, queued) = sync_channel(QUEUE);
        thread::spawn(move || take_in(from, &queue, delay));
        thread::spawn(move || give_out(to, &queued));
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
