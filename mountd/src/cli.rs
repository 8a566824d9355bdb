//! The command line of `p2pfs-mountd`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::net::{daemon, doctor, log};

use crate::daemonise::{self, Parent};
use crate::mounted::{self, MountRequest};
use crate::options::MountOptions;
use crate::spec::Spec;
use crate::{control, install, key, locked};

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
    /// Let unknown options pass.
    #[arg(long, hide = true)]
    sloppy: bool,
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
        Command::Unmount { mountpoint, state } => control::unmount(&dir(state)?, &mountpoint),
        Command::Sync { mountpoint, state } => control::sync(&dir(state)?, &mountpoint),
        Command::Status { json, state } => control::status(&dir(state)?, json),
        Command::Doctor(DoctorArguments { key, servers, json, state }) => {
            crate::doctor::run(&dir(state)?, &crate::doctor::Request { key, servers, json })
        }
        Command::SecondOpinion { server } => crate::doctor::second_opinion(server),
        Command::Install { prefix, .. } => install::install(prefix.as_deref()),
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
    let request = MountRequest::new(spec, arguments.mountpoint, options)?;
    let again = locked::Again { options: words.clone(), sloppy: arguments.sloppy };
    if arguments.locked {
        log::init();
        return locked::run(request, &again);
    }
    if arguments.notify_parent {
        log::init();
        let end = mounted::run(request.clone(), Some(Parent::attach()))?;
        return locked::follow(end, &request, &again);
    }
    if arguments.foreground {
        log::init();
        let end = mounted::run(request.clone(), None)?;
        return locked::follow(end, &request, &again);
    }
    daemonise::mount_in_background(&request, &words, arguments.sloppy)
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
