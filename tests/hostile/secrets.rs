//! What is nobody's but the host's and the client's, and who has heard it.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use p2pfs::identity::{MacAddress, PeerId};
use tokio::io::{AsyncRead, ReadBuf};

/// All that somebody has heard.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<u8>>>);

/// A stream of which all that is read is kept.
pub(super) struct Recorded<S> {
    stream: S,
    heard: Heard,
}

/// What must not be heard, each with what it is.
pub(super) struct Secrets(Vec<(String, Vec<u8>)>);

impl Heard {
    pub(super) fn keep(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl<S> Recorded<S> {
    pub(super) fn new(stream: S, heard: &Heard) -> Self {
        Self { stream, heard: heard.clone() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.heard.keep(&buffer.filled()[before..]);
        polled
    }
}

impl Secrets {
    /// A MAC address, and words: names, contents.
    pub(super) fn new(mac: MacAddress, words: &[&str]) -> Self {
        let text = mac.to_string();
        let bare = text.replace(':', "");
        let mut all = vec![("the MAC address".to_owned(), mac.0.to_vec())];
        for text in [text.to_uppercase(), bare.to_uppercase(), text, bare] {
            all.push((format!("the MAC address as {text}"), text.into_bytes()));
        }
        all.extend(words.iter().map(|word| (format!("{word:?}"), word.as_bytes().to_vec())));
        Self(all)
    }

    /// And these addresses.
    pub(super) fn and_addresses(mut self, addresses: &[Ipv4Addr]) -> Self {
        for address in addresses {
            for bytes in [&address.octets()[..], address.to_string().as_bytes()] {
                self.0.push((format!("the address {address}"), bytes.to_vec()));
            }
        }
        self
    }

    /// And who these are.
    pub(super) fn and_keys(mut self, keys: &[PeerId]) -> Self {
        for key in keys {
            for bytes in [&key.0[..], key.to_text().as_bytes(), &key.fingerprint()] {
                self.0.push((format!("{key:?}"), bytes.to_vec()));
            }
        }
        self
    }

    #[track_caller]
    pub(super) fn assert_unheard(&self, who: &str, heard: &Heard) {
        let heard = heard.bytes();
        println!("{who} has heard {} bytes", heard.len());
        for (what, bytes) in &self.0 {
            assert!(!contains(&heard, bytes), "{who} knows {what}");
        }
    }
}

/// Whether bytes are among those that were heard.
pub(super) fn contains(heard: &[u8], bytes: &[u8]) -> bool {
    heard.windows(bytes.len()).any(|window| window == bytes)
}
