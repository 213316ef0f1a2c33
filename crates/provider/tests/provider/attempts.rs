//! Attempts: answered, cancelled, refused, and each ended once.

use base::{AttemptId, Bytes, Rng};
use tokio_tungstenite::tungstenite::Message;
use wire::chunk::FinishReason;
use wire::control::{AttemptRefusal, FromCoordinator, FromProvider, InstancePhase, Welcome};
use wire::frame::{FrameHeader, FrameKind};
use wire::job::Job;

use crate::fake::{Fake, Outcome, Peer, Running, config, job, terms};

struct Stage {
    peer: Peer,
    running: Running,
    _fake: Fake,
    _home: tempfile::TempDir,
}

impl Stage {
    async fn leave(self) {
        self.running.leave_from(self.peer).await;
    }
}

async fn stage_on(welcome: Welcome) -> Stage {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (mut peer, _) = fake.join_on(welcome).await;
    peer.instance_in(InstancePhase::Ready).await;
    Stage { peer, running, _fake: fake, _home: home }
}

async fn stage() -> Stage {
    stage_on(terms()).await
}

async fn refusal(peer: &mut Peer, attempt: AttemptId) -> (AttemptRefusal, String) {
    match peer.outcome(attempt).await {
        Outcome::Refused(reason, message) => (reason, message),
        Outcome::Finished(_) => panic!("an answer"),
        Outcome::Failed(message) => panic!("failed: {message}"),
    }
}

#[tokio::test]
async fn an_attempt_is_answered_in_sealed_chunks_and_the_same_job_gets_the_same_answer() {
    let mut stage = stage().await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        let attempt = stage.peer.attempt(&job("tiny", &[5, 6, 7], 24)).await;
        let answer = stage.peer.answer(attempt).await;
        assert_eq!(answer.finish.reason, FinishReason::Length);
        assert_eq!((answer.finish.prompt_tokens, answer.finish.generated_tokens), (3, 24));
        answers.push(answer);
    }
    assert_eq!(answers[0].tokens, answers[1].tokens);
    assert_eq!(answers[0].text, answers[1].text);
    let text = answers[0].text.as_bytes();
    assert!(text.len() > 8, "the answer has text to look for");
    assert!(
        !stage.peer.wiretap.windows(text.len()).any(|window| window == text),
        "the answer travels sealed"
    );
    stage.leave().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_token_by_token_comes_in_few_pieces_and_is_the_same() {
    let mut stage = stage().await;
    let attempt = stage.peer.attempt(&job("tiny", &[5, 6, 7], 40)).await;
    let one_by_one = stage.peer.answer(attempt).await;
    let mut held = job("tiny", &[5, 6, 7], 40);
    // More than may be: it is cut to a second.
    held.ask.hold_ms = u32::MAX;
    let began = std::time::Instant::now();
    let attempt = stage.peer.attempt(&held).await;
    let together = stage.peer.answer(attempt).await;
    assert_eq!(together.tokens, one_by_one.tokens);
    assert_eq!(together.text, one_by_one.text);
    // The first, the last, and one for each second between them.
    let most = 2 + began.elapsed().as_secs() as usize;
    assert!(together.chunks <= most, "{} pieces, expected {most} at most", together.chunks);
    stage.leave().await;
}

#[tokio::test]
async fn an_attempt_that_resumes_goes_on_as_if_it_had_not_been_interrupted() {
    let mut stage = stage().await;
    let attempt = stage.peer.attempt(&job("tiny", &[5, 6, 7], 16)).await;
    let whole = stage.peer.answer(attempt).await;
    let resumed = Job { generated: whole.tokens[..6].to_vec(), ..job("tiny", &[5, 6, 7], 16) };
    let attempt = stage.peer.attempt(&resumed).await;
    let rest = stage.peer.answer(attempt).await;
    assert_eq!(rest.tokens, whole.tokens[6..]);
    assert_eq!(rest.finish.generated_tokens, 16);
    stage.leave().await;
}

#[tokio::test]
async fn many_attempts_at_once_are_each_answered_whole() {
    let mut stage = stage().await;
    let mut attempts = Vec::new();
    for n in 0..12u32 {
        let mut job = job("tiny", &[n + 1, n + 2], 20);
        job.ask.logprobs = (n % 2 == 0).then_some(3);
        attempts.push((n, stage.peer.attempt(&job).await));
    }
    for (n, attempt) in attempts {
        let answer = stage.peer.answer(attempt).await;
        assert_eq!(answer.tokens.len(), 20);
        assert_eq!(answer.logprobs, if n % 2 == 0 { 20 } else { 0 });
    }
    stage.leave().await;
}

