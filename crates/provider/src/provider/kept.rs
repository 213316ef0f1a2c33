//! Attempts that outlive their connection, or do not.

use wire::control::FromProvider;

use super::{KEPT_FOR, Provider};
use crate::session::Session;
use crate::uplink::machine::Input;

impl Provider {
    pub(super) fn abandon(&mut self) {
        if let Some(session) = &self.session {
            session.lane().close();
        }
        self.let_go();
    }

    /// Nobody waits for any attempt any more.
    pub(super) fn let_go(&mut self) {
        let abandoned = self.table.abandon();
        if abandoned > 0 {
            tracing::warn!(abandoned, "attempts abandoned");
        }
        if self.leaving {
            self.abandoned += abandoned;
        }
    }

    /// The connection is gone: attempts go on without one for a while, where its terms allow that.
    pub(super) fn detach(&mut self) {
        let Some(session) = &self.session else { return };
        if !session.is_adopted() {
            return;
        }
        if !session.reoffers() || self.leaving {
            return self.abandon();
        }
        session.lane().close();
        let kept = self.table.detach();
        self.kept_until = Some(self.now().saturating_add(KEPT_FOR));
        if kept > 0 {
            tracing::info!(kept, "attempts go on without a connection");
        }
    }

    /// Offers again what outlived the last connection; lets go of it where this coordinator takes none.
    pub(super) fn offer_kept(&mut self) -> Option<Input> {
        self.kept_until = None;
        if !self.session.as_ref().is_some_and(Session::reoffers) {
            self.let_go();
            return None;
        }
        let kept = self.table.kept();
        // Said in any case: who has nothing left says so, and nobody waits for it.
        self.say(&FromProvider::Kept { attempts: kept })
    }
}
