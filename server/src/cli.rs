//! The command line.

use std::ffi::OsString;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use p2pfs::failure::Failure;
use p2pfs::net::daemon;

/// Introduces clients to hosts: the p2pfs rendezvous server.
#[derive(Clone, Debug, Parser)]
#[command(name = "p2pfs-server", version)]
pub struct Cli {
    /// Where the server's key and its control socket are
    #[arg(long, value_name = "DIR", global = true)]
    pub state: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or Ctrl-C
    Run(RunOptions),
    /// Show what a running server does
    Status {
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

/// How to serve.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Where hosts and clients register (TCP)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:443")]
    pub listen: SocketAddr,
    /// Where STUN answers (UDP)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:3478")]
    pub stun: SocketAddr,
    /// A second STUN address, so that a NAT's behaviour can be told
    #[arg(long, value_name = "IP:PORT")]
    pub stun_alt: Option<SocketAddr>,
    /// How others reach this server, if not at the address that it listens on
    #[arg(long, value_name = "HOST[:PORT]")]
    pub public: Option<PublicName>,
    /// Carry no data for others
    #[arg(long)]
    pub no_relay: bool,
}

/// `HOST[:PORT]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicName {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// Without it: the port that the server listens on.
    pub port: Option<u16>,
}

impl FromStr for PublicName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const BAD: &str = "it looks like HOST, HOST:PORT or [IPV6]:PORT";
        let bare = |host: &str| Self { host: host.to_owned(), port: None };
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(bare(text));
        }
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => {
                host.parse::<Ipv6Addr>().map_err(|_| BAD)?;
                (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")))
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, Some("")),
            },
        };
        let name = host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
        if host.is_empty() || !name {
            return Err(BAD);
        }
        match port.ok_or(BAD)? {
            "" if text.ends_with(':') => Err(BAD),
            "" => Ok(bare(host)),
            port => Ok(Self {
                port: Some(port.parse().ok().filter(|port| *port != 0).ok_or(BAD)?),
                ..bare(host)
            }),
        }
    }
}

/// Reads the command line; `None` if it only asked for help, which is printed.
///
/// # Errors
///
/// Wrong usage.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Cli>, Failure> {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Ok(Some(cli)),
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            print!("{}", error.render());
            Ok(None)
        }
        Err(error) => Err(daemon::usage(&error.render().to_string(), "p2pfs-server")),
    }
}

#[cfg(test)]
mod tests {
    use p2pfs::failure::Code;

    use super::*;

    fn parsed(line: &str) -> Result<Option<Cli>, Failure> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn a_public_name_has_a_port_or_not() {
        let name = |host: &str, port| Ok(PublicName { host: host.to_owned(), port });
        assert_eq!("home.example".parse(), name("home.example", None));
        assert_eq!("home.example:7".parse(), name("home.example", Some(7)));
        assert_eq!("2001:db8::1".parse(), name("2001:db8::1", None));
        assert_eq!("[2001:db8::1]".parse(), name("2001:db8::1", None));
        assert_eq!("[2001:db8::1]:7".parse(), name("2001:db8::1", Some(7)));
        for bad in ["", ":7", "a:", "a:b", "a:0", "a:70000", "[a]:7", "a#b", "[::1]x", "[::1]:"] {
            assert!(bad.parse::<PublicName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_usage_is_told_in_one_line_with_a_next_step() {
        for line in [
            "p2pfs-server",
            "p2pfs-server fly",
            "p2pfs-server run --listen 1.2.3.4",
            "p2pfs-server run --bogus",
        ] {
            let failure = parsed(line).unwrap_err();
            assert_eq!(failure.code, Code::Usage);
            assert!(!failure.what.is_empty() && !failure.what.contains('\n'), "{failure:?}");
            assert!(!failure.what.starts_with("error"), "{failure:?}");
            assert!(!failure.what.starts_with("Introduces"), "{failure:?}");
        }
    }

    #[test]
    fn the_state_directory_may_stand_before_or_after_the_command() {
        for line in ["p2pfs-server --state d run", "p2pfs-server run --state d"] {
            assert_eq!(parsed(line).unwrap().unwrap().state, Some("d".into()));
        }
    }
}
