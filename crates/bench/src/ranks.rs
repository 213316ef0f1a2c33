//! A group whose ranks are processes of this machine, over sealed links on its loopback.
//!
//! The parent is rank 0. Each child is this program again (`phalanx rank`): it is told its task on standard input, says
//! where it listens and under which key, gets the roster, and takes part until the leader says goodbye or is gone.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context, bail};
use base::{Epoch, Incarnation, InstanceId, ModelName};
use collective::{Communicator, WireType};
use engine::group::{
    Following, GroupEnd, GroupMode, GroupReport, GroupSeat, Member as Machine, ShardMap, follow,
};
use engine::{Engine, EngineConfig, LoadOptions, LoadedModel, ModelSource};
use link::{Cancel, Gathering, Listener, Member, Place, Timing, form};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use trust::{MachineKeys, sha256, sha256_of_files};
use wire::link::Mode;

/// The hidden verb of a child.
pub const VERB: &str = "rank";

/// What a child is to do: the first line that it reads.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    /// `bundled`, or a path.
    model: String,
    config: EngineConfig,
    mode: String,
    rank: usize,
    ranks: usize,
    core: Option<usize>,
    tokenizer_needed: bool,
    /// How long the ranks may take to find each other.
    form_ms: u64,
}

/// How long they may where nothing else is said.
const FORM_MS: u64 = 30_000;

/// Where a child listens, and under which key: the first line that it writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Door {
    key: [u8; 32],
    addresses: Vec<SocketAddr>,
}

/// All doors, in the order of ranks: the second line that a child reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Roster {
    doors: Vec<Door>,
}

/// How it went: the last line that a child writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Why the group ended, where not by a goodbye.
    pub fault: Option<String>,
    /// Where the rank's time went.
    pub report: GroupReport,
}

/// Lines of a child that wait to be read: it writes two in its life.
const LINES_MAX: usize = 4;
/// How long a child may take for its next line: to load a large model from a slow disk, or to end.
const LINE_MAX: Duration = Duration::from_secs(300);
/// How often it is looked whether all children are there while the group forms.
const LOOK: Duration = Duration::from_millis(20);
/// How long a child may take to end after the group has.
const END_MAX: Duration = Duration::from_secs(20);

struct Rank {
    child: Child,
    input: ChildStdin,
    /// What it writes, line by line; a thread reads it, so that a child which says nothing is not waited for without end.
    output: Receiver<String>,
}

impl Rank {
    fn tell(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        writeln!(self.input, "{}", serde_json::to_string(line)?)?;
        Ok(self.input.flush()?)
    }

