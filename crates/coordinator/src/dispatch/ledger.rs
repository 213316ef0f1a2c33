//! A reservation that is settled on every path: by its owner, or, where the owner is gone, by its own drop.
//!
//! It is written while the request is queued, routed, sent and prefilled, and awaited before the first token leaves: nobody
//! gets anything that the ledger might not know of, and a disk's sync (milliseconds) is hidden behind work that takes longer.

use std::sync::Arc;

use base::RequestId;
use store::{Name, Outcome, Reservation, Settlement, StoreError};
use tokio::task::JoinHandle;

use super::Work;
use crate::clock::unix_us;
use crate::core::Core;

/// What is kept with a settlement: its receipt's evidence, and the caller's own name for the request.
pub(super) type Kept = (String, Option<Name>);

/// An open reservation.
pub(super) struct Open {
    core: Arc<Core>,
    request: RequestId,
    writing: Writing,
    settled: bool,
}

/// How far the write has come.
enum Writing {
    Underway(JoinHandle<Result<(), StoreError>>),
    Durable,
    Failed(StoreError),
}

impl Open {
    /// Begins to set the worst case of a request aside.
    pub(super) fn begin(core: &Arc<Core>, work: &Work) -> Self {
        let reservation = Reservation {
            request: work.request,
            account: work.key.account,
            key: work.key.id,
            model: work.served.name.clone(),
            prompt_tokens: u32::try_from(work.prompt.len()).unwrap_or(u32::MAX),
            max_tokens: work.ask.max_tokens,
            price: work.price,
            at_unix_us: unix_us(),
        };
        let store = Arc::clone(&core.store);
        let writing = Writing::Underway(core.tasks.spawn(async move { store.reserve(reservation).await }));
        Self { core: Arc::clone(core), request: work.request, writing, settled: false }
    }

    /// Waits until it is on the disk.
    pub(super) async fn durable(&mut self) -> Result<(), StoreError> {
        if let Writing::Underway(task) = &mut self.writing {
            self.writing = match task.await {
                Ok(Ok(())) => Writing::Durable,
                Ok(Err(error)) => Writing::Failed(error),
                // The task was ended with its runtime, and the store with it.
                Err(_) => Writing::Failed(StoreError::Closed),
            };
        }
        match &self.writing {
            Writing::Failed(error) => Err(error.clone()),
            Writing::Durable | Writing::Underway(_) => Ok(()),
        }
    }

    /// Turns it into what was delivered. A failure is logged: the store itself tries again.
    pub(super) async fn settle(mut self, tokens: (u32, u32), outcome: Outcome, kept: Kept) {
        let reserved = self.durable().await;
        self.settled = true;
        // What was never written has nothing to give back.
        if reserved.is_ok() {
            settle(&self.core, self.request, tokens, (outcome, kept)).await;
        }
    }
}

async fn settle(
    core: &Core,
    request: RequestId,
    tokens: (u32, u32),
    (outcome, (evidence, named)): (Outcome, Kept),
) {
    let settlement = Settlement {
        request,
        prompt_tokens: tokens.0,
        generated_tokens: tokens.1,
        outcome,
        at_unix_us: unix_us(),
        evidence,
        named,
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
        let writing = std::mem::replace(&mut self.writing, Writing::Durable);
        let _task = self.core.tasks.spawn(async move {
            if let Writing::Underway(task) = writing {
                // Settled below either way: a settlement without a reservation is refused by the store.
                let _ = task.await;
            }
            settle(&core, request, (0, 0), (Outcome::Failed, Kept::default())).await;
        });
    }
}
