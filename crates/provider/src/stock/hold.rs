//! That a model is in use: a lock shared by all that hold it, which ends with its process however that ends, on a file
//! whose time says when the model was last used.
//!
//! The file is never removed: whoever waits for it would lock one that is gone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, test_kill_process};

/// Whoever looks whether a model is held has its file for a moment: it is tried so often, after such pauses.
pub(super) const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);
/// A model that is held for long is marked as used so often.
const MARK_EVERY: Duration = Duration::from_secs(600);
/// Lines of holders: a file that is longer was not written here.
const BYTES_MAX: u64 = 64 << 10;

/// A model is in use, and stays on the disk, for as long as this is.
#[derive(Debug)]
pub struct Hold {
    file: File,
    line: String,
    marked: Instant,
}

impl Hold {
    /// Takes it; nothing where the model is being removed, or its folder cannot be written.
    pub(super) fn take(path: &Path, by: &str) -> Option<Self> {
        fs::create_dir_all(path.parent()?).ok()?;
        let file = open(path).ok()?;
        locked_soon(TRIES, || file.try_lock_shared()).then_some(())?;
        let by: String = by.chars().filter(|c| !c.is_control()).take(200).collect();
        let mut hold = Self { file, line: format!("{} {by}", std::process::id()), marked: Instant::now() };
        let lines = living(&mut hold.file);
        // Two that write at once: one of them is not named, and both hold it.
        hold.write(lines.into_iter().chain([hold.line.clone()]).collect());
        Some(hold)
    }

    /// Marks the model as used now, where that has not been done for a while.
    pub fn mark(&mut self) {
        if self.marked.elapsed() >= MARK_EVERY {
            self.marked = Instant::now();
            // A time that is some minutes old does no harm.
            let _ = self.file.set_modified(SystemTime::now());
        }
    }

    fn write(&mut self, lines: Vec<String>) {
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let written = self.file.rewind().and_then(|()| self.file.set_len(0));
        // Who holds it is for people: that it is held is in the lock.
        let _ = written.and_then(|()| self.file.write_all(text.as_bytes()));
        let _ = self.file.set_modified(SystemTime::now());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut lines = living(&mut self.file);
        if let Some(own) = lines.iter().position(|line| *line == self.line) {
            lines.remove(own);
        }
        self.write(lines);
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether a lock is had, after some tries.
pub(super) fn locked_soon(tries: u32, mut lock: impl FnMut() -> Result<(), TryLockError>) -> bool {
    for _ in 0..tries {
        match lock() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(PAUSE),
            Err(TryLockError::Error(_)) => return false,
        }
    }
    false
}

/// The lines of processes that are there.
fn living(file: &mut File) -> Vec<String> {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let lives = |line: &&str| {
        let pid = line.split(' ').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        // One of another user's may not be asked, and is there.
        pid.is_some_and(|pid| !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
    };
    text.lines().filter(lives).map(str::to_owned).collect()
}

/// What was seen of a model's file.
pub(super) enum Seen {
    /// Nobody holds it, and nobody can as long as this is there.
    Free(Option<File>),
    /// By these, as far as they are known.
    Held(Vec<String>),
}

/// Who holds the model of this file.
pub(super) fn seen(path: &Path) -> Seen {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Seen::Free(None),
        Err(_) => return Seen::Held(Vec::new()),
    };
    match file.try_lock() {
        Ok(()) => Seen::Free(Some(file)),
        // A file that cannot be locked says nothing: what it is for stays.
        Err(_) => {
            let name = |line: String| match line.split_once(' ') {
                Some((pid, by)) if !by.is_empty() => format!("{by} (process {pid})"),
                _ => format!("process {line}"),
            };
            Seen::Held(living(&mut file).into_iter().map(name).collect())
        }
    }
}

/// As [`seen`], made where it is not there: what is free then stays so.
pub(super) fn seize(path: &Path) -> Seen {
    if let Some(parent) = path.parent()
        && fs::create_dir_all(parent).and_then(|()| open(path)).is_err()
    {
        return Seen::Held(Vec::new());
    }
    seen(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_held_until_the_last_lets_go_and_its_holders_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("held/a--b");
        let by = || match seen(&path) {
            Seen::Free(_) => None,
            Seen::Held(by) => Some(by.len()),
        };
        assert_eq!(by(), None);
        let first = Hold::take(&path, "one").unwrap();
        let second = Hold::take(&path, "two\nlines").unwrap();
        assert_eq!(by(), Some(2));
        drop(first);
        assert_eq!(by(), Some(1));
        drop(second);
        assert_eq!(by(), None);
        // A line of a process that is gone, as a killed one leaves it, and one that makes no sense.
        fs::write(&path, "2147483646 gone\nnonsense\n").unwrap();
        let _third = Hold::take(&path, "three").unwrap();
        assert_eq!(by(), Some(1));
    }

    #[test]
    fn what_is_seized_for_removal_is_not_held_before_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let Seen::Free(lock) = seize(&path) else { panic!("nobody holds it") };
        assert!(Hold::take(&path, "late").is_none());
        drop(lock);
        assert!(Hold::take(&path, "late").is_some());
    }
}
