//! Mounting in the background: the program starts itself again, and waits until the mount is
//! usable.
//!
//! The child tells its parent over a pipe, which is its standard output until then: one line of
//! JSON, `{"ready": true}` with notes for people, or the failure.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use p2pfs::failure::{Code, Failure};
use p2pfs::net::daemon;
use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::mounted::MountRequest;
use crate::secrets::Secrets;

/// The name that the child goes by, whatever name started us.
const PROGRAM: &str = "p2pfs-mountd";
/// A report of a child, bytes.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// This program's file. It may have been replaced or removed since: then the kernel still has it.
pub(crate) fn program() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(if program.exists() { program } else { "/proc/self/exe".into() })
}

/// Starts a process that mounts, waits until it has, and prints the ready line.
pub(crate) fn mount_in_background(request: &MountRequest) -> Result<(), Failure> {
    let log = request.log_file();
    let mut arguments: Vec<OsString> = vec!["mount".into()];
    arguments.push(request.spec.given.clone());
    arguments.push(request.mountpoint.clone().into());
    arguments.extend(request.words.arguments());
    arguments.extend(["--notify-parent".into(), "--state".into()]);
    arguments.push(request.state.clone().into());
    if !request.secrets.is_empty() {
        arguments.push("--secrets".into());
    }
    let report = run_child(&arguments, &log, &request.secrets).map_err(|error| {
        let hint = "see that this program's file is still there";
        Failure::new(Code::Internal, format!("cannot start the daemon: {error}"), hint)
    })?;
    let report: Value = serde_json::from_str(&report).unwrap_or_default();
    if report["ready"] == true {
        let notes = report["notes"].as_array().into_iter().flatten();
        let notes: Vec<String> = notes.filter_map(Value::as_str).map(str::to_owned).collect();
        daemon::note(&notes);
        daemon::ready(&request.ready_line());
        return Ok(());
    }
    let error = &report["error"];
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    Err(match Code::from_text(&text("code")) {
        Some(code) => Failure::new(code, text("what"), text("hint")),
        None => Failure::new(
            Code::Internal,
            "the daemon ended before the mount was usable",
            format!("its log says why: {}", log.display()),
        ),
    })
}

/// Gives back the child's first line, or nothing if it ended before.
fn run_child(arguments: &[OsString], log: &Path, secrets: &Secrets) -> io::Result<String> {
    let mut child = Command::new(program()?)
        .arg0(PROGRAM)
        .args(arguments)
        .stdin(if secrets.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(File::create(log)?)
        .spawn()?;
    if let Some(pipe) = child.stdin.take() {
        secrets.write(pipe)?;
    }
    let mut report = String::new();
    if let Some(pipe) = child.stdout.take() {
        let mut pipe = BufReader::new(io::Read::take(pipe, REPORT_BYTES_MAX));
        pipe.read_line(&mut report)?;
    }
    if !report.contains("\"ready\"") {
        // nothing is left behind when the failure is told
        child.wait()?;
    }
    Ok(report)
}

/// The other end, in the child.
#[derive(Debug)]
pub(crate) struct Parent(());

impl Parent {
    /// Leaves the terminal's session; standard output is the way to the parent.
    pub(crate) fn attach() -> Self {
        // fails only for a leader of a session, which needs no other
        let _ = rustix::process::setsid();
        // no directory is kept busy
        let _ = std::env::set_current_dir("/");
        Self(())
    }

    /// Resolves if the parent goes away before it was told anything.
    pub(crate) fn gone(&self) -> io::Result<oneshot::Receiver<()>> {
        let pipe = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 0)?;
        let (gone, told) = oneshot::channel();
        std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
            // no events: only that the other end is closed
            let mut watched = [PollFd::new(&pipe, PollFlags::empty())];
            while let Err(rustix::io::Errno::INTR) = rustix::event::poll(&mut watched, None) {}
            // nobody listens any more once the parent was told
            let _ = gone.send(());
        })?;
        Ok(told)
    }

    /// Tells what came of the mount, with notes for people, and lets go of standard output.
    pub(crate) fn tell(self, result: &Result<Vec<String>, Failure>) -> io::Result<()> {
        let report = match result {
            Ok(notes) => json!({ "ready": true, "notes": notes }),
            Err(failure) => json!({ "error": {
                "code": failure.code.as_str(),
                "what": failure.what,
                "hint": failure.hint,
            }}),
        };
        let mut stdout = io::stdout().lock();
        let told = writeln!(stdout, "{report}").and_then(|()| stdout.flush());
        rustix::stdio::dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
        told
    }
}
