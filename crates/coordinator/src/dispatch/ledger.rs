//! A reservation that is settled on every path: by its owner, or, where the owner is gone, by its own drop.

use std::sync::Arc;

use base::RequestId;
use store::{Outcome, Reservation, Settlement, StoreError};

use super::Work;
use crate::clock::unix_us;
use crate::core::Core;

/// An open reservation.
pub(super) struct Open {
    core: Arc<Core>,
    request: RequestId,
    settled: bool,
}

impl Open {
    /// Sets the worst case of a request aside.
    pub(super) async fn reserve(core: &Arc<Core>, work: &Work) -> Result<Self, StoreError> {
        let reservation = Reservation {
            request: work.request,
            account: work.key.account,
            key: work.key.id,
            model: work.served.name.clone(),
            prompt_tokens: u32::try_from(work.prompt.len()).unwrap_or(u32::MAX),
            max_tokens: work.ask.max_tokens,
            at_unix_us: unix_us(),
        };
        core.store.reserve(reservation).await?;
        Ok(Self { core: Arc::clone(core), request: work.request, settled: false })
    }

    /// Turns it into what was delivered. A failure is logged: the store itself tries again.
    pub(super) async fn settle(mut self, prompt_tokens: u32, generated_tokens: u32, outcome: Outcome) {
        self.settled = true;
        settle(&self.core, self.request, (prompt_tokens, generated_tokens), outcome).await;
    }
}

async fn settle(core: &Core, request: RequestId, tokens: (u32, u32), outcome: Outcome) {
    let settlement = Settlement {
        request,
        prompt_tokens: tokens.0,
        generated_tokens: tokens.1,
        outcome,
        at_unix_us: unix_us(),
    };
    if let Err(error) = core.store.settle(settlement).await {
        tracing::error!(%request, %error, "a settlement failed");
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        // Only a panic in the request's task comes here.
        let (core, request) = (Arc::clone(&self.core), self.request);
        let _task = self.core.tasks.spawn(async move {
            settle(&core, request, (0, 0), Outcome::Failed).await;
        });
    }
}
