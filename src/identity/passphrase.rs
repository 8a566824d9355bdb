//! What people type, and the keys that come of it: Argon2id (RFC 9106).

use std::fmt;
use std::str::FromStr;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::identity::Hidden;
use crate::limits::{
    PASSPHRASE_BYTES_MAX, STRETCH_LANES_MAX, STRETCH_MEMORY_KIB_MAX, STRETCH_PASSES_MAX,
};

/// RFC 9106's second recommendation, for where 2 GiB are too much.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;

/// A passphrase or password: 1 to [`PASSPHRASE_BYTES_MAX`] bytes.
#[derive(Clone, Eq, PartialEq, Zeroize, ZeroizeOnDrop)]
pub struct Passphrase(String);

/// How a passphrase becomes a key: Argon2id's cost, within bounds, and its salt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stretch {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; 16],
}

impl Passphrase {
    /// `None` where it is empty or too long. The end of its line does not belong to it.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        (1..=PASSPHRASE_BYTES_MAX).contains(&text.len()).then(|| Self(text.to_owned()))
    }

    /// As it was typed; for the way from one process of ours to another.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Stretch {
    /// What is used today. `salt`: fresh random bytes.
    pub fn new(salt: [u8; 16]) -> Self {
        Self { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt }
    }

    /// The key; takes tenths of a second and as much memory as it says.
    pub fn derive(&self, passphrase: &Passphrase) -> Hidden {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, None);
        let argon2 = params.map(|params| Argon2::new(Algorithm::Argon2id, Version::V0x13, params));
        let mut key = Hidden([0; 32]);
        let derived = argon2.and_then(|argon2| {
            argon2.hash_password_into(passphrase.0.as_bytes(), &self.salt, &mut key.0)
        });
        derived.expect("the cost is within Argon2's bounds, and so are the lengths");
        key
    }
}

/// As other programs write Argon2's cost and salt.
impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, passes, lanes, salt } = self;
        let salt = STANDARD_NO_PAD.encode(salt);
        write!(f, "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}")
    }
}

impl FromStr for Stretch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        Self::parse(text).ok_or("not Argon2id's cost and salt, or out of bounds")
    }
}

impl Stretch {
    fn parse(text: &str) -> Option<Self> {
        let (cost, salt) = text.strip_prefix("$argon2id$v=19$")?.split_once('$')?;
        let mut cost = cost.split(',');
        let mut number = |name: &str| cost.next()?.strip_prefix(name)?.parse::<u32>().ok();
        let (memory_kib, passes, lanes) = (number("m=")?, number("t=")?, number("p=")?);
        let fits = (1..=STRETCH_LANES_MAX).contains(&lanes)
            && (8 * lanes..=STRETCH_MEMORY_KIB_MAX).contains(&memory_kib)
            && (1..=STRETCH_PASSES_MAX).contains(&passes)
            && cost.next().is_none();
        let salt = STANDARD_NO_PAD.decode(salt).ok()?.try_into().ok()?;
        fits.then_some(Self { memory_kib, passes, lanes, salt })
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_one_line_and_never_shown() {
        let typed = Passphrase::from_text("caf\u{e9} au lait\r\n").unwrap();
        assert_eq!(typed.expose(), "caf\u{e9} au lait");
        assert_eq!(format!("{typed:?}"), "Passphrase(..)");
        assert!(Passphrase::from_text("\n").is_none());
        assert!(Passphrase::from_text(&"x".repeat(PASSPHRASE_BYTES_MAX + 1)).is_none());
    }

    #[test]
    fn the_same_passphrase_and_salt_make_the_same_key() {
        let stretch: Stretch =
            "$argon2id$v=19$m=64,t=1,p=1$AAECAwQFBgcICQoLDA0ODw".parse().unwrap();
        let key = |text| stretch.derive(&Passphrase::from_text(text).unwrap()).0;
        assert_eq!(key("one"), key("one\n"));
        assert_ne!(key("one"), key("two"));
        let other = Stretch { salt: [1; 16], ..stretch };
        assert_ne!(other.derive(&Passphrase::from_text("one").unwrap()).0, key("one"));
    }

    #[test]
    fn a_cost_that_would_hurt_is_refused() {
        let good = Stretch::new([7; 16]);
        assert_eq!(good.to_string().parse(), Ok(good));
        for bad in [
            "",
            "$argon2id$v=19$m=4294967295,t=1,p=1$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=64,t=4000000000,p=1$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=64,t=1,p=0$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=64,t=1,p=16$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=64,t=1,p=1,x=1$AAECAwQFBgcICQoLDA0ODw",
            "$argon2id$v=19$m=64,t=1,p=1$AAEC",
            "$argon2i$v=19$m=64,t=1,p=1$AAECAwQFBgcICQoLDA0ODw",
        ] {
            assert!(bad.parse::<Stretch>().is_err(), "{bad}");
        }
    }
}