    fn hear<T: DeserializeOwned>(&mut self, wait: Duration) -> anyhow::Result<T> {
        match self.output.recv_timeout(wait) {
            Ok(line) => Ok(serde_json::from_str(&line)?),
            Err(RecvTimeoutError::Timeout) => bail!("a rank's process said nothing for {} s", wait.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("a rank's process ended without a word; what it said is above")
            }
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // It has ended in order, or its leader is gone: nothing is lost by a kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What to divide, and how.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The name to serve it under.
    pub name: ModelName,
    /// Where the model is.
    pub source: &'a ModelSource,
    /// Whether text is wanted.
    pub options: LoadOptions,
    /// Every rank's, but that one thread computes where nothing is said.
    pub config: EngineConfig,
    /// Slices or stages.
    pub mode: GroupMode,
    /// How many, this process included.
    pub ranks: usize,
    /// One core for each rank: the core of its number, as far as there are any.
    pub pinned: bool,
}

/// Where one rank dials another, given that one's own door: (who dials, whom, its door). A test puts a proxy there.
pub type Ways<'a> = &'a dyn Fn(usize, usize, SocketAddr) -> SocketAddr;

/// A group of processes.
pub struct ProcessGroup {
    engine: Engine,
    map: ShardMap,
    ranks: Vec<Rank>,
    ended: Receiver<GroupEnd>,
}

impl ProcessGroup {
    /// Starts the other ranks and leads them.
    ///
    /// # Errors
    /// The model cannot be divided so, a process does not start, or the group does not form.
    pub fn start(wanted: &Wanted<'_>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        Self::start_over(wanted, &program, &|_, _, door| door)
    }

    /// The same with ranks that are processes of `program`, which dial each other where `ways` says.
    ///
    /// # Errors
    /// As [`ProcessGroup::start`].
    pub fn start_over(wanted: &Wanted<'_>, program: &Path, ways: Ways<'_>) -> anyhow::Result<Self> {
        let model = engine::load(wanted.source, &wanted.options)?;
        let map = model.divide(wanted.mode, &vec![Machine::default(); wanted.ranks])?;
        let threads = wanted.config.threads.or(Some(1));
        let config = EngineConfig { threads, ..wanted.config.clone() };
        if wanted.pinned {
            pin(0);
        }
        let mut ranks = Vec::new();
        for rank in 1..wanted.ranks {
            ranks.push(spawn(program)?);
            let task = Task {
                model: wanted.source.to_string(),
                config: config.clone(),
                mode: wanted.mode.to_string(),
                rank,
                ranks: wanted.ranks,
                core: wanted.pinned.then_some(rank),
                tokenizer_needed: wanted.options.tokenizer_needed,
                form_ms: FORM_MS,
            };
            let task = match wanted.source {
                ModelSource::Bundled => Task { model: "bundled".to_owned(), ..task },
                _ => task,
            };
            ranks[rank - 1].tell(&task)?;
        }
        let keys = MachineKeys::generate();
        let listener = Listener::bind(&[IpAddr::V4(Ipv4Addr::LOCALHOST)])?;
        let mut doors = vec![Door { key: keys.signing_key(), addresses: listener.addresses() }];
        for rank in &mut ranks {
            doors.push(rank.hear(LINE_MAX)?);
        }
        let roster = Roster { doors };
        for (index, rank) in ranks.iter_mut().enumerate() {
            let own = index + 1;
            let mut seen = roster.clone();
            for (to, door) in seen.doors.iter_mut().enumerate().filter(|(to, _)| *to < own) {
                door.addresses.iter_mut().for_each(|address| *address = ways(own, to, *address));
            }
            rank.tell(&seen)?;
        }
        let patience = config.group_patience_us.into();
        let cancel = Cancel::new();
        let communicator = attended(&mut ranks, &cancel, || {
            meet((&keys, &listener), &roster, (&model, &map), (0, (FORM_MS, patience), &cancel))
        })?;
        let (tell, ended) = sync_channel(1);
        let on_end = move |end| {
            // Whoever started the group may have gone.
            let _ = tell.send(end);
        };
        let seat = GroupSeat { map: map.clone(), communicator };
        let engine = Engine::start_group(wanted.name.clone(), model, config, seat, on_end)?;
        Ok(Self { engine, map, ranks, ended })
    }

    /// The engine, which takes requests as any other does.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How the model is divided.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The children's processes.
    pub fn processes(&self) -> Vec<u32> {
        self.ranks.iter().map(|rank| rank.child.id()).collect()
    }

    /// Says goodbye and waits for every rank's account: none from one that was killed, or that does not end.
    pub fn stop(mut self) -> (Option<GroupEnd>, Vec<anyhow::Result<Account>>) {
        self.engine.stop();
        let accounts = self.ranks.iter_mut().map(|rank| rank.hear(END_MAX)).collect();
        (self.ended.try_recv().ok(), accounts)
    }
}

fn spawn(program: &Path) -> anyhow::Result<Rank> {
    let mut child = Command::new(program)
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a rank's process")?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (input, output) = input.zip(output).context("a rank's process has no pipes")?;
    let (said, heard) = sync_channel(LINES_MAX);
    let read = move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if said.send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("rank-output".to_owned()).spawn(read).context("a rank's reader")?;
    Ok(Rank { child, input, output: heard })
}

/// Does `what`, and calls it off where a rank's process ends meanwhile.
fn attended<R: Send>(
    ranks: &mut [Rank],
    cancel: &Cancel,
    what: impl FnOnce() -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let ended = |rank: &mut Rank| rank.child.try_wait().ok().flatten();
                if let Some((at, status)) =
                    ranks.iter_mut().map(ended).enumerate().find_map(|(at, s)| Some((at, s?)))
                {
                    cancel.cancel();
                    return Some((at + 1, status));
                }
                std::thread::park_timeout(LOOK);
            }
            None
        });
        let result = what();
        done.store(true, Ordering::Release);
        watching.thread().unpark();
        match (result, watching.join().ok().flatten()) {
            (Err(error), Some((rank, status))) => {
                Err(error.context(format!("rank {rank}'s process ended before the group stood ({status})")))
            }
            (result, _) => result,
        }
    })
}

