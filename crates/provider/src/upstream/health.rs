//! Whether the server is there.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::watch;

use super::ask::{authorised, clipped, url};
use super::{Shared, UpstreamConfig};

/// How often to ask.
const INTERVAL: Duration = Duration::from_secs(3);
/// How long the answer may take: a busy server answers late, a dead one not at all.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Failures in a row until it counts as down: one may be a hiccup.
const FAILURES_MAX: u32 = 2;

/// Asks once.
pub(super) async fn look(client: &reqwest::Client, config: &UpstreamConfig) -> Result<(), String> {
    let address = url(config, "models");
    let asked = authorised(client.get(&address), config).timeout(ANSWER_MAX).send().await;
    match asked {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("{address} answers {}", answer.status())),
        Err(error) => Err(clipped(&crate::load::chain(&error))),
    }
}

/// Asks again and again, until it is stopped or nobody needs it any more.
pub(super) async fn watch(shared: Weak<Shared>, mut stopping: watch::Receiver<bool>) {
    let mut failures = 0;
    loop {
        tokio::select! {
            _ = tokio::time::sleep(INTERVAL) => {}
            _ = stopping.changed() => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        let seen = look(&shared.client, &shared.config).await;
        let mut state = shared.state.lock();
        match seen {
            Ok(()) => {
                failures = 0;
                if state.down.take().is_some() {
                    tracing::info!(url = shared.config.url, "the server answers again");
                }
            }
            Err(detail) => {
                failures += 1;
                if failures >= FAILURES_MAX && state.down.is_none() {
                    tracing::warn!(url = shared.config.url, detail, "the server does not answer");
                    state.down = Some(format!("the server behind this instance does not answer: {detail}"));
                }
            }
        }
    }
}
