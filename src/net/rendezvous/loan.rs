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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::lend::Lender;
    use super::*;
    use crate::net::rendezvous::link::{Link, receive, send};
    use crate::wire::branch::Branch;
    use crate::wire::rendezvous::{FromServer, ToServer};

    fn loan(dir: &Path, secret: u8) -> Loan {
        let server = "p2pfs://203.0.113.5:443#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let pair_key = PairKey::from_bytes([3; 32]);
        let secret = SecretKey::from_seed([secret; 32]);
        Loan::new(dir, &secret, &pair_key, &server.parse().unwrap())
    }

    #[tokio::test]
    async fn who_has_the_key_borrows_and_hears_when_the_loan_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (lends, lending) = watch::channel(false);
        let server = "203.0.113.5:443".parse().unwrap();
        let mut lender = Lender::start(Arc::new(loan(dir.path(), 1)), server, lending);
        assert!(loan(dir.path(), 1).borrow().await.is_none(), "it does not lend yet");
        lends.send_replace(true);
        let link = loop {
            match loan(dir.path(), 1).borrow().await {
                Some(link) => break link,
                None => tokio::task::yield_now().await,
            }
        };
        let Link { server: told, local, mut read, mut write } = link;
        assert_eq!((told, local), (server, None));

        let asks = ToServer::Refresh { number: 7, udp_public: None };
        send(&mut write, &asks).await.unwrap();
        let ToServer::Branch(wrapped) = lender.next().await else { panic!("not wrapped") };
        assert_eq!(wrapped.unwrap(), Ok(asks));
        let branch = wrapped.branch;
        lender.loans().put(Branch::wrap(branch, &FromServer::NoMatch).unwrap());
        assert_eq!(receive::<FromServer>(&mut read).await.unwrap(), FromServer::NoMatch);

        lends.send_replace(false);
        receive::<FromServer>(&mut read).await.unwrap_err();
        assert_eq!(lender.next().await, ToServer::EndBranch { branch });
        assert!(loan(dir.path(), 1).borrow().await.is_none());
    }

    #[tokio::test]
    async fn another_key_finds_no_lender_and_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (loan(dir.path(), 1), loan(dir.path(), 2));
        assert_ne!(own.socket(), other.socket());
        let server = "203.0.113.5:443".parse().unwrap();
        let ask = Ask { nonce: [1; 32] };
        let offer = own.offer(&ask, [2; 32], server);
        assert!(own.is_offer(&ask, &offer) && !other.is_offer(&ask, &offer));
        assert!(!own.is_offer(&Ask { nonce: [9; 32] }, &offer));
        let taken = other.take(&ask, &offer);
        assert!(!own.is_taken(&ask, &offer, &taken));
        assert!(own.is_taken(&ask, &offer, &own.take(&ask, &offer)));
    }
}
