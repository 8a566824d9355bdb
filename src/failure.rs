//! What a person is told when something fails: a code for programs, a sentence, the next step.
//!
//! The codes are a contract (`p2pfs-* --help`, README): scripts match on them.

use std::fmt;

/// Why a command failed; its text form stands in `error[CODE]: ...`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// No key where one was expected.
    KeyMissing,
    /// The key's folder is damaged.
    KeyCorrupt,
    /// The key's folder belongs to another stick.
    KeyCopied,
    /// The host has recorded the key, but nobody has authorised it.
    KeyUnauthorised,
    /// The host's owner took the key's authorisation back.
    KeyRevoked,
    /// The key wants a passphrase, or another one.
    Passphrase,
    /// The host is not reachable, or this key was removed there.
    HostOffline,
    /// The machine that answered is not the host that the key was paired with.
    HostMismatch,
    /// No rendezvous server could be reached.
    ServerUnreachable,
    /// The server's key is not the one that was pinned.
    ServerChanged,
    /// No share of that name.
    ShareUnknown,
    /// The share exists, but not for this key.
    ShareDenied,
    /// The mount point cannot be used.
    Mountpoint,
    /// FUSE is missing or refuses.
    Fuse,
    /// The command line is wrong.
    Usage,
    /// Everything else.
    Internal,
}

impl Code {
    const ALL: [Self; 16] = [
        Self::KeyMissing,
        Self::KeyCorrupt,
        Self::KeyCopied,
        Self::KeyUnauthorised,
        Self::KeyRevoked,
        Self::Passphrase,
        Self::HostOffline,
        Self::HostMismatch,
        Self::ServerUnreachable,
        Self::ServerChanged,
        Self::ShareUnknown,
        Self::ShareDenied,
        Self::Mountpoint,
        Self::Fuse,
        Self::Usage,
        Self::Internal,
    ];

    /// Reads [`Self::as_str`]'s form.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// The code as printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyMissing => "key-missing",
            Self::KeyCorrupt => "key-corrupt",
            Self::KeyCopied => "key-copied",
            Self::KeyUnauthorised => "key-unauthorised",
            Self::KeyRevoked => "key-revoked",
            Self::Passphrase => "passphrase",
            Self::HostOffline => "host-offline",
            Self::HostMismatch => "host-mismatch",
            Self::ServerUnreachable => "server-unreachable",
            Self::ServerChanged => "server-changed",
            Self::ShareUnknown => "share-unknown",
            Self::ShareDenied => "share-denied",
            Self::Mountpoint => "mountpoint",
            Self::Fuse => "fuse",
            Self::Usage => "usage",
            Self::Internal => "internal",
        }
    }

    /// The exit code of a program that ends with this failure: 2 for wrong usage, else 1.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            _ => 1,
        }
    }
}

/// A failure that a person reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// What happened: a lowercase fragment.
    pub what: String,
    /// What to do next: one sentence, where there is something to do.
    pub hint: String,
}

impl Failure {
    /// A failure with its next step.
    pub fn new(code: Code, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, what: what.into(), hint: hint.into() }
    }

    /// The two lines that a program prints on stderr.
    pub fn report(&self) -> String {
        format!("error[{}]: {}\nhint: {}", self.code.as_str(), self.what, self.hint)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}
