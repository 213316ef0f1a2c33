//! Providers that are not let in, and connections that carry what no provider sends.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use wire::control::{FromCoordinator, FromProvider, Hello, RefusalCode, Refused};

use futures_util::SinkExt;

use super::house::{House, PATIENCE, eventually};
use super::provider::{Offer, Provider, Seen, answer_challenge, connect, hear, hello, prove, say};

async fn refused(socket: &mut super::provider::Socket) -> Refused {
    match hear(socket).await {
        Some(FromCoordinator::Refused(refused)) => refused,
        _ => panic!("not refused"),
    }
}

fn changed(offer: &Offer, token: &str, change: impl FnOnce(&mut Hello)) -> FromProvider {
    let FromProvider::Hello(mut said) = hello(offer, token) else { panic!("hello says hello") };
    change(&mut said);
    FromProvider::Hello(said)
}

#[tokio::test]
async fn a_wrong_token_or_protocol_is_refused_with_reason_and_remedy() {
    let house = House::open().await;
    let offer = Offer::default();
    let cases = [
        (hello(&offer, "join-phx-wrong"), RefusalCode::BadToken),
        (changed(&offer, &house.token, |h| h.protocol = 2), RefusalCode::BadProtocol),
        (changed(&offer, &house.token, |h| h.signing_key = "short".to_owned()), RefusalCode::BadIdentity),
        (changed(&offer, &house.token, |h| h.name = String::new()), RefusalCode::BadMessage),
        (FromProvider::Draining, RefusalCode::BadMessage),
    ];
    for (first, code) in cases {
        let mut socket = connect(&house).await;
        say(&mut socket, &first).await;
        let refused = refused(&mut socket).await;
        assert_eq!(refused.code, code);
        assert!(!refused.reason.is_empty() && !refused.remedy.is_empty());
        assert!(hear(&mut socket).await.is_none(), "the connection closes");
    }
    assert_eq!(house.metric("phalanx_uplink_refusals_total{kind=\"bad_token\"}").await, 1.0);
}

#[tokio::test]
async fn a_key_that_is_not_ones_own_does_not_get_in() {
    let house = House::open().await;
    let (mine, theirs) = (Offer::default(), Offer::default());
    // Their identity, my signature.
    let mut socket = connect(&house).await;
    say(&mut socket, &changed(&mine, &house.token, |h| h.machine = theirs.keys.machine())).await;
    prove(&mut socket, &mine, &house.token).await;
    assert_eq!(refused(&mut socket).await.code, RefusalCode::BadIdentity);
    // My identity, no signature.
    let mut socket = connect(&house).await;
    say(&mut socket, &hello(&mine, &house.token)).await;
    let _challenge = hear(&mut socket).await;
    say(&mut socket, &FromProvider::Proof { signature: String::new() }).await;
    assert_eq!(refused(&mut socket).await.code, RefusalCode::BadIdentity);
}

#[tokio::test]
async fn garbage_closes_its_own_connection_and_is_counted() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    for garbage in
        [Message::Text("{]".into()), Message::Binary(vec![1, 2, 3].into()), Message::Text("[1]".into())]
    {
        // Before the handshake.
        let mut socket = connect(&house).await;
        socket.send(garbage.clone()).await.unwrap();
        assert_eq!(refused(&mut socket).await.code, RefusalCode::BadMessage);
        assert!(hear(&mut socket).await.is_none());
        // And after it.
        let mut other = Provider::join(&house).await;
        other.send_raw(garbage);
        let said = other.sees(|seen| match seen {
            Seen::Refused(refused) => Some(refused.code),
            _ => None,
        });
        assert_eq!(said.await, RefusalCode::BadMessage);
        other.sees(|seen| matches!(seen, Seen::Closed).then_some(())).await;
    }
    // Bytes that are no WebSocket frame at all.
    let mut raw = tokio::net::TcpStream::connect(&house.address).await.unwrap();
    let upgrade = "GET /api/uplink HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    raw.write_all(upgrade.as_bytes()).await.unwrap();
    raw.write_all(&[0xff; 64]).await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is left open");
    assert_eq!(house.metric("phalanx_machines").await, 1.0, "the good provider stays");
    assert_eq!(house.metric("phalanx_uplink_faults_total{kind=\"frame_unreadable\"}").await, 1.0);
    assert_eq!(house.metric("phalanx_uplink_faults_total{kind=\"control_unreadable\"}").await, 2.0);
    assert_eq!(house.chat(json!({})).await.status(), 200);
    drop(provider);
}