#[tokio::test]
async fn a_cancelled_attempt_ends_at_once_and_frees_its_place() {
    let mut stage = stage().await;
    let attempt = stage.peer.attempt(&job("tiny", &[1, 2, 3], 100_000)).await;
    stage.peer.first_token(attempt).await;
    stage.peer.send(&FromCoordinator::Cancel { attempt }).await;
    let answer = stage.peer.answer(attempt).await;
    assert_eq!(answer.finish.reason, FinishReason::Cancelled);
    let idle = |message: &FromProvider| match message {
        FromProvider::Heartbeat(beat) => {
            beat.instances.iter().all(|i| i.running == 0 && i.kv_tokens_free == i.kv_tokens).then_some(())
        }
        _ => None,
    };
    stage.peer.find("an idle instance", idle).await;
    stage.peer.send(&FromCoordinator::Cancel { attempt }).await;
    let attempt = stage.peer.attempt(&job("tiny", &[1, 2, 3], 4)).await;
    stage.peer.answer(attempt).await;
    stage.leave().await;
}

#[tokio::test]
async fn a_cancellation_that_overtakes_its_attempt_still_counts() {
    let mut stage = stage().await;
    let attempt = AttemptId::random(&mut Rng::new(99));
    let frame = stage.peer.sealed(attempt, &job("tiny", &[1, 2, 3], 100_000).encode());
    stage.peer.send(&FromCoordinator::Cancel { attempt }).await;
    stage.peer.raw(Message::Binary(frame.into())).await;
    let (reason, message) = refusal(&mut stage.peer, attempt).await;
    assert_eq!(reason, AttemptRefusal::NotReady);
    assert!(message.contains("cancelled"), "{message}");
    stage.leave().await;
}

#[tokio::test]
async fn an_attempt_for_another_model_is_refused_as_such() {
    let mut stage = stage().await;
    let attempt = stage.peer.attempt(&job("huge", &[1, 2, 3], 4)).await;
    let (reason, message) = refusal(&mut stage.peer, attempt).await;
    assert_eq!(reason, AttemptRefusal::WrongModel);
    assert!(message.contains("huge"), "{message}");
    stage.leave().await;
}

#[tokio::test]
async fn an_attempt_that_can_never_fit_is_refused_with_both_numbers() {
    let mut stage = stage().await;
    let attempt = stage.peer.attempt(&job("tiny", &vec![1; 100_000], 4)).await;
    let (reason, message) = refusal(&mut stage.peer, attempt).await;
    assert_eq!(reason, AttemptRefusal::TooLong);
    assert!(message.contains("100000"), "{message}");
    stage.leave().await;
}

#[tokio::test]
async fn what_cannot_be_opened_or_read_is_refused_and_nothing_else_is_disturbed() {
    let mut stage = stage().await;
    let running = stage.peer.attempt(&job("tiny", &[4, 4, 4], 40)).await;
    let mut rng = Rng::new(3);

    let changed = AttemptId::random(&mut rng);
    let mut frame = stage.peer.sealed(changed, &job("tiny", &[1], 4).encode());
    *frame.last_mut().unwrap() ^= 1;
    stage.peer.raw(Message::Binary(frame.into())).await;
    assert_eq!(refusal(&mut stage.peer, changed).await.0, AttemptRefusal::Unreadable);

    let moved = AttemptId::random(&mut rng);
    let frame = stage.peer.sealed(moved, &job("tiny", &[1], 4).encode());
    let (_, payload) = wire::frame::decode(&frame).unwrap();
    let elsewhere = AttemptId::random(&mut rng);
    let frame = wire::frame::encode(FrameHeader::of_attempt(FrameKind::Attempt, elsewhere, 0), payload);
    stage.peer.raw(Message::Binary(frame.into())).await;
    assert_eq!(refusal(&mut stage.peer, elsewhere).await.0, AttemptRefusal::Unreadable);

    let nonsense = AttemptId::random(&mut rng);
    let frame = stage.peer.sealed(nonsense, b"no job at all");
    stage.peer.raw(Message::Binary(frame.into())).await;
    assert_eq!(refusal(&mut stage.peer, nonsense).await.0, AttemptRefusal::Unreadable);

    let short = AttemptId::random(&mut rng);
    let frame = wire::frame::encode(FrameHeader::of_attempt(FrameKind::Attempt, short, 0), &[200]);
    stage.peer.raw(Message::Binary(frame.into())).await;
    assert_eq!(refusal(&mut stage.peer, short).await.0, AttemptRefusal::Unreadable);

    assert_eq!(stage.peer.answer(running).await.tokens.len(), 40);
    stage.leave().await;
}

