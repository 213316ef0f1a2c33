//! The bytes of everything that is sent, pinned: a build that writes or reads others cannot speak to this one.
//!
//! `tests/golden/*` hold one line for each value: its name and its JSON, or its bytes in hexadecimal. Where a line
//! differs, the whole file as it would be now is left under `target/tmp`; a change of meaning needs a new capability or
//! protocol version, not just a new line.

#[path = "golden/probes.rs"]
mod probes;
#[path = "golden/samples.rs"]
mod samples;
#[path = "golden/transfers.rs"]
mod transfers;

use std::fmt::Write;
use std::path::Path;

use wire::chunk::Chunk;
use wire::control::{
    AssignmentPhase, AttemptRefusal, FromCoordinator, FromProvider, InstancePhase, RefusalCode,
};
use wire::frame::{FrameHeader, FrameKind};
use wire::job::Job;
use wire::link::{Manifest, ProbeMessage, TransferMessage};

/// Compares name and text of each value with the lines of a golden file.
fn assert_golden(file: &str, expected: &str, lines: &[(&str, String)]) {
    let actual: String = lines.iter().map(|(name, text)| format!("{name} {text}\n")).collect();
    if actual != expected {
        let left = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
        std::fs::write(&left, &actual).expect("the folder for this is there");
        let differs = actual.lines().zip(expected.lines()).find(|(now, then)| now != then);
        panic!("{file} differs, first in {differs:?}; all of it as it is now: {}", left.display());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a string takes what is written");
        out
    })
}

