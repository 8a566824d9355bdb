//! Until when a key may come in.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

/// For how long a key is authorised.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifetime {
    /// Until it is revoked.
    Never,
    /// Until this time, in seconds since 1970.
    Until(u64),
}

impl Lifetime {
    /// When it ends; `None`: never.
    pub fn until(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Until(at) => Some(at),
        }
    }
}

/// A day, which counts in full; a time on this machine's clock; a time with its offset; `never`.
impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let wrong = || "a day as 2027-01-31, a time as 2027-01-31T18:00, or never".to_owned();
        let here = TimeZone::system();
        let at = if let Ok(at) = text.parse::<Timestamp>() {
            at
        } else if text.len() <= "2027-01-31".len() {
            let day: Date = text.parse().map_err(|_| wrong())?;
            let next = day.checked_add(1.day()).map_err(|_| wrong())?;
            here.to_timestamp(next.into()).map_err(|_| wrong())?
        } else {
            let at: DateTime = text.parse().map_err(|_| wrong())?;
            here.to_timestamp(at).map_err(|_| wrong())?
        };
        u64::try_from(at.as_second()).map(Self::Until).map_err(|_| wrong())
    }
}

/// A time for people and programs: RFC 3339, in UTC.
pub fn to_text(at: u64) -> String {
    let at = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
    at.unwrap_or(Timestamp::MAX).to_string()
}

/// The time by this machine's clock, in seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_read_as_people_write_them() {
        let noon = Lifetime::Until(1_801_483_200);
        assert_eq!("2027-02-01T12:00:00Z".parse(), Ok(noon));
        assert_eq!("2027-02-01T13:00:00+01:00".parse(), Ok(noon));
        assert_eq!("never".parse(), Ok(Lifetime::Never));
        assert_eq!(to_text(1_801_483_200), "2027-02-01T12:00:00Z");
        // Wherever this runs: a day counts in full
        let until = |text: &str| text.parse::<Lifetime>().unwrap().until().unwrap();
        assert_eq!(until("2027-02-01"), until("2027-02-02T00:00"));
        assert_eq!(until("2027-02-01T12:00"), until("2027-02-01 12:00:00"));
        for bad in ["", "tomorrow", "2027-13-01", "2027-02-30", "1969-01-01T00:00:00Z", "07:00"] {
            assert!(bad.parse::<Lifetime>().is_err(), "{bad}");
        }
    }
}
