//! An outbox between an engine and a writer, without either.

use base::Rng;
use trust::{MachineKeys, ResponseOpener};
use wire::chunk::{Finish, FinishReason, TokenLogprob};

use super::*;

struct Stage {
    lane: Arc<Lane>,
    outbox: Arc<Outbox>,
    opener: ResponseOpener,
    attempt: AttemptId,
    keys: Arc<MachineKeys>,
}

impl Stage {
    fn new() -> Self {
        Self::holding(Duration::ZERO)
    }

    fn holding(hold: Duration) -> Self {
        let keys = MachineKeys::generate();
        let attempt = AttemptId::random(&mut Rng::new(4));
        let (sealed, opener) = trust::seal_attempt(&keys.sealing_key(), attempt, b"job").unwrap();
        let (_, sealer) =
            trust::open_attempt(&keys, attempt, &sealed.encapsulated, &sealed.ciphertext).unwrap();
        let lane = Lane::new();
        lane.limit(1 << 20);
        let ask = wire::job::Ask {
            request: base::RequestId(7),
            model: "tiny".into(),
            max_tokens: 4096,
            sampling: wire::job::Sampling::default(),
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
        let job = wire::job::Job { ask, prompt: vec![1, 2, 3], generated: Vec::new() };
        let keys = Arc::new(keys);
        let claim = Claim::new(&keys, None, attempt, &job);
        let outbox = Outbox::new(attempt, &lane, (sealer, claim), Kept::new(true, None), hold);
        Self { lane, outbox, opener, attempt, keys }
    }

    fn assert_silent(&mut self) {
        let (chunks, failure) = self.written();
        assert_eq!((chunks.len(), failure), (0, None));
    }

    /// Everything that would be written now: chunks, then the failure where there is one.
    fn written(&mut self) -> (Vec<Chunk>, Option<String>) {
        let mut chunks = Vec::new();
        while let Some(parcel) = self.lane.next() {
            match parcel {
                Parcel::Frame { bytes, .. } => {
                    let (header, payload) = wire::frame::decode(&bytes).unwrap();
                    assert_eq!((header.kind, header.attempt()), (FrameKind::Chunk, self.attempt));
                    let plain = self.opener.open(header.counter, payload).unwrap();
                    chunks.push(Chunk::decode(&plain).unwrap());
                }
                Parcel::Failure { message, attempt } => {
                    assert_eq!(attempt, self.attempt);
                    match FromProvider::decode(&message).unwrap() {
                        FromProvider::AttemptFailed { message, .. } => return (chunks, Some(message)),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        (chunks, None)
    }
}

fn token(index: u32) -> Chunk {
    Chunk { first_index: index, tokens: vec![100 + index], text: format!("{index} "), ..Chunk::default() }
}

fn finish(index: u32) -> Chunk {
    let finish = Finish {
        reason: FinishReason::Stop,
        prompt_tokens: 1,
        cached_tokens: 0,
        generated_tokens: index,
        queue_us: 0,
        prefill_us: 0,
        decode_us: 0,
        stop_text: None,
        usage_signature: None,
    };
    Chunk { first_index: index, finish: Some(finish), ..Chunk::default() }
}

#[test]
fn tokens_that_pile_up_behind_a_slow_link_are_sent_together_and_none_is_lost() {
    let mut stage = Stage::new();
    stage.outbox.open();
    stage.outbox.append(token(0));
    let (first, _) = stage.written();
    assert_eq!(first.len(), 1, "a token that nothing is in front of goes at once");
    (1..200).for_each(|i| stage.outbox.append(token(i)));
    stage.outbox.append(finish(200));
    let (rest, failure) = stage.written();
    assert!(rest.len() <= 2, "{} chunks for 199 tokens", rest.len());
    assert_eq!(failure, None);
    let tokens: Vec<u32> = first.iter().chain(&rest).flat_map(|c| c.tokens.clone()).collect();
    assert_eq!(tokens, (100..300).collect::<Vec<_>>());
    let text: String = first.iter().chain(&rest).map(|c| c.text.clone()).collect();
    assert_eq!(text, (0..200).map(|i| format!("{i} ")).collect::<String>());
    // What its machine signs is what it sent.
    let signature = rest.last().unwrap().finish.as_ref().unwrap().usage_signature.clone().unwrap();
    let served = wire::receipt::AttemptUsage {
        attempt: stage.attempt,
        machine: stage.keys.machine(),
        signing_key: String::new(),
        prompt_tokens: 3,
        first_index: 0,
        generated_tokens: 200,
        signature: None,
    };
    let signature = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, signature).unwrap();
    let signed = |served: &wire::receipt::AttemptUsage| {
        let statement = served.statement(base::RequestId(7), &"tiny".into());
        trust::verify(&stage.keys.signing_key(), &statement, &signature).is_ok()
    };
    assert!(signed(&served));
    assert!(!signed(&wire::receipt::AttemptUsage { generated_tokens: 201, ..served }));
}

#[test]
fn what_nobody_reads_token_by_token_waits_for_more_but_for_its_first_and_last() {
    let mut stage = Stage::holding(Duration::from_secs(3600));
    stage.outbox.open();
    stage.outbox.append(token(0));
    assert_eq!(stage.written().0.len(), 1, "the first goes at once");
    (1..40).for_each(|i| stage.outbox.append(token(i)));
    stage.assert_silent();
    stage.outbox.append(finish(40));
    let (chunks, _) = stage.written();
    assert_eq!(chunks.len(), 1, "the end takes along what waited");
    assert_eq!(chunks[0].tokens, (101..140).collect::<Vec<_>>());
    assert!(chunks[0].finish.is_some());

    let mut stage = Stage::holding(Duration::from_secs(3600));
    stage.outbox.open();
    (0..=WAITING_TOKENS as u32).for_each(|i| stage.outbox.append(token(i)));
    let (chunks, _) = stage.written();
    assert_eq!(chunks.iter().map(|c| c.tokens.len()).sum::<usize>(), WAITING_TOKENS + 1, "enough is enough");
    stage.outbox.append(token(WAITING_TOKENS as u32 + 1));
    stage.assert_silent();
    stage.outbox.fail("the engine died");
    let (chunks, failure) = stage.written();
    assert_eq!((chunks.len(), failure.as_deref()), (1, Some("the engine died")), "nothing that came is lost");

    // A hold that is over when the writer looks.
    let mut stage = Stage::holding(Duration::from_nanos(1));
    stage.outbox.open();
    stage.outbox.append(token(0));
    stage.written();
    for i in 1..4 {
        stage.outbox.append(token(i));
        assert_eq!(stage.written().0.len(), 1);
    }
    stage.outbox.append(token(4));
    stage.outbox.detach();
    stage.assert_silent();
    let next = Lane::new();
    next.limit(1 << 20);
    assert!(stage.outbox.resume(&next, 4, None), "frames 0 to 3 were taken");
    stage.lane = next;
    let (chunks, _) = stage.written();
    assert_eq!(chunks.iter().flat_map(|c| c.tokens.clone()).collect::<Vec<_>>(), [104]);
}

#[test]
fn chunks_with_a_gap_or_unlike_logprobs_are_not_joined() {
    let mut stage = Stage::new();
    stage.outbox.open();
    stage.outbox.append(token(0));
    stage.outbox.append(token(5));
    let logprob = TokenLogprob { token: 106, bytes: vec![54], logprob: -0.5, top: vec![] };
    stage.outbox.append(Chunk { logprobs: Some(vec![logprob]), ..token(6) });
    let (chunks, _) = stage.written();
    assert_eq!(chunks.iter().map(|c| c.first_index).collect::<Vec<_>>(), [0, 5, 6]);
    assert!(chunks[2].logprobs.is_some() && chunks[1].logprobs.is_none());
}

#[test]
fn a_full_outbox_pauses_its_engine_and_an_empty_one_lets_it_go_on() {
    let stage = Stage::new();
    stage.outbox.open();
    let mut said = 0;
    while stage.outbox.has_room() {
        stage.outbox.append(token(said));
        said += 1;
        assert!(said < 10_000, "the room never ends");
    }
    assert_eq!(said as usize, HELD_TOKENS);
    let Some(Parcel::Frame { news, .. }) = stage.lane.next() else { panic!("nothing to send") };
    assert_eq!(news, Some((stage.attempt, News::RoomAgain)), "the engine is told when it may go on");
    assert!(stage.outbox.has_room());
    assert_eq!(stage.outbox.inner.lock().held_bytes, 0, "the count of bytes does not drift");
}

#[test]
fn an_engine_that_does_not_pause_fails_its_attempt_before_it_eats_the_memory() {
    let mut stage = Stage::new();
    stage.outbox.open();
    (0..100_000).for_each(|i| stage.outbox.append(token(i)));
    let (chunks, failure) = stage.written();
    assert!(failure.expect("a failure").contains("buffer is full"));
    let tokens = chunks.iter().map(|c| c.tokens.len()).sum::<usize>();
    assert_eq!(tokens, OVERRUN * HELD_TOKENS, "what was taken before is sent before the failure");
}

#[test]
fn nothing_is_sent_before_the_engine_agreed_and_nothing_at_all_if_it_did_not() {
    let mut stage = Stage::new();
    stage.outbox.append(token(0));
    stage.outbox.append(finish(1));
    assert!(stage.written().0.is_empty());
    stage.outbox.open();
    let (chunks, _) = stage.written();
    assert_eq!(
        chunks.len(),
        1,
        "a short answer that was complete before the engine's agreement is sent whole"
    );

    let mut stage = Stage::new();
    stage.outbox.fail("dropped by the engine that refused it");
    stage.outbox.void();
    stage.outbox.open();
    stage.assert_silent();
}

#[test]
fn there_is_one_last_word() {
    let mut stage = Stage::new();
    stage.outbox.open();
    stage.outbox.append(finish(0));
    stage.outbox.append(token(0));
    stage.outbox.append(finish(1));
    stage.outbox.fail("too late");
    let (chunks, failure) = stage.written();
    assert_eq!((chunks.len(), failure), (1, None));
    stage.outbox.fail("later still");
    stage.assert_silent();

    let mut stage = Stage::new();
    stage.outbox.open();
    stage.outbox.append(token(0));
    stage.outbox.fail("the engine died");
    stage.outbox.append(finish(1));
    let (chunks, failure) = stage.written();
    assert_eq!((chunks.len(), failure.as_deref()), (1, Some("the engine died")));
}

#[test]
fn a_chunk_over_the_sessions_limit_fails_its_attempt_alone() {
    let mut stage = Stage::new();
    stage.lane.limit(500);
    stage.outbox.open();
    stage.outbox.append(Chunk { text: "x".repeat(600), ..token(0) });
    let (chunks, failure) = stage.written();
    assert!(chunks.is_empty());
    let failure = failure.expect("a failure");
    assert!(failure.contains("500") && failure.contains("limit"), "{failure}");
    stage.outbox.append(token(1));
    stage.assert_silent();
}
