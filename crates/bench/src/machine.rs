//! What a bench ran on: numbers without their machine mean nothing.

use std::fs;

use serde::Serialize;

/// The machine that a report is about.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Runnable threads a core over the last minute, when the bench began: above about a tenth, others were at work.
    pub(crate) load_before: f64,
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
        Self { cpu, cores, load_before: load / cores as f64, debug_build: cfg!(debug_assertions) }
    }

    /// For a report's head.
    pub(crate) fn line(&self) -> String {
        let build = if self.debug_build { ", debug build: build with --release to compare" } else { "" };
        format!("{}, {} cores, load {:.2} a core before{build}", self.cpu, self.cores, self.load_before)
    }
}
