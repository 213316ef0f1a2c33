//! One value of everything that is sent, for the golden bytes and the other tests.
#![allow(dead_code, reason = "shared by test programs that each use a part")]

pub(crate) mod deployments;
pub(crate) mod machine;

use self::machine::hardware;
use base::{
    AccountId, AttemptId, Bytes, Epoch, Incarnation, InstanceId, KeyId, MachineId, ModelName, RequestId,
    Tokens,
};
use wire::admin::{
    CreateKey, CreatedKey, FleetStatus, InstanceStatus, KeyInfo, KeyList, KeyTerms, MachineStatus,
    PoolStatus, SegmentReport, SegmentStats,
};
use wire::chunk::{Chunk, Finish, FinishReason, TokenLogprob};
use wire::control::{
    AttemptRefusal, FromCoordinator, FromProvider, Heartbeat, Hello, InstanceOffer, InstancePhase,
    InstanceReport, KeptAttempt, ModelDescriptor, RefusalCode, Refused, Register, Welcome,
};
use wire::job::{Ask, Constraint, Grammar, Job, Sampling};

pub(crate) const ATTEMPT: AttemptId = AttemptId(0x0123_4567_89ab_cdef_1021_3243_5465_7687);
pub(crate) const INSTANCE: InstanceId = InstanceId(0x1111_1111_1111_1111_1111_1111_1111_1111);
pub(crate) const MACHINE: MachineId = MachineId(0x2222_2222_2222_2222_2222_2222_2222_2222);
pub(crate) const REQUEST: RequestId = RequestId(0x3333_3333_3333_3333_3333_3333_3333_3333);
pub(crate) const ACCOUNT: AccountId = AccountId(0x4444_4444_4444_4444_4444_4444_4444_4444);
pub(crate) const KEY: KeyId = KeyId(0x5555_5555_5555_5555_5555_5555_5555_5555);
pub(crate) const KIT_SHA256: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

pub(crate) fn report() -> InstanceReport {
    InstanceReport {
        instance: INSTANCE,
        generation: 9,
        phase: InstancePhase::Ready,
        detail: String::new(),
        slots: 8,
        running: 2,
        waiting: 1,
        kv_tokens: 16_384,
        kv_tokens_free: 12_000,
        prefill_tokens_waiting: 300,
        prefill_tokens_per_s: 2500.5,
        decode_tokens_per_s: 210.25,
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol: wire::control::PROTOCOL,
        token: "join-phx-0123".to_owned(),
        machine: MACHINE,
        incarnation: Incarnation(1_800_000_000_000_000),
        name: "studio".to_owned(),
        agent: "phalanx/0.1.0".to_owned(),
        signing_key: "c2lnbmluZw==".to_owned(),
        sealing_key: "c2VhbGluZw==".to_owned(),
        capabilities: vec!["resume".to_owned()],
    }
}

pub(crate) fn register() -> Register {
    let model = ModelDescriptor {
        name: ModelName::new("phalanx-mini"),
        family: "llama".to_owned(),
        parameters: 4_600_000,
        weight_bytes: Bytes(9_200_000),
        context: Tokens(2048),
        vocabulary: 4096,
        weights_sha256: KIT_SHA256.to_owned(),
        kit_sha256: KIT_SHA256.to_owned(),
        kit_bytes: Bytes(123_456),
    };
    let offer =
        InstanceOffer { instance: INSTANCE, epoch: Epoch(3), rank: 0, ranks: 1, model, report: report() };
    Register { hardware: hardware(), instances: vec![offer], managed: false, holds: Vec::new() }
}

/// Every message of a provider, by name.
pub(crate) fn from_provider() -> Vec<(&'static str, FromProvider)> {
    let mut messages = session_from_provider();
    messages.extend(deployments::from_provider());
    messages
}

fn session_from_provider() -> Vec<(&'static str, FromProvider)> {
    let changed =
        InstanceReport { phase: InstancePhase::Failed, detail: "out of memory".to_owned(), ..report() };
    vec![
        (
            "group_ports",
            FromProvider::GroupPorts(wire::control::GroupPorts {
                instance: INSTANCE,
                epoch: Epoch(3),
                rank: 1,
                addresses: vec![group_address()],
            }),
        ),
        ("group_report", FromProvider::GroupReport(group_report())),
        ("hello", FromProvider::Hello(hello())),
        ("proof", FromProvider::Proof { signature: "c2lnbmF0dXJl".to_owned() }),
        ("register", FromProvider::Register(register())),
        ("heartbeat", FromProvider::Heartbeat(Heartbeat { sequence: 4, instances: vec![report()] })),
        ("instance_changed", FromProvider::InstanceChanged(changed)),
        (
            "attempt_refused",
            FromProvider::AttemptRefused {
                attempt: ATTEMPT,
                reason: AttemptRefusal::NoKvRoom,
                message: "700 tokens asked, 512 free".to_owned(),
            },
        ),
        (
            "attempt_failed",
            FromProvider::AttemptFailed { attempt: ATTEMPT, message: "the engine stopped".to_owned() },
        ),
        (
            "kept",
            FromProvider::Kept {
                attempts: vec![KeptAttempt { attempt: ATTEMPT, first_counter: 2, next_counter: 9 }],
            },
        ),
        ("draining", FromProvider::Draining),
        ("goodbye", FromProvider::Goodbye { reason: "stopped by its owner".to_owned() }),
    ]
}