#[tokio::test]
async fn what_a_newer_provider_says_beyond_this_protocol_is_tolerated() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    provider.send_raw(Message::Text("{\"type\":\"horoscope\",\"sign\":\"crab\"}".into()));
    assert_eq!(house.chat(json!({})).await.status(), 200);
    assert_eq!(house.metric("phalanx_machines").await, 1.0);
}

#[tokio::test]
async fn a_provider_that_falls_silent_is_gone() {
    let house = House::with(|config| {
        config.uplink.heartbeat_us = base::Micros::from_millis(100);
        config.uplink.silence_us_max = base::Micros::from_millis(400);
        config.uplink.handshake_us = base::Micros::from_millis(400);
    })
    .await;
    // One that says nothing at all.
    let mut mute = connect(&house).await;
    assert_eq!(refused(&mut mute).await.code, RefusalCode::BadMessage);
    // One whose process hangs after the handshake: its socket is open, and nobody reads it.
    let offer = Offer::default();
    let mut socket = connect(&house).await;
    say(&mut socket, &hello(&offer, &house.token)).await;
    prove(&mut socket, &offer, &house.token).await;
    assert!(matches!(hear(&mut socket).await, Some(FromCoordinator::Welcome(_))));
    eventually("it is gone", async || house.metric("phalanx_machines").await == 0.0).await;
}

#[tokio::test]
async fn a_newer_start_takes_an_older_ones_place_and_not_the_other_way_round() {
    let house = House::open().await;
    let secret = trust::MachineKeys::generate().to_secret_bytes();
    let keys = || trust::MachineKeys::from_secret_bytes(&secret).unwrap();
    let mut old = Provider::join_as(&house, Offer { keys: keys(), incarnation: 5, ..Offer::default() }).await;
    let new = Provider::join_as(&house, Offer { keys: keys(), incarnation: 6, ..Offer::default() }).await;
    let told = old.sees(|seen| match seen {
        Seen::Refused(refused) => Some(refused.code),
        _ => None,
    });
    assert_eq!(told.await, RefusalCode::Superseded);
    let stale = Offer { keys: keys(), incarnation: 5, ..Offer::default() };
    let mut socket = connect(&house).await;
    say(&mut socket, &hello(&stale, &house.token)).await;
    prove(&mut socket, &stale, &house.token).await;
    assert_eq!(refused(&mut socket).await.code, RefusalCode::Superseded);
    assert_eq!(house.metric("phalanx_machines").await, 1.0);
    assert_eq!(house.chat(json!({})).await.status(), 200);
    drop(new);
}

#[tokio::test]
async fn a_provider_learns_what_the_coordinator_thinks_of_it() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    let takes = provider.sees(|seen| match seen {
        Seen::Standing(line) => Some(line),
        _ => None,
    });
    assert_eq!(takes.await, "small: takes requests");
    let mut report = provider.report.clone();
    assert_eq!(report.instance, provider.instance);
    report.generation = 2;
    report.phase = wire::control::InstancePhase::Failed;
    report.detail = "disk full".to_owned();
    provider.send(&FromProvider::InstanceChanged(report));
    let line = provider.sees(|seen| match seen {
        Seen::Standing(line) if line.contains("no requests") => Some(line),
        _ => None,
    });
    assert!(line.await.contains("failed"));
    assert_eq!(house.chat(json!({})).await.status(), 503, "no path");
}

