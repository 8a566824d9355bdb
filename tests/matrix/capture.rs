//! What a machine sees on its network: every frame, as the kernel hands it over.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::lab::Lab;

/// `ETH_P_ALL`, in the network's order.
const ALL: i32 = 0x0300;
/// The largest frame: what is not yet split into packets.
const FRAME_BYTES_MAX: usize = 1 << 16;
const BUFFER_BYTES: usize = 64 << 20;

/// Where an IPv4 datagram's parts are in a frame: its length, protocol, addresses, the payload of
/// UDP, the length of TCP's header.
const IP_LENGTH: Range<usize> = 16..18;
const PROTOCOL: usize = 23;
const ADDRESSES: Range<usize> = 26..34;
const PAYLOAD: usize = 42;
const TCP_OFFSET: usize = 46;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The bit that every QUIC packet has, and neither STUN nor a probe (RFC 9443).
const QUIC: u8 = 0x40;

/// A frame, and when it came.
pub(crate) struct Frame {
    at: Instant,
    bytes: Vec<u8>,
}

/// Frames are gathered until it is asked for them.
pub(crate) struct Capture {
    done: Arc<AtomicBool>,
    frames: JoinHandle<Vec<Frame>>,
}

impl Capture {
    /// Begins to listen on all interfaces of a node.
    pub(crate) fn start(lab: &Lab, node: &str) -> Self {
        let mut socket = lab.inside(node, || {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL))).unwrap()
        });
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // only root may have so much, as whom this runs
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let over = done.clone();
        let frames = thread::spawn(move || {
            let mut frames = Vec::new();
            let mut frame = vec![0; FRAME_BYTES_MAX];
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => {
                        frames.push(Frame { at: Instant::now(), bytes: frame[..length].to_vec() });
                    }
                    // nothing for a while
                    Err(_) if over.load(Ordering::Relaxed) => return frames,
                    Err(_) => {}
                }
            }
        });
        Self { done, frames }
    }

    /// What was seen.
    pub(crate) fn stop(self) -> Vec<Frame> {
        self.done.store(true, Ordering::Relaxed);
        self.frames.join().unwrap()
    }
}

/// Whether any of the frames holds these bytes.
pub(crate) fn holds(frames: &[Frame], wanted: &[u8]) -> bool {
    let first = wanted[0];
    frames.iter().any(|frame| {
        let bytes = &frame.bytes;
        let mut places = bytes.iter().enumerate();
        places.any(|(at, byte)| *byte == first && bytes[at..].starts_with(wanted))
    })
}

/// When a QUIC packet was first sent straight from one address to another.
pub(crate) fn first_quic(frames: &[Frame], from: [u8; 4], to: [u8; 4]) -> Option<Instant> {
    let wanted = [from, to].concat();
    let quic = |frame: &&Frame| {
        frame.bytes.get(PROTOCOL) == Some(&UDP)
            && frame.bytes.get(ADDRESSES) == Some(&wanted[..])
            && frame.bytes.get(PAYLOAD).is_some_and(|byte| byte & QUIC != 0)
    };
    frames.iter().find(quic).map(|frame| frame.at)
}

/// When TCP carried data from one address to another: each segment.
pub(crate) fn tcp_data(frames: &[Frame], from: [u8; 4], to: [u8; 4]) -> Vec<Instant> {
    let wanted = [from, to].concat();
    let carries = |frame: &&Frame| {
        let bytes = &frame.bytes;
        let is_ours = bytes.get(PROTOCOL) == Some(&TCP) && bytes.get(ADDRESSES) == Some(&wanted);
        let length = bytes.get(IP_LENGTH).map(|two| u16::from_be_bytes([two[0], two[1]]));
        let header = bytes.get(TCP_OFFSET).map(|byte| u16::from(byte >> 4) * 4);
        let payload = length.zip(header).map(|(length, header)| length.saturating_sub(20 + header));
        is_ours && payload.is_some_and(|payload| payload > 0)
    };
    frames.iter().filter(carries).map(|frame| frame.at).collect()
}

/// What the frames hold, bytes.
pub(crate) fn bytes(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.bytes.len()).sum()
}
