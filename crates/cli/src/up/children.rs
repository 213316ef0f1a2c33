//! The providers that `phalanx up` starts: kept running, started again when they die, ended with it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::place::make_private;

/// What to start.
pub(crate) struct Plan {
    /// This program.
    pub(crate) program: PathBuf,
    /// How many.
    pub(crate) count: u32,
    /// The coordinator's address.
    pub(crate) join: String,
    /// Lets them in. Handed over in the environment: arguments can be read by every user of a machine.
    pub(crate) token: String,
    /// Each gets a folder in here; what this machine was measured to do is here for all of them.
    pub(crate) folder: PathBuf,
    /// Models and engine.
    pub(crate) arguments: Vec<String>,
}

/// A provider that dies sooner than this after its start has a fault that a new start does not cure at once.
const HEALTHY: Duration = Duration::from_secs(30);
/// Starts in a row that did not become healthy, after which `up` gives up.
const STARTS_MAX: u32 = 5;
/// Signals that come from outside. A process that fails ends by itself, or by others than these.
const SIGKILL: i32 = Signal::KILL.as_raw();
const SIGTERM: i32 = Signal::TERM.as_raw();
/// How long providers may take to finish and end.
const END_MAX: Duration = Duration::from_secs(35);

struct Member {
    name: String,
    child: Child,
    started: Instant,
    starts: u32,
}

/// The started providers. Dropping kills them.
pub(crate) struct Children {
    plan: Plan,
    members: Vec<Member>,
}

impl Children {
    /// Starts them all.
    pub(crate) fn start(plan: Plan) -> anyhow::Result<Self> {
        let mut members = Vec::new();
        for index in 1..=plan.count {
            let name = format!("machine-{index}");
            let child = spawn(&plan, &name)?;
            members.push(Member { name, child, started: Instant::now(), starts: 1 });
        }
        Ok(Self { plan, members })
    }

    /// Starts again whatever dies. Returns only when that is no use.
    pub(crate) async fn keep(&mut self) -> anyhow::Error {
        loop {
            let (index, status) = first_to_end(&mut self.members).await;
            let member = &mut self.members[index];
            if member.started.elapsed() > HEALTHY {
                member.starts = 0;
            }
            // One that somebody kills is none that fails, and is started as often as that is done.
            let killed = matches!(status.signal(), Some(SIGKILL | SIGTERM));
            if member.starts >= STARTS_MAX && !killed {
                return anyhow!("{} ended {STARTS_MAX} times in a row ({status}): see above", member.name);
            }
            // Short at first: a provider that was killed is wanted back; longer when it keeps dying.
            let pause = Duration::from_millis(100) * (1 << member.starts.min(STARTS_MAX));
            eprintln!("{} ended ({status}); starting it again", member.name);
            tokio::time::sleep(pause).await;
            match spawn(&self.plan, &member.name) {
                Ok(child) => member.child = child,
                Err(error) => return error,
            }
            member.started = Instant::now();
            member.starts += 1;
        }
    }

    /// Asks them to finish, and kills those that do not.
    pub(crate) async fn stop(&mut self) {
        for member in &self.members {
            let pid = member.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
            if let Some(pid) = pid {
                // One that has ended meanwhile needs no signal.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let all = async {
            for member in &mut self.members {
                let _ = member.child.wait().await;
            }
        };
        if tokio::time::timeout(END_MAX, all).await.is_err() {
            for member in &mut self.members {
                let _ = member.child.kill().await;
            }
        }
    }
}

/// Which member ends first, and how.
async fn first_to_end(members: &mut [Member]) -> (usize, ExitStatus) {
    let waits = members.iter_mut().enumerate().map(|(index, member)| {
        Box::pin(async move {
            match member.child.wait().await {
                Ok(status) => (index, status),
                // Waiting for a child of one's own does not fail; if it did, it would be for good.
                Err(_) => std::future::pending().await,
            }
        })
    });
    futures_util::future::select_all(waits).await.0
}

fn spawn(plan: &Plan, name: &str) -> anyhow::Result<Child> {
    let folder: &Path = &plan.folder.join(name);
    make_private(folder)?;
    let mut command = Command::new(&plan.program);
    command
        .args(["provider", "--join", &plan.join, "--name", name, "--quiet"])
        .args(["--with-parent", &std::process::id().to_string()])
        .arg("--data")
        .arg(folder)
        .arg("--measured-beside")
        .arg(&plan.folder)
        .args(&plan.arguments)
        .env("PHALANX_JOIN_TOKEN", &plan.token)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Ctrl-C in a terminal reaches its whole process group: these are told by their parent, in order.
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", plan.program.display()))
}
