//! The second piece of information (R9): what the client says of its device or of itself, against
//! what the owner has recorded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use p2pfs::identity::PeerId;
use p2pfs::identity::kind::{self, Kind, MAC_ADDRESSES_MAX};
use p2pfs::identity::recovery;
use p2pfs::identity::sealed::same_device;
use p2pfs::wire::session::{Denial, DeviceId};
use subtle::ConstantTimeEq;

use crate::keys::{Record, login};

/// Wrong passwords or identifiers that cost nothing.
const FREE_TRIES: u32 = 3;
/// The longest pause after wrong ones.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How a client is the one that was recorded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Same {
    /// By what was recorded.
    Recorded,
    /// By the proof from the key's paper.
    Recovered,
}

/// Wrong passwords and identifiers in a row, by key. In memory: there are as many as there are
/// recorded keys.
#[derive(Debug, Default)]
pub(super) struct Tries(Mutex<BTreeMap<PeerId, (u32, Instant)>>);

/// Compares; takes equal time for texts of equal length.
pub(super) fn compare(key: &Record, shown: &DeviceId) -> Result<Same, Denial> {
    if let (Some(proof), Some(known)) = (kind::recovery_proof(shown), &key.recovery) {
        return match equal(&recovery::verifier(proof), known) {
            true => Ok(Same::Recovered),
            false => Err(Denial::DeviceMismatch),
        };
    }
    if key.recovered {
        // The stick was lost, and somebody has found it
        return Err(Denial::Revoked);
    }
    let kind = key.kind;
    let known = &key.device.serial;
    let named = |shown: &str| {
        shown.split(',').take(MAC_ADDRESSES_MAX).any(|one| equal(&kind.normal(one), known))
    };
    let same = match kind {
        Kind::Stick => match same_device(&key.device, shown) {
            true => return Ok(Same::Recorded),
            false => return Err(Denial::DeviceMismatch),
        },
        Kind::Serial => equal(&shown.serial, known) || named(&shown.serial),
        Kind::Code => shown.product == kind.as_str() && equal(&kind.normal(&shown.serial), known),
        Kind::Mac => shown.product == kind.as_str() && named(&shown.serial),
        Kind::Login => {
            shown.product == kind.as_str()
                && equal(&shown.vendor, &key.device.vendor)
                && login::verify(&shown.serial, known)
        }
    };
    if same { Ok(Same::Recorded) } else { Err(Denial::OtherIdentifier) }
}

impl Tries {
    /// Whether one may be tried now.
    pub(super) fn may_try(&self, peer: PeerId, now: Instant) -> bool {
        let tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tries.get(&peer).is_none_or(|(_, until)| *until <= now)
    }

    /// One was tried: each wrong one doubles the pause.
    pub(super) fn tried(&self, peer: PeerId, was_right: bool, now: Instant) {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if was_right {
            tries.remove(&peer);
            return;
        }
        let (wrong, until) = tries.entry(peer).or_insert((0, now));
        *wrong = wrong.saturating_add(1);
        if *wrong > FREE_TRIES {
            let pause = Duration::from_secs(1 << (*wrong - FREE_TRIES).min(6));
            *until = now + pause.min(PAUSE_MAX);
        }
    }
}

fn equal(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use p2pfs::identity::passphrase::{Passphrase, Stretch};

    use super::*;
    use crate::keys::tests::record;

    #[test]
    fn each_kind_of_identifier_is_compared_as_people_write_it() {
        for (kind, recorded, right, wrong) in [
            (Kind::Code, "ABCD-0123", "abcd 0l23", "ABCD-0124"),
            (Kind::Mac, "02-AA-00-00-00-01", "02:00:00:00:00:09,02:aa:00:00:00:01", "02:aa"),
            (Kind::Serial, "0330622110004158", "0330622110004158", "0330622110004159"),
        ] {
            let mut key = record(1);
            key.kind = kind;
            key.device = kind.identifier(recorded, "");
            let outcome = |shown: &str| compare(&key, &kind.identifier(shown, ""));
            assert_eq!(outcome(right), Ok(Same::Recorded), "{kind}");
            assert_eq!(outcome(wrong), Err(Denial::OtherIdentifier), "{kind}");
            assert_eq!(outcome(""), Err(Denial::OtherIdentifier), "{kind}");
        }
    }

    #[test]
    fn a_code_is_not_taken_from_where_another_kind_is_shown() {
        let mut key = record(1);
        key.kind = Kind::Code;
        key.device = Kind::Code.identifier("02:00:00:00:00:01", "");
        let shown = Kind::Mac.identifier("02:00:00:00:00:01", "");
        assert_eq!(compare(&key, &shown), Err(Denial::OtherIdentifier));
    }

    #[test]
    fn a_login_takes_its_user_and_its_password() {
        let stretch: Stretch =
            "$argon2id$v=19$m=64,t=1,p=1$AAECAwQFBgcICQoLDA0ODw".parse().unwrap();
        let password = |text: &str| Passphrase::from_text(text).unwrap();
        let mut key = record(1);
        key.kind = Kind::Login;
        key.device = login::recorded("ann", &password("secret"), &stretch);
        assert!(!format!("{key:?}").contains("secret"));
        let shown = |user: &str, text: &str| {
            let proof = p2pfs::identity::login_proof(&stretch, &password(text));
            compare(&key, &Kind::Login.identifier(&proof, user))
        };
        assert_eq!(shown("ann", "secret"), Ok(Same::Recorded));
        assert_eq!(shown("ann", "Secret"), Err(Denial::OtherIdentifier));
        assert_eq!(shown("bob", "secret"), Err(Denial::OtherIdentifier));
        // What the host keeps is no password
        let kept = Kind::Login.identifier(&key.device.serial, "ann");
        assert_eq!(compare(&key, &kept), Err(Denial::OtherIdentifier));
    }

    #[test]
    fn a_key_from_paper_locks_the_lost_stick_out() {
        let mut key = record(1);
        key.recovery = Some(recovery::verifier("PROOF"));
        let (stick, paper) = (key.device.clone(), kind::recovered("PROOF"));
        assert_eq!(compare(&key, &stick), Ok(Same::Recorded));
        assert_eq!(compare(&key, &kind::recovered("OTHER")), Err(Denial::DeviceMismatch));
        assert_eq!(compare(&key, &paper), Ok(Same::Recovered));
        key.recovered = true;
        assert_eq!(compare(&key, &stick), Err(Denial::Revoked));
        assert_eq!(compare(&key, &paper), Ok(Same::Recovered));
    }

    #[test]
    fn wrong_passwords_take_longer_and_longer() {
        let (tries, peer, mut now) = (Tries::default(), record(1).peer, Instant::now());
        for _ in 0..FREE_TRIES {
            assert!(tries.may_try(peer, now));
            tries.tried(peer, false, now);
        }
        for pause in [2, 4, 8, 16, 32, 60, 60] {
            assert!(tries.may_try(peer, now));
            tries.tried(peer, false, now);
            assert!(!tries.may_try(peer, now + Duration::from_secs(pause - 1)));
            now += Duration::from_secs(pause);
        }
        assert!(tries.may_try(record(2).peer, now));
        tries.tried(peer, true, now);
        assert!(tries.may_try(peer, now));
    }
}
