//! A command that ends: run with a deadline, its output kept.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{eventually, shown};

/// What a command left.
#[derive(Debug)]
pub(crate) struct Outcome {
    #[expect(dead_code, reason = "a failing assertion shows it")]
    line: String,
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Outcome {
    /// Runs `command` to its end.
    ///
    /// The output goes to files: a daemon that a command leaves behind may hold its descriptors.
    #[track_caller]
    pub(crate) fn of(mut command: Command, limit: Duration) -> Self {
        let line = shown(&command).to_string_lossy().into_owned();
        let mut stdout = tempfile::tempfile().unwrap();
        let mut stderr = tempfile::tempfile().unwrap();
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut status = None;
        while status.is_none() && start.elapsed() < limit {
            status = child.try_wait().unwrap();
            if status.is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let took = start.elapsed();
        let Some(status) = status else {
            let _ = child.kill();
            let _ = child.wait();
            let said = text(&mut stderr);
            panic!("{line}\ndid not end within {limit:?}; it said:\n{said}");
        };
        Self {
            line,
            code: status.code(),
            stdout: text(&mut stdout),
            stderr: text(&mut stderr),
            took,
        }
    }

    /// It must have worked.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// It must have failed with this exit code and error code, and with a next step.
    #[track_caller]
    pub(crate) fn refused(self, exit: i32, code: &str) -> Self {
        assert_eq!(self.code, Some(exit), "{self:#?}");
        let start = format!("error[{code}]: ");
        let mut lines = self.stderr.lines().skip_while(|line| !line.starts_with(&start));
        let what = lines.next();
        assert!(what.is_some_and(|line| line.len() > start.len()), "{self:#?}");
        let hint = lines.find(|line| line.starts_with("hint: "));
        assert!(hint.is_some_and(|line| line.len() > 10), "no hint: {self:#?}");
        self
    }

    /// What it printed, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// Runs a tool of the machine, which must work.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> Outcome {
    let mut command = Command::new(program);
    command.args(args);
    Outcome::of(command, Duration::from_secs(600)).ok()
}

/// Waits for a child process; its exit code.
#[track_caller]
pub(crate) fn wait(child: &mut std::process::Child, limit: Duration) -> Option<i32> {
    let mut status = None;
    eventually("the command to end", limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|status| status.code())
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
