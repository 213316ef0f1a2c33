//! What this machine is connected with, as its coordinator is told it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use base::Bytes;
use wire::control::hardware::{
    CONNECTION_NAME_BYTES_MAX, CONNECTIONS_MAX, Connections, Disk, Interface, RdmaDevice, ThunderboltPort,
};

use super::sysfs::{self, InterfaceKind};
use super::thunderbolt::{self, Thunderbolt};

/// A link of Thunderbolt 4, and of 3.
const THUNDERBOLT_4_GBPS: f64 = 40.0;

/// Looks. Takes some milliseconds; on a Mac, whose own program is asked, about a second.
pub(crate) fn look() -> Connections {
    let addresses = crate::hardware::interfaces();
    let mut found = gathered(sysfs::read(Path::new("/sys")), &addresses);
    if cfg!(target_os = "macos") {
        let arguments = ["SPThunderboltDataType", "-json"];
        let said = std::process::Command::new("system_profiler").args(arguments).output();
        let ports = said.ok().and_then(|said| thunderbolt::parse(&said.stdout).ok());
        found.thunderbolt = ports.map(|ports| recorded(&ports)).unwrap_or_default();
    }
    found.disks = disks();
    found
}

fn disks() -> Vec<Disk> {
    let Ok(listed) = sysinfo::Disks::new_with_refreshed_list() else { return Vec::new() };
    // One file system may be mounted in many places, in containers above all: its first is enough.
    let mut by_name = BTreeMap::new();
    for disk in listed.iter().filter(|disk| disk.total_space() > 0) {
        let Some(mount) = named(&disk.mount_point().to_string_lossy()) else { continue };
        let (total, available) = (Bytes(disk.total_space()), Bytes(disk.available_space()));
        by_name.entry((disk.name().to_owned(), total)).or_insert(Disk { mount, total, available });
    }
    by_name.into_values().take(CONNECTIONS_MAX).collect()
}

fn named(name: &str) -> Option<String> {
    (name.len() <= CONNECTION_NAME_BYTES_MAX).then(|| name.to_owned())
}

/// What Linux says, with the addresses that the interfaces have. Elsewhere there are addresses alone.
fn gathered(said: sysfs::Connections, addresses: &[(IpAddr, String)]) -> Connections {
    let of = |name: &str| -> Vec<IpAddr> {
        let own = addresses.iter().filter(|(_, on)| on == name).map(|(ip, _)| *ip);
        own.take(CONNECTIONS_MAX).collect()
    };
    let mut interfaces: Vec<Interface> = said
        .interfaces
        .into_iter()
        .filter(|interface| interface.kind != InterfaceKind::Loopback)
        .filter_map(|interface| {
            let kind = match interface.kind {
                InterfaceKind::Loopback | InterfaceKind::Virtual => "virtual",
                InterfaceKind::Ethernet => "ethernet",
                InterfaceKind::WiFi => "wi_fi",
                InterfaceKind::Thunderbolt => "thunderbolt",
                InterfaceKind::InfiniBand => "infini_band",
            };
            let (addresses, name) = (of(&interface.name), named(&interface.name)?);
            let (up, speed_mbps) = (interface.up, interface.speed_mbps);
            Some(Interface { name, kind: kind.to_owned(), up, speed_mbps, addresses })
        })
        .collect();
    for (_, name) in addresses.iter().filter(|(ip, _)| !ip.is_loopback()) {
        if !interfaces.iter().any(|known| known.name == *name) {
            let (addresses, kind) = (of(name), "unknown".to_owned());
            let Some(name) = named(name) else { continue };
            interfaces.push(Interface { name, kind, up: true, speed_mbps: None, addresses });
        }
    }
    // What carries traffic first: containers' hosts have many that do not.
    interfaces.sort_by_key(|interface| (interface.addresses.is_empty(), !interface.up));
    interfaces.truncate(CONNECTIONS_MAX);
    let ports = said.thunderbolt.into_iter().filter_map(|device| {
        let speed = device.speed_gbps.unwrap_or(0.0);
        Some(ThunderboltPort {
            name: named(&device.device)?,
            connected: true,
            speed_gbps: speed as u32,
            thunderbolt_5: speed > THUNDERBOLT_4_GBPS,
            peers: if device.machine { vec![device.name] } else { Vec::new() },
        })
    });
    let rdma = said
        .rdma
        .into_iter()
        .filter_map(|device| Some(RdmaDevice { name: named(&device.name)?, active: device.active }));
    Connections {
        disks: Vec::new(),
        interfaces,
        thunderbolt: ports.take(CONNECTIONS_MAX).collect(),
        rdma: rdma.take(CONNECTIONS_MAX).collect(),
    }
}

