//! What the machine gives: memory taken, and how fast memory can be read.

use std::fs;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

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

/// Bytes a second that `threads` read from memory together: the best of several passes over buffers far beyond any
/// cache.
pub(crate) fn read_bandwidth(threads: usize, quick: bool) -> f64 {
    let bytes = if quick { 16 << 20 } else { 256 << 20 };
    let words = bytes / 8 / threads;
    let passes = if quick { 2 } else { 6 };
    let best: Vec<f64> = thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|seed| {
                scope.spawn(move || {
                    let buffer: Vec<u64> = (0..words as u64).map(|n| n ^ seed as u64).collect();
                    let pass = |_| {
                        let begun = Instant::now();
                        black_box(sum(black_box(&buffer)));
                        begun.elapsed().as_secs_f64()
                    };
                    let fastest = (0..passes).map(pass).fold(f64::INFINITY, f64::min);
                    (words * 8) as f64 / fastest
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect()
    });
    best.iter().sum()
}

/// Eight sums side by side, so that the loop waits for memory and not for its own additions.
fn sum(buffer: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for words in buffer.chunks_exact(8) {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_and_read() {
        assert!(peak_rss_bytes() > 1 << 20);
        assert!(rss_kib_now().is_none_or(|kib| kib > 1 << 10));
        assert!(read_bandwidth(1, true) > 1e7);
    }

    #[test]
    fn every_word_is_read() {
        assert_eq!(sum(&(0..16).collect::<Vec<_>>()), 120);
    }
}
