//! One life of a rank, from its assignment to its end: files, ports, roster, links, weights, self-test, steps.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use engine::group::{
    Following, GroupEnd, GroupMode, GroupReport as Account, GroupSeat, Member as Weight, ShardMap,
};
use engine::{Engine, EngineConfig, LoadOptions, LoadedModel};
use link::{
    Candidate, FormError, Gathering, LinkType, Listener, Member, Place, Purpose, Stopper, Telemetry, Timing,
};
use wire::control::{
    AssignGroup, GroupAddress, GroupLink, GroupPhase, GroupPorts, GroupReport, GroupRoster, GroupStanding,
    GroupTelemetry,
};
use wire::link::{Mode, WireType};

use super::{Ending, Ground, GroupNews, Own, Up, reference};
use crate::assignment::sized_for;
use crate::config::ModelConfig;
use crate::load::{chain, describe};

/// How often a life looks at what it waits for, and at whether it is to end.
const LOOK: Duration = Duration::from_millis(10);
/// How often it says where its time goes.
const ACCOUNT: Duration = Duration::from_secs(1);

/// What a life works with.
pub(super) struct Work {
    pub(super) ground: Arc<Ground>,
    pub(super) model: ModelConfig,
    pub(super) own: Option<Own>,
    pub(super) assign: AssignGroup,
    pub(super) rosters: Receiver<GroupRoster>,
    pub(super) ending: Ending,
    /// Threads of lives before this one: their memory must be free first.
    pub(super) before: Vec<JoinHandle<()>>,
}

/// Why a life ended: who is to blame, and for what.
struct End {
    culprit: Option<u32>,
    detail: String,
}

impl From<GroupEnd> for End {
    fn from(end: GroupEnd) -> Self {
        Self { culprit: end.culprit.and_then(|rank| u32::try_from(rank).ok()), detail: end.reason }
    }
}

/// Lives it; whatever happens, its last words are a report and that it is over.
pub(super) fn live(mut work: Work) {
    for thread in std::mem::take(&mut work.before) {
        // A panic there has been said by the panic hook.
        let _ = thread.join();
    }
    // A panic must not leave the coordinator with a rank that nobody lives.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work.run()));
    let end = end.unwrap_or_else(|_| work.own_fault("its thread broke down; see its provider's log"));
    work.tell(GroupNews::Report(work.report(GroupPhase::Ended, Some(&end), None)));
    let (instance, epoch) = (work.assign.instance, work.assign.epoch);
    work.tell(GroupNews::Over { instance, epoch });
}

impl Work {
    fn tell(&self, news: GroupNews) {
        // A provider that is gone needs no news.
        let _ = self.ground.news.blocking_send(news);
    }

    fn own_fault(&self, detail: impl Into<String>) -> End {
        End { culprit: Some(self.assign.rank), detail: detail.into() }
    }

    fn report(&self, phase: GroupPhase, end: Option<&End>, telemetry: Option<GroupTelemetry>) -> GroupReport {
        GroupReport {
            instance: self.assign.instance,
            epoch: self.assign.epoch,
            rank: self.assign.rank,
            phase,
            culprit: end.and_then(|end| end.culprit),
            detail: end.map(|end| end.detail.chars().take(500).collect()).unwrap_or_default(),
            telemetry,
            standing: None,
        }
    }

    fn ended_from_outside(&self) -> End {
        End { culprit: None, detail: "it was told to end".to_owned() }
    }

    /// Until its end.
    fn run(&mut self) -> End {
        match self.stand() {
            Ok(end) | Err(end) => end,
        }
    }