#[tokio::test]
async fn a_message_over_the_sessions_limit_fails_its_attempt_and_not_the_connection() {
    let mut stage = stage_on(Welcome { data_bytes_max: Bytes(64 << 10), ..terms() }).await;
    let running = stage.peer.attempt(&job("tiny", &[4, 4, 4], 40)).await;
    let attempt = stage.peer.attempt(&job("tiny", &vec![1; 50_000], 4)).await;
    let (reason, message) = refusal(&mut stage.peer, attempt).await;
    assert_eq!(reason, AttemptRefusal::TooLong);
    assert!(message.contains("65536"), "{message}");
    assert_eq!(stage.peer.answer(running).await.tokens.len(), 40);
    stage.leave().await;
}

#[tokio::test]
async fn an_attempt_that_comes_twice_runs_once() {
    let mut stage = stage().await;
    let attempt = AttemptId::random(&mut Rng::new(5));
    let frame = stage.peer.sealed(attempt, &job("tiny", &[1, 2, 3], 60).encode());
    stage.peer.raw(Message::Binary(frame.clone().into())).await;
    stage.peer.raw(Message::Binary(frame.into())).await;
    assert_eq!(stage.peer.answer(attempt).await.tokens.len(), 60);
    stage.leave().await;
}

#[tokio::test]
async fn a_full_engine_refuses_and_what_it_took_is_finished() {
    let mut stage = stage().await;
    let mut attempts = Vec::new();
    for _ in 0..64 {
        attempts.push(stage.peer.attempt(&job("tiny", &[1, 2, 3], 48)).await);
    }
    let (mut finished, mut refused) = (0, 0);
    for attempt in attempts {
        match stage.peer.outcome(attempt).await {
            Outcome::Finished(answer) => {
                assert_eq!(answer.tokens.len(), 48);
                finished += 1;
            }
            Outcome::Refused(AttemptRefusal::NoSlot | AttemptRefusal::NoKvRoom, _) => refused += 1,
            Outcome::Refused(reason, message) => panic!("{reason:?}: {message}"),
            Outcome::Failed(message) => panic!("{message}"),
        }
    }
    assert!(finished >= 8 && finished + refused == 64, "{finished} finished, {refused} refused");
    stage.leave().await;
}

#[tokio::test]
async fn answers_larger_than_a_narrow_link_holds_arrive_whole() {
    let fake = Fake::narrow().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (mut peer, _) = fake.join().await;
    peer.instance_in(InstancePhase::Ready).await;
    let mut wide = job("tiny", &[9, 8, 7], 300);
    // Some kilobytes a token: megabytes in all, through a window of kilobytes. Engines wait, and nothing is lost.
    wide.ask.logprobs = Some(20);
    let mut attempts = Vec::new();
    for _ in 0..4 {
        attempts.push(peer.attempt(&wide).await);
    }
    let narrow = peer.attempt(&job("tiny", &[9, 8, 7], 300)).await;
    let expected = peer.answer(narrow).await.tokens;
    assert_eq!(expected.len(), 300);
    for attempt in attempts {
        let answer = peer.answer(attempt).await;
        assert_eq!((answer.tokens, answer.logprobs), (expected.clone(), 300));
    }
    running.leave_from(peer).await;
}

#[tokio::test]
async fn two_models_on_one_provider_each_answer_for_themselves() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut settings = config(&fake, home.path());
    settings.models.push(crate::models::other("other", home.path()));
    let running = Running::start(settings);
    let (mut peer, _) = fake.join().await;
    let both_ready = |message: &FromProvider| match message {
        FromProvider::Heartbeat(beat) => {
            let ready = beat.instances.iter().filter(|i| i.phase == InstancePhase::Ready).count();
            (ready == 2).then_some(())
        }
        _ => None,
    };
    peer.find("two ready instances", both_ready).await;
    let mut answers = Vec::new();
    for model in ["tiny", "other", "tiny", "other"] {
        let attempt = peer.attempt(&job(model, &[1, 2, 3], 32)).await;
        answers.push(peer.answer(attempt).await.tokens);
    }
    assert_eq!(answers[0], answers[2]);
    assert_eq!(answers[1], answers[3]);
    assert_ne!(answers[0], answers[1], "two models, two answers");
    running.leave_from(peer).await;
}

#[tokio::test]
async fn attempts_of_a_lost_session_are_not_computed_on() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (mut peer, _) = fake.join().await;
    peer.instance_in(InstancePhase::Ready).await;
    let attempt = peer.attempt(&job("tiny", &[1, 2, 3], 100_000)).await;
    peer.first_token(attempt).await;
    drop(peer);
    let (mut peer, _) = fake.join().await;
    let idle = |message: &FromProvider| match message {
        FromProvider::Heartbeat(beat) => (beat.instances.len() == 1
            && beat.instances.iter().all(|i| i.running == 0 && i.waiting == 0))
        .then_some(()),
        _ => None,
    };
    peer.find("an idle instance", idle).await;
    running.leave_from(peer).await;
}
