//! What a peer may send and what it may not: newer messages are tolerated, broken ones refused, and nothing panics.

#[path = "golden/samples.rs"]
mod samples;

use base::Epoch;
use proptest::prelude::*;
use serde_json::{Value, json};
use wire::DecodeError;
use wire::chunk::{Chunk, Finish, FinishReason, TokenLogprob};
use wire::control::{
    AssignmentPhase, AttemptRefusal, FromCoordinator, FromProvider, HELD_MAX, InstancePhase, Inventory,
    Lease, Leases, MODELS_ON_DISK_MAX, RefusalCode, Register,
};
use wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use wire::job::{Ask, Job, Sampling};

/// Adds fields that no build knows to every object in a message.
fn with_unknown_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(with_unknown_fields);
            fields.insert("from_the_future".to_owned(), json!({"deep": [1, {"er": null}]}));
            fields.insert("zz".to_owned(), json!("text"));
        }
        Value::Array(values) => values.iter_mut().for_each(with_unknown_fields),
        _ => {}
    }
}

/// The same message with its `type` at the end.
fn with_the_type_last(text: &str) -> String {
    let mut fields: serde_json::Map<String, Value> =
        serde_json::from_str(text).expect("a message is an object");
    let kind = fields.shift_remove("type").expect("it has a type");
    fields.insert("type".to_owned(), kind);
    Value::Object(fields).to_string()
}

#[test]
fn fields_that_nobody_knows_are_passed_over_at_every_depth() {
    for (name, message) in samples::from_provider() {
        let mut value: Value = serde_json::from_str(&message.encode()).unwrap();
        with_unknown_fields(&mut value);
        assert_eq!(FromProvider::decode(&value.to_string()), Ok(message), "{name}");
    }
    for (name, message) in samples::from_coordinator() {
        let mut value: Value = serde_json::from_str(&message.encode()).unwrap();
        with_unknown_fields(&mut value);
        assert_eq!(FromCoordinator::decode(&value.to_string()), Ok(message), "{name}");
    }
}

#[test]
fn a_job_and_a_finish_tolerate_fields_that_nobody_knows() {
    let job = samples::job();
    let mut ask: Value = serde_json::to_value(&job.ask).unwrap();
    with_unknown_fields(&mut ask);
    let ask = ask.to_string().into_bytes();
    let old = serde_json::to_vec(&job.ask).unwrap();
    let mut bytes = u32::try_from(ask.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&ask);
    bytes.extend_from_slice(&job.encode()[4 + old.len()..]);
    assert!(Job::decode(&bytes) == Ok(job));
}

#[test]
fn the_order_of_fields_does_not_matter() {
    for (name, message) in samples::from_provider() {
        assert_eq!(FromProvider::decode(&with_the_type_last(&message.encode())), Ok(message), "{name}");
    }
    for (name, message) in samples::from_coordinator() {
        assert_eq!(FromCoordinator::decode(&with_the_type_last(&message.encode())), Ok(message), "{name}");
    }
}

#[test]
fn types_and_names_that_nobody_knows_are_known_as_unknown() {
    let newer = r#"{"type":"telepathy","at":{"once":[1,2]}}"#;
    assert_eq!(FromProvider::decode(newer), Ok(FromProvider::Unknown));
    assert_eq!(FromCoordinator::decode(newer), Ok(FromCoordinator::Unknown));
    assert_eq!(serde_json::from_str::<RefusalCode>("\"bad_mood\"").unwrap(), RefusalCode::Unknown);
    assert_eq!(serde_json::from_str::<AttemptRefusal>("\"too_hot\"").unwrap(), AttemptRefusal::Unknown);
    assert_eq!(serde_json::from_str::<InstancePhase>("\"dreaming\"").unwrap(), InstancePhase::Unknown);
}

#[test]
fn what_an_older_peer_leaves_out_has_its_default() {
    let hello = samples::hello();
    let mut value = serde_json::to_value(FromProvider::Hello(hello.clone())).unwrap();
    value.as_object_mut().unwrap().shift_remove("capabilities");
    let bare = wire::control::Hello { capabilities: Vec::new(), ..hello };
    assert_eq!(FromProvider::decode(&value.to_string()), Ok(FromProvider::Hello(bare)));
}

