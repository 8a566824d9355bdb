//! Loans: a registration that other processes of the same user use, with the same key, so that
//! their mounts need not connect to the server.
//!
//! The lender listens on a socket of the state directory, mode 0600. Each side proves that it has
//! the key's own secret; from then on the lender carries the borrower's messages as a branch of its
//! connection, which it does not read: what they contain is sealed by the borrower. A borrower that
//! finds no lender, or loses it, registers itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::address::ServerAddress;
use crate::identity::{Hidden, PairKey, SecretKey, hmac};

pub(super) mod borrow;
pub(super) mod lend;

/// One registration: whose key, with which host, at which server.
#[derive(Debug)]
pub(super) struct Loan {
    /// The directory of the sockets.
    dir: PathBuf,
    key: Hidden,
}

/// The borrower's first word.
#[derive(Debug, Deserialize, Serialize)]
struct Ask {
    nonce: [u8; 32],
}

/// The lender's answer; without one it lends nothing.
#[derive(Debug, Deserialize, Serialize)]
struct Offer {
    nonce: [u8; 32],
    /// The server's end of the connection.
    server: SocketAddr,
    proof: [u8; 32],
}

/// The borrower's second word; its messages follow at once.
#[derive(Debug, Deserialize, Serialize)]
struct Taken {
    proof: [u8; 32],
}

impl Loan {
    pub(super) fn new(
        dir: &Path,
        secret: &SecretKey,
        pair_key: &PairKey,
        server: &ServerAddress,
    ) -> Self {
        let place = [&server.fingerprint[..], server.authority().as_bytes()].concat();
        let key = hmac(secret.seed(), &pair_key.derive("p2pfs loan 1", &place));
        Self { dir: dir.to_owned(), key: Hidden(key) }
    }

    /// Tells nobody whose it is.
    fn name(&self) -> String {
        hmac(&self.key.0, b"name")[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(self.name() + ".sock")
    }

    fn offer(&self, ask: &Ask, nonce: [u8; 32], server: SocketAddr) -> Offer {
        Offer { nonce, server, proof: self.offers(ask, nonce, server) }
    }

    fn offers(&self, ask: &Ask, nonce: [u8; 32], server: SocketAddr) -> [u8; 32] {
        let server = server.to_string();
        hmac(&self.key.0, &[b"offer", &ask.nonce[..], &nonce, server.as_bytes()].concat())
    }

    fn is_offer(&self, ask: &Ask, offer: &Offer) -> bool {
        self.offers(ask, offer.nonce, offer.server).ct_eq(&offer.proof).into()
    }

    fn take(&self, ask: &Ask, offer: &Offer) -> Taken {
        Taken { proof: hmac(&self.key.0, &[b"taken", &ask.nonce[..], &offer.nonce].concat()) }
    }

    fn is_taken(&self, ask: &Ask, offer: &Offer, taken: &Taken) -> bool {
        self.take(ask, offer).proof.ct_eq(&taken.proof).into()
    }
}
