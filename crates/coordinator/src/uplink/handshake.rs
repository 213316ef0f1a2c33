//! Who is there: a hello with a token, a challenge, a proof.

use axum::extract::ws::{Message, WebSocket};
use base::{AccountId, KeyId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wire::admin::Scope;
use wire::control::{
    ASSIGNMENTS, CREDIT, FromCoordinator, FromProvider, GROUPS, Hello, PROTOCOL, REOFFER, RefusalCode,
    Refused, Welcome,
};

use crate::core::Core;

/// What this coordinator can do beyond the protocol; offered to providers that can do it too.
const CAPABILITIES: [&str; 4] = [REOFFER, CREDIT, GROUPS, ASSIGNMENTS];

/// A machine that proved itself.
pub(crate) struct Admitted {
    pub(crate) hello: Hello,
    pub(crate) sealing_key: Vec<u8>,
    /// Whose machine it is, where it came with an account's own key.
    pub(crate) lent: Option<Lent>,
}

/// What an account's key says of a machine that came with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lent {
    /// Whose it is.
    pub(crate) account: AccountId,
    /// By which key.
    pub(crate) key: KeyId,
    /// When that key's time is over, in seconds since 1970; 0 is never. A key's terms do not change.
    pub(crate) ends_unix: u64,
}

/// Why there is no session.
pub(crate) enum Failed {
    /// The provider is told this.
    Refused(Refused),
    /// There is nobody to tell.
    Gone,
}

fn refused(code: RefusalCode, reason: impl Into<String>, remedy: impl Into<String>) -> Failed {
    Failed::Refused(Refused { code, reason: reason.into(), remedy: remedy.into() })
}

pub(crate) async fn handshake(core: &Core, socket: &mut WebSocket) -> Result<Admitted, Failed> {
    let hello = match next(core, socket).await? {
        FromProvider::Hello(hello) => hello,
        _ => return Err(unexpected("hello")),
    };
    if hello.protocol != PROTOCOL {
        let newer = if hello.protocol > PROTOCOL { "coordinator" } else { "provider" };
        return Err(refused(
            RefusalCode::BadProtocol,
            format!("the provider speaks protocol {} and the coordinator {PROTOCOL}", hello.protocol),
            format!("update Phalanx on the {newer}'s machine"),
        ));
    }
    let lent = admitted_by(core, &hello.token).await?;
    if hello.name.is_empty() || hello.name.len() > 200 || hello.name.chars().any(char::is_control) {
        return Err(refused(
            RefusalCode::BadMessage,
            "the machine's name is empty, longer than 200 bytes or has control characters",
            "give another one with --name",
        ));
    }
    let signing_key = key(&hello.signing_key, "signing")?;
    let sealing_key = key(&hello.sealing_key, "sealing")?;
    let nonce: [u8; trust::NONCE_BYTES] = trust::random_bytes();
    let challenge = FromCoordinator::Challenge { nonce: STANDARD.encode(nonce) };
    socket.send(Message::Text(challenge.encode().into())).await.map_err(|_| Failed::Gone)?;
    let signature = match next(core, socket).await? {
        FromProvider::Proof { signature } => signature,
        _ => return Err(unexpected("proof")),
    };
    let registration = trust::Registration {
        nonce: &nonce,
        protocol: hello.protocol,
        token: &hello.token,
        machine: hello.machine,
        incarnation: hello.incarnation,
        name: &hello.name,
        agent: &hello.agent,
        signing_key: &signing_key,
        sealing_key: &sealing_key,
        capabilities: &hello.capabilities,
    };
    let proof = STANDARD.decode(&signature).unwrap_or_default();
    if registration.check(&proof).is_err() {
        return Err(refused(
            RefusalCode::BadIdentity,
            "the signature does not prove that the machine's key is its own",
            "delete the provider's identity file, so that it makes a new one",
        ));
    }
    Ok(Admitted { hello, sealing_key, lent })
}

