//! Leaving: drained, said goodbye, and nothing left behind.

use std::time::Duration;

use provider::{Event, RunError};
use wire::chunk::FinishReason;
use wire::control::{AttemptRefusal, FromCoordinator, FromProvider, InstancePhase};

use crate::fake::{Fake, Outcome, Running, config, job};

#[tokio::test]
async fn a_provider_that_leaves_finishes_what_it_has_takes_nothing_new_and_says_goodbye() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let (mut peer, _) = fake.join().await;
    peer.instance_in(InstancePhase::Ready).await;
    let attempt = peer.attempt(&job("tiny", &[1, 2, 3], 400)).await;
    peer.first_token(attempt).await;
    running.ask_to_leave();
    peer.find("draining", |m| matches!(m, FromProvider::Draining).then_some(())).await;
    let late = peer.attempt(&job("tiny", &[1, 2, 3], 4)).await;
    match peer.outcome(late).await {
        Outcome::Refused(AttemptRefusal::NotReady, message) => {
            assert!(message.contains("leaving"), "{message}")
        }
        _ => panic!("a draining provider took an attempt"),
    }
    let answer = peer.answer(attempt).await;
    assert_eq!((answer.tokens.len(), answer.finish.reason), (400, FinishReason::Length));
    let said = peer.until_closed().await;
    assert!(matches!(said.last(), Some(FromProvider::Goodbye { .. })), "{said:?}");
    let in_flight = running
        .event("draining", |e| match e {
            Event::Draining { in_flight } => Some(in_flight),
            _ => None,
        })
        .await;
    assert_eq!(in_flight, 1);
    assert_eq!(running.ended().await.unwrap().abandoned, 0);
}

#[tokio::test]
async fn a_drain_is_bounded_and_what_it_cuts_off_is_counted() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut config = config(&fake, home.path());
    config.drain_max = Duration::from_millis(50);
    let mut running = Running::start(config);
    let (mut peer, _) = fake.join().await;
    peer.instance_in(InstancePhase::Ready).await;
    let attempt = peer.attempt(&job("tiny", &[1, 2, 3], 100_000)).await;
    peer.first_token(attempt).await;
    running.ask_to_leave();
    let said = peer.until_closed().await;
    assert!(matches!(said.last(), Some(FromProvider::Goodbye { .. })), "{said:?}");
    assert_eq!(running.ended().await.unwrap().abandoned, 1);
}

#[tokio::test]
async fn a_provider_without_a_coordinator_leaves_at_once() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    running.event("a try", |e| matches!(e, Event::Connecting { .. }).then_some(())).await;
    running.leave().await;
}

#[tokio::test]
async fn a_coordinator_that_says_goodbye_is_joined_again() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let (mut peer, _) = fake.join().await;
    peer.send(&FromCoordinator::Goodbye { reason: "an update".into(), retry_after_us: 1000 }).await;
    let detail = running
        .event("a pause", |e| match e {
            Event::Reconnecting { detail, .. } => Some(detail),
            _ => None,
        })
        .await;
    assert!(detail.contains("an update"), "{detail}");
    let (peer, _) = fake.join().await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_second_provider_in_the_same_folder_does_not_start() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (peer, _) = fake.join().await;
    match Running::start(config(&fake, home.path())).ended().await {
        Err(error @ RunError::Identity(_)) => assert!(error.to_string().contains("--data"), "{error}"),
        other => panic!("{other:?}"),
    }
    running.leave_from(peer).await;
}
