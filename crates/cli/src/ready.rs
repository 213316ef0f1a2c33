//! The ready file: for scripts that start a program and wait until it serves.

use std::path::PathBuf;

use serde::Serialize;

use crate::place;

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ReadyOption {
    /// Write a JSON file here when ready (url, key, pid, ...).
    #[arg(long = "ready-file", value_name = "PATH")]
    path: Option<PathBuf>,
}

impl ReadyOption {
    /// Says that the program is ready.
    pub(crate) fn write(&self, what: &impl Serialize) -> anyhow::Result<()> {
        match &self.path {
            Some(path) => place::write_private(path, &serde_json::to_vec(what)?),
            None => Ok(()),
        }
    }
}