/// Every message of the coordinator, by name.
pub(crate) fn from_coordinator() -> Vec<(&'static str, FromCoordinator)> {
    let mut messages = session_from_coordinator();
    messages.extend(deployments::from_coordinator());
    messages
}

fn session_from_coordinator() -> Vec<(&'static str, FromCoordinator)> {
    vec![
        ("assign_group", FromCoordinator::AssignGroup(assign_group())),
        (
            "group_roster",
            FromCoordinator::GroupRoster(wire::control::GroupRoster {
                instance: INSTANCE,
                epoch: Epoch(3),
                addresses: vec![vec![group_address()], Vec::new()],
            }),
        ),
        (
            "unassign_group",
            FromCoordinator::UnassignGroup {
                instance: INSTANCE,
                epoch: Epoch(3),
                reason: "rank 1 was lost".to_owned(),
            },
        ),
        ("challenge", FromCoordinator::Challenge { nonce: "bm9uY2U=".to_owned() }),
        (
            "welcome",
            FromCoordinator::Welcome(Welcome {
                capabilities: vec!["resume".to_owned()],
                control_bytes_max: Bytes(1 << 20),
                data_bytes_max: Bytes(16 << 20),
                heartbeat_us: 1_000_000,
                silence_us_max: 5_000_000,
                credit_chunks: 0,
            }),
        ),
        (
            "refused",
            FromCoordinator::Refused(Refused {
                code: RefusalCode::BadToken,
                reason: "the join token is not one of ours".to_owned(),
                remedy: "copy the token again".to_owned(),
            }),
        ),
        ("want_kit", FromCoordinator::WantKit { kit_sha256: KIT_SHA256.to_owned() }),
        ("standing", FromCoordinator::Standing { lines: vec!["phalanx-mini: takes requests".to_owned()] }),
        ("resume", FromCoordinator::Resume { attempt: ATTEMPT, from_counter: 5 }),
        ("credit", FromCoordinator::Credit { attempt: ATTEMPT, until_counter: 640 }),
        ("cancel", FromCoordinator::Cancel { attempt: ATTEMPT }),
        ("goodbye", FromCoordinator::Goodbye { reason: "restarting".to_owned(), retry_after_us: 2_000_000 }),
    ]
}

pub(crate) fn sampling() -> Sampling {
    Sampling {
        temperature: 0.75,
        top_p: 0.5,
        top_k: 40,
        min_p: 0.125,
        repetition_penalty: 1.25,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        seed: u64::MAX,
        logit_bias: vec![(7, -100.0), (9, 1.5)],
    }
}

pub(crate) fn job() -> Job {
    let ask = Ask {
        request: REQUEST,
        model: ModelName::new("phalanx-mini"),
        max_tokens: 64,
        sampling: sampling(),
        stop: vec!["\n\n".to_owned(), "конец".to_owned()],
        ignore_stop_tokens: true,
        logprobs: Some(3),
        deadline_us: 30_000_000,
        constraint: None,
        special_tokens: false,
        embed: false,
        trace: None,
        hold_ms: 0,
    };
    Job { ask, prompt: vec![1, 2, 3, 65_536], generated: vec![4, u32::MAX] }
}

/// A job that leaves everything at its default.
pub(crate) fn plain_job() -> Job {
    let ask = Ask {
        request: REQUEST,
        model: ModelName::new("phalanx-mini"),
        max_tokens: 16,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop_tokens: false,
        logprobs: None,
        deadline_us: 0,
        constraint: None,
        special_tokens: false,
        embed: false,
        trace: None,
        hold_ms: 0,
    };
    Job { ask, prompt: vec![1], generated: Vec::new() }
}

