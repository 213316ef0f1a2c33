//! Reads Linux' `/sys` (or a recording of it): network interfaces, Thunderbolt devices, RDMA devices.

use std::path::Path;

use serde::Serialize;

/// Entries of one folder that are read at most: a machine with more interfaces than this is a router.
const ENTRIES_MAX: usize = 1024;
/// The longest attribute that is read; they are single words.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;

/// What a machine's `/sys` says of its connections.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Connections {
    /// Network interfaces, by name.
    pub interfaces: Vec<Interface>,
    /// Thunderbolt devices and other machines, by name.
    pub thunderbolt: Vec<ThunderboltDevice>,
    /// RDMA devices, by name.
    pub rdma: Vec<RdmaDevice>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interface {
    /// As the system calls it.
    pub name: String,
    /// What kind it is.
    pub kind: InterfaceKind,
    /// Whether it carries traffic.
    pub up: bool,
    /// Its negotiated speed in Mbit/s, where it has one.
    pub speed_mbps: Option<u64>,
}

/// Kinds of network interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceKind {
    /// To itself.
    Loopback,
    /// By cable.
    Ethernet,
    /// By radio.
    WiFi,
    /// Over a Thunderbolt cable.
    Thunderbolt,
    /// Over InfiniBand.
    InfiniBand,
    /// Made of software: bridges, tunnels, veth.
    Virtual,
}

/// A device on a Thunderbolt bus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ThunderboltDevice {
    /// As the system calls it (`0-1`).
    pub device: String,
    /// What it is called.
    pub name: String,
    /// Its identity, where it says one.
    pub unique_id: Option<String>,
    /// Its speed in Gbit/s, all lanes together, where it says one.
    pub speed_gbps: Option<f64>,
    /// Whether it is another machine (it offers networking) and not a hub or a device.
    pub machine: bool,
}

/// A device that does RDMA.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RdmaDevice {
    /// As the system calls it.
    pub name: String,
    /// Whether any of its ports is active.
    pub active: bool,
}

