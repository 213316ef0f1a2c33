//! What a bench ran on: numbers without their machine mean nothing.

use std::fs;
use std::io::Write as _;
use std::time::Instant;

use serde::Serialize;

use crate::spread::median;

/// The machine that a report is about.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Runnable threads a core over the last minute, when the bench began: above about a tenth, others were at work.
    pub(crate) load_before: f64,
    /// How long the disk with temporary files takes to make a small write durable: what any ledger pays at least.
    pub(crate) disk_sync_us: f64,
    /// Whether this program was built without optimisation for speed.
    pub(crate) debug_build: bool,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: f64 = load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default();
        Self {
            cpu,
            cores,
            load_before: load / cores as f64,
            disk_sync_us: disk_sync_us().unwrap_or_default(),
            debug_build: cfg!(debug_assertions),
        }
    }

    /// For a report's head.
    pub(crate) fn line(&self) -> String {
        let build = if self.debug_build { ", debug build: build with --release to compare" } else { "" };
        format!(
            "{}, {} cores, load {:.2} a core before, {:.0} us to make a write durable{build}",
            self.cpu, self.cores, self.load_before, self.disk_sync_us
        )
    }
}

/// The median of some small writes, each followed by a sync.
fn disk_sync_us() -> std::io::Result<f64> {
    let mut file = tempfile::tempfile()?;
    let mut sync = || {
        file.write_all(&[7; 4096])?;
        let begun = Instant::now();
        file.sync_data()?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    };
    let times = (0..9).map(|_| sync()).collect::<std::io::Result<Vec<f64>>>()?;
    Ok(median(&times))
}
