//! What is said about deployments, one value of each.

use base::{Bytes, Epoch, Incarnation, MachineId, ModelName};
use wire::control::{
    Assignment, AssignmentPhase, AssignmentReport, DeviceFacts, FromCoordinator, FromProvider, GroupAddress,
    Held, Inventory, Label, Lease, Leases, LinkOver, LinkReport, LinkReports, ModelOnDisk, Peer, Peers,
    Register, Unassignment,
};
use wire::control::{FetchModel, FetchReport, Lend, Lends};

use super::{INSTANCE, assign_group, register};

/// As a managed machine registers that holds something.
pub(crate) fn managed_register() -> Register {
    let held = Held {
        instance: INSTANCE,
        epoch: Epoch(3),
        rank: 0,
        ranks: 1,
        model: ModelName::new("phalanx-mini"),
        ready: true,
    };
    Register { instances: Vec::new(), managed: true, holds: vec![held], ..register() }
}

pub(crate) fn inventory() -> Inventory {
    let model = ModelOnDisk {
        name: ModelName::new("Qwen/Qwen3-8B"),
        memory_bytes: Bytes(16 << 30),
        disk_bytes: Bytes(16 << 30),
        parameters: 8_190_735_360,
        grain: 1,
        config: r#"{"model_type":"qwen3"}"#.to_owned(),
        decode_tokens_per_ks: 12_345,
        prefill_tokens_per_ks: 0,
        lent: true,
    };
    let device = DeviceFacts {
        host_read_bytes_per_s: 0,
        name: "cpu0".to_owned(),
        memory: Bytes(64 << 30),
        read_bytes_per_s: 29_600_000_000,
        flops: 2_200_000_000_000,
    };
    Inventory {
        labels: vec![Label { key: "room".to_owned(), value: "attic".to_owned() }],
        devices: vec![device],
        disk_bytes_per_s: 2_000_000_000,
        download_bytes_per_s: 100_000_000,
        models: vec![model],
        models_left_out: 2,
        probe_addresses: vec![probe_address()],
        fetch_room: Bytes(100 << 30),
    }
}

fn probe_address() -> GroupAddress {
    GroupAddress { address: "10.0.0.7:40123".parse().expect("an address"), interface: "eth0".to_owned() }
}

fn peer() -> Peer {
    Peer {
        machine: MachineId(17),
        incarnation: Incarnation(3),
        signing_key: "c2lnbmluZw==".to_owned(),
        addresses: vec![probe_address()],
    }
}

fn link_report(error: &str, rtt_us: u64, bytes_per_s: u64) -> LinkReport {
    LinkReport {
        peer: MachineId(17),
        incarnation: Incarnation(3),
        address: probe_address().address,
        over: LinkOver::Ethernet,
        error: error.to_owned(),
        rtt_us,
        jitter_us: rtt_us / 4,
        bytes_per_s,
    }
}

pub(crate) fn assignment() -> Assignment {
    Assignment {
        instance: INSTANCE,
        epoch: Epoch(3),
        rank: 0,
        model: ModelName::new("phalanx-mini"),
        context: 4096,
        max_batch: 4,
        exclusive: true,
        lease_us: 600_000_000,
    }
}

pub(crate) fn assignment_report(phase: AssignmentPhase, percent: u8, detail: &str) -> AssignmentReport {
    let detail = detail.to_owned();
    AssignmentReport { instance: INSTANCE, epoch: Epoch(3), rank: 0, phase, percent, detail }
}

/// What managed machines say, by name.
pub(crate) fn from_provider() -> Vec<(&'static str, FromProvider)> {
    vec![
        ("register_managed", FromProvider::Register(managed_register())),
        ("inventory", FromProvider::Inventory(inventory())),
        (
            "links",
            FromProvider::Links(LinkReports {
                links: vec![
                    link_report("", 200, 1_200_000_000),
                    link_report("cannot connect: refused", 0, 0),
                ],
            }),
        ),
        (
            "fetch_report",
            FromProvider::FetchReport(FetchReport {
                instance: INSTANCE,
                epoch: Epoch(3),
                rank: 1,
                done: Bytes(1 << 20),
                of: Bytes(16 << 30),
                bytes_per_s: 110_000_000,
            }),
        ),
        (
            "assignment_report_loading",
            FromProvider::AssignmentReport(assignment_report(AssignmentPhase::Loading, 40, "")),
        ),
        (
            "assignment_report_refused",
            FromProvider::AssignmentReport(assignment_report(
                AssignmentPhase::Refused,
                0,
                "phalanx-mini is held exclusively",
            )),
        ),
    ]
}

/// What the coordinator says to them, by name.
pub(crate) fn from_coordinator() -> Vec<(&'static str, FromCoordinator)> {
    vec![
        (
            "assign_group_with_map",
            FromCoordinator::AssignGroup(wire::control::AssignGroup {
                shard_map: Some(r#"{"rules":1,"grain":1,"stages":[]}"#.to_owned()),
                context: 8192,
                max_batch: 4,
                ..assign_group()
            }),
        ),
        ("assign", FromCoordinator::Assign(assignment())),
        (
            "unassign",
            FromCoordinator::Unassign(Unassignment {
                instance: INSTANCE,
                epoch: Epoch(3),
                reason: "its deployment was deleted".to_owned(),
                drain_us: 30_000_000,
            }),
        ),
        (
            "renew_leases",
            FromCoordinator::RenewLeases(Leases {
                lease_us: 600_000_000,
                leases: vec![Lease { instance: INSTANCE, epoch: Epoch(3) }],
            }),
        ),
        (
            "fetch_model",
            FromCoordinator::FetchModel(FetchModel {
                instance: INSTANCE,
                epoch: Epoch(3),
                rank: 1,
                model: ModelName::new("Qwen/Qwen3-8B"),
                holders: vec![peer()],
            }),
        ),
        (
            "lend",
            FromCoordinator::Lend(Lends {
                lends: vec![Lend {
                    machine: MachineId(17),
                    signing_key: "c2lnbmluZw==".to_owned(),
                    model: ModelName::new("Qwen/Qwen3-8B"),
                }],
            }),
        ),
        ("peers", FromCoordinator::Peers(Peers { peers: vec![peer()] })),
    ]
}