#[test]
fn what_was_added_for_deployments_has_its_default_where_an_older_peer_leaves_it_out() {
    let bare = samples::register();
    let text = FromProvider::Register(bare.clone()).encode();
    assert!(!text.contains("managed") && !text.contains("holds"), "{text}");
    assert_eq!(FromProvider::decode(&text), Ok(FromProvider::Register(bare)));
    let text = FromCoordinator::AssignGroup(samples::assign_group()).encode();
    assert!(!text.contains("shard_map") && !text.contains("context"), "{text}");
    let short =
        format!(r#"{{"type":"assign","instance":"{}","epoch":1,"rank":0,"model":"m"}}"#, samples::INSTANCE);
    let Ok(FromCoordinator::Assign(assign)) = FromCoordinator::decode(&short) else { panic!("{short}") };
    assert!(assign.exclusive);
    assert_eq!((assign.context, assign.max_batch, assign.lease_us), (0, 0, 0));
    assert_eq!(serde_json::from_str::<AssignmentPhase>("\"warming\"").unwrap(), AssignmentPhase::Unknown);
}

#[test]
fn lists_and_texts_about_deployments_are_bounded() {
    let held = samples::deployments::managed_register().holds[0].clone();
    let register = |n| Register { holds: vec![held.clone(); n], ..samples::deployments::managed_register() };
    let text = |n| FromProvider::Register(register(n)).encode();
    assert!(FromProvider::decode(&text(HELD_MAX)).is_ok());
    let error = FromProvider::decode(&text(HELD_MAX + 1)).unwrap_err().to_string();
    assert!(error.contains("a list of 64 at most"), "{error}");

    let wrong = |change: &dyn Fn(&mut Inventory)| {
        let mut inventory = samples::deployments::inventory();
        change(&mut inventory);
        let error = FromProvider::decode(&FromProvider::Inventory(inventory).encode());
        error.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(wrong(&|i| i.models = vec![i.models[0].clone(); MODELS_ON_DISK_MAX]), "");
    assert!(wrong(&|i| i.models = vec![i.models[0].clone(); MODELS_ON_DISK_MAX + 1]).contains("256 at most"));
    assert!(wrong(&|i| i.devices = vec![i.devices[0].clone(); 65]).contains("64 at most"));
    assert!(wrong(&|i| i.labels = vec![i.labels[0].clone(); 65]).contains("64 at most"));
    assert!(wrong(&|i| i.labels[0].value = "x".repeat(129)).contains("a text of 128 bytes"));
    assert!(wrong(&|i| i.models[0].config = "x".repeat((64 << 10) + 1)).contains("a text of 65536 bytes"));

    let lease = Lease { instance: samples::INSTANCE, epoch: Epoch(1) };
    let renew = |n| FromCoordinator::RenewLeases(Leases { lease_us: 1, leases: vec![lease; n] }).encode();
    assert!(FromCoordinator::decode(&renew(HELD_MAX)).is_ok());
    assert!(FromCoordinator::decode(&renew(HELD_MAX + 1)).is_err());
}

#[test]
fn a_broken_message_is_refused_with_what_is_wrong_and_none_of_its_values() {
    let token = "join-phx-top-secret";
    let cases = [
        (format!("{{\"type\":\"hello\",\"token\":\"{token}\""), "not JSON at line 1"),
        (format!("{{\"type\":\"hello\",\"token\":\"{token}\"}}"), "missing field `protocol`"),
        (format!("{{\"type\":\"hello\",\"protocol\":\"{token}\"}}"), "expected u32"),
        (
            format!("{{\"type\":\"hello\",\"protocol\":1,\"token\":\"\",\"machine\":\"{token}\"}}"),
            "another shape",
        ),
        (format!("{{\"type\":\"proof\",\"signature\":[\"{token}\"]}}"), "expected a string"),
        (format!("[\"{token}\"]"), "a provider's message: not a JSON object"),
        ("[\"draining\"]".to_owned(), "a provider's message: not a JSON object"),
        (format!("\"{token}\""), "not a JSON object"),
        (token.to_owned(), "not a JSON object"),
        (String::new(), "not a JSON object"),
        ("null".to_owned(), "not a JSON object"),
        (" {\"type\" 7}".to_owned(), "not JSON at line 1 column 10"),
        ("{}".to_owned(), "missing field `type`"),
    ];
    for (text, expected) in cases {
        let error = FromProvider::decode(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let debug = format!("{:?}", FromProvider::Hello(samples::hello()));
    assert!(!debug.contains("join-phx"), "{debug}");
}

#[test]
fn deep_nesting_is_refused_rather_than_followed_to_the_end_of_the_stack() {
    let deep = format!("{{\"type\":\"new\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(FromProvider::decode(&deep).is_err());
    assert!(FromCoordinator::decode(&deep).is_err());
}

#[test]
fn a_frame_of_another_version_kind_flag_or_length_is_refused_by_name() {
    let good =
        wire::frame::encode(FrameHeader::of_attempt(FrameKind::Chunk, samples::ATTEMPT, 3), b"payload");
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        wire::frame::decode(&bytes).map(drop).unwrap_err().to_string()
    };
    assert_eq!(changed(0, 2), "frame version: 2 is not allowed (1)");
    assert_eq!(changed(1, 0), "frame kind: 0 is not allowed (1 to 3)");
    assert_eq!(changed(1, 4), "frame kind: 4 is not allowed (1 to 3)");
    assert_eq!(changed(3, 1), "frame flags: 256 is not allowed (0)");
    assert_eq!(changed(4, 6), "frame: 1 bytes after its end");
    assert_eq!(changed(4, 8), "frame payload: 8 bytes needed, 7 left");
    assert_eq!(changed(7, 0xff), "frame payload: 4278190087 bytes needed, 7 left");
    let short = wire::frame::decode(&good[..HEADER_BYTES - 1]).map(drop).unwrap_err();
    assert_eq!(short, DecodeError::Truncated { what: "frame counter", needed: 8, left: 7 });
    let payload = wire::frame::split_sealed_attempt(&[33, 0, 1, 2]).map(drop).unwrap_err();
    assert_eq!(payload, DecodeError::Truncated { what: "encapsulated key", needed: 33, left: 2 });
}

#[test]
fn a_count_is_a_claim_until_its_bytes_are_there() {
    let mut bytes = samples::plain_job().encode();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = Job::decode(&bytes).err().unwrap();
    assert_eq!(
        error,
        DecodeError::Truncated { what: "generated tokens", needed: 4 * u32::MAX as usize, left: 0 }
    );
}

#[test]
fn a_chunk_with_flags_or_counts_that_do_not_fit_is_refused_by_name() {
    let mut flagged = Chunk::default().encode();
    *flagged.last_mut().unwrap() = 8;
    let error = Chunk::decode(&flagged).err().unwrap().to_string();
    assert_eq!(error, "chunk's flags: 8 is not allowed (0 to 7)");
    for numbers in [vec![0.5, f32::NAN], Vec::new()] {
        let chunk = Chunk { vector: Some(numbers), ..Chunk::default() };
        assert!(Chunk::decode(&chunk.encode()).err().unwrap().to_string().contains("vector"));
    }
    let uneven = Chunk { tokens: vec![1, 2], logprobs: Some(Vec::new()), ..Chunk::default() };
    let error = Chunk::decode(&uneven.encode()).err().unwrap().to_string();
    assert_eq!(error, "number of log-probabilities: 0 is not allowed (one for each token)");
    let mut broken = Chunk { text: "ab".to_owned(), ..Chunk::default() }.encode();
    let at = broken.len() - 2;
    broken[at] = 0xff;
    assert_eq!(Chunk::decode(&broken).err(), Some(DecodeError::Utf8 { what: "chunk's text" }));
}

#[test]
fn every_part_of_a_job_a_chunk_or_a_frame_alone_is_refused() {
    let frame =
        wire::frame::encode(FrameHeader::of_attempt(FrameKind::Attempt, samples::ATTEMPT, 0), b"payload");
    for end in 0..frame.len() {
        assert!(wire::frame::decode(&frame[..end]).is_err(), "frame cut at {end}");
    }
    let job = samples::job().encode();
    for end in 0..job.len() {
        assert!(Job::decode(&job[..end]).is_err(), "job cut at {end}");
    }
    for (name, chunk) in samples::chunks() {
        let bytes = chunk.encode();
        for end in 0..bytes.len() {
            assert!(Chunk::decode(&bytes[..end]).is_err(), "{name} cut at {end}");
        }
    }
    assert!(Job::decode(&[job.as_slice(), b"\0"].concat()).is_err());
}

#[test]
fn a_kit_is_named_by_its_hash_or_not_at_all() {
    let header = FrameHeader::of_kit(samples::KIT_SHA256, 7).unwrap();
    assert_eq!((header.kind, header.counter), (FrameKind::Kit, 7));
    assert_eq!(header.subject, 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    for wrong in [
        "",
        "0011",
        "zz112233445566778899aabbccddeeff",
        "+0112233445566778899aabbccddeeff",
        "é".repeat(32).as_str(),
    ] {
        assert_eq!(FrameHeader::of_kit(wrong, 0), None, "{wrong}");
    }
}

/// Prompts and answers have no `Debug`, which proptest wants of what it draws: a failure shows the bytes instead.
struct Drawn<T>(T, fn(&T) -> Vec<u8>);

impl<T> std::fmt::Debug for Drawn<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.1(&self.0))
    }
}

fn any_tokens() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(any::<u32>(), 0..50)
}

/// Numbers that JSON has: the front door refuses others.
fn any_number() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |number| number.is_finite())
}

