//! The command line of `p2pfs-mountd`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::net::{daemon, doctor, log};
use zeroize::Zeroizing;

use crate::daemonise::{self, Parent};
use crate::fuse::mount::MountId;
use crate::mounted::{self, MountRequest, Words};
use crate::options::MountOptions;
use crate::secrets::Secrets;
use crate::spec::Spec;
use crate::{auto, control, identity, import, install, key, locked, store};

/// Mounts the disk at home as a local directory.
#[derive(Debug, Parser)]
#[command(name = "p2pfs-mountd", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a share; returns when it can be used.
    Mount(MountArguments),
    /// Watch for keys, and mount what they open; Ctrl-C or SIGTERM unmounts all.
    Auto(AutoArguments),
    /// Deliver what was written, then unmount.
    Unmount {
        /// Where it is mounted.
        mountpoint: PathBuf,
        #[command(flatten)]
        state: State,
    },
    /// Wait until everything that was written is on the host's disk.
    Sync {
        /// Where it is mounted.
        mountpoint: PathBuf,
        #[command(flatten)]
        state: State,
    },
    /// Show the mounts, their paths and caches.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Say what works from here, what does not, and what to do; 1 if something is missing.
    Doctor(DoctorArguments),
    /// What stun-client says of the NAT.
    #[command(name = doctor::SECOND_OPINION, hide = true)]
    SecondOpinion {
        /// Where STUN answers.
        server: SocketAddr,
    },
    /// Put mount.p2pfs where mount(8) looks (as root).
    Install {
        /// Use DIR/sbin instead of /sbin.
        #[arg(long, value_name = "DIR")]
        prefix: Option<PathBuf>,
        #[command(flatten)]
        state: State,
    },
    /// Show what this machine is known by where there is no stick: what the host's owner types in.
    Identity {
        /// Be known by this code from now on, which the host's owner has chosen.
        #[arg(long, value_name = "CODE")]
        code: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Take a key from a ticket, from the host over the local network, or from paper.
    Import {
        /// A ticket, a one-time code, or the lines of a recovery code; - reads standard input.
        #[arg(value_name = "TICKET|CODE", num_args = 1..)]
        what: Vec<String>,
        /// Ask this machine for the one-time code [default: everybody on the local network].
        #[arg(long, value_name = "IP")]
        host: Option<IpAddr>,
        /// Put it onto this stick or key directory [default: keep it on this machine].
        #[arg(long, value_name = "K")]
        to: Option<PathBuf>,
        /// Seal it to a passphrase too: the first line of this file.
        #[arg(long, value_name = "F")]
        passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        state: State,
    },
    /// Forget a key that is kept on this machine.
    Forget {
        /// Its id.
        id: String,
        #[command(flatten)]
        state: State,
    },
    /// Look at a key.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Args, Debug)]
struct DoctorArguments {
    /// A key's directory: it is looked at, and it names the servers.
    key: Option<PathBuf>,
    /// Look at this server [default: those of the hosts that were mounted here].
    #[arg(long = "server", value_name = "ADDRESS")]
    servers: Vec<ServerAddress>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Show what is on a key: its id, its host, its servers.
    Show {
        /// The key's directory.
        key: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Args, Debug)]
struct State {
    /// Where this program keeps its state.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

const OPTIONS_HELP: &str = "\
Mount options, with commas between them:
  ro rw allow_other wait       wait: try again after a denial until authorised
  uid= gid= umask=             how owners and modes are shown
  cache=512M                   memory for what was read before
  grace=30|inf                 seconds that calls wait for a silent host
  timeout=30                   seconds that mounting may take
  drain=5                      seconds that what was written may take when the key is pulled
  paths=auto                   or udp-first, tcp-first: one kind of path after the other
  relay=first|last|never       when the server may carry (ciphertext only)
  role=both|connect|listen     which side of a TCP path this is
  auth-to=private              or tcp-public, udp-public: the host's address that is asked first
  passphrase-file=F            holds the key's passphrase (else it is asked)
  login=USER password-file=F   for a key that is a login; F holds the password (else it is asked)
  state=DIR                    as --state";

#[derive(Args, Debug)]
#[command(after_help = OPTIONS_HELP)]
struct MountArguments {
    /// The key's directory, and a share if the host has several.
    #[arg(value_name = "KEY[:SHARE]")]
    spec: OsString,
    /// An existing directory.
    mountpoint: PathBuf,
    /// Mount options.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground, log to stderr.
    #[arg(long)]
    foreground: bool,
    /// Tell the process that started us over standard output.
    #[arg(long, hide = true)]
    notify_parent: bool,
    /// Wait until the key is there, and mount again whenever it can be.
    #[arg(long, hide = true)]
    locked: bool,
    /// The process before this one was killed, and left this mount.
    #[arg(long, hide = true, value_name = "MOUNT")]
    after_crash: Option<MountId>,
    /// The share that the process before this one was granted.
    #[arg(long, hide = true, value_name = "SHARE")]
    granted: Option<String>,
    /// The id of the key that the process before this one mounted with.
    #[arg(long, hide = true, value_name = "ID")]
    key: Option<String>,
    /// Take passphrase and password from standard input.
    #[arg(long, hide = true)]
    secrets: bool,
    /// Let unknown options pass.
    #[arg(long, hide = true)]
    sloppy: bool,
    /// Where relative paths of files in the options begin.
    #[arg(long, hide = true, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    state: State,
}

#[derive(Args, Debug)]
struct AutoArguments {
    /// Keys, or directories in which they appear [default: /media /mnt /run/media, and what is in
    /// them].
    #[arg(value_name = "PLACE")]
    places: Vec<PathBuf>,
    /// Mount as DIR/HOST/SHARE [default: root /media/p2pfs, user ~/p2pfs].
    #[arg(long, value_name = "DIR")]
    under: Option<PathBuf>,
    /// Mount options, as of `mount` [default: for root, allow_other].
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    state: State,
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            // nobody may be reading
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return daemon::exit_with(Err(usage(&error).into())),
    };
    daemon::exit_with(run(cli.command).map_err(Into::into))
}

fn usage(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing",
        _ => first.trim_start_matches("error: "),
    };
    let missing: Vec<&str> =
        text.lines().skip(1).map(str::trim).take_while(|line| !line.is_empty()).collect();
    let what = match error.kind() {
        ErrorKind::MissingRequiredArgument => format!("{what} {}", missing.join(" ")),
        _ => what.to_owned(),
    };
    Failure::new(Code::Usage, what, "p2pfs-mountd --help shows how it is used")
}

