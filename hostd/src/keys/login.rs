//! What a host keeps of a user name and a password: neither the password nor what proves it.
//!
//! The client stretches the password with Argon2id and shows the result, inside the session's
//! encryption; the host keeps a hash of that.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use p2pfs::identity::kind::Kind;
use p2pfs::identity::login_proof;
use p2pfs::identity::passphrase::{Passphrase, Stretch};
use p2pfs::wire::session::DeviceId;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The record of a login.
pub(crate) fn recorded(user: &str, password: &Passphrase, stretch: &Stretch) -> DeviceId {
    let hash = STANDARD_NO_PAD.encode(hash(&login_proof(stretch, password)));
    Kind::Login.identifier(&format!("{stretch}${hash}"), user)
}

/// Whether a proof is the recorded one's.
pub(crate) fn verify(proof: &str, recorded: &str) -> bool {
    let known = recorded.rsplit_once('$').and_then(|(_, hash)| STANDARD_NO_PAD.decode(hash).ok());
    known.is_some_and(|known| known.ct_eq(hash(proof).as_slice()).into())
}

fn hash(proof: &str) -> [u8; 32] {
    Sha256::digest([b"p2pfs login verifier 1\0", proof.as_bytes()].concat()).into()
}
