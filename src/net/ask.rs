//! Passphrases and passwords: from a file, typed without an echo, or from a pipe.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::failure::{Code, Failure};
use crate::identity::passphrase::Passphrase;
use crate::limits::PASSPHRASE_BYTES_MAX;

/// Reads the first line of `file`, or asks at the terminal, or takes the first line of standard
/// input where that is no terminal. `twice`: a new one, which is typed again.
///
/// # Errors
///
/// [`Code::Passphrase`] where none is to be had, or the two differ.
pub fn passphrase(file: Option<&Path>, prompt: &str, twice: bool) -> Result<Passphrase, Failure> {
    if let Some(path) = file {
        let read = File::open(path).and_then(|file| line(&mut BufReader::new(file)));
        let text = read.map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            Failure::new(Code::Passphrase, what, "name a file that this user may read")
        })?;
        return check(&text, &format!("{} holds no passphrase", path.display()));
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let text = line(&mut stdin.lock()).map_err(|error| none(&error.to_string()))?;
        return check(&text, "a passphrase is wanted");
    }
    let typed = typed(prompt)?;
    if twice && typed != self::typed("Once more: ")? {
        let what = "the two differ";
        return Err(Failure::new(Code::Passphrase, what, "type the same one twice"));
    }
    Ok(typed)
}

fn typed(prompt: &str) -> Result<Passphrase, Failure> {
    let quiet = Quiet::start().map_err(|error| none(&error.to_string()))?;
    eprint!("{prompt}");
    let _ = io::stderr().flush();
    let read = line(&mut io::stdin().lock());
    drop(quiet);
    eprintln!();
    let text = read.map_err(|error| none(&error.to_string()))?;
    check(&text, "nothing was typed")
}

fn line(from: &mut impl BufRead) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(PASSPHRASE_BYTES_MAX + 4));
    Read::take(from, PASSPHRASE_BYTES_MAX as u64 + 3).read_line(&mut text)?;
    Ok(text)
}

fn check(text: &str, otherwise: &str) -> Result<Passphrase, Failure> {
    Passphrase::from_text(text).ok_or_else(|| none(otherwise))
}

fn none(what: &str) -> Failure {
    Failure::new(
        Code::Passphrase,
        what,
        format!(
            "type it at a terminal, or put it into the first line of a file (at most \
             {PASSPHRASE_BYTES_MAX} bytes) and name that"
        ),
    )
}

/// The terminal shows nothing of what is typed while this lives.
struct Quiet(Termios);

impl Quiet {
    fn start() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // the terminal may be gone
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "correct horse\nsecond line\n").unwrap();
        let read = passphrase(Some(&path), "", false).unwrap();
        assert_eq!(read.expose(), "correct horse");
        for bad in ["", "\n", &"x".repeat(PASSPHRASE_BYTES_MAX + 1)] {
            std::fs::write(&path, bad).unwrap();
            let failure = passphrase(Some(&path), "", false).unwrap_err();
            assert_eq!(failure.code, Code::Passphrase);
        }
        let missing = passphrase(Some(&dir.path().join("missing")), "", false).unwrap_err();
        assert_eq!(missing.code, Code::Passphrase);
    }
}
