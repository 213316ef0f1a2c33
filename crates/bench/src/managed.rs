//! A coordinator and managed machines as processes of their own: what runs on them, deployments say.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::scenarios::fleet::{CoordinatorReady, Process};

/// How long any step may take.
pub(crate) const STEP_MAX: Duration = Duration::from_secs(120);
/// Between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The fleet. Dropping it kills its processes.
pub(crate) struct Managed {
    pub(crate) folder: TempDir,
    pub(crate) client: reqwest::Client,
    pub(crate) url: String,
    pub(crate) key: String,
    join_token: String,
    pub(crate) coordinator: Process,
    pub(crate) providers: Vec<Process>,
    /// What each machine is started with, beside its name and coordinator.
    arguments: Vec<String>,
}

impl Managed {
    pub(crate) async fn start(providers: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("phalanx-managed-").tempdir()?;
        let mut coordinator = Process::start(folder.path(), "coordinator", |command| {
            command.args(["coordinator", "--listen", "127.0.0.1:0"]);
        })?;
        let ready: CoordinatorReady = coordinator.ready(folder.path()).await?;
        let client = reqwest::Client::builder().no_proxy().timeout(STEP_MAX).build()?;
        let (url, key, join_token) = (ready.url, ready.key, ready.join_token);
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let providers_of = Vec::with_capacity(providers);
        let mut house =
            Self { folder, client, url, key, join_token, coordinator, providers: providers_of, arguments };
        for index in 0..providers {
            let process = house.provider(index)?;
            house.providers.push(process);
        }
        for process in &mut house.providers {
            let _: Value = process.ready(house.folder.path()).await?;
        }
        Ok(house)
    }

    pub(crate) fn provider(&self, index: usize) -> anyhow::Result<Process> {
        let name = name(index);
        Process::start(self.folder.path(), &name, |command| {
            command.args(["provider", "--join", &self.url, "--token", &self.join_token, "--name", &name]);
            command.args(["--managed", "--threads", "1", "--memory-limit", "1GiB"]).args(&self.arguments);
        })
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.key);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.url)).bearer_auth(&self.key);
        Ok(request.json(body).send().await?.error_for_status()?.json().await?)
    }

    pub(crate) fn logs(&self) -> String {
        let providers: String = self.providers.iter().map(Process::log_tail).collect();
        self.coordinator.log_tail() + &providers
    }

    pub(crate) async fn end(mut self) {
        self.providers.iter().for_each(Process::ask_to_end);
        for process in &mut self.providers {
            process.await_end().await;
        }
        self.coordinator.ask_to_end();
        self.coordinator.await_end().await;
    }
}

/// What a machine is called.
pub(crate) fn name(index: usize) -> String {
    format!("machine-{}", index + 1)
}