    fn stand(&mut self) -> Result<End, End> {
        let listener = Listener::bind(&self.ground.listen).map_err(|e| {
            self.own_fault(format!("cannot listen for other ranks on {:?}: {e}", self.ground.listen))
        })?;
        self.tell(GroupNews::Ports(GroupPorts {
            instance: self.assign.instance,
            epoch: self.assign.epoch,
            rank: self.assign.rank,
            addresses: addresses(&listener),
        }));
        self.tell(GroupNews::Report(self.report(GroupPhase::Forming, None, None)));
        let loaded = engine::load(&self.model.source, &LoadOptions::default())
            .map_err(|e| self.own_fault(chain(&e)))?;
        let kit: Arc<[u8]> = loaded.kit().to_bytes().into();
        let mut descriptor = describe(&self.model, &loaded, &kit, &self.ground.folder);
        self.is_what_it_was(&descriptor.weights_sha256)?;
        let map = self.divide(&loaded)?;
        self.have_reference(&loaded, &descriptor.weights_sha256);
        let roster = self.await_roster()?;
        let group = self.form(&listener, &roster, &map, &descriptor.weights_sha256)?;
        let (stopper, telemetry) = (group.transport().stopper(), group.transport().telemetry());
        self.ending.hold(stopper.clone());
        // Between forming and this line it may have been told to end.
        if self.ending.cancel.is_cancelled() {
            return Err(self.ended_from_outside());
        }
        self.tell(GroupNews::Report(self.stands(&loaded, &map, &telemetry)));
        let mut config = self.sized(&loaded, &map);
        config.group_patience_us = base::Micros(self.assign.patience_us);
        let seat = GroupSeat { map, communicator: Box::new(group) };
        if self.assign.rank > 0 {
            return Ok(self.follow(loaded, config, seat, &stopper, &telemetry));
        }
        let vocabulary = descriptor.vocabulary as usize;
        let (tell, told) = channel();
        let on_end = move |end| {
            // A life that has returned knows how it ended.
            let _ = tell.send(end);
        };
        let engine =
            Engine::start_group(self.model.name.clone(), loaded, config, seat, on_end).map_err(|error| {
                told.try_recv().map_or_else(|_| blamed(&stopper, self.own_fault(chain(&error))), End::from)
            })?;
        descriptor.context = engine.load_now().context;
        let folder = self.ground.folder.clone();
        if let Err(detail) = reference::check(
            &engine,
            self.own.take().and_then(|own| own.alone).as_ref(),
            &folder,
            &descriptor.weights_sha256,
            vocabulary,
        ) {
            engine.stop();
            return Err(blamed(&stopper, self.own_fault(format!("the self-test: {detail}"))));
        }
        self.tell(GroupNews::Up(Box::new(Up {
            instance: self.assign.instance,
            epoch: self.assign.epoch,
            ranks: u32::try_from(self.assign.members.len()).unwrap_or(u32::MAX),
            engine: engine.clone(),
            descriptor,
            kit,
        })));
        let account = || engine.load_now().group;
        let end = self.watch(&stopper, &telemetry, account, || told.try_recv().ok());
        // Whatever still waits inside fails, and goes elsewhere.
        engine.stop();
        Ok(end)
    }

    /// Whether the files still are what this machine told the coordinator that it holds. Others would make one group too,
    /// but one whose answers cannot go on where it is lost, and that nothing here could be held to.
    fn is_what_it_was(&self, weights_sha256: &str) -> Result<(), End> {
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        match &self.own {
            Some(own) if own.weights_sha256 != weights_sha256 => Err(self.own_fault(format!(
                "the files of {} changed since this provider looked at them (weights {}, now {}): start it again to \
                 serve what is there now, or put back what was",
                self.assign.model,
                short(&own.weights_sha256),
                short(weights_sha256)
            ))),
            _ => Ok(()),
        }
    }

    /// Rank 0 of a machine that holds what it is told computes a small model alone once: what the group is held to (G8).
    fn have_reference(&mut self, loaded: &LoadedModel, weights_sha256: &str) {
        if self.assign.rank == 0 && self.own.is_none() && !self.model.only_in_groups {
            let kept = (&*self.ground.folder, weights_sha256);
            let alone = reference::whole(&self.model, loaded, self.assign.context, kept);
            self.own = Some(Own { weights_sha256: weights_sha256.to_owned(), alone });
        }
    }