prop_compose! {
    fn any_sampling()(
        numbers in proptest::array::uniform6(any_number()),
        top_k in any::<u32>(),
        seed in any::<u64>(),
        logit_bias in proptest::collection::vec((any::<u32>(), any_number()), 0..4),
    ) -> Sampling {
        let [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty] = numbers;
        Sampling {
            temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed, logit_bias,
        }
    }
}

prop_compose! {
    fn any_job()(
        request in any::<u128>(),
        model in ".{0,20}",
        max_tokens in any::<u32>(),
        sampling in any_sampling(),
        stop in proptest::collection::vec(".{0,10}", 0..4),
        ignore_stop_tokens in any::<bool>(),
        logprobs in any::<Option<u8>>(),
        (deadline_us, hold_ms) in any::<(u64, u32)>(),
        (prompt, generated) in (any_tokens(), any_tokens()),
    ) -> Drawn<Job> {
        let (request, model) = (base::RequestId(request), base::ModelName::new(model));
        let ask =
            Ask { request, model, max_tokens, sampling, stop, ignore_stop_tokens, logprobs, deadline_us, constraint: None, special_tokens: false, embed: false, trace: None, hold_ms };
        Drawn(Job { ask, prompt, generated }, Job::encode)
    }
}

type Probable = (u32, Vec<u8>, f32);

