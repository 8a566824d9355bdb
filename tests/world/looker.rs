//! Processes of a test that look at a mount, again and again.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A program that holds on to a file in every way there is, and says by which it still reads it.
const HOLDER: &str = r#"
import mmap, os, sys
path, marker = sys.argv[1], sys.argv[2].encode()
os.chdir(os.path.dirname(path))
fd = os.open(path, os.O_RDONLY)
mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
folder = os.open(".", os.O_RDONLY)

def in_child(look):
    child = os.fork()
    if child == 0:
        os._exit(0 if look() else 1)
    return os.waitpid(child, 0)[1] == 0

def tried(look):
    try:
        return bool(look())
    except OSError:
        return False

def found(read):
    return lambda: marker in read()

ways = {
    "descriptor": lambda: tried(found(lambda: os.pread(fd, 4096, 0))),
    "mapping": lambda: in_child(found(lambda: mapped[:])),
    "working directory": lambda: tried(found(lambda: open(os.path.basename(path), "rb").read())),
    "listing": lambda: tried(lambda: os.listdir(folder)),
    "size": lambda: tried(lambda: os.fstat(fd).st_size),
}
for _ in sys.stdin:
    print(",".join(name for name, way in ways.items() if way()), flush=True)
"#;

/// A program that makes a file, and writes to it when it is told to.
const WRITER: &str = r#"
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.fsync(file)
print("made", flush=True)
for _ in sys.stdin:
    os.write(file, sys.argv[2].encode())
    print("accepted", flush=True)
"#;

/// A process that looks, again and again, when it is told to.
pub(crate) struct Looker {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Looker {
    /// What one that holds a file says while all of it can be read.
    pub(crate) const EVERY_WAY: &str = "descriptor,mapping,working directory,listing,size";

    /// One that holds on to `file`, with `marker` in it, and says by which ways it still reads it.
    pub(crate) fn holder(file: &Path, marker: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", HOLDER]).arg(file).arg(marker);
        Self::start(command)
    }

    /// One that has made `file`, and writes `text` to it whenever it is told to look. The test had
    /// better not hold the file: what it starts closes its copies, and waits for the host.
    pub(crate) fn writer(file: &Path, text: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", WRITER]).arg(file).arg(text);
        let mut writer = Self::start(command);
        assert_eq!(writer.answer(), "made");
        writer
    }

    /// One in another mount namespace, which says what it reads in `file`.
    pub(crate) fn elsewhere(file: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("while read x; do cat {} 2>/dev/null; echo; done", file.display()));
        Self::start(command)
    }

    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let ask = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, ask, answers }
    }

    /// Tells it to look; what it says.
    pub(crate) fn look(&mut self) -> String {
        writeln!(self.ask, "look").unwrap();
        self.answer()
    }

    /// What it says next.
    pub(crate) fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