    /// How the model is divided: a function of what the coordinator said and of the model, so every rank finds the same;
    /// the hello on each link compares.
    fn divide(&self, loaded: &LoadedModel) -> Result<ShardMap, End> {
        if let Some(map) = &self.assign.shard_map {
            let map = ShardMap::decode(map, loaded.spec()).map_err(|e| self.own_fault(chain(&e)))?;
            if map.ranks() != self.assign.members.len() {
                let (told, members) = (map.ranks(), self.assign.members.len());
                return Err(self.own_fault(format!("a shard map of {told} ranks for {members} members")));
            }
            return Ok(map);
        }
        let mode: GroupMode = self.assign.mode.parse().map_err(|e: String| self.own_fault(e))?;
        loaded.divide(mode, &self.shares()).map_err(|e| self.own_fault(chain(&e)))
    }

    /// That the links stand, and what this rank knows of how they came to.
    fn stands(&self, loaded: &LoadedModel, map: &ShardMap, telemetry: &Telemetry) -> GroupReport {
        let mode = match mode_of(map) {
            Mode::Grid => format!("{}x{}", map.stages(), map.ranks() / map.stages().max(1)),
            mode => mode.name().to_owned(),
        };
        let is_choice = self.assign.shard_map.is_none() && self.assign.mode.parse() == Ok(GroupMode::Auto);
        let fallback = match is_choice && mode_of(map) != Mode::Tensor {
            true => loaded.divide(GroupMode::Tensor, &self.shares()).err().map(|error| chain(&error)),
            false => None,
        };
        let number = |rank: usize| u32::try_from(rank).unwrap_or(u32::MAX);
        let link = |link: &link::Dialled| GroupLink {
            rank: number(link.rank),
            data: link.data,
            control: link.control,
        };
        let standing = GroupStanding {
            mode,
            fallback: fallback.unwrap_or_default(),
            retries: telemetry.retries(),
            dialled: telemetry.dialled().iter().map(link).collect(),
        };
        GroupReport { standing: Some(Box::new(standing)), ..self.report(GroupPhase::Loading, None, None) }
    }

    fn shares(&self) -> Vec<Weight> {
        self.assign.members.iter().map(|m| Weight { speed: m.speed.max(1), memory: None }).collect()
    }

    /// The engine's settings: context and batch as the coordinator wants them, with a cache of this rank's part of each.
    fn sized(&self, loaded: &LoadedModel, map: &ShardMap) -> EngineConfig {
        let config = &self.model.engine;
        let asked = (self.assign.context, self.assign.max_batch);
        match loaded.part_kv_bytes_per_token(map, self.assign.rank as usize, config.kv) {
            Some(per_token) => sized_for(config, asked, per_token),
            // It cannot be divided so, which is said where it is done.
            None => config.clone(),
        }
    }

