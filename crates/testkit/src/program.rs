//! A started `phalanx`: waits until it is ready, remembers what it printed, and is gone when dropped.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a program may take until it is ready, and until it is gone. Generous: two cores that also compile.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A program about to be started.
pub struct Program {
    binary: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    folder: tempfile::TempDir,
}

/// A program that runs. Dropping it kills it.
pub struct Started {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    printed: Arc<Printed>,
    ready: Value,
    folder: Option<tempfile::TempDir>,
}

#[derive(Default)]
struct Printed {
    text: Mutex<String>,
    more: Condvar,
}

impl Program {
    /// `binary` (tests of crate `cli` pass `env!("CARGO_BIN_EXE_phalanx")`) with `arguments`, `--data` in a fresh
    /// folder and a ready file.
    pub fn new<A: Into<OsString>>(binary: &str, arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            binary: binary.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            variables: Vec::new(),
            folder: tempfile::tempdir().expect("a folder for the test"),
        }
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Uses the data folder of a program that was stopped.
    #[must_use]
    pub fn in_folder_of(mut self, stopped: Stopped) -> Self {
        self.folder = stopped.folder;
        self
    }

    /// Starts it without waiting.
    pub fn spawn(self) -> Started {
        // A ready file of an earlier life must not be taken for ours.
        let _ = std::fs::remove_file(self.folder.path().join("ready.json"));
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .arg("--data")
            .arg(self.folder.path().join("data"))
            .arg("--ready-file")
            .arg(self.folder.path().join("ready.json"))
            .envs(self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {}: {error}", self.binary.display()));
        let printed = Arc::new(Printed::default());
        let readers = vec![
            collect(child.stdout.take().expect("piped"), Arc::clone(&printed)),
            collect(child.stderr.take().expect("piped"), Arc::clone(&printed)),
        ];
        Started { child, readers, printed, ready: Value::Null, folder: Some(self.folder) }
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Panics
    /// Where it ends or stays silent: with everything that it printed.
    pub fn start(self) -> Started {
        let mut started = self.spawn();
        started.await_ready();
        started
    }
}

/// A program that has ended, and its folder.
pub struct Stopped {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything that it printed.
    pub printed: String,
    folder: tempfile::TempDir,
}

impl Started {
    fn await_ready(&mut self) {
        let file = self.folder().join("ready.json");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Ok(ready) = serde_json::from_str(&text)
            {
                self.ready = ready;
                return;
            }
            if let Some(status) = self.child.try_wait().expect("our child") {
                panic!("ended before it was ready: {status}\n{}", self.printed());
            }
            assert!(Instant::now() < deadline, "not ready after {PATIENCE:?}\n{}", self.printed());
            self.await_print(Duration::from_millis(20));
        }
    }

    fn await_print(&self, patience: Duration) {
        let text = self.printed.text.lock().expect("readers do not panic");
        drop(self.printed.more.wait_timeout(text, patience).expect("readers do not panic"));
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// Where it does not: with everything that it printed.
    pub fn await_printed(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.printed().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} was not printed:\n{}", self.printed());
            self.await_print(Duration::from_millis(50));
        }
    }

    /// A text of the ready file.
    ///
    /// # Panics
    /// Where it has no such text.
    pub fn ready(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name:?} in the ready file: {}", self.ready))
    }

    /// The whole ready file.
    pub fn ready_file(&self) -> &Value {
        &self.ready
    }

    /// Everything printed so far, both streams.
    pub fn printed(&self) -> String {
        self.printed.text.lock().expect("readers do not panic").clone()
    }

    /// Its own folder: `data` is in it.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("there until it is stopped").path()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our child is there until it is waited for");
    }

    /// As Ctrl-C does: asks it to end, and waits until it has.
    ///
    /// # Panics
    /// Where it does not end in time.
    pub fn stop(self) -> Stopped {
        self.signal(Signal::INT);
        self.ended()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(self) -> Stopped {
        self.signal(Signal::KILL);
        self.ended()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// Where it does not end in time.
    pub fn ended(mut self) -> Stopped {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "not gone after {PATIENCE:?}\n{}", self.printed());
            self.await_print(Duration::from_millis(20));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("readers do not panic");
        }
        let printed = self.printed();
        Stopped { status, printed, folder: self.folder.take().expect("taken only here") }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static, printed: Arc<Printed>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let mut text = printed.text.lock().expect("readers do not panic");
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
            printed.more.notify_all();
        }
    })
}