fn run(command: Command) -> Result<(), Failure> {
    // absolute: the working directory may be in the mount that goes away
    let dir = |state: State| {
        let dir = daemon::state_dir(state.state, "mountd")?;
        Ok(std::path::absolute(&dir).unwrap_or(dir))
    };
    match command {
        Command::Mount(arguments) => mount(arguments),
        Command::Auto(AutoArguments { places, under, options, state }) => {
            log::init();
            auto::run(auto::Request::new(places, under, &options, dir(state)?)?)
        }
        Command::Unmount { mountpoint, state } => control::unmount(&dir(state)?, &mountpoint),
        Command::Sync { mountpoint, state } => control::sync(&dir(state)?, &mountpoint),
        Command::Status { json, state } => control::status(&dir(state)?, json),
        Command::Doctor(DoctorArguments { key, servers, json, state }) => {
            crate::doctor::run(&dir(state)?, &crate::doctor::Request { key, servers, json })
        }
        Command::SecondOpinion { server } => doctor::second_opinion(server),
        Command::Install { prefix, .. } => install::install(prefix.as_deref()),
        Command::Identity { code, json, state } => {
            let dir = dir(state)?;
            if let Some(code) = code {
                identity::set_code(&dir, &code)?;
            }
            identity::show(&dir, json)
        }
        Command::Import { what, host, to, passphrase_file, state } => {
            let what = Zeroizing::new(what.join(" "));
            import::run(&dir(state)?, import::ImportRequest { what, host, to, passphrase_file })
        }
        Command::Forget { id, state } => store::forget(&dir(state)?, &id),
        Command::Key { command: KeyCommand::Show { key, json, .. } } => key::show(&key, json),
    }
}

fn mount(arguments: MountArguments) -> Result<(), Failure> {
    let spec = Spec::parse(&arguments.spec)?;
    let words = arguments.options.join(",");
    let mut options = MountOptions::parse(&words, arguments.sloppy)?;
    if let Some(state) = arguments.state.state {
        options.state = Some(state);
    }
    let words = Words { options: words, sloppy: arguments.sloppy, from: arguments.from };
    let mut request = MountRequest::new(spec, arguments.mountpoint, options, words)?;
    request.after_crash = arguments.after_crash;
    if let Some(granted) = arguments.granted {
        request.granted.get_or_init(|| granted);
    }
    if let Some(key) = arguments.key {
        request.key.get_or_init(|| key);
    }
    if arguments.locked {
        log::init();
        return locked::run(&request);
    }
    request = request.check()?;
    if arguments.secrets {
        request.secrets = Secrets::read().map_err(|error| {
            let what = format!("the passphrase did not arrive: {error}");
            Failure::new(Code::Internal, what, "mount it again")
        })?;
    } else if !arguments.notify_parent {
        request.secrets = Secrets::gather(&request)?;
    }
    if arguments.notify_parent {
        log::init();
        let end = mounted::run(request.clone(), Some(Parent::attach()))?;
        return locked::follow(end, &request);
    }
    if arguments.foreground {
        log::init();
        let end = mounted::run(request.clone(), None)?;
        return locked::follow(end, &request);
    }
    daemonise::mount_in_background(&request)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_missing_argument_is_named() {
        let error = Cli::try_parse_from(["p2pfs-mountd", "mount", "/key"]).unwrap_err();
        let failure = usage(&error);
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.what.contains("<MOUNTPOINT>"), "{failure}");
    }
}
