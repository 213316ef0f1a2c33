//! What a machine says of itself.

use base::Bytes;
use wire::control::Hardware;
use wire::control::hardware::{Connections, Disk, Interface, RdmaDevice, ThunderboltPort};

pub(crate) fn hardware() -> Hardware {
    Hardware {
        cpu: "AMD EPYC".to_owned(),
        cores: 2,
        isa: vec!["avx512".to_owned(), "avx2".to_owned()],
        memory_total: Bytes(16 << 30),
        memory_available: Bytes(9 << 30),
        os: "Linux 6.1".to_owned(),
        connections: connections(),
    }
}

fn connections() -> Connections {
    Connections {
        disks: vec![Disk { mount: "/".to_owned(), total: Bytes(1 << 40), available: Bytes(1 << 39) }],
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            kind: "ethernet".to_owned(),
            up: true,
            speed_mbps: Some(10_000),
            addresses: vec!["10.0.0.5".parse().expect("an address")],
        }],
        thunderbolt: vec![ThunderboltPort {
            name: "0-1".to_owned(),
            connected: true,
            speed_gbps: 80,
            thunderbolt_5: true,
            peers: vec!["laptop".to_owned()],
        }],
        rdma: vec![RdmaDevice { name: "mlx5_0".to_owned(), active: true }],
    }
}