    fn await_roster(&self) -> Result<GroupRoster, End> {
        let started = Instant::now();
        let wait = Duration::from_micros(self.assign.form_us_max);
        loop {
            match self.rosters.recv_timeout(LOOK) {
                Ok(roster) => return Ok(roster),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended_from_outside()),
                Err(RecvTimeoutError::Timeout) if self.ending.cancel.is_cancelled() => {
                    return Err(self.ended_from_outside());
                }
                Err(RecvTimeoutError::Timeout) if started.elapsed() > wait => {
                    let detail = format!("the coordinator sent no roster within {} s", wait.as_secs());
                    return Err(End { culprit: None, detail });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn form(
        &self,
        listener: &Listener,
        roster: &GroupRoster,
        map: &ShardMap,
        weights_sha256: &str,
    ) -> Result<collective::Group<link::Links>, End> {
        let assign = &self.assign;
        let members = assign.members.iter().enumerate().map(|(rank, member)| {
            let key = BASE64.decode(&member.signing_key).ok().and_then(|key| key.try_into().ok());
            let key = key.ok_or_else(|| self.own_fault(format!("rank {rank}'s key cannot be read")))?;
            let all = roster.addresses.get(rank).map_or(&[][..], Vec::as_slice);
            let order = |purpose| in_order(all, purpose, |ip| self.ground.proved.of(member.machine, ip));
            let (addresses, meeting) = (order(Purpose::Bulk), order(Purpose::Rendezvous));
            Ok(Member { machine: member.machine, incarnation: member.incarnation, key, addresses, meeting })
        });
        let members = members.collect::<Result<Vec<Member>, End>>()?;
        let place = Place {
            instance: assign.instance,
            epoch: assign.epoch,
            rank: assign.rank as usize,
            model: trust::unhex(weights_sha256).and_then(|h| h.try_into().ok()).unwrap_or([0; 32]),
            shard_map: trust::sha256(map.encode().as_bytes()),
            mode: mode_of(map),
            dtype: WireType::named(&assign.dtype)
                .ok_or_else(|| self.own_fault(format!("sums cannot travel as {:?}", assign.dtype)))?,
        };
        let timing = Timing {
            total: Duration::from_micros(assign.form_us_max),
            patience: Duration::from_micros(assign.patience_us),
            ..Timing::default()
        };
        let cancel = &self.ending.cancel;
        let keys = &self.ground.keys;
        link::form(&Gathering { listener, keys, place: &place, roster: &members, timing, cancel }).map_err(
            |error| {
                let culprit = match &error {
                    FormError::Missing { missing, .. } => missing.first().map(|m| m.rank),
                    FormError::Refused { rank, .. } => Some(*rank),
                    FormError::Unverified(fault) => fault.culprit,
                    FormError::Cancelled => None,
                    FormError::Roster(_) | FormError::System { .. } => Some(assign.rank as usize),
                };
                End { culprit: culprit.and_then(|rank| u32::try_from(rank).ok()), detail: error.to_string() }
            },
        )
    }

    /// A rank above 0: computes what rank 0 says, in a thread of its own, while this one watches.
    fn follow(
        &self,
        loaded: LoadedModel,
        config: engine::EngineConfig,
        seat: GroupSeat,
        stopper: &Stopper,
        telemetry: &Telemetry,
    ) -> End {
        let following = Following::new();
        let (seen, (tell, told)) = (following.clone(), channel());
        let body = move || {
            // A life that has returned knows how it ended.
            let _ = tell.send(engine::group::follow(&loaded, &config, seat, &seen));
        };
        let thread = std::thread::Builder::new().name(format!("follow-{}", self.assign.rank)).spawn(body);
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return self.own_fault(format!("no thread for the rank: {error}")),
        };
        let left = || GroupEnd { culprit: None, reason: "rank 0 said goodbye".to_owned() };
        let account = || {
            super::spans::tell(&self.ground, &self.assign, &following);
            following.is_ready().then(|| following.report())
        };
        let end = self.watch(stopper, telemetry, account, || match told.try_recv() {
            Ok(ended) => Some(ended.err().unwrap_or_else(left)),
            Err(std::sync::mpsc::TryRecvError::Empty) => None,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                let culprit = Some(self.assign.rank as usize);
                Some(GroupEnd { culprit, reason: "its thread broke down; see its provider's log".to_owned() })
            }
        });
        following.stop();
        stopper.stop("this rank's life is over");
        // A panic there has been said by the panic hook, and above.
        let _ = thread.join();
        end
    }

    /// Says when the rank is ready, and where its time goes, until it ends or is to end.
    fn watch(
        &self,
        stopper: &Stopper,
        telemetry: &Telemetry,
        account: impl Fn() -> Option<Account>,
        ended: impl Fn() -> Option<GroupEnd>,
    ) -> End {
        let mut said: Option<Instant> = None;
        loop {
            if let Some(end) = ended() {
                return blamed(stopper, end.into());
            }
            if self.ending.cancel.is_cancelled() {
                return self.ended_from_outside();
            }
            // The links know of a lost rank before an idle engine does.
            if let Some(fault) = stopper.fault() {
                let culprit = fault.culprit.and_then(|rank| u32::try_from(rank).ok());
                return End { culprit, detail: fault.cause.to_string() };
            }
            if said.is_none_or(|at| at.elapsed() >= ACCOUNT)
                && let Some(account) = account()
            {
                said = Some(Instant::now());
                let report = self.report(GroupPhase::Ready, None, Some(sum(&account, telemetry)));
                self.tell(GroupNews::Report(report));
            }
            if self.ending.cancel.wait(LOOK) {
                return self.ended_from_outside();
            }
        }
    }
}

/// The links' word of who is to blame, where they have one, before this rank's own.
fn blamed(stopper: &Stopper, own: End) -> End {
    match stopper.fault() {
        Some(fault) if fault.culprit.is_some() => End {
            culprit: fault.culprit.and_then(|r| u32::try_from(r).ok()),
            detail: fault.cause.to_string(),
        },
        _ => own,
    }
}

fn sum(account: &Account, telemetry: &Telemetry) -> GroupTelemetry {
    let us = |ns: u64| ns / 1_000;
    let (decode, prefill) = (&account.decode, &account.prefill);
    let traffic = telemetry.traffic();
    GroupTelemetry {
        steps: decode.steps + prefill.steps,
        tokens: decode.tokens + prefill.tokens,
        compute_us: us(decode.compute_ns() + prefill.compute_ns()),
        seal_us: us(decode.seal_ns + prefill.seal_ns),
        wire_us: us(decode.wire_ns + prefill.wire_ns),
        wait_us: us(decode.wait_ns + prefill.wait_ns),
        bytes_sent: traffic.bytes_sent,
        messages_sent: traffic.messages_sent,
        malformed: telemetry.malformed(),
    }
}

fn mode_of(map: &ShardMap) -> Mode {
    match (map.stages(), map.ranks()) {
        (_, 1) => Mode::Single,
        (1, _) => Mode::Tensor,
        (stages, ranks) if stages == ranks => Mode::Pipeline,
        _ => Mode::Grid,
    }
}

fn addresses(listener: &Listener) -> Vec<GroupAddress> {
    let interfaces = crate::hardware::interfaces();
    let of = |address: SocketAddr| {
        let interface = interfaces.iter().find(|(ip, _)| *ip == address.ip());
        GroupAddress { address, interface: interface.map(|(_, name)| name.clone()).unwrap_or_default() }
    };
    listener.addresses().into_iter().map(of).collect()
}

/// The addresses to try, best first (T5); those that are known not to be reached last.
fn in_order(
    addresses: &[GroupAddress],
    purpose: Purpose,
    proved: impl Fn(IpAddr) -> Option<Option<Duration>>,
) -> Vec<SocketAddr> {
    let candidate = |a: &GroupAddress| {
        let is_loopback = a.address.ip().is_loopback();
        let link = if is_loopback { LinkType::Loopback } else { LinkType::of_interface(&a.interface) };
        Candidate { address: a.address, link, round_trip: proved(a.address.ip()).flatten() }
    };
    let candidates: Vec<Candidate> = addresses.iter().map(candidate).collect();
    let ordered = link::in_order(&candidates, purpose).into_iter().map(|c| c.address);
    let (last, first): (Vec<_>, Vec<_>) = ordered.partition(|address| proved(address.ip()) == Some(None));
    [first, last].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_takes_the_fastest_kind_of_link_control_the_surest_and_what_is_not_reached_comes_last() {
        let at = |address: &str, interface: &str| GroupAddress {
            address: address.parse().unwrap(),
            interface: interface.to_owned(),
        };
        let all = [
            at("100.64.1.1:1", "tailscale0"),
            at("10.0.1.1:1", "wlan0"),
            at("10.0.0.1:1", "eth0"),
            at("169.254.3.3:1", "thunderbolt0"),
        ];
        let order = |purpose, down: Option<&str>| {
            let down: Option<IpAddr> = down.map(|ip| ip.parse().unwrap());
            let ordered = in_order(&all, purpose, |ip| (Some(ip) == down).then_some(None));
            ordered.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(order(Purpose::Bulk, None), ["169.254.3.3", "10.0.0.1", "10.0.1.1", "100.64.1.1"]);
        assert_eq!(order(Purpose::Rendezvous, None), ["10.0.0.1", "10.0.1.1", "169.254.3.3", "100.64.1.1"]);
        assert_eq!(
            order(Purpose::Bulk, Some("169.254.3.3")),
            ["10.0.0.1", "10.0.1.1", "100.64.1.1", "169.254.3.3"]
        );
    }
}
