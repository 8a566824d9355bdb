//! A daemon: started, waited for, ended in order, and killed when a test forgets it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::outcome::wait;
use super::shown;

/// How long a daemon may take to become ready: it opens files and sockets, no more.
const READY: Duration = Duration::from_secs(30);
/// How long a daemon may take to end in order.
const END: Duration = Duration::from_secs(20);

/// A running daemon.
pub(crate) struct Daemon {
    child: Option<Child>,
    /// What follows `ready PROGRAM ` in its ready line.
    pub(crate) ready: String,
    log: PathBuf,
    /// Keeps the directory until the last daemon in it has ended.
    _dir: Arc<TempDir>,
}

impl Daemon {
    /// Starts `command` and waits for `ready WORD ...`.
    #[track_caller]
    pub(super) fn start(mut command: Command, word: &str, dir: &Arc<TempDir>) -> Self {
        let log = (0..)
            .map(|number| dir.path().join(format!("log.{word}.{number}")))
            .find(|path| !path.exists())
            .unwrap();
        let line = shown(&command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", line.display()));
        let stdout = child.stdout.take().unwrap();
        let (lines, said) = mpsc::channel();
        // ends with the daemon's standard output
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut daemon =
            Self { child: Some(child), ready: String::new(), log, _dir: Arc::clone(dir) };
        let start = format!("ready {word} ");
        loop {
            let Ok(line) = said.recv_timeout(READY) else {
                panic!("{} did not become ready", daemon.log.display());
            };
            if let Some(rest) = line.strip_prefix(&start) {
                rest.clone_into(&mut daemon.ready);
                return daemon;
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Ends it in order; its exit code must be 0.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.stop_now();
    }

    /// The same, for one that is to be replaced.
    #[track_caller]
    pub(crate) fn stop_now(&mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.wait();
    }

    /// Waits until it has ended by itself; its exit code must be 0.
    #[track_caller]
    pub(crate) fn wait(&mut self) {
        let code = wait(self.child.as_mut().unwrap(), END);
        self.child = None;
        assert_eq!(code, Some(0), "{}", self.log_tail());
    }

    /// Ends it without any order.
    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    /// The same, for one that is to be replaced.
    pub(crate) fn kill_now(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
