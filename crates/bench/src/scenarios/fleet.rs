//! A coordinator and providers as processes of their own, started from this very program, ended when done.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wire::admin::{CreateKey, CreatedKey, FleetStatus, KeyTerms, SegmentReport};

/// How long processes may take to become ready: loading is quick, two cores that also compile are not.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a process may take to end after it was asked to.
const END_MAX: Duration = Duration::from_secs(20);
/// How often a file or an address is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// KV memory of each provider: room for sixteen 10 KB prompts of the bundled model, and seven providers fit in 1 GiB.
const KV_BYTES: &str = "134217728";
/// A request that takes longer has failed.
const REQUEST_MAX: Duration = Duration::from_secs(900);

/// A running fleet. Dropping it kills its processes, and only those.
pub(crate) struct Fleet {
    processes: Vec<Process>,
    folder: TempDir,
    /// For everything under `/v1` and `/api`.
    pub(crate) client: reqwest::Client,
    pub(crate) url: String,
    admin_key: String,
    /// With which machines join.
    pub(crate) join_token: String,
    /// From nothing to every provider eligible.
    pub(crate) started_after: Duration,
}

/// One process, killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// The coordinator's ready file.
#[derive(Deserialize)]
pub(crate) struct CoordinatorReady {
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) join_token: String,
}

impl Fleet {
    /// Starts a coordinator with `settings` and one provider for each of `models`, and waits until all take requests.
    pub(crate) async fn start(models: &[&str], settings: &[&str]) -> anyhow::Result<Self> {
        Self::with_engine(models, settings, &[]).await
    }

    /// As [`Fleet::start`], with more options for every provider.
    pub(crate) async fn with_engine(
        models: &[&str],
        settings: &[&str],
        engine: &[&str],
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let mut fleet = Self::coordinator(settings).await?;
        // Each engine gets its part of the cores: threads that wait for each other's cores only spin.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / models.len().max(1)).max(1).to_string();
        for (index, model) in models.iter().enumerate() {
            fleet.provider(index, |command| {
                command.args(["--model", &format!("{model}=bundled")]);
                command.args(["--threads", &threads, "--kv-memory", KV_BYTES]).args(engine);
            })?;
        }
        fleet.serve(models, begun).await
    }

    /// A coordinator and one provider of the model `phalanx-bundled`, with arguments of the caller's.
    pub(crate) async fn with_provider(
        settings: &[&str],
        arguments: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let mut fleet = Self::coordinator(settings).await?;
        fleet.provider(0, arguments)?;
        fleet.serve(&["phalanx-bundled"], begun).await
    }

    async fn coordinator(settings: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("phalanx-bench-").tempdir()?;
        let mut coordinator = Process::start(folder.path(), "coordinator", |command| {
            command.args(["coordinator", "--listen", "127.0.0.1:0"]);
            for setting in settings {
                command.args(["--set", setting]);
            }
        })?;
        let ready: CoordinatorReady = coordinator.ready(folder.path()).await?;
        let client = reqwest::Client::builder().timeout(REQUEST_MAX).no_proxy().build()?;
        Ok(Self {
            processes: vec![coordinator],
            folder,
            client,
            url: ready.url,
            admin_key: ready.key,
            join_token: ready.join_token,
            started_after: Duration::ZERO,
        })
    }

    fn provider(&mut self, index: usize, arguments: impl FnOnce(&mut Command)) -> anyhow::Result<()> {
        let name = format!("provider-{}", index + 1);
        let process = Process::start(self.folder.path(), &name, |command| {
            command.args(["provider", "--join", &self.url, "--token", &self.join_token, "--name", &name]);
            arguments(command);
        })?;
        self.processes.push(process);
        Ok(())
    }

    async fn serve(mut self, models: &[&str], begun: Instant) -> anyhow::Result<Self> {
        for process in &mut self.processes[1..] {
            let _: serde_json::Value = process.ready(self.folder.path()).await?;
        }
        self.await_eligible(models).await?;
        self.started_after = begun.elapsed();
        Ok(self)
    }

    /// Of its coordinator.
    pub(crate) fn coordinator_pid(&self) -> Option<u32> {
        self.processes.first().and_then(|process| process.child.id())
    }

    /// The fleet, as its coordinator sees it.
    pub(crate) async fn status(&self) -> anyhow::Result<FleetStatus> {
        self.get("/api/status").await
    }

