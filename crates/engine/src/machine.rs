//! What the machine offers to compute with: cores, and memory with control-group limits taken off.

use std::collections::BTreeSet;
use std::path::Path;

use base::Bytes;

/// Memory, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Physical memory, or the control group's limit where that is lower.
    pub total: Bytes,
    /// What could be taken now without pushing anything out that is in use.
    pub available: Bytes,
}

/// Cores that this process may use: physical ones where that is known, never more than its affinity and control
/// group allow.
pub fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores(Path::new("/sys/devices/system/cpu"))
        .map_or(allowed, |physical| physical.clamp(1, allowed))
}

/// The instruction sets that the kernels know and this machine has, best first.
pub fn instruction_sets() -> Vec<&'static str> {
    nn::features()
}

/// What threads of this machine do at most, measured now by loops that do nothing else.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read from memory a second; 0 where there was no memory to measure with.
    pub read_bytes_per_s: f64,
    /// Multiply-adds of f32 a second: what bf16 and f32 weights are computed with.
    pub f32_per_s: f64,
    /// Multiply-adds of bytes a second: what quantised weights are computed with.
    pub int8_per_s: f64,
}

/// Measures the ceilings of `threads` threads, reading `bytes` of memory: some tenths of a second.
pub fn ceilings(threads: usize, bytes: usize) -> Ceilings {
    let (team, isa) = (nn::Team::new(threads), nn::Isa::detect());
    Ceilings {
        read_bytes_per_s: nn::read_ceiling(&team, isa, bytes).unwrap_or_default(),
        f32_per_s: nn::f32_ceiling(&team, isa),
        int8_per_s: nn::int8_ceiling(&team, isa),
    }
}

/// Memory, as it is now; nothing where the system does not say.
pub fn memory() -> Option<Memory> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let host = parse_meminfo(&meminfo)?;
    let own_group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut memory = host;
    for (limit, usage, inactive) in group_limits(Path::new("/sys/fs/cgroup"), &own_group) {
        // File pages that nobody uses are counted as used by the group, and given back when memory is needed.
        let free = limit.saturating_sub(usage.saturating_sub(inactive));
        memory.total = memory.total.min(Bytes(limit));
        memory.available = memory.available.min(Bytes(free));
    }
    Some(memory)
}

/// How much the computing threads stand back. Enough that a woken thread of a coordinator or of the machine's owner gets
/// its core at once; where nothing else wants the cores it costs nothing.
const NICENESS: i32 = 5;

/// Makes the calling thread, and those that it starts from now on, stand back behind others that want the core.
pub(crate) fn yield_to_others() {
    // Refused only by systems that know no priorities.
    let _ = rustix::process::nice(NICENESS);
}

/// One core for each distinct set of siblings.
fn physical_cores(root: &Path) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for entry in std::fs::read_dir(root).ok()?.flatten() {
        let siblings = entry.path().join("topology/thread_siblings_list");
        if let Ok(siblings) = std::fs::read_to_string(siblings) {
            cores.insert(siblings.trim().to_owned());
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// `MemTotal` and `MemAvailable` of `/proc/meminfo`, which counts in KiB.
fn parse_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024).map(Bytes)
    };
    Some(Memory { total: field("MemTotal")?, available: field("MemAvailable")? })
}

/// (limit, usage, inactive file pages) of the process's control group and those above it that have a limit.
/// `own_group` is `/proc/self/cgroup`; both versions of control groups are known.
fn group_limits(root: &Path, own_group: &str) -> Vec<(u64, u64, u64)> {
    let mut limits = Vec::new();
    for line in own_group.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (base, names) = if controllers.is_empty() {
            (root.to_owned(), ["memory.max", "memory.current", "inactive_file"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
            (root.join("memory"), names)
        } else {
            continue;
        };
        let own = base.join(path.trim_start_matches('/'));
        for group in own.ancestors().take_while(|group| group.starts_with(&base)) {
            limits.extend(group_limit(group, names));
        }
    }
    limits
}

fn group_limit(group: &Path, [limit, usage, inactive]: [&str; 3]) -> Option<(u64, u64, u64)> {
    let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
    Some((number(limit)?, number(usage)?, inactive.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computing_thread_stands_back_and_no_other_does() {
        let own = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = own();
        let computing = std::thread::spawn(move || {
            yield_to_others();
            own()
        });
        assert_eq!(computing.join().unwrap(), (before + NICENESS).min(19));
        assert_eq!(own(), before);
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let text = "MemTotal:       24576000 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(
            parse_meminfo(text),
            Some(Memory { total: Bytes(24_576_000 << 10), available: Bytes(1 << 20) })
        );
        assert_eq!(parse_meminfo("MemTotal: lots"), None);
    }

    #[test]
    fn limits_of_the_own_group_and_of_those_above_count() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("a/b");
        write(&group.join("memory.max"), "max\n");
        write(&root.path().join("a/memory.max"), "1000\n");
        write(&root.path().join("a/memory.current"), "700\n");
        write(&root.path().join("a/memory.stat"), "anon 5\ninactive_file 200\n");
        assert_eq!(group_limits(root.path(), "0::/a/b\n"), [(1000, 700, 200)]);
        assert_eq!(group_limits(root.path(), "3:cpu:/a\nnonsense\n"), []);
    }

    #[test]
    fn limits_of_version_1_groups_count_too() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("memory/box");
        write(&group.join("memory.limit_in_bytes"), "1000");
        write(&group.join("memory.usage_in_bytes"), "10");
        assert_eq!(group_limits(root.path(), "4:memory:/box\n"), [(1000, 10, 0)]);
    }

    #[test]
    fn threads_of_one_core_count_once() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [("cpu0", "0,2"), ("cpu1", "1,3"), ("cpu2", "0,2"), ("cpu3", "1,3")] {
            write(&root.path().join(cpu).join("topology/thread_siblings_list"), siblings);
        }
        assert_eq!(physical_cores(root.path()), Some(2));
        assert_eq!(physical_cores(&root.path().join("none")), None);
        assert!(cores() >= 1);
    }
}