fn any_probable() -> impl Strategy<Value = Probable> {
    (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..5), any_number())
}

prop_compose! {
    fn any_finish()(counts in any::<[u32; 3]>(), spans in any::<[u64; 3]>(), reason in 0usize..4) -> Finish {
        let reasons = [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled, FinishReason::Expired];
        Finish {
            reason: reasons[reason],
            prompt_tokens: counts[0],
            cached_tokens: counts[1],
            generated_tokens: counts[2],
            queue_us: spans[0],
            prefill_us: spans[1],
            decode_us: spans[2],
            stop_text: None,
            usage_signature: None,
        }
    }
}

prop_compose! {
    fn any_chunk()(
        first_index in any::<u32>(),
        drawn in proptest::collection::vec(
            (any_probable(), proptest::collection::vec(any_probable(), 0..3)),
            0..10,
        ),
        with_logprobs in any::<bool>(),
        text in ".{0,40}",
        finish in proptest::option::of(any_finish()),
        vector in proptest::option::of(proptest::collection::vec(-1e9f32..1e9, 1..20)),
    ) -> Drawn<Chunk> {
        let tokens = drawn.iter().map(|((token, ..), _)| *token).collect();
        let logprobs = drawn.into_iter().map(|((token, bytes, logprob), top)| TokenLogprob { token, bytes, logprob, top });
        let logprobs = with_logprobs.then(|| logprobs.collect());
        Drawn(Chunk { first_index, tokens, text, logprobs, finish, vector }, Chunk::encode)
    }
}

/// Changes of a few bytes, and cuts and insertions: what a broken or hostile peer makes of a good message.
fn damaged(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (at, value, how) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match how % 4 {
            0 => bytes[at] = *value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, *value),
        }
    }
    bytes
}

