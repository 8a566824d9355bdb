//! Pairing by a short code that is typed once (R13): SPAKE2, and a sealed channel behind it.
//!
//! ```text
//!  host                              client
//!   |<------------- SPAKE2 ------------|   neither message tells anything of the code
//!   |-------------- SPAKE2 ----------->|
//!   |<------- sealed: request ---------|   opens only if both have the same code
//!   |-------- sealed: offer ---------->|
//!   |<------- sealed: done ------------|
//! ```
//!
//! Whoever guesses shows that in the first sealed message, and learns only that the guess was
//! wrong; the host then makes the code void. So one guess is all there is, and eight digits of base
//! 32 (40 bits) are plenty.

use std::fmt;
use std::str::FromStr;

use hkdf::Hkdf;
use rand_core::{CryptoRng, RngCore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use spake2::{Ed25519Group, Identity, Password, Spake2};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::identity::base32;
use crate::identity::sealing::Sealing;
use crate::limits::PAIRING_BYTES_MAX;
use crate::wire::codec;

/// Numbers of codes: enough that two hosts of one house hardly have the same.
const NUMBERS: u16 = 1000;
const SECRET_DIGITS: usize = 8;

/// A one-time code: a number to find the host by, and a secret.
#[derive(Clone, Eq, PartialEq, Zeroize, ZeroizeOnDrop)]
pub struct Code {
    number: u16,
    secret: String,
}

/// Which side one is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// It has made the code.
    Host,
    /// It was told the code.
    Client,
}

/// The beginning: our message is out, theirs is awaited.
pub struct Handshake {
    spake: Spake2<Ed25519Group>,
    side: Side,
    ours: Vec<u8>,
}

/// What follows, sealed in each direction.
#[derive(Debug)]
pub struct Channel {
    send: Sealing,
    receive: Sealing,
}

/// Why a pairing came to nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PairingError {
    /// The peer has another code, or what it sent was changed on the way.
    #[error("the code is wrong")]
    WrongCode,
    /// The peer does not speak this protocol.
    #[error("the other side does not speak this protocol")]
    Malformed,
}

impl Code {
    /// From random bytes.
    pub fn from_random(random: [u8; 7]) -> Self {
        let [a, b, secret @ ..] = random;
        let number = u16::from_le_bytes([a, b]) % NUMBERS;
        Self { number, secret: base32::encode(&secret) }
    }

    /// What is called out to find the host; no secret.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// As it is read out and typed: `042-ABCD-EFGH`.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{:03}-{}", self.number, base32::grouped(&self.secret)))
    }

    /// Whether a text may be meant as one.
    pub fn is_like(text: &str) -> bool {
        text.parse::<Self>().is_ok()
    }
}

impl FromStr for Code {
    type Err = PairingError;

    fn from_str(text: &str) -> Result<Self, PairingError> {
        let text = Zeroizing::new(base32::normal(text));
        let split = text.split_at_checked(3).filter(|(_, rest)| rest.len() == SECRET_DIGITS);
        let (number, secret) = split.ok_or(PairingError::Malformed)?;
        base32::decode(secret).ok_or(PairingError::Malformed)?;
        let number = number.parse().map_err(|_| PairingError::Malformed)?;
        Ok(Self { number, secret: secret.to_owned() })
    }
}

impl Handshake {
    /// Begins; what is returned goes to the peer. `dice`: fresh random bytes.
    pub fn start(code: &Code, side: Side, dice: Zeroizing<[u8; 64]>) -> (Self, Vec<u8>) {
        let typed = Zeroizing::new(format!("{:03}{}", code.number, code.secret));
        let password = Password::new(typed.as_bytes());
        let (client, host) = (Identity::new(b"p2pfs client 1"), Identity::new(b"p2pfs host 1"));
        let (spake, ours) = match side {
            Side::Client => Spake2::start_a_with_rng(&password, &client, &host, Dice(dice)),
            Side::Host => Spake2::start_b_with_rng(&password, &client, &host, Dice(dice)),
        };
        (Self { spake, side, ours: ours.clone() }, ours)
    }

    /// The peer's message is here. Whether both have the same code shows in the first sealed
    /// message.
    ///
    /// # Errors
    ///
    /// [`PairingError::Malformed`].
    pub fn handle_message(self, theirs: &[u8]) -> Result<Channel, PairingError> {
        let key = self.spake.finish(theirs).map_err(|_| PairingError::Malformed)?;
        let key = Zeroizing::new(key);
        let (client, host) = match self.side {
            Side::Client => (self.ours.as_slice(), theirs),
            Side::Host => (theirs, self.ours.as_slice()),
        };
        let transcript: [u8; 32] = Sha256::digest([client, host].concat()).into();
        let direction = |purpose: &[u8]| {
            let mut seed = Zeroizing::new([0; 32]);
            let expanded =
                Hkdf::<Sha256>::new(Some(&transcript), &key).expand(purpose, seed.as_mut_slice());
            debug_assert!(expanded.is_ok(), "32 bytes are within HKDF's bound");
            Sealing::new(&seed, &transcript)
        };
        let to_host = direction(b"p2pfs pairing to host 1");
        let to_client = direction(b"p2pfs pairing to client 1");
        Ok(match self.side {
            Side::Client => Channel { send: to_host, receive: to_client },
            Side::Host => Channel { send: to_client, receive: to_host },
        })
    }
}

