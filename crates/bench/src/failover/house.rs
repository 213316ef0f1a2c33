//! A coordinator and providers that are killed and started again, each under its own identity.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use tempfile::TempDir;

use crate::scenarios::fleet::{CoordinatorReady, Process};

/// KV memory of each provider.
const KV_BYTES: &str = "134217728";

/// How long a fleet may take to serve.
const START_MAX: Duration = Duration::from_secs(120);

/// The fleet. Dropping it kills its processes.
pub(super) struct House {
    folder: TempDir,
    pub(super) client: reqwest::Client,
    pub(super) url: String,
    pub(super) key: String,
    join_token: String,
    coordinator: Process,
    providers: Vec<Process>,
}

impl House {
    pub(super) async fn start(providers: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("phalanx-failover-").tempdir()?;
        let mut coordinator = Process::start(folder.path(), "coordinator", |command| {
            command.args(["coordinator", "--listen", "127.0.0.1:0"]);
        })?;
        let ready: CoordinatorReady = coordinator.ready(folder.path()).await?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut house = Self {
            folder,
            client,
            url: ready.url,
            key: ready.key,
            join_token: ready.join_token,
            coordinator,
            providers: Vec::new(),
        };
        for index in 0..providers {
            let process = house.provider(index)?;
            house.providers.push(process);
        }
        for process in &mut house.providers {
            let _: Value = process.ready(house.folder.path()).await?;
        }
        house.served().await?;
        Ok(house)
    }

    /// Waits until somebody serves.
    async fn served(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let models = self.client.get(format!("{}/v1/models", self.url)).bearer_auth(&self.key);
            if let Ok(response) = models.send().await
                && let Ok(list) = response.json::<Value>().await
                && list["data"].as_array().is_some_and(|models| !models.is_empty())
            {
                return Ok(());
            }
            self.coordinator.check_alive()?;
            ensure!(Instant::now() < deadline, "nothing is served\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn provider(&self, index: usize) -> anyhow::Result<Process> {
        let name = format!("provider-{}", index + 1);
        Process::start(self.folder.path(), &name, |command| {
            command.args(["provider", "--join", &self.url, "--token", &self.join_token, "--name", &name]);
            command.args(["--model", "bundled", "--threads", "1", "--kv-memory", KV_BYTES]);
        })
    }

    /// Kills a provider and starts it again; false where it was not running yet.
    pub(super) async fn kill_provider(&mut self, index: usize) -> anyhow::Result<bool> {
        self.providers[index].check_alive()?;
        self.providers[index].kill(self.folder.path()).await?;
        self.providers[index] = self.provider(index)?;
        Ok(true)
    }

    /// Kills the coordinator and starts it again at its address, on its data.
    pub(super) async fn kill_coordinator(&mut self) -> anyhow::Result<()> {
        self.coordinator.kill(self.folder.path()).await?;
        let listen = self.url.trim_start_matches("http://").to_owned();
        self.coordinator = Process::start(self.folder.path(), "coordinator", |command| {
            command.args(["coordinator", "--listen", &listen]);
        })?;
        Ok(())
    }

    pub(super) fn logs(&self) -> String {
        let providers: String = self.providers.iter().map(Process::log_tail).collect();
        self.coordinator.log_tail() + &providers
    }

    /// Ends everything; what each wrote last.
    pub(super) async fn end(mut self) -> String {
        let mut notes = String::new();
        self.providers.iter().for_each(Process::ask_to_end);
        for process in &mut self.providers {
            notes.push_str(&process.await_end().await);
        }
        self.coordinator.ask_to_end();
        notes.push_str(&self.coordinator.await_end().await);
        notes
    }
}