fn any_damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_job_reads_back(job in any_job()) {
        prop_assert!(Job::decode(&job.0.encode()) == Ok(job.0));
    }

    #[test]
    fn a_chunk_reads_back(chunk in any_chunk()) {
        prop_assert!(Chunk::decode(&chunk.0.encode()) == Ok(chunk.0));
    }

    #[test]
    fn a_frame_reads_back(
        kind in 0usize..3,
        subject in any::<u128>(),
        counter in any::<u64>(),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let kind = [FrameKind::Attempt, FrameKind::Chunk, FrameKind::Kit][kind];
        let header = FrameHeader { kind, subject, counter };
        let bytes = wire::frame::encode(header, &payload);
        prop_assert_eq!(bytes.len(), HEADER_BYTES + payload.len());
        prop_assert_eq!(wire::frame::decode(&bytes), Ok((header, payload.as_slice())));
    }

    #[test]
    fn a_sealed_attempt_comes_apart_as_it_was_joined(
        encapsulated in proptest::collection::vec(any::<u8>(), 0..64),
        ciphertext in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let payload = wire::frame::sealed_attempt(&encapsulated, &ciphertext);
        let apart = wire::frame::split_sealed_attempt(&payload);
        prop_assert_eq!(apart, Ok((encapsulated.as_slice(), ciphertext.as_slice())));
    }

    #[test]
    fn a_message_reads_back_whatever_its_texts_hold(
        texts in proptest::array::uniform4(".{0,30}"),
        token in any::<u128>(),
        sequence in any::<u64>(),
    ) {
        let [message, name, line, reason] = texts;
        let attempt = base::AttemptId(token);
        let refused = FromProvider::AttemptRefused { attempt, reason: AttemptRefusal::NoSlot, message };
        prop_assert_eq!(FromProvider::decode(&refused.encode()), Ok(refused));
        let hello = FromProvider::Hello(wire::control::Hello { name, ..samples::hello() });
        prop_assert_eq!(FromProvider::decode(&hello.encode()), Ok(hello));
        let standing = FromCoordinator::Standing { lines: vec![line] };
        prop_assert_eq!(FromCoordinator::decode(&standing.encode()), Ok(standing));
        let goodbye = FromCoordinator::Goodbye { reason, retry_after_us: sequence };
        prop_assert_eq!(FromCoordinator::decode(&goodbye.encode()), Ok(goodbye));
    }

    #[test]
    fn arbitrary_bytes_and_texts_are_read_or_refused_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        text in ".{0,200}",
    ) {
        let _ = wire::frame::decode(&bytes);
        let _ = wire::frame::split_sealed_attempt(&bytes);
        let _ = Job::decode(&bytes);
        let _ = Chunk::decode(&bytes);
        let _ = FromProvider::decode(&text);
        let _ = FromCoordinator::decode(&text);
        let _ = FromProvider::decode(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn damaged_messages_are_read_or_refused_without_panic(
        which in any::<prop::sample::Index>(),
        damage in any_damage(),
    ) {
        let _ = Job::decode(&damaged(samples::job().encode(), &damage));
        let chunks = samples::chunks();
        let _ = Chunk::decode(&damaged(which.get(&chunks).1.encode(), &damage));
        let header = FrameHeader::of_attempt(FrameKind::Chunk, samples::ATTEMPT, 1);
        let _ = wire::frame::decode(&damaged(wire::frame::encode(header, b"payload"), &damage));
        let messages = samples::from_provider();
        let text = damaged(which.get(&messages).1.encode().into_bytes(), &damage);
        let _ = FromProvider::decode(&String::from_utf8_lossy(&text));
        let messages = samples::from_coordinator();
        let text = damaged(which.get(&messages).1.encode().into_bytes(), &damage);
        let _ = FromCoordinator::decode(&String::from_utf8_lossy(&text));
    }
}

#[test]
fn hostile_link_frames_are_refused_with_what_is_wrong() {
    let mut frame = Vec::new();
    let (kind, dtype) = (wire::link::LinkKind::Reduce, wire::link::WireType::F32);
    let header =
        wire::link::LinkHeader { kind, dtype, epoch: 1, sequence: 2, request: 0, rows: 1, columns: 2 };
    header.put(8, &mut frame);
    frame.extend_from_slice(&[0; 8]);
    assert!(wire::link::decode(&frame).is_ok());
    // Every byte of the header bent in every way: an error or another valid header, never a panic, never a longer read.
    for at in 0..wire::link::HEADER_BYTES {
        for flip in 1..=255u8 {
            let mut bent = frame.clone();
            bent[at] ^= flip;
            let _ = wire::link::frame_bytes(&bent);
            if let Ok((header, payload)) = wire::link::decode(&bent) {
                assert_eq!(payload.len(), 8);
                assert!(header.dtype.bytes((header.rows * header.columns) as usize) == Some(8));
            }
        }
    }
    for length in 0..frame.len() {
        assert!(wire::link::decode(&frame[..length]).is_err());
    }
    let mut long = frame.clone();
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = wire::link::frame_bytes(&long).unwrap_err().to_string();
    assert!(error.contains("link frame length") && error.contains("at most 1 GiB"), "{error}");
    let mut other = frame;
    other[0] = 2;
    let error = wire::link::decode(&other).unwrap_err().to_string();
    assert!(error.contains("version") && error.contains("same Phalanx on every machine"), "{error}");
}
