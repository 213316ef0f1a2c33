//! Where Phalanx keeps what it keeps: a folder under the XDG data folder, or the one given by `--data`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use etcetera::BaseStrategy as _;
use serde::{Deserialize, Serialize};

/// The folder for everything that Phalanx keeps.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DataOption {
    /// Keep everything here [default: phalanx in the XDG data folder].
    #[arg(long = "data", env = "PHALANX_DATA", value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl DataOption {
    /// The folder, which need not exist yet.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        match &self.folder {
            Some(folder) => Ok(std::path::absolute(folder)?),
            None => {
                let base = etcetera::choose_base_strategy()
                    .context("no home folder is known: say where to keep things with --data DIR")?;
                Ok(base.data_dir().join("phalanx"))
            }
        }
    }

    /// The folder, made if it is not there: readable by its owner alone, since keys are in it.
    pub(crate) fn make(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder()?;
        make_private(&folder)?;
        Ok(folder)
    }
}

/// Makes a folder that only its owner reads.
pub(crate) fn make_private(folder: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("making the folder {} (say another one with --data DIR)", folder.display()))
}

/// How the commands on this machine reach its coordinator. Kept in the data folder.
#[derive(Serialize, Deserialize)]
pub(crate) struct ClientFile {
    /// The coordinator's address, without `/v1`.
    pub(crate) url: String,
    /// An admin key.
    pub(crate) key: String,
}

const CLIENT_FILE: &str = "client.json";

impl ClientFile {
    /// What the data folder holds, if it holds one.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(CLIENT_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_str(&text)
                    .with_context(|| format!("{} is not as Phalanx wrote it: remove it", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Keeps it, readable by its owner alone.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        write_private(&folder.join(CLIENT_FILE), &serde_json::to_vec_pretty(self)?)
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let half = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&half, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}
