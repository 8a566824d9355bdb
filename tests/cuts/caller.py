"""One call on a mount, made when it is told to, by a process that meets signals in one of three ways.

caller.py KIND HOW DIRECTORY NAME: prints "ready", waits for a line, makes the call, prints what came
of it (0 or an errno), how long it took in milliseconds, and when it ended, by CLOCK_MONOTONIC.
"""

import errno
import fcntl
import mmap
import os
import signal
import sys
import time

kind, how, root, name = sys.argv[1:5]
# whoever starts the tests in the background ignores it
caught = signal.SIG_DFL if how == "default" else signal.default_int_handler
signal.signal(signal.SIGINT, caught)
path = os.path.join(root, name)
MEG = b"x" * (1 << 20)


def fill(fd):
    for _ in range(128):
        os.write(fd, MEG)


def flock_of(fd):
    fcntl.flock(fd, fcntl.LOCK_EX)


def read_direct(fd):
    os.preadv(fd, [mmap.mmap(-1, 4096)], 0)


def accept(fd):
    os.write(fd, b"accepted\n")
    print("accepted", flush=True)


def sync_mapping():
    mapped[:7] = b"mapped\n"
    try:
        mapped.flush()
    except KeyboardInterrupt:
        # Python closes what it has mapped, which is another call that waits
        os._exit(1)


# what is done before the network is cut, and what is done then
if kind in ("read", "direct read", "fsync", "lock", "flock", "truncate", "close", "append", "write",
            "exit", "exit many", "fchmod", "page fault", "msync"):
    flags = {"append": os.O_RDWR | os.O_APPEND, "direct read": os.O_RDWR | os.O_DIRECT}
    fd = os.open(path, flags.get(kind, os.O_RDWR))
    # before its first write to a file the kernel asks for an attribute, which would wait
    if kind in ("fsync", "close", "exit", "exit many"):
        os.pwrite(fd, b"#", 0)
    if kind in ("page fault", "msync"):
        mapped = mmap.mmap(fd, 0)
    if kind == "msync":
        mapped[0] = ord("#")
        os.close(fd)
call = {
    "read": lambda: os.pread(fd, 4096, 0),
    "direct read": lambda: read_direct(fd),
    "fsync": lambda: (accept(fd), os.fsync(fd)),
    "close": lambda: (accept(fd), os.close(fd)),
    "exit": lambda: accept(fd),
    "exit many": lambda: ([os.dup(fd) for _ in range(3)], accept(fd)),
    "append": lambda: os.write(fd, b"appended\n"),
    "write": lambda: fill(fd),
    "truncate": lambda: os.ftruncate(fd, 5),
    "lock": lambda: fcntl.lockf(fd, fcntl.LOCK_EX),
    "flock": lambda: flock_of(fd),
    "page fault": lambda: mapped[0],
    "msync": lambda: sync_mapping(),
    "open": lambda: os.open(path, os.O_RDONLY),
    "create": lambda: os.open(path + ".made", os.O_RDWR | os.O_CREAT, 0o644),
    "stat": lambda: os.stat(path),
    "readdir": lambda: os.listdir(path + ".dir"),
    "mkdir": lambda: os.mkdir(path + ".made"),
    "rename": lambda: os.rename(path, path + ".made"),
    "link": lambda: os.link(path, path + ".made"),
    "unlink": lambda: os.unlink(path),
    "fchmod": lambda: os.fchmod(fd, 0o600),
    "chmod": lambda: os.chmod(path, 0o600),
    "xattr": lambda: os.getxattr(path, "user.none"),
    "exec": lambda: os.execv(path, [path]),
}[kind]

print("ready", flush=True)
sys.stdin.readline()
start = time.monotonic()
try:
    call()
    number = 0
except OSError as error:
    number = error.errno
if kind in ("exit", "exit many"):
    # the kernel closes what is open
    os._exit(0)
if number:
    number = errno.errorcode[number]
end = time.monotonic()
print(number, round((end - start) * 1000), round(end * 1000), flush=True)
