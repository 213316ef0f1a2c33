//! The folder of models that `phalanx models` looks at, and how what is in it is told.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use base::Bytes;
use jiff::{Timestamp, tz::TimeZone};
use provider::stock::{Removed, Stock};
use serde::Serialize;

use crate::place::DataOption;

/// Which folder.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct PlaceOption {
    /// The folder of models, in which they lie as DIR/ORGANISATION/NAME [default: models in the data folder, where
    /// `phalanx provider --managed` looks].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    data: DataOption,
}

impl PlaceOption {
    /// The folder, and its data folder made where it is in there.
    pub(super) fn stock(&self) -> anyhow::Result<Stock> {
        Ok(match &self.dir {
            Some(folder) => Stock::new(std::path::absolute(folder)?),
            None => Stock::new(self.data.make()?.join("models")),
        })
    }
}

/// A model that went, for scripts.
#[derive(Serialize)]
pub(super) struct RemovedModel {
    model: String,
    bytes: u64,
    /// Seconds since 1970.
    last_used: u64,
}

impl From<Removed> for RemovedModel {
    fn from(of: Removed) -> Self {
        Self { model: of.name, bytes: of.bytes.0, last_used: seconds(of.last_used) }
    }
}

impl RemovedModel {
    pub(super) fn text(&self) -> String {
        format!("{} ({}, last used {})", self.model, Bytes(self.bytes), date(self.last_used))
    }
}

/// Since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// In local time, to the minute.
pub(super) fn date(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    at.map_or_else(String::new, |at| at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string())
}
