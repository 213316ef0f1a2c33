//! What the machine gives: memory taken.

use std::fs;

/// The most memory that this process has held at a time.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse().ok()).or_else(rss_kib_now).map_or(0, |kib: u64| kib * 1024)
}

/// Where there is no /proc: what is resident now, which is the peak of a process that has given nothing back.
fn rss_kib_now() -> Option<u64> {
    let pid = std::process::id().to_string();
    let ps = std::process::Command::new("ps").args(["-o", "rss=", "-p", &pid]).output().ok()?;
    String::from_utf8(ps.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_and_read() {
        assert!(peak_rss_bytes() > 1 << 20);
        assert!(rss_kib_now().is_none_or(|kib| kib > 1 << 10));
    }
}
