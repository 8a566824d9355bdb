//! What a machine sees on its network: every frame, as the kernel hands it over.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::world::lab::Lab;

/// `ETH_P_ALL`, in the network's order.
const ALL: i32 = 0x0300;
/// The largest frame: what is not yet split into packets.
const FRAME_BYTES_MAX: usize = 1 << 16;
const BUFFER_BYTES: usize = 64 << 20;

/// Frames are gathered until it is asked for them.
pub(crate) struct Capture {
    done: Arc<AtomicBool>,
    frames: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Begins to listen on all interfaces of a node.
    pub(crate) fn start(lab: &Lab, node: &str) -> Self {
        let mut socket = lab.inside(node, || {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL))).unwrap()
        });
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
        let done = Arc::new(AtomicBool::new(false));
        let over = done.clone();
        let frames = thread::spawn(move || {
            let mut frames = Vec::new();
            let mut frame = vec![0; FRAME_BYTES_MAX];
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => frames.push(frame[..length].to_vec()),
                    // nothing for a while
                    Err(_) if over.load(Ordering::Relaxed) => return frames,
                    Err(_) => {}
                }
            }
        });
        Self { done, frames }
    }

    /// What was seen.
    pub(crate) fn stop(self) -> Vec<Vec<u8>> {
        self.done.store(true, Ordering::Relaxed);
        self.frames.join().unwrap()
    }
}

/// Whether any of the frames holds these bytes.
pub(crate) fn holds(frames: &[Vec<u8>], wanted: &[u8]) -> bool {
    let first = wanted[0];
    frames.iter().any(|frame| {
        frame.iter().enumerate().any(|(at, byte)| *byte == first && frame[at..].starts_with(wanted))
    })
}
