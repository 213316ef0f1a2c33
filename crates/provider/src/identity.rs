//! A machine's data folder: its keys, its count of starts, and the lock that keeps it to one provider.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Incarnation;
use trust::{KeyFileError, MachineKeys};

/// The keys' file in the data folder: whoever reads it is this machine.
pub const KEY_FILE: &str = "machine.key";
const INCARNATION_FILE: &str = "incarnation";
const LOCK_FILE: &str = "provider.lock";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another provider has it.
    #[error(
        "the data folder {folder} is in use by another provider{}: stop that one, or give this one a folder of its \
         own with --data DIR", holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The other's process, where it left its number.
        holder: Option<u32>,
    },
    /// A file cannot be read, written or made.
    #[error("cannot {act} {path}: {}", remedy(source))]
    File {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The keys' file may be read by others.
    #[error(
        "{path} can be read by other users (mode {mode:o}), and whoever reads it can pass for this machine: run \
         `chmod 600 {path}`, or delete it and the machine joins as a new one"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The keys' file holds something else.
    #[error("{path} cannot be used")]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        #[source]
        source: KeyFileError,
    },
}

fn remedy(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let advice = match error.kind() {
        ErrorKind::PermissionDenied => "; give this user the right to it, or another folder with --data DIR",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; make room, or give another folder with --data DIR"
        }
        ErrorKind::ReadOnlyFilesystem => "; give a writable folder with --data DIR",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "; a file stands where a folder should: give another with --data DIR"
        }
        _ => "",
    };
    format!("{error}{advice}")
}

/// A data folder that this process alone uses, until this value is dropped.
pub(crate) struct Identity {
    pub(crate) keys: Arc<MachineKeys>,
    /// Greater than that of any earlier start.
    pub(crate) incarnation: Incarnation,
    /// Locked as long as it is open.
    _lock: File,
}

impl Identity {
    /// Takes the folder, which is made where it is missing; reads the machine's keys, or makes them on the first
    /// start; counts this start. `now_unix_us` is the wall clock, which may have been set back since the last one.
    pub(crate) fn open(folder: &Path, now_unix_us: u64) -> Result<Self, IdentityError> {
        // Existing folders keep their mode: only what this makes is private.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(file_error("make the folder", folder))?;
        let lock = lock(folder)?;
        let keys = keys(folder)?;
        let incarnation = incarnation(folder, now_unix_us)?;
        Ok(Self { keys: Arc::new(keys), incarnation, _lock: lock })
    }
}

fn file_error<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> IdentityError + 'a {
    move |source| IdentityError::File { act, path: path.to_owned(), source }
}

fn lock(folder: &Path) -> Result<File, IdentityError> {
    let path = folder.join(LOCK_FILE);
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.map_err(file_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The number is a help to people: without it the refusal stands all the same.
            let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(IdentityError::InUse { folder: folder.to_owned(), holder });
        }
        Err(fs::TryLockError::Error(source)) => return Err(file_error("lock", &path)(source)),
    }
    let noted =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(file_error("write", &path))?;
    Ok(file)
}

fn keys(folder: &Path) -> Result<MachineKeys, IdentityError> {
    let path = folder.join(KEY_FILE);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let keys = MachineKeys::generate();
            replace(folder, KEY_FILE, &keys.to_secret_bytes())?;
            return Ok(keys);
        }
        Err(error) => return Err(file_error("read", &path)(error)),
    };
    let mode = file.metadata().map_err(file_error("read", &path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path, mode });
    }
    let mut bytes = trust::Zeroizing::new(Vec::with_capacity(trust::SECRET_BYTES + 1));
    // One byte more than there should be shows a file that is too long, however long it is.
    let limit = trust::SECRET_BYTES as u64 + 1;
    (&mut file).take(limit).read_to_end(&mut bytes).map_err(file_error("read", &path))?;
    MachineKeys::from_secret_bytes(&bytes).map_err(|source| IdentityError::Keys { path, source })
}