/// Jobs whose answers must have a form, by name.
pub(crate) fn constrained_jobs() -> Vec<(&'static str, Job)> {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let constrained = |grammar: Grammar, after: Option<&str>| {
        let constraint = Some(Constraint { grammar, after: after.map(str::to_owned) });
        Job { ask: Ask { constraint, special_tokens: true, ..plain_job().ask }, ..plain_job() }
    };
    vec![
        ("json_object_job", constrained(Grammar::JsonObject, None)),
        (
            "json_schema_job",
            constrained(Grammar::JsonSchema { schema: r#"{"type":"integer"}"#.to_owned() }, Some("</think>")),
        ),
        ("regex_job", constrained(Grammar::Regex { pattern: "[a-z]+".to_owned() }, None)),
        ("lark_job", constrained(Grammar::Lark { grammar: "start: \"a\"".to_owned() }, None)),
        ("choice_job", constrained(Grammar::Choice { choices: texts(&["yes", "no"]) }, None)),
    ]
}

/// Chunks by name: of text alone, the last one, and one with everything.
pub(crate) fn chunks() -> Vec<(&'static str, Chunk)> {
    let finish = Finish {
        reason: FinishReason::Stop,
        prompt_tokens: 12,
        cached_tokens: 4,
        generated_tokens: 3,
        queue_us: 100,
        prefill_us: 2_000,
        decode_us: 30_000,
        stop_text: None,
        usage_signature: None,
    };
    let logprob = TokenLogprob {
        token: 300,
        bytes: vec![0xd0],
        logprob: -0.5,
        top: vec![(300, vec![0xd0], -0.5), (301, vec![0x41], -2.25)],
    };
    vec![
        (
            "text",
            Chunk { first_index: 5, tokens: vec![10, 11], text: "Grüße".to_owned(), ..Chunk::default() },
        ),
        ("finish", Chunk { first_index: 7, finish: Some(finish.clone()), ..Chunk::default() }),
        (
            "everything",
            Chunk {
                first_index: 0,
                tokens: vec![300],
                text: String::new(),
                logprobs: Some(vec![logprob]),
                finish: Some(Finish { reason: FinishReason::Length, cached_tokens: 0, ..finish.clone() }),
                ..Chunk::default()
            },
        ),
        (
            "signed",
            Chunk {
                first_index: 9,
                finish: Some(Finish { usage_signature: Some("c2lnbmVk".to_owned()), ..finish.clone() }),
                ..Chunk::default()
            },
        ),
        ("vector", Chunk { finish: Some(finish), vector: Some(vec![0.5, -2.0, 1e-3]), ..Chunk::default() }),
    ]
}

pub(crate) fn key_info() -> KeyInfo {
    KeyInfo {
        id: KEY,
        account: ACCOUNT,
        name: "laptop".to_owned(),
        admin: false,
        created_unix: 1_800_000_000,
        revoked_unix: None,
        ends_with: "wxyz".to_owned(),
        terms: KeyTerms::default(),
    }
}

pub(crate) fn create_key() -> CreateKey {
    CreateKey { name: "laptop".to_owned(), account: Some(ACCOUNT), admin: true, terms: KeyTerms::default() }
}

pub(crate) fn created_key() -> CreatedKey {
    CreatedKey { secret: "sk-phx-0123".to_owned(), key: key_info() }
}

pub(crate) fn key_list() -> KeyList {
    KeyList { keys: vec![key_info(), KeyInfo { revoked_unix: Some(1_800_000_001), ..key_info() }] }
}

pub(crate) fn fleet_status() -> FleetStatus {
    let instance = InstanceStatus {
        instance: INSTANCE,
        model: ModelName::new("phalanx-mini"),
        rank: 0,
        phase: InstancePhase::Draining,
        ineligible: Some("draining".to_owned()),
        running: 1,
        slots: 8,
        kv_tokens: (16_384, 12_000),
        decode_tokens_per_s: 210.25,
    };
    let machine = MachineStatus {
        owner: None,
        machine: MACHINE,
        name: "studio".to_owned(),
        connected: true,
        since_us: 5_000_000,
        agent: "phalanx/0.1.0".to_owned(),
        hardware: hardware(),
        instances: vec![instance],
        left: None,
    };
    let pool = PoolStatus {
        model: ModelName::new("phalanx-mini"),
        context: Tokens(2048),
        weight_bytes: Bytes(9_200_000),
        eligible: (0, 1),
        queued: 3,
        running: 1,
        refused: 12,
    };
    FleetStatus {
        version: "phalanx/0.1.0".to_owned(),
        uptime_us: 60_000_000,
        machines: vec![machine],
        models: vec![pool],
        groups: Vec::new(),
    }
}

pub(crate) fn segment_report() -> SegmentReport {
    let stats =
        SegmentStats { count: 30, mean_us: 12.5, p50_us: 11.0, p95_us: 20.0, p99_us: 30.0, max_us: 31.5 };
    SegmentReport {
        window_us: 4_000_000,
        completed: 29,
        other: 1,
        segments: [("parse".to_owned(), stats)].into(),
    }
}

/// One frame of each kind and element type between ranks.
pub(crate) fn link_frames() -> Vec<(&'static str, wire::link::LinkHeader, &'static [u8])> {
    use wire::link::{LinkHeader, LinkKind, WireType};
    let header = |kind, dtype, rows, columns| LinkHeader {
        kind,
        dtype,
        epoch: 7,
        sequence: 0x0102_0304_0506_0708,
        request: 0,
        rows,
        columns,
    };
    vec![
        ("reduce_f32", header(LinkKind::Reduce, WireType::F32, 1, 1), &[0, 0, 0x80, 0x3f]),
        ("sum_bf16", header(LinkKind::Sum, WireType::Bf16, 1, 2), &[0x80, 0x3f, 0, 0xc0]),
        ("gather_f16", header(LinkKind::Gather, WireType::F16, 2, 1), &[0, 0x3c, 0, 0xc0]),
        ("reduce_int8", header(LinkKind::Reduce, WireType::Int8, 1, 2), &[0, 0, 0x80, 0x3f, 1, 0xff]),
        ("broadcast", header(LinkKind::Broadcast, WireType::Bytes, 1, 4), b"plan"),
        ("values", header(LinkKind::Values, WireType::F32, 1, 0), b""),
        ("bytes", LinkHeader { request: 9, ..header(LinkKind::Bytes, WireType::Bytes, 1, 3) }, b"abc"),
        ("ping", header(LinkKind::Ping, WireType::Bytes, 1, 8), b"\x01\x02\x03\x04\x05\x06\x07\x08"),
        ("pong", header(LinkKind::Pong, WireType::Bytes, 1, 8), b"\x01\x02\x03\x04\x05\x06\x07\x08"),
        ("goodbye", header(LinkKind::Goodbye, WireType::Bytes, 1, 3), b"bye"),
        ("fault", header(LinkKind::Fault, WireType::Bytes, 1, 8), b"\x02\0\0\0late"),
    ]
}

/// The first words between two ranks.
pub(crate) fn link_hello() -> wire::link::LinkHello {
    wire::link::LinkHello {
        machine: base::MachineId(0x11),
        incarnation: base::Incarnation(0x22),
        instance: base::InstanceId(0x33),
        epoch: base::Epoch(0x44),
        rank: 1,
        ranks: 3,
        model: [0x55; 32],
        shard_map: [0x66; 32],
        mode: wire::link::Mode::Tensor,
        dtype: wire::link::WireType::F32,
        control: true,
    }
}

pub(crate) fn assign_group() -> wire::control::AssignGroup {
    let member = wire::control::GroupMember {
        machine: MACHINE,
        incarnation: Incarnation(1_700_000_000_000_000),
        name: "studio".to_owned(),
        signing_key: "c2lnbmluZw==".to_owned(),
        speed: 100,
    };
    wire::control::AssignGroup {
        instance: INSTANCE,
        epoch: Epoch(3),
        model: ModelName::new("phalanx-mini"),
        rank: 1,
        members: vec![member.clone(), member],
        mode: "tensor".to_owned(),
        dtype: "f32".to_owned(),
        form_us_max: 30_000_000,
        patience_us: 2_000_000,
        shard_map: None,
        context: 0,
        max_batch: 0,
    }
}

pub(crate) fn group_address() -> wire::control::GroupAddress {
    let address = "192.168.1.5:41000".parse().expect("an address");
    wire::control::GroupAddress { address, interface: "eth0".to_owned() }
}

pub(crate) fn group_report() -> wire::control::GroupReport {
    let at = |address: &str| address.parse().expect("an address");
    wire::control::GroupReport {
        instance: INSTANCE,
        epoch: Epoch(3),
        rank: 1,
        phase: wire::control::GroupPhase::Ended,
        culprit: Some(0),
        detail: "its connection closed without a goodbye".to_owned(),
        telemetry: Some(wire::control::GroupTelemetry {
            steps: 10,
            tokens: 20,
            compute_us: 300,
            seal_us: 4,
            wire_us: 5,
            wait_us: 6,
            bytes_sent: 7_000,
            messages_sent: 80,
            malformed: 0,
        }),
        standing: Some(Box::new(wire::control::GroupStanding {
            mode: "pipeline".to_owned(),
            fallback: "2 KV heads cannot be divided".to_owned(),
            retries: 1,
            dialled: vec![wire::control::GroupLink {
                rank: 0,
                data: at("10.0.0.5:41"),
                control: at("10.0.1.5:41"),
            }],
        })),
    }
}
