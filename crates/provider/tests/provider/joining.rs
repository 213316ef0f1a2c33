//! Joining, being refused, and coming back.

use base::Bytes;
use provider::{Event, RunError};
use tokio_tungstenite::tungstenite::Message;
use wire::control::{FromCoordinator, FromProvider, InstancePhase, InstanceReport, RefusalCode, Welcome};

use crate::fake::{Fake, Running, TOKEN, config, only_instance, refused, soon, terms};
use crate::models;

#[tokio::test]
async fn a_provider_proves_its_identity_registers_and_says_when_its_model_is_ready() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let mut peer = fake.accept().await;
    peer.greet().await;
    let hello = peer.hello.clone().unwrap();
    assert_eq!((hello.token.as_str(), hello.name.as_str(), hello.protocol), (TOKEN, "testing", 1));
    peer.send(&FromCoordinator::Welcome(terms())).await;
    let register = peer.register().await;
    assert!(register.hardware.cores >= 1 && register.hardware.memory_total > Bytes::ZERO);
    let ready = peer.instance_in(InstancePhase::Ready).await;
    assert!(ready.slots > 0 && ready.kv_tokens > 0 && ready.decode_tokens_per_s > 0.0, "{ready:?}");
    running.event("joined", |e| matches!(e, Event::Joined { .. }).then_some(())).await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_kit_comes_on_demand_and_is_what_its_hash_says() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (mut peer, mut register) = fake.join_on(Welcome { data_bytes_max: Bytes(16 << 10), ..terms() }).await;
    while register.instances.is_empty() {
        register = peer.register().await;
    }
    let model = register.instances[0].model.clone();
    assert_eq!(model.name.as_str(), "tiny");
    peer.send(&FromCoordinator::WantKit { kit_sha256: "00".repeat(32) }).await;
    peer.send(&FromCoordinator::WantKit { kit_sha256: model.kit_sha256.clone() }).await;
    let kit = peer.kit(&model.kit_sha256, model.kit_bytes.0 as usize).await;
    assert_eq!(trust::hex(&trust::sha256(&kit)), model.kit_sha256);
    model::kit::Kit::from_bytes(&kit).unwrap().open().unwrap();
    running.leave_from(peer).await;
}

