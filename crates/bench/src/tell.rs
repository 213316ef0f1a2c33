//! What benches share as programs: they end in order at Ctrl-C, and tell their report.

use std::future::Future;

use anyhow::bail;
use serde::Serialize;

use crate::scenarios::print;

/// What `job` gives; or an error where the program is interrupted, after what `job` holds was dropped: its processes end.
pub(crate) async fn unless_interrupted<T>(job: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = job => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted");
        }
    }
}

/// Prints a report, as JSON where that is asked for.
pub(crate) fn tell<R: Serialize>(
    json: bool,
    report: &R,
    table: impl FnOnce(&R) -> String,
) -> anyhow::Result<()> {
    print(&if json { serde_json::to_string_pretty(report)? } else { table(report) })
}
