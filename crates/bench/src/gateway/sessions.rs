//! What a connected, idle machine costs the coordinator: thousands of real sessions, each with a key of its own.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base::{Bytes, Epoch, Incarnation, InstanceId, Tokens};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use trust::{MachineKeys, Registration};
use wire::control::{
    FromCoordinator, FromProvider, Hardware, Hello, InstanceOffer, InstancePhase, InstanceReport,
    ModelDescriptor, PROTOCOL, Register,
};

use crate::scenarios::fleet::Fleet;

/// Handshakes at a time: below what a coordinator lets in at once.
const AT_A_TIME: usize = 64;
/// How long one may take.
const JOIN_MAX: Duration = Duration::from_secs(60);
/// What the memory is given to settle after the last handshake.
const SETTLE: Duration = Duration::from_secs(5);
const NAME: &str = "idle";
const AGENT: &str = "phalanx-bench/1";

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Idle {
    pub(super) sessions: usize,
    pub(super) rss_before_bytes: u64,
    pub(super) rss_bytes: u64,
    pub(super) bytes_per_session: u64,
    pub(super) joined_per_s: f64,
    /// Processor seconds that the coordinator took in a second of idleness.
    pub(super) idle_cpu: f64,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Joins `count` machines, leaves them alone for a while, and looks at the coordinator's memory.
pub(super) async fn measure(fleet: &Fleet, count: usize) -> anyhow::Result<Idle> {
    let pid = fleet.coordinator_pid().context("the coordinator has ended")?;
    let before = rss(pid)?;
    let begun = std::time::Instant::now();
    let (mut joining, mut sockets) = (JoinSet::new(), Vec::with_capacity(count));
    for index in 0..count {
        if joining.len() >= AT_A_TIME
            && let Some(joined) = joining.join_next().await
        {
            sockets.push(joined??);
        }
        let (url, token) = (fleet.url.clone(), fleet.join_token.clone());
        joining.spawn(async move {
            match tokio::time::timeout(JOIN_MAX, join(&url, &token)).await {
                Ok(joined) => joined.with_context(|| format!("machine {index}")),
                Err(_) => bail!("machine {index} was not let in within {JOIN_MAX:?}"),
            }
        });
    }
    while let Some(joined) = joining.join_next().await {
        sockets.push(joined??);
    }
    let joined_per_s = count as f64 / begun.elapsed().as_secs_f64();
    // Each answers pings, as a provider does.
    let mut alive = JoinSet::new();
    for mut socket in sockets {
        alive.spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
    }
    tokio::time::sleep(SETTLE).await;
    let cpu = cpu_ticks(pid)?;
    tokio::time::sleep(SETTLE).await;
    let idle_cpu = (cpu_ticks(pid)? - cpu) as f64 / 100.0 / SETTLE.as_secs_f64();
    ensure!(alive.try_join_next().is_none(), "a machine was sent away while it was idle");
    let rss_bytes = rss(pid)?;
    let status = fleet.status().await?;
    let connected = status.machines.iter().filter(|machine| machine.connected).count();
    ensure!(connected >= count, "{connected} of {count} machines are connected");
    Ok(Idle {
        sessions: count,
        rss_before_bytes: before,
        rss_bytes,
        bytes_per_session: rss_bytes.saturating_sub(before) / count.max(1) as u64,
        joined_per_s,
        idle_cpu,
    })
}

async fn join(url: &str, token: &str) -> anyhow::Result<Socket> {
    let url = format!("{}/api/uplink", url.replacen("http", "ws", 1));
    let small = WebSocketConfig::default().read_buffer_size(2 << 10).write_buffer_size(2 << 10);
    let (mut socket, _) = tokio_tungstenite::connect_async_with_config(url, Some(small), true).await?;
    let keys = MachineKeys::generate();
    let (signing_key, sealing_key) = (keys.signing_key(), keys.sealing_key());
    let hello = Hello {
        protocol: PROTOCOL,
        token: token.to_owned(),
        machine: keys.machine(),
        incarnation: Incarnation(1),
        name: NAME.to_owned(),
        agent: AGENT.to_owned(),
        signing_key: STANDARD.encode(signing_key),
        sealing_key: STANDARD.encode(sealing_key),
        capabilities: Vec::new(),
    };
    say(&mut socket, &FromProvider::Hello(hello)).await?;
    let nonce = loop {
        if let FromCoordinator::Challenge { nonce } = hear(&mut socket).await? {
            break STANDARD.decode(nonce)?;
        }
    };
    let proof = Registration {
        nonce: &nonce,
        protocol: PROTOCOL,
        token,
        machine: keys.machine(),
        incarnation: Incarnation(1),
        name: NAME,
        agent: AGENT,
        signing_key: &signing_key,
        sealing_key: &sealing_key,
        capabilities: &[],
    }
    .prove(&keys);
    say(&mut socket, &FromProvider::Proof { signature: STANDARD.encode(proof) }).await?;
    let FromCoordinator::Welcome(_) = hear(&mut socket).await? else { bail!("not welcome") };
    say(&mut socket, &FromProvider::Register(register())).await?;
    Ok(socket)
}

/// One instance that loads for ever: it is known, and takes nothing.
fn register() -> Register {
    let instance = InstanceId(u128::from_le_bytes(trust::random_bytes()));
    let model = ModelDescriptor {
        name: "idle-model".into(),
        family: "llama".to_owned(),
        parameters: 1,
        weight_bytes: Bytes(1),
        context: Tokens(512),
        vocabulary: 1024,
        weights_sha256: "00".repeat(32),
        kit_sha256: String::new(),
        kit_bytes: Bytes(0),
    };
    let report = InstanceReport {
        instance,
        generation: 1,
        phase: InstancePhase::Failed,
        detail: "idle".to_owned(),
        slots: 0,
        running: 0,
        waiting: 0,
        kv_tokens: 0,
        kv_tokens_free: 0,
        prefill_tokens_waiting: 0,
        prefill_tokens_per_s: 1.0,
        decode_tokens_per_s: 1.0,
    };
    let offer = InstanceOffer { instance, epoch: Epoch(1), rank: 0, ranks: 1, model, report };
    Register {
        hardware: Hardware { cpu: "none".to_owned(), ..Hardware::default() },
        instances: vec![offer],
        managed: false,
        holds: Vec::new(),
    }
}

async fn say(socket: &mut Socket, message: &FromProvider) -> anyhow::Result<()> {
    Ok(socket.send(Message::Text(message.encode().into())).await?)
}

async fn hear(socket: &mut Socket) -> anyhow::Result<FromCoordinator> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(FromCoordinator::decode(&text)?),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => bail!("the coordinator closed the connection: {other:?}"),
        }
    }
}

fn rss(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("reading its memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kb: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kb << 10)
}

/// Hundredths of processor seconds so far.
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("reading its times")?;
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok(number(11) + number(12))
}
