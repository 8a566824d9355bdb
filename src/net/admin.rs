//! A daemon's control socket: `DIR/control.sock`, mode 0600, one request and one answer a
//! connection.
//!
//! Both are one line of JSON, at most [`LINE_BYTES_MAX`]: the answer is `{"ok": value}` or
//! `{"error": {"code", "what", "hint"}}`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::failure::{Code, Failure};
use crate::net::remote::BoxFuture;

/// A request or an answer, bytes.
pub const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long a connection may take to say what it wants.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a command waits for a daemon's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const SOCKET: &str = "control.sock";
const LOCK: &str = "control.lock";

type Handle = dyn Fn(Value) -> BoxFuture<Result<Value, Failure>> + Send + Sync;

/// A daemon's control socket; dropping it removes the socket.
pub struct Control {
    path: PathBuf,
    /// What answers.
    handle: watch::Sender<Arc<Handle>>,
    /// Held as long as the daemon runs, however it ends.
    _lock: File,
    task: JoinHandle<()>,
}

impl Control {
    /// Opens the socket in `dir` and answers every request with `handle`.
    ///
    /// # Errors
    ///
    /// [`Code::Internal`] if a living daemon has the socket already, or it cannot be made.
    #[expect(clippy::unused_async, reason = "it starts a task, so it needs a runtime around it")]
    pub async fn listen<F>(dir: &Path, handle: F) -> Result<Self, Failure>
    where
        F: Fn(Value) -> BoxFuture<Result<Value, Failure>> + Send + Sync + 'static,
    {
        let path = dir.join(SOCKET);
        let unusable = |error: io::Error| {
            Failure::new(
                Code::Internal,
                format!("cannot open the control socket {}: {error}", path.display()),
                "check the state directory's owner and mode; its path must be shorter than 90 bytes",
            )
        };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(LOCK))
            .map_err(unusable)?;
        lock.try_lock().map_err(|refused| match refused {
            TryLockError::Error(error) => unusable(error),
            TryLockError::WouldBlock => Failure::new(
                Code::Internal,
                format!("another daemon is running with the state directory {}", dir.display()),
                "stop it first, or choose another directory with --state DIR",
            ),
        })?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(unusable)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(unusable)?;
        let handle: Arc<Handle> = Arc::new(handle);
        let (handle, current) = watch::channel(handle);
        let task = tokio::spawn(serve(listener, current));
        Ok(Self { path, handle, _lock: lock, task })
    }

    /// From now on answers every request with `handle`.
    pub fn answer_with<F>(&self, handle: F)
    where
        F: Fn(Value) -> BoxFuture<Result<Value, Failure>> + Send + Sync + 'static,
    {
        self.handle.send_replace(Arc::new(handle));
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        // left behind it is stale, and the next start replaces it
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Asks the daemon of `dir`; `None` if none is running there. For commands: it blocks.
///
/// # Errors
///
/// The daemon's own refusal, or [`Code::Internal`] if it does not answer.
pub fn request(dir: &Path, request: &Value) -> Result<Option<Value>, Failure> {
    let stream = match StdStream::connect(dir.join(SOCKET)) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(no_answer(&error)),
    };
    let answer = ask(stream, request).map_err(|error| no_answer(&error))?;
    read_answer(&answer).map(Some)
}

fn ask(mut stream: StdStream, request: &Value) -> io::Result<String> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    io::BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut answer)?;
    Ok(answer)
}

fn read_answer(line: &str) -> Result<Value, Failure> {
    let mut answer: Value = serde_json::from_str(line).map_err(|error| no_answer(&error.into()))?;
    let error = &answer["error"];
    if error.is_null() {
        return Ok(answer["ok"].take());
    }
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    Err(Failure::new(
        Code::from_text(&text("code")).unwrap_or(Code::Internal),
        text("what"),
        text("hint"),
    ))
}

fn no_answer(error: &io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("the running daemon does not answer: {error}"),
        "look at its log, or start it again",
    )
}

async fn serve(listener: UnixListener, current: watch::Receiver<Arc<Handle>>) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    answering.spawn(answer(stream, current.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = answering.join_next() => {}
        }
    }
}

async fn answer(stream: UnixStream, current: watch::Receiver<Arc<Handle>>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LINE_BYTES_MAX));
    match tokio::time::timeout(ASK_TIMEOUT, read.read_line(&mut line)).await {
        // nobody asked, or too slowly
        Ok(Ok(0)) | Err(_) | Ok(Err(_)) => return,
        Ok(Ok(_)) => {}
    }
    let result = match serde_json::from_str(&line) {
        Ok(request) => {
            let handle = Arc::clone(&*current.borrow());
            handle(request).await
        }
        Err(_) => Err(Failure::new(
            Code::Usage,
            "the request is not a line of JSON",
            "use the program of the same version as the daemon",
        )),
    };
    let answer = match result {
        Ok(value) => json!({ "ok": value }),
        Err(failure) => json!({ "error": {
            "code": failure.code.as_str(),
            "what": failure.what,
            "hint": failure.hint,
        }}),
    };
    // who asked may have left
    let _ = write.write_all(format!("{answer}\n").as_bytes()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask_in_background(dir: &Path, value: Value) -> Result<Option<Value>, Failure> {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || request(&dir, &value)).await.unwrap()
    }

    async fn echo(dir: &Path) -> Result<Control, Failure> {
        Control::listen(dir, |value| {
            Box::pin(async move {
                if value == json!("refuse") {
                    return Err(Failure::new(Code::Usage, "no", "ask for something else"));
                }
                Ok(value)
            })
        })
        .await
    }

    #[tokio::test]
    async fn answers_and_refusals_arrive_as_they_were_given() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ask_in_background(dir.path(), json!(1)).await, Ok(None));
        let control = echo(dir.path()).await.unwrap();
        assert_eq!(
            ask_in_background(dir.path(), json!({"a": [1, null]})).await,
            Ok(Some(json!({"a": [1, null]})))
        );
        assert_eq!(
            ask_in_background(dir.path(), json!("refuse")).await,
            Err(Failure::new(Code::Usage, "no", "ask for something else"))
        );
        drop(control);
        assert_eq!(ask_in_background(dir.path(), json!(1)).await, Ok(None));
    }

    #[tokio::test]
    async fn one_directory_has_one_daemon_and_a_stale_socket_is_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        let _first = echo(dir.path()).await.unwrap();
        let second = echo(dir.path()).await.unwrap_err();
        assert!(second.what.contains("another daemon is running"));
        assert!(ask_in_background(dir.path(), json!(1)).await.unwrap().is_some());
    }
}