/// Meets the other ranks over sealed links.
fn meet(
    (keys, listener): (&MachineKeys, &Listener),
    roster: &Roster,
    (model, map): (&LoadedModel, &ShardMap),
    (rank, (form_ms, patience), cancel): (usize, (u64, Duration), &Cancel),
) -> anyhow::Result<Box<dyn Communicator>> {
    let members = roster.doors.iter().enumerate().map(|(rank, door)| Member {
        machine: trust::machine_of(&door.key),
        incarnation: Incarnation(rank as u64),
        key: door.key,
        addresses: door.addresses.clone(),
        meeting: Vec::new(),
    });
    let members: Vec<Member> = members.collect();
    let mode = match map.mode().as_str() {
        "tensor" => Mode::Tensor,
        "pipeline" => Mode::Pipeline,
        "single" => Mode::Single,
        _ => Mode::Grid,
    };
    let place = Place {
        instance: InstanceId(1),
        epoch: Epoch(1),
        rank,
        model: sha256_of_files(model.weight_files()),
        shard_map: sha256(map.encode().as_bytes()),
        mode,
        dtype: WireType::F32,
    };
    let timing = Timing { total: Duration::from_millis(form_ms), patience, ..Timing::default() };
    let gathering = Gathering { listener, keys, place: &place, roster: &members, timing, cancel };
    Ok(Box::new(form(&gathering)?))
}

/// A child's whole life: see [`ProcessGroup`].
///
/// # Errors
/// It cannot take part at all; how a group ended is in its account.
pub fn serve() -> anyhow::Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let mut next = || -> anyhow::Result<String> {
        Ok(lines.next().context("no task: `phalanx run --ranks` starts this")??)
    };
    let task: Task = serde_json::from_str(&next()?)?;
    if let Some(core) = task.core {
        pin(core);
    }
    let keys = MachineKeys::generate();
    let listener = Listener::bind(&[IpAddr::V4(Ipv4Addr::LOCALHOST)])?;
    say(&Door { key: keys.signing_key(), addresses: listener.addresses() })?;
    let source = match task.model.as_str() {
        "bundled" => ModelSource::Bundled,
        path => engine_source(path),
    };
    let model = engine::load(&source, &LoadOptions { tokenizer_needed: task.tokenizer_needed })?;
    let mode: GroupMode = task.mode.parse().map_err(anyhow::Error::msg)?;
    let map = model.divide(mode, &vec![Machine::default(); task.ranks])?;
    let roster: Roster = serde_json::from_str(&next()?)?;
    let patience = task.config.group_patience_us.into();
    let place = (task.rank, (task.form_ms, patience), &Cancel::new());
    let communicator = meet((&keys, &listener), &roster, (&model, &map), place)?;
    let following = Following::new();
    let ended = follow(&model, &task.config, GroupSeat { map, communicator }, &following);
    let fault = ended.err().map(|end| end.to_string());
    say(&Account { fault, report: following.report() })
}

fn engine_source(path: &str) -> ModelSource {
    ModelSource::Folder(path.into())
}

fn say(line: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    Ok(out.flush()?)
}

/// Keeps this thread, and those that it starts from now on, on one core, as far as there are so many.
pub(crate) fn pin(core: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    set.set(core % cores.max(core + 1));
    // Where there is no such core the system refuses, and the rank runs on any.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// Lets this thread run on any core again.
pub(crate) fn unpin() {
    let mut set = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|core| set.set(core));
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