fn named<T>(values: Vec<(&'static str, T)>, text: impl Fn(&T) -> String) -> Vec<(&'static str, String)> {
    values.into_iter().map(|(name, value)| (name, text(&value))).collect()
}

#[test]
fn a_providers_messages_are_these_and_read_back() {
    let lines = named(samples::from_provider(), FromProvider::encode);
    assert_golden("from_provider.txt", include_str!("golden/from_provider.txt"), &lines);
    for ((name, message), (_, text)) in samples::from_provider().into_iter().zip(lines) {
        assert_eq!(FromProvider::decode(&text), Ok(message), "{name}");
    }
}

#[test]
fn a_coordinators_messages_are_these_and_read_back() {
    let lines = named(samples::from_coordinator(), FromCoordinator::encode);
    assert_golden("from_coordinator.txt", include_str!("golden/from_coordinator.txt"), &lines);
    for ((name, message), (_, text)) in samples::from_coordinator().into_iter().zip(lines) {
        assert_eq!(FromCoordinator::decode(&text), Ok(message), "{name}");
    }
}

#[test]
fn the_names_of_closed_sets_are_these() {
    fn name(value: &impl serde::Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }
    let refusals = [
        RefusalCode::BadToken,
        RefusalCode::BadProtocol,
        RefusalCode::BadIdentity,
        RefusalCode::BadMessage,
        RefusalCode::Superseded,
        RefusalCode::Unavailable,
        RefusalCode::Unknown,
    ];
    let attempts = [
        AttemptRefusal::WrongModel,
        AttemptRefusal::NoSlot,
        AttemptRefusal::NoKvRoom,
        AttemptRefusal::TooLong,
        AttemptRefusal::NotReady,
        AttemptRefusal::Unreadable,
        AttemptRefusal::BadConstraint,
        AttemptRefusal::Unknown,
    ];
    let phases = [
        InstancePhase::Loading,
        InstancePhase::Ready,
        InstancePhase::Draining,
        InstancePhase::Failed,
        InstancePhase::Unknown,
    ];
    let assignments = [
        AssignmentPhase::Draining,
        AssignmentPhase::Loading,
        AssignmentPhase::Ready,
        AssignmentPhase::Gone,
        AssignmentPhase::Failed,
        AssignmentPhase::Refused,
        AssignmentPhase::Unknown,
    ];
    let finishes = [
        wire::chunk::FinishReason::Stop,
        wire::chunk::FinishReason::Length,
        wire::chunk::FinishReason::Cancelled,
        wire::chunk::FinishReason::Expired,
    ];
    let lines = [
        ("refusal_code", refusals.iter().map(name).collect::<Vec<_>>().join(" ")),
        ("attempt_refusal", attempts.iter().map(name).collect::<Vec<_>>().join(" ")),
        ("instance_phase", phases.iter().map(name).collect::<Vec<_>>().join(" ")),
        ("assignment_phase", assignments.iter().map(name).collect::<Vec<_>>().join(" ")),
        ("finish_reason", finishes.iter().map(name).collect::<Vec<_>>().join(" ")),
    ];
    assert_golden("names.txt", include_str!("golden/names.txt"), &lines);
}

#[test]
fn jobs_and_chunks_are_these_bytes_and_read_back() {
    let mut lines =
        vec![("job", hex(&samples::job().encode())), ("plain_job", hex(&samples::plain_job().encode()))];
    lines.extend(named(samples::constrained_jobs(), |job| hex(&job.encode())));
    lines.extend(named(samples::chunks(), |chunk| hex(&chunk.encode())));
    assert_golden("sealed.txt", include_str!("golden/sealed.txt"), &lines);
    for job in [samples::job(), samples::plain_job()] {
        assert!(Job::decode(&job.encode()) == Ok(job));
    }
    for (name, job) in samples::constrained_jobs() {
        assert!(Job::decode(&job.encode()) == Ok(job), "{name}");
    }
    for (name, chunk) in samples::chunks() {
        assert!(Chunk::decode(&chunk.encode()) == Ok(chunk), "{name}");
    }
}

#[test]
fn frames_are_these_bytes_and_read_back() {
    let attempt = FrameHeader::of_attempt(FrameKind::Attempt, samples::ATTEMPT, 0);
    let chunk = FrameHeader::of_attempt(FrameKind::Chunk, samples::ATTEMPT, 0x0102_0304_0506_0708);
    let kit = FrameHeader::of_kit(samples::KIT_SHA256, 2).unwrap();
    let payload = wire::frame::sealed_attempt(&[0xee; 32], b"ciphertext");
    let frames = [
        ("attempt", attempt, payload.as_slice()),
        ("chunk", chunk, b"sealed".as_slice()),
        ("kit", kit, b"".as_slice()),
    ];
    let lines: Vec<_> = frames
        .iter()
        .map(|(name, header, payload)| (*name, hex(&wire::frame::encode(*header, payload))))
        .collect();
    assert_golden("frames.txt", include_str!("golden/frames.txt"), &lines);
    for (name, header, payload) in frames {
        assert_eq!(
            wire::frame::decode(&wire::frame::encode(header, payload)),
            Ok((header, payload)),
            "{name}"
        );
    }
    assert_eq!(attempt.attempt(), samples::ATTEMPT);
    assert_eq!(
        wire::frame::split_sealed_attempt(&payload),
        Ok(([0xee; 32].as_slice(), b"ciphertext".as_slice()))
    );
}

#[test]
fn the_operators_bodies_are_these_and_read_back() {
    fn text(value: &impl serde::Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }
    let lines = [
        ("fleet_status", text(&samples::fleet_status())),
        ("create_key", text(&samples::create_key())),
        ("created_key", text(&samples::created_key())),
        ("key_list", text(&samples::key_list())),
        ("segment_report", text(&samples::segment_report())),
    ];
    assert_golden("admin.txt", include_str!("golden/admin.txt"), &lines);
    let [status, create, created, list, segments] = lines.map(|(_, text)| text);
    assert_eq!(serde_json::from_str::<wire::admin::FleetStatus>(&status).unwrap(), samples::fleet_status());
    assert_eq!(serde_json::from_str::<wire::admin::CreateKey>(&create).unwrap(), samples::create_key());
    assert!(serde_json::from_str::<wire::admin::CreatedKey>(&created).unwrap() == samples::created_key());
    assert_eq!(serde_json::from_str::<wire::admin::KeyList>(&list).unwrap(), samples::key_list());
    assert_eq!(
        serde_json::from_str::<wire::admin::SegmentReport>(&segments).unwrap(),
        samples::segment_report()
    );
}

#[test]
fn what_ranks_say_to_each_other_is_these_bytes_and_reads_back() {
    let lines: Vec<_> = samples::link_frames()
        .into_iter()
        .map(|(name, header, payload)| {
            let mut frame = Vec::new();
            header.put(payload.len(), &mut frame);
            frame.extend_from_slice(payload);
            assert_eq!(wire::link::frame_bytes(&frame), Ok(Some(frame.len())), "{name}");
            assert_eq!(wire::link::decode(&frame), Ok((header, payload)), "{name}");
            (name, hex(&frame))
        })
        .chain([("hello", hex(&samples::link_hello().encode()))])
        .chain(probes::messages().into_iter().map(|(name, message)| {
            let bytes = message.encode();
            assert_eq!(ProbeMessage::decode(&bytes), Ok(message), "{name}");
            for cut in 0..bytes.len() {
                let is_bulk = matches!(message, ProbeMessage::Bulk { .. }) && cut >= 2;
                assert!(is_bulk || ProbeMessage::decode(&bytes[..cut]).is_err(), "{name} cut to {cut}");
            }
            (name, hex(&bytes))
        }))
        .chain(transfers::messages().into_iter().map(|(name, message)| {
            let bytes = message.encode();
            assert_eq!(TransferMessage::decode(&bytes), Ok(message), "{name}");
            assert!(TransferMessage::is_one(&bytes) && ProbeMessage::decode(&bytes).is_err(), "{name}");
            (name, hex(&bytes))
        }))
        .chain([("manifest", hex(&transfers::manifest().encode()))])
        .collect();
    assert_eq!(Manifest::decode(&transfers::manifest().encode()), Ok(transfers::manifest()));
    assert_golden("link.txt", include_str!("golden/link.txt"), &lines);
    assert_eq!(wire::link::LinkHello::decode(&samples::link_hello().encode()), Ok(samples::link_hello()));
}
