//! A cable with delay: `tests/bench/delay.rs`, for kernels without netem.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A running cable; it is pulled on drop.
#[derive(Debug)]
pub(super) struct Cable {
    child: Child,
    /// The devices at its ends, in this machine's own namespace until they are moved.
    pub(super) ends: [String; 2],
}

impl Cable {
    /// A cable in which a frame takes `delay` each way.
    pub(super) fn new(delay: Duration) -> Self {
        static CABLES: AtomicU32 = AtomicU32::new(0);
        let number = CABLES.fetch_add(1, Ordering::Relaxed);
        let ends = ["a", "b"].map(|end| format!("d{}-{number}{end}", std::process::id()));
        let mut child = Command::new(program())
            .args(&ends)
            .arg(delay.as_micros().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the cable of {delay:?}");
        Self { child, ends }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Built once for each run of the tests.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/delay.rs");
        let program = std::env::current_exe().unwrap().with_extension("delay");
        let built = program.with_extension(format!("delay.{}", std::process::id()));
        let status = Command::new("rustc")
            .args(["-O", "--edition", "2024", "-o"])
            .args([&built, &source])
            .status()
            .unwrap();
        assert!(status.success(), "{} does not build", source.display());
        std::fs::rename(&built, &program).unwrap();
        program
    })
}
