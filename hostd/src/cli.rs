//! The command line: syntax only.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::net::daemon;
use p2pfs::net::doctor::SECOND_OPINION;
use p2pfs::proto::path::Side;

use crate::expires::Lifetime;
use crate::keys::{Access, Map};
use crate::owner::Request;
use crate::{backup, doctor, keys, pair, serve, status};

/// Serves folders of this machine to the owner's keys.
#[derive(Debug, Parser)]
#[command(name = "p2pfs-hostd", version)]
struct Cli {
    /// Where settings, keys and the control socket are
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve shares until SIGTERM
    Serve(ServeArgs),
    /// Make a USB stick or a folder a key of this host
    Pair(PairArgs),
    /// Show the keys, and say which may come in
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Say what works from here, what does not, and what to do; 1 if something is missing
    Doctor {
        /// Look at this server [default: those that are remembered]
        #[arg(long = "server", value_name = "ADDRESS")]
        servers: Vec<ServerAddress>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What stun-client says of the NAT
    #[command(name = SECOND_OPINION, hide = true)]
    SecondOpinion {
        /// Where STUN answers
        server: SocketAddr,
    },
    /// Save who this host is and whom it knows, sealed to a passphrase
    Backup(BackupArgs),
    /// Go on as the host that was saved: no key has to be paired again
    Restore {
        #[command(flatten)]
        args: BackupArgs,
        /// Lose the host that is there
        #[arg(long)]
        replace: bool,
    },
    /// Show shares, servers and sessions
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// A folder and the name that clients see; replaces the remembered shares
    #[arg(long = "share", value_name = "NAME=DIR", value_parser = share)]
    pub shares: Vec<(String, PathBuf)>,
    /// A share that nobody may change
    #[arg(long, value_name = "NAME")]
    pub read_only: Vec<String>,
    /// Where clients ask for this host; replaces the remembered servers
    #[arg(long = "server", value_name = "ADDRESS")]
    pub servers: Vec<ServerAddress>,
    /// The UDP address to use [default: a free port on every interface]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// When a client that has not come is asked to identify itself; 0: at once
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub auth_wait: u32,
    /// Which side of a TCP path this host may be
    #[arg(long, value_name = "both|connect|listen", default_value = "both")]
    pub role: Side,
}

/// `pair`.
#[derive(Args, Debug)]
pub struct PairArgs {
    /// The key's folder, or `usb` for the stick that is plugged in
    #[arg(long, value_name = "K|usb", required_unless_present = "code", conflicts_with = "code")]
    pub key: Option<PathBuf>,
    /// Over the local network: print a one-time code for p2pfs-mountd import
    #[arg(long)]
    pub code: bool,
    /// How long the code is good
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 300, requires = "code")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// What the key may do
    #[command(flatten)]
    pub rights: Rights,
    /// As whom its changes are made: as the share's owner, or (as root only) as who asks
    #[arg(long, value_name = "squash|identity", default_value = "squash")]
    pub map: Map,
    /// Seal the key to a passphrase too: the first line of this file
    #[arg(long, value_name = "F", conflicts_with = "code")]
    pub passphrase_file: Option<PathBuf>,
    /// Write the recovery code there instead of showing it at a terminal
    #[arg(long, value_name = "F", conflicts_with = "code")]
    pub recovery_file: Option<PathBuf>,
}

/// What a key may do, however it is paired.
#[derive(Args, Clone, Debug)]
pub struct Rights {
    /// Let it in at once
    #[arg(long)]
    pub authorise: bool,
    /// Whether it may change files
    #[arg(long, value_name = "ro|rw", default_value = "rw")]
    pub access: Access,
    /// The shares it may use [default: all]
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = share_name)]
    pub shares: Vec<String>,
    /// Allow clients to keep the identity without the stick
    #[arg(long)]
    pub portable: bool,
    /// The last day or the time until which it may come in [default: never]
    #[arg(long, value_name = "DATE")]
    pub expires: Option<Lifetime>,
    /// Where the key's client asks for this host [default: the host's own servers]
    #[arg(long = "server", value_name = "ADDRESS")]
    pub servers: Vec<ServerAddress>,
    /// What the key is called in the list [default: its folder's name, or its identifier]
    #[arg(long, value_name = "N")]
    pub name: Option<String>,
}

