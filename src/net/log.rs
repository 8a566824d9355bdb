//! Logs: on stderr, for people.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Without `P2PFS_LOG`: our own progress, and what others complain about.
const DEFAULT: &str = "info,quinn=warn,quinn_proto=warn,quinn_udp=error,rustls=warn,stun_types=off";

/// Sends the log to stderr, filtered by the variable `P2PFS_LOG` (`debug`, `p2pfs::net=trace`,
/// ...).
///
/// Under systemd the lines carry no time, since the journal has its own. A second call does
/// nothing.
pub fn init() {
    let filter = match std::env::var("P2PFS_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::builder()
            .with_default_directive(LevelFilter::INFO.into())
            .parse_lossy(directives),
        _ => EnvFilter::new(DEFAULT),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // try_init fails only where a subscriber is set already, as in tests: theirs stays
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        lines.without_time().try_init()
    } else {
        lines.try_init()
    };
}