#[tokio::test]
async fn every_report_is_newer_than_the_one_before_and_heartbeats_count() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (mut peer, register) = fake.join().await;
    let mut generation = register.instances.first().map_or(0, |offer| offer.report.generation);
    let (mut beats, mut was_ready) = (0, false);
    while beats < 4 || !was_ready {
        let reports = |message: &FromProvider| match message {
            FromProvider::Register(register) => {
                Some((None, register.instances.iter().map(|offer| offer.report.clone()).collect()))
            }
            FromProvider::InstanceChanged(report) => Some((None, vec![report.clone()])),
            FromProvider::Heartbeat(beat) => Some((Some(beat.sequence), beat.instances.clone())),
            _ => None,
        };
        let (sequence, reports): (Option<u64>, Vec<InstanceReport>) = peer.find("a report", reports).await;
        for report in reports {
            assert!(report.generation > generation, "{} after {generation}", report.generation);
            generation = report.generation;
            assert!(!was_ready || report.phase == InstancePhase::Ready, "{report:?}");
            was_ready = report.phase == InstancePhase::Ready;
        }
        if let Some(sequence) = sequence {
            assert_eq!(sequence, beats);
            beats += 1;
        }
    }
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_refusal_for_good_ends_the_provider_with_reason_and_remedy() {
    for code in
        [RefusalCode::BadToken, RefusalCode::BadProtocol, RefusalCode::BadIdentity, RefusalCode::Superseded]
    {
        let fake = Fake::new().await;
        let home = tempfile::tempdir().unwrap();
        let mut running = Running::start(config(&fake, home.path()));
        let mut peer = fake.accept().await;
        peer.send(&refused(code)).await;
        let told = running
            .event("a refusal", |e| match e {
                Event::Refused { code, reason, remedy, ends } => Some((code, reason, remedy, ends)),
                _ => None,
            })
            .await;
        assert_eq!(told, (code, format!("a reason for {code:?}"), "a remedy".into(), true));
        match running.ended().await {
            Err(RunError::Refused { code: ended, reason, remedy }) => {
                assert_eq!((ended, remedy.as_str()), (code, "a remedy"));
                assert!(reason.contains("a reason"));
            }
            other => panic!("{code:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_coordinator_that_is_full_is_tried_again() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let mut peer = fake.accept().await;
    peer.send(&refused(RefusalCode::Unavailable)).await;
    drop(peer);
    running.event("a pause", |e| matches!(e, Event::Reconnecting { .. }).then_some(())).await;
    let (peer, _) = fake.join().await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_lost_connection_is_made_again_as_the_same_start_and_a_restart_is_a_later_one() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let (mut first, _) = fake.join().await;
    let before = first.hello.clone().unwrap();
    let instance = first.instance_in(InstancePhase::Ready).await.instance;
    drop(first);
    let (second, register) = fake.join().await;
    let again = second.hello.clone().unwrap();
    assert_eq!((again.machine, again.incarnation), (before.machine, before.incarnation));
    assert_eq!(only_instance(&register), instance);
    drop(second);
    running.leave().await;

    let running = Running::start(config(&fake, home.path()));
    let (third, _) = fake.join().await;
    let restarted = third.hello.clone().unwrap();
    assert_eq!(restarted.machine, before.machine);
    assert!(restarted.incarnation > before.incarnation);
    running.leave_from(third).await;
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_yet_is_waited_for() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut config = config(&fake, home.path());
    // A port that was free a moment ago, and that nobody listens on.
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    config.join = format!("http://{nobody}");
    let mut running = Running::start(config);
    let detail = running
        .event("a pause", |e| match e {
            Event::Reconnecting { detail, .. } => Some(detail),
            _ => None,
        })
        .await;
    assert!(
        detail.contains(&nobody.port().to_string()) && detail.contains("is the coordinator running"),
        "{detail}"
    );
    running.leave().await;
}

#[tokio::test]
async fn an_address_that_answers_otherwise_is_named_as_no_coordinator() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut fake = Fake::new().await;
    fake.url = format!("http://{}", listener.local_addr().unwrap());
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let (mut stream, _) = soon("a connection", listener.accept()).await.unwrap();
    let web_server = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, web_server).await.unwrap();
    let detail = running
        .event("a pause", |e| match e {
            Event::Reconnecting { detail, .. } => Some(detail),
            _ => None,
        })
        .await;
    assert!(detail.contains("HTTP 404") && detail.contains("coordinator's address"), "{detail}");
    running.leave().await;
}

#[tokio::test]
async fn garbage_in_a_handshake_and_more_than_a_little_in_a_session_make_it_dial_anew() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let running = Running::start(config(&fake, home.path()));
    let mut peer = fake.accept().await;
    peer.raw(Message::Text("{not json".into())).await;
    peer.until_closed().await;

    let (mut peer, _) = fake.join().await;
    peer.raw(Message::Text("[]".into())).await;
    peer.raw(Message::Binary(vec![9; 40].into())).await;
    peer.raw(Message::Text(r#"{"type":"of_the_future","field":1}"#.into())).await;
    peer.instance_in(InstancePhase::Ready).await;
    let attempt = peer.attempt(&crate::fake::job("tiny", &[1, 2, 3], 4)).await;
    assert_eq!(peer.answer(attempt).await.tokens.len(), 4, "a little garbage disturbs nothing else");
    for _ in 0..40 {
        // The provider may have closed already.
        if futures_util::SinkExt::send(&mut peer.socket, Message::Text("garbage".into())).await.is_err() {
            break;
        }
    }
    peer.until_closed().await;
    let (peer, _) = fake.join().await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_silent_coordinator_is_left_and_dialled_again() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let (peer, _) = fake.join_on(Welcome { silence_us_max: 300_000, ..terms() }).await;
    // The test does not read, so its WebSocket answers no ping.
    let detail = running
        .event("a pause", |e| match e {
            Event::Reconnecting { detail, .. } => Some(detail),
            _ => None,
        })
        .await;
    assert!(detail.contains("nothing heard for 0.3 s"), "{detail}");
    drop(peer);
    let (peer, _) = fake.join().await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn what_the_coordinator_thinks_is_passed_on() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut running = Running::start(config(&fake, home.path()));
    let (mut peer, _) = fake.join().await;
    let lines = vec!["tiny: not ready".to_owned(), "an \u{1b}[31mescape".to_owned()];
    peer.send(&FromCoordinator::Standing { lines }).await;
    let told = running
        .event("a standing", |e| match e {
            Event::Standing { lines } => Some(lines),
            _ => None,
        })
        .await;
    assert_eq!(told, ["tiny: not ready", "an [31mescape"]);
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_reported_and_the_others_serve() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let mut config = config(&fake, home.path());
    config.models.insert(0, models::missing("gone", home.path()));
    let mut running = Running::start(config);
    let (mut peer, _) = fake.join().await;
    let failed = peer.instance_in(InstancePhase::Failed).await;
    assert!(failed.detail.contains("gone"), "{}", failed.detail);
    let ready = peer.instance_in(InstancePhase::Ready).await;
    assert_ne!(ready.instance, failed.instance);
    let detail = running
        .event("a failure", |e| match e {
            Event::Failed { model, detail } => Some((model, detail)),
            _ => None,
        })
        .await;
    assert!(detail.0.as_str() == "gone" && detail.1 == failed.detail, "{detail:?}");
    running.leave_from(peer).await;
}
