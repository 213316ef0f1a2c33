//! The thread that makes attempts' keys before they are needed: a key agreement is most of what sealing takes, and neither a
//! request nor a machine's writer should wait for another's.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use super::session::Session;

/// Where sessions say that they want more. Its thread ends with it.
pub(crate) struct KeyMaker {
    // Unbounded, and bounded all the same: a session is in it once at most.
    wanting: Sender<Weak<Session>>,
}

impl KeyMaker {
    pub(crate) fn start() -> Self {
        let (wanting, from) = channel();
        // Without it every attempt makes its own keys: slower, and nothing else.
        if let Err(error) = std::thread::Builder::new().name("phalanx-keys".into()).spawn(move || make(&from))
        {
            tracing::warn!(%error, "attempts' keys are not made ahead");
        }
        Self { wanting }
    }

    /// `session` has few left, or none yet.
    pub(crate) fn restock(&self, session: &Arc<Session>) {
        let _ = self.wanting.send(Arc::downgrade(session));
    }
}

fn make(wanting: &Receiver<Weak<Session>>) {
    while let Ok(session) = wanting.recv() {
        if let Some(session) = session.upgrade() {
            session.restock();
        }
    }
}
