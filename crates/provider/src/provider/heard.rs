//! What the coordinator says, read and carried out.

use base::AttemptId;
use tokio_tungstenite::tungstenite::{self, Message};
use wire::control::{FromCoordinator, FromProvider};

use super::Provider;
use crate::attempt::intake::{Declined, Intake};
use crate::attempt::lane::Load;
use crate::event::Event;
use crate::session::Session;
use crate::uplink::machine::{Input, clipped};

impl Provider {
    pub(super) fn heard(&mut self, heard: Option<Result<Message, tungstenite::Error>>) -> Input {
        let message = match heard {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let detail = format!("the connection broke: {}", clipped(&error.to_string()));
                return Input::Closed { detail };
            }
            None => return Input::Closed { detail: "the coordinator closed the connection".into() },
        };
        match message {
            Message::Text(text) => {
                let limit = self.session.as_ref().map_or(0, Session::control_bytes_max);
                if text.len() > limit {
                    let detail = format!("a text message of {} bytes, over the limit of {limit}", text.len());
                    return Input::Misread { detail };
                }
                match FromCoordinator::decode(&text) {
                    Ok(message) => Input::Message(message),
                    Err(error) => {
                        tracing::warn!(%error, "a message of the coordinator cannot be read");
                        Input::Misread { detail: error.to_string() }
                    }
                }
            }
            Message::Binary(bytes) => self.frame(&bytes),
            Message::Close(frame) => {
                let why = frame.map(|f| clipped(&f.reason)).filter(|reason| !reason.is_empty());
                let why = why.map(|reason| format!(": {reason}")).unwrap_or_default();
                Input::Closed { detail: format!("the coordinator closed the connection{why}") }
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Input::Heard,
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> Input {
        let Some(session) = self.session.as_ref().filter(|_| self.uplink.is_up()) else {
            return Input::Misread { detail: "a binary message before the session stands".into() };
        };
        let intake = Intake {
            keys: &self.identity.keys,
            spans: self.spans.as_ref(),
            instances: &self.instances,
            table: &self.table,
            lane: session.lane(),
            data_bytes_max: session.data_bytes_max(),
            draining: self.uplink.is_draining(),
            reoffer: session.reoffers(),
            credit: session.credit(),
        };
        match intake.take(bytes) {
            Ok(()) => Input::Heard,
            Err(Declined::Refused { attempt, reason, message }) => {
                tracing::info!(%attempt, ?reason, message, "attempt refused");
                self.say(&FromProvider::AttemptRefused { attempt, reason, message }).unwrap_or(Input::Heard)
            }
            Err(Declined::Misread { detail }) => {
                tracing::warn!(detail, "a frame of the coordinator cannot be read");
                Input::Misread { detail }
            }
        }
    }

    /// Goes on with an attempt that was offered again.
    fn resume(&mut self, attempt: AttemptId, from: u64) {
        let Some(session) = &self.session else { return };
        let until = session.credit().map(|credit| from.saturating_add(credit));
        if !self.table.resume(attempt, session.lane(), from, until) {
            self.table.cancel(attempt);
            let message = "what was asked of it is no longer kept".to_owned();
            let _ = self.say(&FromProvider::AttemptFailed { attempt, message });
        }
    }

    pub(super) fn carry(&mut self, message: FromCoordinator) {
        match message {
            FromCoordinator::Resume { attempt, from_counter } => self.resume(attempt, from_counter),
            FromCoordinator::Credit { attempt, until_counter } => self.table.grant(attempt, until_counter),
            FromCoordinator::Cancel { attempt } => self.table.cancel(attempt),
            FromCoordinator::Standing { lines } => {
                let lines: Vec<String> = lines.iter().take(64).map(|line| clipped(line)).collect();
                self.tell(Event::Standing { lines });
            }
            FromCoordinator::WantKit { kit_sha256 } => match (self.instances.kit(&kit_sha256), &self.session)
            {
                (Some(kit), Some(session)) => session.lane().push(Load::Kit(kit)),
                _ => {
                    tracing::warn!(kit = clipped(&kit_sha256), "the coordinator wants a kit that is not here")
                }
            },
            message @ (FromCoordinator::AssignGroup(_)
            | FromCoordinator::GroupRoster(_)
            | FromCoordinator::UnassignGroup { .. }) => self.carry_group(message),
            message @ (FromCoordinator::Assign(_)
            | FromCoordinator::Unassign(_)
            | FromCoordinator::RenewLeases(_)) => self.carry_assignment(message),
            FromCoordinator::Peers(peers) => self.listed(peers),
            FromCoordinator::FetchModel(wanted) => self.fetch(wanted),
            FromCoordinator::Lend(lends) => self.lend(lends),
            _ => {}
        }
    }
}