/// What a Mac says.
fn recorded(said: &Thunderbolt) -> Vec<ThunderboltPort> {
    let ports = said.ports.iter().filter_map(|port| {
        let peers =
            said.links.iter().filter(|link| port.domain_uuid.as_ref() == Some(&link.local_domain_uuid));
        Some(ThunderboltPort {
            name: named(&port.bus)?,
            connected: port.connected,
            speed_gbps: port.speed_gbps.unwrap_or(0.0) as u32,
            thunderbolt_5: port.thunderbolt_5,
            peers: peers.map(|link| link.peer_name.clone()).take(CONNECTIONS_MAX).collect(),
        })
    });
    ports.take(CONNECTIONS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_macs_ports_come_with_the_machines_behind_them_and_thunderbolt_5_for_certain() {
        let mac = |name: &str, uuid: &str| serde_json::json!({"_name": name, "device_name_key": name, "domain_uuid_key": uuid});
        let port = |n: u32, uuid: &str, speed: &str, connected: bool, items: serde_json::Value| {
            let status = if connected { "receptacle_connected" } else { "receptacle_no_devices_connected" };
            serde_json::json!({"_name": format!("bus_{n}"), "domain_uuid_key": uuid, "_items": items,
                "receptacle_1_tag": {"current_speed_key": speed, "receptacle_id_key": "1", "receptacle_status_key": status}})
        };
        let hub = serde_json::json!({"_name": "hub", "device_name_key": "Dock", "_items": [mac("mini", "C"), mac("air", "D")]});
        let said = serde_json::json!({"SPThunderboltDataType": [
            port(0, "A0", "80 Gb/s", true, serde_json::json!([hub])),
            port(1, "A1", "Up to 40 Gb/s", false, serde_json::json!([])),
        ]});
        let ports = recorded(&thunderbolt::parse(said.to_string().as_bytes()).expect("a recording"));
        assert_eq!(ports[0].peers, ["mini", "air"]);
        assert_eq!((ports[0].speed_gbps, ports[0].thunderbolt_5, ports[0].connected), (80, true, true));
        assert_eq!((ports[1].speed_gbps, ports[1].thunderbolt_5, ports[1].connected), (0, false, false));
    }

    #[test]
    fn what_others_can_use_comes_first_and_nothing_is_beyond_its_bound() {
        let interface = |name: &str, kind| sysfs::Interface {
            name: name.to_owned(),
            kind,
            up: kind != InterfaceKind::WiFi,
            speed_mbps: None,
        };
        let mut interfaces: Vec<_> =
            (0..200).map(|i| interface(&format!("veth{i}"), InterfaceKind::Virtual)).collect();
        interfaces.push(interface("lo", InterfaceKind::Loopback));
        interfaces.push(interface("wlan0", InterfaceKind::WiFi));
        interfaces.push(interface("eth0", InterfaceKind::Ethernet));
        let said = sysfs::Connections { interfaces, ..sysfs::Connections::default() };
        let addresses = [("127.0.0.1", "lo"), ("10.0.0.5", "eth0"), ("10.0.0.6", "en7")];
        let addresses = addresses.map(|(ip, name)| (ip.parse().expect("an address"), name.to_owned()));
        let found = gathered(said, &addresses).interfaces;
        assert_eq!(found.len(), CONNECTIONS_MAX);
        assert_eq!((found[0].name.as_str(), found[0].kind.as_str()), ("eth0", "ethernet"));
        assert_eq!((found[1].name.as_str(), found[1].kind.as_str()), ("en7", "unknown"));
        assert!(!found.iter().any(|interface| interface.name == "lo"));
    }
}
