//! What can go wrong with a store, each with the file it happened in and what to do about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base::RequestId;
use rusqlite::ErrorCode;

/// Why a store did not do what was asked. Cheap to clone: one failed write answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room on the disk, or the size limit is reached.
    #[error("no room left to write {file}: free some disk space, or raise the store's size limit", file = .0.file.display())]
    Full(#[source] Failure),
    /// Another process holds the file.
    #[error("{file} is locked by another process: end that process (a second coordinator, or a database tool)", file = .0.file.display())]
    Locked(#[source] Failure),
    /// The file does not hold together.
    #[error(
        "{file} is damaged: stop the coordinator, keep a copy of the file, and restore it from a backup (or move it away to begin anew; \
         keys must then be created again)", file = .0.file.display()
    )]
    Corrupt(#[source] Failure),
    /// The file may not be written.
    #[error("{file} cannot be written: give this user the right to write the file and its folder", file = .0.file.display())]
    ReadOnly(#[source] Failure),
    /// The disk failed.
    #[error("the disk failed under {file}: check the disk and its mount", file = .0.file.display())]
    Disk(#[source] Failure),
    /// Anything else that the database says.
    #[error("the database {file} refused", file = .0.file.display())]
    Database(#[source] Failure),
    /// The disk is too slow, or stuck.
    #[error("the store did not answer within {waited:?}: is its disk overloaded or stuck?")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Each request is reserved once.
    #[error("{request} is reserved already")]
    AlreadyReserved {
        /// Which.
        request: RequestId,
    },
    /// Each reservation is settled once.
    #[error("{request} has no open reservation: it was never made, or is settled already")]
    NotReserved {
        /// Which.
        request: RequestId,
    },
    /// Another key has this id or this secret.
    #[error("a key with this id or secret exists already")]
    KeyExists,
}

/// What the database said, and about which file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    file: PathBuf,
    message: String,
}

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database could not be used.
    #[error("the store did not open")]
    Store(#[from] StoreError),
    /// The folder or the file could not be made.
    #[error("{file} could not be opened: check that its folder exists, is writable and is not full", file = file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process uses this store.
    #[error("{file} is used by another process: only one coordinator may use a data folder; end the other, or choose another folder", file = file.display())]
    InUse {
        /// Which file.
        file: PathBuf,
    },
    /// A file, but not one of ours.
    #[error("{file} is not a Phalanx store: is the path right? move the file away to begin anew", file = file.display())]
    NotOurs {
        /// Which file.
        file: PathBuf,
    },
    /// Written by a newer Phalanx.
    #[error("{file} was written by a newer Phalanx (schema {found}; this one knows up to {known}): use the newer one", file = file.display())]
    Newer {
        /// Which file.
        file: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest known here.
        known: i64,
    },
}

impl StoreError {
    /// What SQLite's error means for whoever runs the store in `file`.
    pub(crate) fn from_sqlite(file: &Path, error: &rusqlite::Error) -> Self {
        let failure = Failure { file: file.to_owned(), message: error.to_string() };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(failure),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked(failure),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(failure),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                Self::ReadOnly(failure)
            }
            Some(ErrorCode::SystemIoFailure) => Self::Disk(failure),
            _ => Self::Database(failure),
        }
    }

    /// The error of a check that found `message`.
    pub(crate) fn corrupt(file: &Path, message: String) -> Self {
        Self::Corrupt(Failure { file: file.to_owned(), message })
    }
}