    /// Waits until the coordinator takes every provider for eligible.
    async fn await_eligible(&mut self, models: &[&str]) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let status: FleetStatus = self.get("/api/status").await?;
            let eligible = |model: &str| {
                let pool = status.models.iter().find(|pool| pool.model.as_str() == model);
                pool.map_or(0, |pool| pool.eligible.0 as usize)
            };
            if models.iter().all(|m| eligible(m) == models.iter().filter(|other| *other == m).count()) {
                return Ok(());
            }
            for process in &mut self.processes {
                process.check_alive()?;
            }
            ensure!(Instant::now() < deadline, "not every provider takes requests:\n{}", self.logs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response =
            self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.admin_key).send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "GET {path}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("reading GET {path}"))
    }

    /// One new key, and so one new account, for each user.
    pub(crate) async fn user_keys(&self, users: usize) -> anyhow::Result<Vec<String>> {
        let mut keys = Vec::with_capacity(users);
        for user in 0..users {
            let wanted = CreateKey {
                name: format!("bench-user-{user}"),
                account: None,
                admin: false,
                terms: KeyTerms::default(),
            };
            let response = self
                .client
                .post(format!("{}/api/keys", self.url))
                .bearer_auth(&self.admin_key)
                .json(&wanted)
                .send()
                .await?;
            let status = response.status();
            let text = response.text().await?;
            ensure!(status.is_success(), "POST /api/keys: {status}: {text}");
            let created: CreatedKey = serde_json::from_str(&text).context("reading POST /api/keys")?;
            keys.push(created.secret);
        }
        Ok(keys)
    }

    /// The coordinator's segments, once `requests` have settled (a request settles after its last byte).
    pub(crate) async fn segments(&self, requests: u64, patience: Duration) -> anyhow::Result<SegmentReport> {
        let deadline = Instant::now() + patience;
        loop {
            let report: SegmentReport = self.get("/api/segments").await?;
            if report.completed + report.other >= requests || Instant::now() > deadline {
                return Ok(report);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends everything that was started, providers first; what they last wrote, for reports of failures.
    pub(crate) async fn end(mut self) -> String {
        let mut notes = String::new();
        let coordinator = self.processes.remove(0);
        for process in &self.processes {
            process.ask_to_end();
        }
        let providers = std::mem::take(&mut self.processes);
        for mut process in providers {
            notes.push_str(&process.await_end().await);
        }
        let mut coordinator = coordinator;
        coordinator.ask_to_end();
        notes.push_str(&coordinator.await_end().await);
        notes
    }

    fn logs(&self) -> String {
        self.processes.iter().map(Process::log_tail).collect()
    }
}

impl Process {
    /// Starts this very program with `arguments`, data and ready file below `folder`.
    pub(crate) fn start(
        folder: &Path,
        name: &str,
        arguments: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(program);
        arguments(&mut command);
        command
            .args(["--data".as_ref(), folder.join(name).as_os_str()])
            .args(["--ready-file".as_ref(), ready_file(folder, name).as_os_str()])
            // What the caller set for its own coordinator is not meant for this one.
            .env_remove("PHALANX_CONFIG")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits for its ready file.
    pub(crate) async fn ready<T: serde::de::DeserializeOwned>(&mut self, folder: &Path) -> anyhow::Result<T> {
        let path = ready_file(folder, &self.name);
        let deadline = Instant::now() + START_MAX;
        loop {
            // The file may be seen before it is whole: what does not parse yet is looked at again.
            if let Ok(text) = std::fs::read(&path)
                && let Ok(ready) = serde_json::from_slice(&text)
            {
                return Ok(ready);
            }
            self.check_alive()?;
            ensure!(
                Instant::now() < deadline,
                "{} is not ready after {START_MAX:?}\n{}",
                self.name,
                self.log_tail()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}\n{}", self.name, self.log_tail()),
        }
    }

    /// Kills it (-9), and waits until it is gone. Its ready file is removed, so that the next one's is seen.
    pub(crate) async fn kill(&mut self, folder: &Path) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))?;
        let _ = std::fs::remove_file(ready_file(folder, &self.name));
        Ok(())
    }

    pub(crate) fn ask_to_end(&self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself; then there is nobody to ask.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    pub(crate) async fn await_end(&mut self) -> String {
        let ended = tokio::time::timeout(END_MAX, self.child.wait()).await;
        if ended.is_err() {
            let _ = self.child.kill().await;
            return format!("{} had to be killed\n{}", self.name, self.log_tail());
        }
        self.log_tail()
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n    ");
        format!("  {}:\n    {tail}\n", self.name)
    }
}

fn ready_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}