#[tokio::test]
async fn no_bytes_whatever_from_a_provider_bring_the_coordinator_down() {
    let house = House::open().await;
    let good = Provider::join(&house).await;
    let mut rng = base::Rng::new(20_261_121);
    let heartbeat = FromProvider::Heartbeat(wire::control::Heartbeat {
        sequence: 1,
        instances: vec![good.report.clone()],
    });
    let chunk =
        wire::frame::FrameHeader::of_attempt(wire::frame::FrameKind::Chunk, super::provider::nobody(), 0);
    let models = [heartbeat.encode().into_bytes(), wire::frame::encode(chunk, &[7; 40])];
    for round in 0..60 {
        let other =
            Provider::join_unready(&house, Offer { model: "other".to_owned(), ..Offer::default() }).await;
        for _ in 0..8 {
            let mut bytes = models[rng.below(2) as usize].clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
            bytes.truncate(1 + rng.below(bytes.len() as u64) as usize);
            let message = match String::from_utf8(bytes.clone()) {
                Ok(text) if round % 2 == 0 => Message::Text(text.into()),
                _ => Message::Binary(bytes.into()),
            };
            other.send_raw(message);
        }
    }
    assert_eq!(house.chat(json!({})).await.status(), 200);
    let good_stays = async || house.metric("phalanx_machines").await >= 1.0;
    eventually("the good provider stays", good_stays).await;
    drop(good);
}

#[tokio::test]
async fn a_machine_whose_key_is_revoked_or_rotated_is_told_and_sent_away_and_others_stay() {
    let house = House::open().await;
    let mut other = connect(&house).await;
    let offer = Offer::default();
    say(&mut other, &hello(&offer, &house.token)).await;
    prove(&mut other, &offer, &house.token).await;
    assert!(matches!(hear(&mut other).await, Some(FromCoordinator::Welcome(_))));
    for rotate in [false, true] {
        let body = json!({"name": "lender", "terms": {"scopes": ["join"]}});
        let made: wire::admin::CreatedKey =
            house.post("/api/keys", &body).send().await.unwrap().json().await.unwrap();
        let offer = Offer::default();
        let mut socket = connect(&house).await;
        say(&mut socket, &hello(&offer, &made.secret)).await;
        prove(&mut socket, &offer, &made.secret).await;
        assert!(matches!(hear(&mut socket).await, Some(FromCoordinator::Welcome(_))));
        let key = house.url(&format!("/api/keys/{}", made.key.id));
        let ended = if rotate {
            house.http.post(format!("{key}/rotate")).bearer_auth(&house.key).send().await.unwrap()
        } else {
            house.http.delete(key).bearer_auth(&house.key).send().await.unwrap()
        };
        assert!(ended.status().is_success());
        let told = refused(&mut socket).await;
        assert_eq!(told.code, RefusalCode::BadToken);
        assert!(told.reason.contains("revoked"), "{}", told.reason);
        assert!(hear(&mut socket).await.is_none(), "the connection closes");
        let mut again = connect(&house).await;
        say(&mut again, &hello(&offer, &made.secret)).await;
        assert_eq!(refused(&mut again).await.code, RefusalCode::BadToken);
    }
    let status: wire::admin::FleetStatus = house.get("/api/status").await.json().await.unwrap();
    let here = |m: &&wire::admin::MachineStatus| m.machine == offer.keys.machine() && m.connected;
    assert_eq!(status.machines.iter().filter(here).count(), 1, "who came with the coordinator's token stays");
}

#[tokio::test]
async fn a_machine_whose_key_expires_is_told_and_sent_away() {
    let house = House::open().await;
    // Where joining takes longer than the key lives, one that lives longer is tried.
    for lives_s in [2, 4, 8, 16, 32] {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let terms = json!({"scopes": ["join"], "expires_unix": now + lives_s});
        let made = house.post("/api/keys", &json!({"name": "lender", "terms": terms})).send().await.unwrap();
        let made: wire::admin::CreatedKey = made.json().await.unwrap();
        let offer = Offer::default();
        let mut socket = connect(&house).await;
        say(&mut socket, &hello(&offer, &made.secret)).await;
        let nonce = match hear(&mut socket).await {
            Some(FromCoordinator::Challenge { nonce }) => nonce,
            Some(FromCoordinator::Refused(_)) => continue,
            other => panic!("{other:?}"),
        };
        answer_challenge(&mut socket, &offer, &made.secret, &nonce).await;
        let welcome = hear(&mut socket).await;
        assert!(matches!(welcome, Some(FromCoordinator::Welcome(_))), "{welcome:?}");
        let told = refused(&mut socket).await;
        assert_eq!(told.code, RefusalCode::BadToken);
        assert!(told.reason.contains("expired"), "{}", told.reason);
        assert!(hear(&mut socket).await.is_none(), "the connection closes");
        return;
    }
    panic!("no key lived long enough to join with");
}