/// `keys add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// What tells this client from others, as p2pfs-mountd identity shows it there
    #[arg(long, value_name = "code|serial|mac|login")]
    pub kind: Kind,
    /// The code, serial number, MAC address or user name
    pub value: String,
    /// The login's password: the first line of this file
    #[arg(long, value_name = "F")]
    pub password_file: Option<PathBuf>,
    /// As whom its changes are made: as the share's owner, or (as root only) as who asks
    #[arg(long, value_name = "squash|identity", default_value = "squash")]
    pub map: Map,
    /// What the key may do
    #[command(flatten)]
    pub rights: Rights,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Show all keys
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record a client without a stick, and print a ticket for it
    Add(AddArgs),
    /// Let a key in
    Authorise {
        /// The key's id, or its first characters (at least 4)
        id: String,
        /// The last day or the time until which it may come in, or never [default: as before]
        #[arg(long, value_name = "DATE|never")]
        expires: Option<Lifetime>,
    },
    /// Keep a key out; its sessions end now
    Revoke {
        /// The key's id, or its first characters (at least 4)
        id: String,
    },
    /// Forget a key; its sessions end now
    Remove {
        /// The key's id, or its first characters (at least 4)
        id: String,
    },
}

/// A file and what opens it.
#[derive(Args, Debug)]
struct BackupArgs {
    /// The file
    file: PathBuf,
    /// Its passphrase: the first line of this file [default: asked]
    #[arg(long, value_name = "F")]
    passphrase_file: Option<PathBuf>,
}

/// Reads the command line and does what it says.
///
/// # Errors
///
/// A [`Failure`], for people.
pub fn run() -> anyhow::Result<()> {
    let Some(cli) = parse()? else {
        return Ok(());
    };
    daemon::leave_no_core();
    let dir = daemon::state_dir(cli.state, "hostd")?;
    match cli.command {
        Command::Serve(args) => serve::run(&dir, args)?,
        Command::Pair(args) => pair::run(&dir, args)?,
        Command::Keys { command } => match command {
            KeysCommand::List { json } => keys::list(&dir, json)?,
            KeysCommand::Add(args) => pair::ticket::run(&dir, args)?,
            KeysCommand::Authorise { id, expires: lifetime } => {
                keys::change(&dir, &Request::Authorise { id, lifetime })?;
            }
            KeysCommand::Revoke { id } => keys::change(&dir, &Request::Revoke { id })?,
            KeysCommand::Remove { id } => keys::change(&dir, &Request::Remove { id })?,
        },
        Command::Doctor { servers, json } => doctor::run(&dir, servers, json)?,
        Command::SecondOpinion { server } => p2pfs::net::doctor::second_opinion(server)?,
        Command::Backup(BackupArgs { file, passphrase_file }) => {
            backup::backup(&dir, &file, passphrase_file.as_deref())?;
        }
        Command::Restore { args: BackupArgs { file, passphrase_file }, replace } => {
            backup::restore(&dir, &file, passphrase_file.as_deref(), replace)?;
        }
        Command::Status { json } => status::run(&dir, json)?,
    }
    Ok(())
}

/// `None`: it was only about help, which is printed.
fn parse() -> anyhow::Result<Option<Cli>> {
    let error = match Cli::try_parse() {
        Ok(cli) => return Ok(Some(cli)),
        Err(error) => error,
    };
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        error.print()?;
        return Ok(None);
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let what = text.split("\n\nUsage").next().unwrap_or(text);
    // One line, as every error is
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing",
        _ => &what,
    };
    Err(Failure::new(Code::Usage, what, "p2pfs-hostd --help shows what there is").into())
}

fn share(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("it looks like NAME=DIR")?;
    if dir.is_empty() {
        return Err("DIR is missing".into());
    }
    crate::config::check_share_name(name)?;
    Ok((name.to_owned(), dir.into()))
}

fn share_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    crate::config::check_share_name(name)?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_in_order() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_share_has_a_name_and_a_directory() {
        assert_eq!(share("a=/b=c"), Ok(("a".into(), "/b=c".into())));
        for bad in ["/dir", "=/dir", "a=", "a:b=/dir", "a/b=/dir", "a,b=/dir"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
