//! What this machine is made of, as far as this process may use it.

use std::net::{IpAddr, Ipv4Addr};

use base::Bytes;
use wire::control::Hardware;

/// Looks. Takes some milliseconds.
pub(crate) fn probe() -> Hardware {
    let refresh = sysinfo::RefreshKind::nothing()
        .with_cpu(sysinfo::CpuRefreshKind::nothing())
        .with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram());
    // A system that does not say leaves the numbers at zero, which people see.
    let system = sysinfo::System::new_with_specifics(refresh).ok();
    let (total, available) = system.as_ref().map_or((0, 0), |s| (s.total_memory(), s.available_memory()));
    // Where the engine knows the control group's limits, they bind; elsewhere the system's own numbers stand.
    let memory = engine::machine::memory()
        .unwrap_or(engine::machine::Memory { total: Bytes(total), available: Bytes(available) });
    let brand = system.as_ref().and_then(|s| s.cpus().first()).map(|cpu| cpu.brand().trim().to_owned());
    let cpu = brand.unwrap_or_default();
    let os = sysinfo::System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned());
    Hardware {
        cpu: if cpu.is_empty() { std::env::consts::ARCH.to_owned() } else { cpu },
        cores: u32::try_from(engine::machine::cores()).unwrap_or(u32::MAX),
        isa: engine::machine::instruction_sets().into_iter().map(str::to_owned).collect(),
        memory_total: memory.total,
        memory_available: memory.available.min(memory.total),
        os: format!("{os} ({})", std::env::consts::ARCH),
        connections: crate::topology::connections::look(),
    }
}

/// The name that people know this machine by, where nobody gave another.
pub fn machine_name() -> String {
    let name = sysinfo::System::host_name().unwrap_or_default();
    let name: String =
        name.trim().chars().filter(char::is_ascii_graphic).take(crate::NAME_BYTES_MAX).collect();
    if name.is_empty() { "machine".to_owned() } else { name }
}

/// The addresses of this machine's interfaces, and the system's names of these.
pub(crate) fn interfaces() -> Vec<(IpAddr, String)> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.into_iter().map(|interface| (interface.ip(), interface.name)).collect()
}

/// Where to listen for the other ranks of a group: as asked for; else on the loopback alone where the coordinator is on
/// this machine, and on every other interface where it is not.
pub(crate) fn group_listen(asked: &[IpAddr], is_loopback: bool) -> Vec<IpAddr> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    if is_loopback {
        return vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    }
    // An IPv6 address of a link needs that link's number to be dialled, which another machine does not know.
    let is_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80);
    interfaces().into_iter().map(|(ip, _)| ip).filter(|ip| !ip.is_loopback() && !is_local(ip)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reports_numbers_that_hang_together() {
        let hardware = probe();
        assert!(hardware.cores >= 1);
        assert!(hardware.memory_total > Bytes(64 << 20), "{}", hardware.memory_total);
        assert!(hardware.memory_available <= hardware.memory_total);
        assert!(!hardware.cpu.is_empty() && !hardware.os.is_empty());
        assert!(!machine_name().is_empty());
    }
}