impl Channel {
    /// Seals the next message.
    ///
    /// # Errors
    ///
    /// [`PairingError::Malformed`]: it is too long.
    pub fn seal<T: Serialize>(&mut self, message: &T) -> Result<Vec<u8>, PairingError> {
        let bytes = Zeroizing::new(codec::encode(message).map_err(|_| PairingError::Malformed)?);
        let sealed = self.send.seal(&bytes, true);
        (sealed.len() <= PAIRING_BYTES_MAX).then_some(sealed).ok_or(PairingError::Malformed)
    }

    /// Opens the next message.
    ///
    /// # Errors
    ///
    /// [`PairingError::WrongCode`], or [`PairingError::Malformed`] from a peer that has the code.
    pub fn open<T: DeserializeOwned>(&mut self, sealed: &[u8]) -> Result<T, PairingError> {
        let mut rest = sealed;
        let (bytes, _) = self.receive.open(&mut rest).map_err(|_| PairingError::WrongCode)?;
        codec::decode(&bytes).map_err(|_| PairingError::Malformed)
    }
}

/// Hands out the bytes that were thrown before.
struct Dice(Zeroizing<[u8; 64]>);

impl RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, to: &mut [u8]) {
        // A scalar takes all 64 at once; whoever wants more gets what comes of them
        for part in to.chunks_mut(64) {
            part.copy_from_slice(&self.0[..part.len()]);
            let next: [u8; 32] = Sha256::digest(self.0.as_slice()).into();
            self.0[..32].copy_from_slice(&next);
            let next: [u8; 32] = Sha256::digest(self.0.as_slice()).into();
            self.0[32..].copy_from_slice(&next);
        }
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(to);
        Ok(())
    }
}

impl CryptoRng for Dice {}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({:03}-..)", self.number)
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("side", &self.side).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_typed_as_people_type() {
        let code = Code::from_random([42, 0, 1, 2, 3, 4, 5]);
        let text = code.to_text();
        assert_eq!(text.len(), "042-ABCD-EFGH".len());
        assert_eq!(text.parse(), Ok(code.clone()));
        assert_eq!(text.to_lowercase().replace('-', " ").replace('0', "o").parse(), Ok(code));
        for bad in ["", "042", "042-ABCD-EFG", "042-ABCD-EFGHJ", "4x2-ABCD-EFGH", "\u{e9}\u{e9}"] {
            assert!(!Code::is_like(bad), "{bad}");
        }
    }

    #[test]
    fn who_has_the_same_code_can_talk() {
        let code = Code::from_random([7; 7]);
        let (mut host, mut client) = pair(&code, &code);
        let request = client.seal(&"request".to_owned()).unwrap();
        assert_eq!(host.open::<String>(&request), Ok("request".to_owned()));
        for text in ["one", "two"] {
            let sealed = host.seal(&text.to_owned()).unwrap();
            assert_eq!(client.open::<String>(&sealed), Ok(text.to_owned()));
        }
        // Neither a message again nor one's own
        assert_eq!(host.open::<String>(&request), Err(PairingError::WrongCode));
        let own = host.seal(&"own".to_owned()).unwrap();
        assert_eq!(host.open::<String>(&own), Err(PairingError::WrongCode));
    }

    #[test]
    fn a_wrong_code_shows_and_nothing_else_does() {
        let right: Code = "042-ABCD-EFGH".parse().unwrap();
        for wrong in ["042-ABCD-EFGJ", "043-ABCD-EFGH"] {
            let (mut host, mut client) = pair(&right, &wrong.parse().unwrap());
            let request = client.seal(&"request".to_owned()).unwrap();
            assert_eq!(host.open::<String>(&request), Err(PairingError::WrongCode));
            let offer = host.seal(&"offer".to_owned()).unwrap();
            assert_eq!(client.open::<String>(&offer), Err(PairingError::WrongCode));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let code = Code::from_random([7; 7]);
        for bad in [&[][..], &[0x41], &[0x41; 33], &[0xff; 33], &[0x42; 33], &[0; 4096]] {
            let (host, _) = Handshake::start(&code, Side::Host, dice(1));
            // An element that is on the curve all the same leads nowhere
            if let Ok(mut channel) = host.handle_message(bad) {
                assert_eq!(channel.open::<String>(&[0; 64]), Err(PairingError::WrongCode));
            }
        }
        // One's own message sent back
        let (host, ours) = Handshake::start(&code, Side::Host, dice(1));
        assert_eq!(host.handle_message(&ours).unwrap_err(), PairingError::Malformed);
    }

    fn pair(host: &Code, client: &Code) -> (Channel, Channel) {
        let (host, from_host) = Handshake::start(host, Side::Host, dice(1));
        let (client, from_client) = Handshake::start(client, Side::Client, dice(2));
        let host = host.handle_message(&from_client).unwrap();
        (host, client.handle_message(&from_host).unwrap())
    }

    fn dice(seed: u8) -> Zeroizing<[u8; 64]> {
        Zeroizing::new([seed; 64])
    }
}