/// Reads `root` (`/sys`). What is not there or cannot be read is left out: containers show little.
pub fn read(root: &Path) -> Connections {
    Connections {
        interfaces: entries(&root.join("class/net")).iter().map(|name| interface(root, name)).collect(),
        thunderbolt: thunderbolt(root),
        rdma: entries(&root.join("class/infiniband")).into_iter().map(|name| rdma(root, name)).collect(),
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(read) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = read.flatten().take(ENTRIES_MAX).filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn attribute(file: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(ATTRIBUTE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn interface(root: &Path, name: &str) -> Interface {
    let folder = root.join("class/net").join(name);
    // The kernel's ARPHRD numbers: 772 loopback, 1 Ethernet, 32 InfiniBand.
    let kind = match attribute(&folder.join("type")).as_deref() {
        Some("772") => InterfaceKind::Loopback,
        Some("32") => InterfaceKind::InfiniBand,
        _ if folder.join("wireless").exists() || folder.join("phy80211").exists() => InterfaceKind::WiFi,
        _ if driver(&folder).as_deref() == Some("thunderbolt-net") => InterfaceKind::Thunderbolt,
        _ if folder.join("device").exists() => InterfaceKind::Ethernet,
        _ => InterfaceKind::Virtual,
    };
    let speed = attribute(&folder.join("speed")).and_then(|speed| speed.parse::<i64>().ok());
    Interface {
        name: name.to_owned(),
        kind,
        up: matches!(attribute(&folder.join("operstate")).as_deref(), Some("up"))
            || (kind == InterfaceKind::Loopback && folder.exists()),
        // An interface without a link says -1.
        speed_mbps: speed.and_then(|speed| u64::try_from(speed).ok()).filter(|speed| *speed > 0),
    }
}

/// The last part of where `device/driver` points; of a recording, what that file says.
fn driver(folder: &Path) -> Option<String> {
    let file = folder.join("device/driver");
    if let Ok(target) = std::fs::read_link(&file) {
        return Some(target.file_name()?.to_string_lossy().into_owned());
    }
    attribute(&file)
}

fn thunderbolt(root: &Path) -> Vec<ThunderboltDevice> {
    let folder = root.join("bus/thunderbolt/devices");
    let names = entries(&folder);
    let device = |name: &String| -> Option<ThunderboltDevice> {
        let at = folder.join(name);
        // `0-0` is the machine's own controller; `domain0` and `0-1.0` (a service) are no devices.
        let (_, route) = name.split_once('-')?;
        if route == "0" || route.contains('.') || name.starts_with("usb4_port") {
            return None;
        }
        let speed = |way: &str| -> Option<f64> {
            let speed = attribute(&at.join(format!("{way}_speed")))?;
            let lane: f64 = speed.split_whitespace().next()?.parse().ok()?;
            let lanes = attribute(&at.join(format!("{way}_lanes"))).and_then(|lanes| lanes.parse().ok());
            Some(lane * lanes.unwrap_or(1.0)).filter(|gbps| gbps.is_finite() && *gbps > 0.0)
        };
        let services = names.iter().filter(|other| other.starts_with(&format!("{name}.")));
        let network =
            |service: &String| attribute(&folder.join(service).join("key")).as_deref() == Some("network");
        Some(ThunderboltDevice {
            device: name.clone(),
            name: attribute(&at.join("device_name")).unwrap_or_else(|| name.clone()),
            unique_id: attribute(&at.join("unique_id")),
            speed_gbps: speed("tx").into_iter().chain(speed("rx")).reduce(f64::max),
            machine: services.into_iter().any(network),
        })
    };
    names.iter().filter_map(device).collect()
}

fn rdma(root: &Path, name: String) -> RdmaDevice {
    let ports = root.join("class/infiniband").join(&name).join("ports");
    // A port's state reads "4: ACTIVE".
    let active = |port: &String| {
        attribute(&ports.join(port).join("state")).is_some_and(|state| state.ends_with("ACTIVE"))
    };
    RdmaDevice { active: entries(&ports).iter().any(active), name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_tree_is_read() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, format!("{text}\n")).unwrap();
        };
        put("class/net/lo/type", "772");
        put("class/net/eth0/type", "1");
        put("class/net/eth0/operstate", "up");
        put("class/net/eth0/speed", "10000");
        put("class/net/eth0/device/driver", "ixgbe");
        put("class/net/wlan0/type", "1");
        put("class/net/wlan0/speed", "-1");
        put("class/net/wlan0/wireless/link", "0");
        put("class/net/tb0/device/driver", "thunderbolt-net");
        put("class/net/tb0/operstate", "up");
        put("class/net/veth1/type", "1");
        put("bus/thunderbolt/devices/domain0/security", "user");
        put("bus/thunderbolt/devices/0-0/device_name", "own");
        put("bus/thunderbolt/devices/0-1/device_name", "Mac Studio");
        put("bus/thunderbolt/devices/0-1/unique_id", "d1030000");
        put("bus/thunderbolt/devices/0-1/rx_speed", "20.0 Gb/s");
        put("bus/thunderbolt/devices/0-1/rx_lanes", "2");
        put("bus/thunderbolt/devices/0-1.0/key", "network");
        put("bus/thunderbolt/devices/0-3/device_name", "Dock");
        put("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE");
        put("class/infiniband/mlx5_1/ports/1/state", "1: DOWN");
        let got = read(root.path());
        let kinds: Vec<_> =
            got.interfaces.iter().map(|i| (i.name.as_str(), i.kind, i.up, i.speed_mbps)).collect();
        assert_eq!(
            kinds,
            [
                ("eth0", InterfaceKind::Ethernet, true, Some(10_000)),
                ("lo", InterfaceKind::Loopback, true, None),
                ("tb0", InterfaceKind::Thunderbolt, true, None),
                ("veth1", InterfaceKind::Virtual, false, None),
                ("wlan0", InterfaceKind::WiFi, false, None),
            ]
        );
        assert_eq!(got.thunderbolt.len(), 2);
        assert_eq!((got.thunderbolt[0].speed_gbps, got.thunderbolt[0].machine), (Some(40.0), true));
        assert_eq!((&*got.thunderbolt[1].name, got.thunderbolt[1].machine), ("Dock", false));
        assert_eq!(got.rdma.iter().map(|r| r.active).collect::<Vec<_>>(), [true, false]);
        assert_eq!(read(Path::new("/nowhere/at/all")), Connections::default());
    }
}
