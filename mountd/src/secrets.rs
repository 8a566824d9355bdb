//! What a person types for a mount: the key's passphrase, a login's password.
//!
//! The process in the background gets them through its standard input. They are gone when the key
//! is pulled: then they are typed again, or read again from their files.

use std::io::{self, BufRead, Read, Write};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::identity::passphrase::Passphrase;
use p2pfs::net::ask;
use p2pfs::usb::read_public;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::mounted::MountRequest;
use crate::options::MountOptions;
use crate::store;

/// Both, longer than they may be, with what JSON adds.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// What was typed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets {
    passphrase: Option<Passphrase>,
    password: Option<Passphrase>,
}

#[derive(Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
struct Line {
    passphrase: Option<String>,
    password: Option<String>,
}

impl Secrets {
    /// Asks for what the key wants and no option names a file for.
    ///
    /// # Errors
    ///
    /// [`Code::Passphrase`]: nobody is there to type it.
    pub(crate) fn gather(request: &MountRequest) -> Result<Self, Failure> {
        let options = &request.options;
        let dir = store::locate(&request.state, &request.spec);
        // one that cannot be read is told where the mount fails
        let Ok(public) = read_public(&dir) else { return Ok(Self::default()) };
        let mut secrets = Self::default();
        if public.passphrase.is_some() && options.passphrase_file.is_none() {
            let prompt = format!("Passphrase of key {}: ", public.id);
            secrets.passphrase = Some(ask::passphrase(None, &prompt, false)?);
        }
        if public.kind == Kind::Login
            && options.password_file.is_none()
            && let Some(user) = &options.login
        {
            let prompt = format!("Password of {user} on {}: ", public.host_name);
            secrets.password = Some(ask::passphrase(None, &prompt, false)?);
        }
        Ok(secrets)
    }

    /// The key's passphrase, if there is one.
    pub(crate) fn passphrase(&self, options: &MountOptions) -> Result<Option<Passphrase>, Failure> {
        match &options.passphrase_file {
            Some(file) => ask::passphrase(Some(file), "", false).map(Some),
            None => Ok(self.passphrase.clone()),
        }
    }

    /// The login's password.
    pub(crate) fn password(&self, options: &MountOptions) -> Result<Passphrase, Failure> {
        match (&options.password_file, &self.password) {
            (Some(file), _) => ask::passphrase(Some(file), "", false),
            (None, Some(password)) => Ok(password.clone()),
            (None, None) => Err(Failure::new(
                Code::Passphrase,
                "the password is wanted again",
                "mount it again and type it, or name a file with -o password-file=FILE",
            )),
        }
    }

    /// Whether there is anything to hand on.
    pub(crate) fn is_empty(&self) -> bool {
        self.passphrase.is_none() && self.password.is_none()
    }

    /// Hands them to the process in the background.
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let text = |secret: &Option<Passphrase>| secret.as_ref().map(|it| it.expose().to_owned());
        let line = Line { passphrase: text(&self.passphrase), password: text(&self.password) };
        let line = Zeroizing::new(serde_json::to_string(&line).map_err(io::Error::other)?);
        to.write_all(line.as_bytes())?;
        to.write_all(b"\n")
    }

    /// Takes them from standard input.
    pub(crate) fn read() -> io::Result<Self> {
        let mut text = Zeroizing::new(String::with_capacity(LINE_BYTES_MAX as usize));
        io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut text)?;
        let line: Line = serde_json::from_str(&text).map_err(io::Error::other)?;
        let secret = |text: &Option<String>| text.as_deref().and_then(Passphrase::from_text);
        Ok(Self { passphrase: secret(&line.passphrase), password: secret(&line.password) })
    }
}
