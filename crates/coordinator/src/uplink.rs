//! `GET /api/uplink`: a provider's connection, from its handshake to its end.

pub(crate) mod attempts;
mod handshake;
pub(crate) mod keymaker;
pub(crate) mod kit;
pub(crate) mod lanes;
pub(crate) mod returns;
pub(crate) mod session;

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use base::KeyId;
use futures_util::StreamExt;
use wire::control::{FromCoordinator, RefusalCode, Refused};

use crate::core::{Core, span};
use crate::metrics::Metrics;
use crate::problem::Problem;
use session::Session;

/// What a connection's reader and writer take each while idle. Most messages are smaller (a token's frame is about a
/// hundred bytes); larger ones take what they need while they last. Ten thousand idle machines are to fit in 400 MB.
const IDLE_BUFFER_BYTES: usize = 4 << 10;

/// Room above the largest message for frame headers and for the control messages between two of them.
const WRITE_BUFFER_MARGIN: usize = 1 << 20;

/// Upgrades the connection, and serves it until it ends.
pub(crate) async fn serve(
    State(core): State<Arc<Core>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        let detail =
            "this path is for providers, which connect with a WebSocket: use `phalanx provider --join`";
        return Problem::Header { name: "upgrade", detail }.into_response();
    };
    if core.draining.is_cancelled() {
        return Problem::Draining.into_response();
    }
    let uplink = &core.config.uplink;
    let largest =
        usize::try_from(uplink.data_bytes_max.0.max(uplink.control_bytes_max.0)).unwrap_or(usize::MAX);
    upgrade
        .max_message_size(largest)
        .max_frame_size(largest)
        .read_buffer_size(IDLE_BUFFER_BYTES)
        .write_buffer_size(IDLE_BUFFER_BYTES)
        .max_write_buffer_size(largest.saturating_mul(2).saturating_add(WRITE_BUFFER_MARGIN))
        .on_upgrade(move |socket| {
            let core_of_task = Arc::clone(&core);
            core.tasks.track_future(async move { run(core_of_task, socket).await })
        })
}

async fn run(core: Arc<Core>, mut socket: WebSocket) {
    let admitted = {
        let Ok(_place) = core.handshakes.try_acquire() else {
            let refused = Refused {
                code: RefusalCode::Unavailable,
                reason: "too many machines are joining at this moment".to_owned(),
                remedy: "nothing to do: the provider tries again by itself".to_owned(),
            };
            return refuse(&core, &mut socket, refused).await;
        };
        let limit = span(core.config.uplink.handshake_us);
        tokio::select! {
            // Apart, so that its room is free again once the machine is in.
            outcome = tokio::time::timeout(limit, Box::pin(handshake::handshake(&core, &mut socket))) => outcome,
            () = core.end.cancelled() => return,
        }
    };
    let admitted = match admitted {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(handshake::Failed::Refused(refused))) => return refuse(&core, &mut socket, refused).await,
        Ok(Err(handshake::Failed::Gone)) => return,
        Err(_) => {
            let refused = Refused {
                code: RefusalCode::BadMessage,
                reason: format!(
                    "no proof within {:.0} s (uplink.handshake_us)",
                    core.config.uplink.handshake_us.as_secs_f64()
                ),
                remedy: "check the network between provider and coordinator".to_owned(),
            };
            return refuse(&core, &mut socket, refused).await;
        }
    };
    let terms = handshake::welcome(&core, &admitted.hello);
    let (session, ends) = Session::new(&admitted, &terms, core.machines.connected());
    let session = Arc::new(session);
    // First on its lane: from the moment that the machine is known, pools may have things to tell it.
    session.lanes.control(FromCoordinator::Welcome(terms));
    match core.machines.connect(&session, &admitted.hello) {
        Ok(after) => core.carry_out(None, after),
        Err(refused) => return refuse(&core, &mut socket, refused).await,
    }
    core.look_again(&session, &admitted.hello.token).await;
    let up = fleet::group::Input::MachineUp { machine: session.machine, incarnation: session.incarnation };
    core.group_input(None, &up);
    tracing::info!(machine = %session.machine, name = session.name, agent = admitted.hello.agent, "a machine joined");
    let (sink, stream) = socket.split();
    let uplink = &core.config.uplink;
    let (ping, silence) = (span(uplink.heartbeat_us), span(uplink.silence_us_max));
    let writer = core.tasks.spawn(lanes::write(sink, ends, ping, silence));
    let left = session::read(&core, &session, stream).await;
    let after = core.machines.disconnect(&session, left.lost, &left.reason);
    core.carry_out(None, after);
    if core.machines.session(session.machine).is_none() {
        core.group_input(None, &fleet::group::Input::MachineGone { machine: session.machine });
        core.deployments.inbox.gone(&session, core.clock.now());
        core.deployments.look_soon();
    }
    tracing::info!(machine = %session.machine, name = session.name, reason = %left.reason, "a machine left");
    if let Some(refused) = left.refused {
        session.lanes.control(FromCoordinator::Refused(refused));
    }
    session.lanes.close.cancel();
    // The writer ends by itself: each of its writes has a deadline.
    let _ = writer.await;
}

impl Core {
    /// A machine's key may have been revoked after it was looked at and before whoever revoked it could find the session.
    async fn look_again(&self, session: &Session, token: &str) {
        if let Some(key) = session.joined_with
            && handshake::admitted_by(self, token).await.is_err()
        {
            self.end_joined(key);
        }
    }

    /// Ends the connections of machines that joined with a key which is no more.
    pub(crate) fn end_joined(&self, key: KeyId) {
        for session in self.machines.sessions().into_iter().filter(|s| s.joined_with == Some(key)) {
            tracing::info!(machine = %session.machine, name = session.name, %key, "a machine's key was revoked");
            session.lanes.control(FromCoordinator::Refused(session::no_more("was revoked")));
            session.lanes.close.cancel();
        }
    }
}

/// Says why not, and closes.
async fn refuse(core: &Core, socket: &mut WebSocket, refused: Refused) {
    let code = match refused.code {
        RefusalCode::BadToken => "bad_token",
        RefusalCode::BadProtocol => "bad_protocol",
        RefusalCode::BadIdentity => "bad_identity",
        RefusalCode::BadMessage => "bad_message",
        RefusalCode::Superseded => "superseded",
        RefusalCode::Unavailable => "unavailable",
        RefusalCode::Unknown => "unknown",
    };
    Metrics::count(&core.metrics.uplink_refusals, code);
    tracing::warn!(code, reason = refused.reason, remedy = refused.remedy, "a provider was refused");
    let text = FromCoordinator::Refused(refused).encode();
    let farewell = async {
        if socket.send(Message::Text(text.into())).await.is_ok() {
            let _ = socket.send(Message::Close(None)).await;
            // The peer's own close, so that what was sent is not cut off by a reset.
            while let Some(Ok(message)) = socket.recv().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), farewell).await;
}