fn incarnation(folder: &Path, now_unix_us: u64) -> Result<Incarnation, IdentityError> {
    let path = folder.join(INCARNATION_FILE);
    let last = match fs::read_to_string(&path) {
        // What cannot be read as a number counts as none: the clock then serves alone.
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => 0,
        Err(error) => return Err(file_error("read", &path)(error)),
    };
    let incarnation = now_unix_us.max(u64::saturating_add(last, 1));
    replace(folder, INCARNATION_FILE, format!("{incarnation}\n").as_bytes())?;
    Ok(Incarnation(incarnation))
}

/// Writes a file so that after a crash it is whole, in its old form or in its new one.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = folder.join(name);
    let draft = folder.join(format!("{name}.new"));
    // A draft that a crash left behind may have another mode: it is made anew.
    match fs::remove_file(&draft) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("remove", &draft)(error)),
    }
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(file_error("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn open(folder: &Path, now: u64) -> Result<Identity, IdentityError> {
        Identity::open(folder, now)
    }

    fn message(result: Result<Identity, IdentityError>) -> String {
        let error = result.err().expect("an error");
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        format!("{error}{source}")
    }

    #[test]
    fn a_machine_keeps_its_identity_over_restarts_and_each_start_is_a_later_one() {
        let home = folder();
        let first = open(home.path(), 1_000_000).unwrap();
        let (machine, incarnation) = (first.keys.machine(), first.incarnation);
        drop(first);
        let second = open(home.path(), 2_000_000).unwrap();
        assert_eq!(second.keys.machine(), machine);
        assert!(second.incarnation > incarnation);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_a_start_look_earlier() {
        let home = folder();
        let first = open(home.path(), 9_000_000).unwrap().incarnation;
        let second = open(home.path(), 5).unwrap().incarnation;
        assert_eq!((first.0, second.0), (9_000_000, 9_000_001));
    }

    #[test]
    fn two_providers_do_not_share_a_folder_and_the_second_is_told_what_to_do() {
        let home = folder();
        let first = open(home.path(), 1).unwrap();
        let said = message(open(home.path(), 2));
        assert!(said.contains(&home.path().display().to_string()), "{said}");
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        assert!(said.contains("--data"), "{said}");
        drop(first);
        open(home.path(), 3).expect("the lock ends with its holder");
    }

    #[test]
    fn the_keys_are_private_and_an_exposed_file_is_refused_with_the_remedy() {
        let home = folder();
        drop(open(home.path(), 1).unwrap());
        let path = home.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let said = message(open(home.path(), 2));
        assert!(said.contains("chmod 600") && said.contains("644"), "{said}");
    }

    #[test]
    fn damaged_keys_are_refused_and_never_replaced_by_new_ones() {
        let home = folder();
        drop(open(home.path(), 1).unwrap());
        let path = home.path().join(KEY_FILE);
        let whole = fs::read(&path).unwrap();
        let too_long = [&whole[..], &[0; 9000]].concat();
        for wrong in [&[][..], b"phalanx-keys", b"something else", &whole[..100], &too_long] {
            fs::write(&path, wrong).unwrap();
            let said = message(open(home.path(), 2));
            assert!(said.contains(KEY_FILE), "{said}");
            assert_eq!(fs::read(&path).unwrap(), wrong, "the file is left as it was");
        }
    }

    #[test]
    fn a_crash_between_draft_and_rename_does_no_harm() {
        let home = folder();
        fs::write(home.path().join("machine.key.new"), b"half").unwrap();
        fs::write(home.path().join(INCARNATION_FILE), b"\xff\xfe nonsense").unwrap();
        let machine = open(home.path(), 77).unwrap().keys.machine();
        assert_eq!(open(home.path(), 78).unwrap().keys.machine(), machine);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_with_what_to_do() {
        let home = folder();
        let file = home.path().join("file");
        fs::write(&file, b"").unwrap();
        let said = message(open(&file.join("below"), 1));
        assert!(said.contains("file/below") && said.contains("--data"), "{said}");
    }
}