/// What a machine may come with: the coordinator's own token, or a key that may join machines, which are then its account's.
pub(super) async fn admitted_by(core: &Core, token: &str) -> Result<Option<Lent>, Failed> {
    let hash = trust::hash_secret(token);
    if trust::secrets_equal(&hash, &core.join_hash) {
        return Ok(None);
    }
    let unavailable = |error: store::StoreError| {
        let reason = format!("the coordinator's store failed: {error}");
        refused(RefusalCode::Unavailable, reason, "try again in a moment")
    };
    match core.store.key_by_hash(hash).await.map_err(unavailable)? {
        Some(key) if crate::api::is_good(&key) && key.terms.scopes.contains(&Scope::Join) => {
            Ok(Some(Lent { account: key.account, key: key.id, ends_unix: key.terms.expires_unix }))
        }
        _ => Err(refused(
            RefusalCode::BadToken,
            "the join token is not this coordinator's, and no key that may join machines",
            "take the token that `phalanx coordinator` printed at its start, or a key with the scope join, and give it with \
             --token",
        )),
    }
}

/// Chunks of one attempt that may wait here for their reader. Enough that credit is asked for before it runs out on a link
/// of a hundred milliseconds at a thousand tokens a second.
const CREDIT_CHUNKS: u64 = 256;

/// Chunks of one attempt that a machine may send before there is more credit.
pub(crate) fn credit_chunks(core: &Core) -> u64 {
    CREDIT_CHUNKS.min(core.config.uplink.chunks_waiting_max as u64)
}

/// The terms of a session.
pub(crate) fn welcome(core: &Core, hello: &Hello) -> Welcome {
    let uplink = &core.config.uplink;
    let both = |name: &&str| hello.capabilities.iter().any(|theirs| theirs == name);
    Welcome {
        capabilities: CAPABILITIES.iter().filter(|c| both(c)).map(|c| (*c).to_owned()).collect(),
        control_bytes_max: uplink.control_bytes_max,
        data_bytes_max: uplink.data_bytes_max,
        heartbeat_us: uplink.heartbeat_us.0,
        silence_us_max: uplink.silence_us_max.0,
        credit_chunks: credit_chunks(core),
    }
}

/// The next message; pings and types that this build does not know are passed over.
async fn next(core: &Core, socket: &mut WebSocket) -> Result<FromProvider, Failed> {
    loop {
        let text = match socket.recv().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Binary(_))) => {
                return Err(garbage("a binary message before the handshake's end"));
            }
            Some(Ok(Message::Close(_))) | None => return Err(Failed::Gone),
            Some(Err(error)) if super::session::is_loss(&error) => return Err(Failed::Gone),
            Some(Err(_)) => return Err(garbage("bytes that are no WebSocket message")),
        };
        if text.len() as u64 > core.config.uplink.control_bytes_max.0 {
            return Err(garbage("a message longer than uplink.control_bytes_max"));
        }
        match FromProvider::decode(&text) {
            Ok(FromProvider::Unknown) => {}
            Ok(message) => return Ok(message),
            Err(_) => return Err(garbage("a text that is no message of this protocol")),
        }
    }
}

fn garbage(what: &str) -> Failed {
    refused(RefusalCode::BadMessage, what, "connect with `phalanx provider` of the coordinator's version")
}

fn unexpected(wanted: &str) -> Failed {
    refused(
        RefusalCode::BadMessage,
        format!("another message than '{wanted}'"),
        "update Phalanx on the provider's machine",
    )
}

fn key(text: &str, what: &str) -> Result<Vec<u8>, Failed> {
    match STANDARD.decode(text) {
        Ok(key) if key.len() == 32 => Ok(key),
        _ => Err(refused(
            RefusalCode::BadIdentity,
            format!("the {what} key is not 32 bytes in base64"),
            "delete the provider's identity file, so that it makes a new one",
        )),
    }
}
