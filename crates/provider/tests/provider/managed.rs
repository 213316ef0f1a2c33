//! A machine whose coordinator decides what it holds: assigned, refused, served, drained, cancelled, cut off, and back.

use std::path::Path;
use std::time::Duration;

use base::{Bytes, Epoch, InstanceId, ModelName};
use provider::{Config, Event, ManagedConfig};
use wire::control::{
    AssignGroup, Assignment, AssignmentPhase, AssignmentReport, AttemptRefusal, FromCoordinator,
    FromProvider, GroupPhase, InstancePhase, Inventory, Lease, Leases, Register, Unassignment, Welcome,
};

use crate::fake::{Fake, Outcome, Peer, Running, TOKEN, job, terms};
use crate::models;

const A: InstanceId = InstanceId(0xa);
const B: InstanceId = InstanceId(0xb);

/// A managed provider over the models in `home`/shelf.
fn managed(fake: &Fake, home: &Path) -> Config {
    let mut config = Config::new(fake.url.clone(), TOKEN, home.join("provider"));
    config.name = Some("managed".into());
    let mut managed = ManagedConfig {
        folders: vec![home.join("shelf")],
        memory_limit: Some(Bytes(2 << 30)),
        labels: vec![("room".into(), "attic".into())],
        look_every: Duration::from_millis(50),
        ..ManagedConfig::default()
    };
    managed.engine.threads = Some(1);
    config.managed = Some(managed);
    config
}

fn with_assignments() -> Welcome {
    Welcome { capabilities: vec![wire::control::ASSIGNMENTS.into()], ..terms() }
}

fn asked(instance: InstanceId, epoch: u64, model: &str) -> Assignment {
    Assignment {
        instance,
        epoch: Epoch(epoch),
        rank: 0,
        model: ModelName::new(model),
        context: 2048,
        max_batch: 2,
        exclusive: true,
        lease_us: 0,
    }
}

async fn assign(peer: &mut Peer, assignment: Assignment) {
    peer.send(&FromCoordinator::Assign(assignment)).await;
}

async fn unassign(peer: &mut Peer, instance: InstanceId, epoch: u64, drain_us: u64) {
    let reason = "a test".to_owned();
    peer.send(&FromCoordinator::Unassign(Unassignment { instance, epoch: Epoch(epoch), reason, drain_us }))
        .await;
}

/// The next word about `instance` at `epoch` in `phase`.
async fn reported(
    peer: &mut Peer,
    instance: InstanceId,
    epoch: u64,
    phase: AssignmentPhase,
) -> AssignmentReport {
    let pick = |message: &FromProvider| match message {
        FromProvider::AssignmentReport(report) => {
            let about = (report.instance, report.epoch.0, report.phase) == (instance, epoch, phase);
            about.then(|| report.clone())
        }
        _ => None,
    };
    peer.find(&format!("{instance} at {epoch} in {phase:?}"), pick).await
}

/// The first inventory that `wanted` likes.
async fn inventory(peer: &mut Peer, wanted: impl Fn(&Inventory) -> bool) -> Inventory {
    let pick = |message: &FromProvider| match message {
        FromProvider::Inventory(inventory) if wanted(inventory) => Some(inventory.clone()),
        _ => None,
    };
    peer.find("an inventory", pick).await
}

fn has(model: &'static str) -> impl Fn(&Inventory) -> bool {
    move |inventory| inventory.models.iter().any(|on_disk| on_disk.name.as_str() == model)
}

/// The registration that says how `instance` is.
async fn offered(peer: &mut Peer, instance: InstanceId, phase: InstancePhase) -> Register {
    let pick = |message: &FromProvider| match message {
        FromProvider::Register(register) => {
            let of = register.instances.iter().any(|o| o.instance == instance && o.report.phase == phase);
            of.then(|| register.clone())
        }
        _ => None,
    };
    peer.find("an offer", pick).await
}

async fn joined(fake: &Fake) -> (Peer, Register) {
    fake.join_on(with_assignments()).await
}

#[tokio::test]
async fn a_managed_machine_loads_nothing_by_itself_and_says_what_it_could_hold() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::tiny("tiny", &home.path().join("shelf"));
    let running = Running::start(managed(&fake, home.path()));
    let (mut peer, register) = joined(&fake).await;
    assert!(register.managed && register.instances.is_empty() && register.holds.is_empty());
    let hello = peer.hello.as_ref().unwrap();
    assert!(hello.capabilities.iter().any(|c| c == wire::control::ASSIGNMENTS), "{hello:?}");
    let said = inventory(&mut peer, has("tiny")).await;
    assert_eq!((said.labels[0].key.as_str(), said.labels[0].value.as_str()), ("room", "attic"));
    assert_eq!(said.devices[0].memory, Bytes(2 << 30));
    assert!(said.devices[0].read_bytes_per_s > 0 && said.devices[0].flops > 0);
    let tiny = &said.models[0];
    // All that a planner needs: the family reads the configuration, and the weights are as many as it says.
    let spec = model::family::spec_from_config(tiny.config.as_bytes(), None).unwrap();
    assert_eq!(model::checkpoint::parameters(&spec), tiny.parameters);
    assert_eq!(tiny.memory_bytes.0, tiny.parameters * 4);
    // One that comes later is found without a restart; one that goes is not named any more.
    models::other("late", &home.path().join("shelf"));
    assert_eq!(inventory(&mut peer, has("late")).await.models.len(), 2);
    std::fs::remove_dir_all(home.path().join("shelf/tiny")).unwrap();
    inventory(&mut peer, |inventory| inventory.models.len() == 1).await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn an_assigned_model_is_loaded_serves_finishes_what_it_has_and_is_gone() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::tiny("tiny", &home.path().join("shelf"));
    let mut running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, has("tiny")).await;
    let nothing = peer.attempt(&job("tiny", &[1, 2], 4)).await;
    assert!(matches!(peer.outcome(nothing).await, Outcome::Refused(AttemptRefusal::WrongModel, _)));

    assign(&mut peer, asked(A, 7, "tiny")).await;
    reported(&mut peer, A, 7, AssignmentPhase::Loading).await;
    let register = offered(&mut peer, A, InstancePhase::Ready).await;
    let offer = &register.instances[0];
    assert_eq!((offer.epoch, offer.rank, offer.ranks), (Epoch(7), 0, 1));
    assert_eq!((offer.model.context.0, offer.report.slots, offer.report.kv_tokens), (2048, 2, 4096));
    assert_eq!((register.holds.len(), register.holds[0].instance), (1, A));
    reported(&mut peer, A, 7, AssignmentPhase::Ready).await;
    // How fast it ran is known from now on.
    let known = |model: &wire::control::ModelOnDisk| model.decode_tokens_per_ks > 0;
    inventory(&mut peer, |inventory| inventory.models.iter().any(known)).await;

    let attempt = peer.attempt(&job("tiny", &[1, 2, 3], 1500)).await;
    peer.first_token(attempt).await;
    unassign(&mut peer, A, 7, 60_000_000).await;
    peer.instance_in(InstancePhase::Draining).await;
    let late = peer.attempt(&job("tiny", &[1], 4)).await;
    assert!(matches!(peer.outcome(late).await, Outcome::Refused(AttemptRefusal::NotReady, _)));
    assert_eq!(peer.answer(attempt).await.tokens.len(), 1500);
    reported(&mut peer, A, 7, AssignmentPhase::Gone).await;
    running.event("memory", |e| matches!(e, Event::Unloaded { .. }).then_some(())).await;
    // Again: nothing is left to do. And by another name for the same.
    unassign(&mut peer, A, 7, 0).await;
    reported(&mut peer, A, 7, AssignmentPhase::Gone).await;
    assign(&mut peer, asked(A, 7, "tiny")).await;
    let refused = reported(&mut peer, A, 7, AssignmentPhase::Refused).await;
    assert!(refused.detail.contains("taken back"), "{}", refused.detail);
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_what_is_in_flight_so_that_it_can_go_on_elsewhere() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::tiny("tiny", &home.path().join("shelf"));
    let running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, has("tiny")).await;
    assign(&mut peer, Assignment { context: 60_000, max_batch: 1, ..asked(A, 1, "tiny") }).await;
    reported(&mut peer, A, 1, AssignmentPhase::Ready).await;
    let attempt = peer.attempt(&job("tiny", &[1, 2, 3], 50_000)).await;
    peer.first_token(attempt).await;
    unassign(&mut peer, A, 1, 20_000).await;
    assert!(matches!(peer.outcome(attempt).await, Outcome::Failed(_)));
    reported(&mut peer, A, 1, AssignmentPhase::Gone).await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn models_are_refused_rather_than_swapped_and_follow_one_another_or_share() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::tiny("tiny", &home.path().join("shelf"));
    models::other("other", &home.path().join("shelf"));
    let mut running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, |inventory| inventory.models.len() == 2).await;
    assign(&mut peer, asked(A, 1, "tiny")).await;
    reported(&mut peer, A, 1, AssignmentPhase::Ready).await;
    let small = |epoch| Assignment { context: 64, ..asked(B, epoch, "other") };
    assign(&mut peer, small(2)).await;
    let refused = reported(&mut peer, B, 2, AssignmentPhase::Refused).await;
    assert!(refused.detail.contains("holds tiny alone"), "{}", refused.detail);
    let declined = |e| match e {
        Event::Declined { detail } => Some(detail),
        _ => None,
    };
    assert!(running.event("a refusal", declined).await.contains("holds tiny alone"));
    let still = peer.attempt(&job("tiny", &[1, 2], 4)).await;
    assert_eq!(peer.answer(still).await.tokens.len(), 4);
    // A rank of a group neither.
    peer.send(&FromCoordinator::AssignGroup(group(InstanceId(9), "other"))).await;
    let pick = |m: &FromProvider| match m {
        FromProvider::GroupReport(report) if report.phase == GroupPhase::Ended => Some(report.detail.clone()),
        _ => None,
    };
    assert!(peer.find("the group's end", pick).await.contains("holds tiny alone"));

    // Taken back and given anew in one breath: the second waits for the first one's memory.
    unassign(&mut peer, A, 1, 0).await;
    assign(&mut peer, small(3)).await;
    reported(&mut peer, B, 3, AssignmentPhase::Draining).await;
    reported(&mut peer, A, 1, AssignmentPhase::Gone).await;
    reported(&mut peer, B, 3, AssignmentPhase::Ready).await;
    unassign(&mut peer, B, 3, 0).await;

    // Those that may share do, and both serve.
    assign(&mut peer, Assignment { exclusive: false, ..asked(A, 4, "tiny") }).await;
    assign(&mut peer, Assignment { exclusive: false, ..small(5) }).await;
    reported(&mut peer, A, 4, AssignmentPhase::Ready).await;
    reported(&mut peer, B, 5, AssignmentPhase::Ready).await;
    for model in ["tiny", "other"] {
        let attempt = peer.attempt(&job(model, &[1, 2], 4)).await;
        assert_eq!(peer.answer(attempt).await.tokens.len(), 4);
    }
    running.leave_from(peer).await;
}

fn group(instance: InstanceId, model: &str) -> AssignGroup {
    AssignGroup {
        instance,
        epoch: Epoch(1),
        model: ModelName::new(model),
        rank: 0,
        members: Vec::new(),
        mode: "tensor".into(),
        dtype: "f32".into(),
        form_us_max: 1_000_000,
        patience_us: 1_000_000,
        shard_map: None,
        context: 0,
        max_batch: 0,
    }
}

#[tokio::test]
async fn what_cannot_be_held_is_refused_or_fails_with_its_cause() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    let shelf = home.path().join("shelf");
    models::tiny("tiny", &shelf);
    models::tiny("spoilt", &shelf);
    // Whole by its header, and no number in it.
    let weights = shelf.join("spoilt/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(shelf.join("next"), bytes).unwrap();
    std::fs::rename(shelf.join("next"), &weights).unwrap();
    let running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, has("spoilt")).await;
    let cases = [
        (asked(A, 1, "nowhere"), AssignmentPhase::Refused, "no model \"nowhere\""),
        (
            Assignment { rank: 1, ..asked(A, 2, "tiny") },
            AssignmentPhase::Refused,
            "rank 1 of a model held whole",
        ),
        (
            Assignment { context: 60_000, max_batch: 4000, ..asked(A, 3, "tiny") },
            AssignmentPhase::Refused,
            "of 2.0 GiB are left for models here",
        ),
        (asked(A, 4, "spoilt"), AssignmentPhase::Failed, "model.safetensors"),
        (
            Assignment { context: 1 << 20, max_batch: 0, ..asked(A, 5, "tiny") },
            AssignmentPhase::Failed,
            "65536",
        ),
    ];
    for (assignment, phase, why) in cases {
        let epoch = assignment.epoch.0;
        assign(&mut peer, Assignment { epoch: Epoch(epoch), ..assignment }).await;
        let pick = |message: &FromProvider| match message {
            FromProvider::AssignmentReport(report)
                if report.epoch.0 == epoch && !report.detail.is_empty() =>
            {
                Some(report.clone())
            }
            _ => None,
        };
        let report = peer.find(why, pick).await;
        assert!(report.phase == phase && report.detail.contains(why), "{why}: {report:?}");
    }
    // Nothing of it is held, and the machine is as good as before.
    assign(&mut peer, asked(B, 6, "tiny")).await;
    reported(&mut peer, B, 6, AssignmentPhase::Ready).await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_load_that_is_not_wanted_any_more_ends_and_the_next_begins() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::large("large", &home.path().join("shelf"));
    models::tiny("tiny", &home.path().join("shelf"));
    let running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, |inventory| inventory.models.len() == 2).await;
    assign(&mut peer, Assignment { context: 64, ..asked(A, 1, "large") }).await;
    // While its weights are read: the first of them are.
    let some = |m: &FromProvider| match m {
        FromProvider::AssignmentReport(report) => {
            (report.phase == AssignmentPhase::Loading && report.percent > 0).then_some(report.percent)
        }
        _ => None,
    };
    assert!(peer.find("progress", some).await < 100);
    unassign(&mut peer, A, 1, 60_000_000).await;
    assign(&mut peer, asked(B, 2, "tiny")).await;
    reported(&mut peer, A, 1, AssignmentPhase::Gone).await;
    reported(&mut peer, B, 2, AssignmentPhase::Ready).await;
    let attempt = peer.attempt(&job("tiny", &[1, 2], 4)).await;
    assert_eq!(peer.answer(attempt).await.tokens.len(), 4);
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_machine_that_is_back_says_what_it_holds_and_nothing_is_read_again() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::tiny("tiny", &home.path().join("shelf"));
    let mut running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, has("tiny")).await;
    assign(&mut peer, Assignment { lease_us: 600_000_000, ..asked(A, 3, "tiny") }).await;
    reported(&mut peer, A, 3, AssignmentPhase::Ready).await;
    let ready = |e| matches!(e, Event::Ready { .. }).then_some(());
    running.event("ready", ready).await;
    drop(peer);

    let (mut peer, register) = joined(&fake).await;
    let held = &register.holds[0];
    assert_eq!((held.instance, held.epoch, held.rank, held.ranks, held.ready), (A, Epoch(3), 0, 1, true));
    assert_eq!(register.instances[0].report.phase, InstancePhase::Ready);
    reported(&mut peer, A, 3, AssignmentPhase::Ready).await;
    // The same again, and a newer epoch of the same: said, and nothing touched.
    assign(&mut peer, asked(A, 3, "tiny")).await;
    reported(&mut peer, A, 3, AssignmentPhase::Ready).await;
    assign(&mut peer, asked(A, 5, "tiny")).await;
    reported(&mut peer, A, 5, AssignmentPhase::Ready).await;
    assert_eq!(offered(&mut peer, A, InstancePhase::Ready).await.instances[0].instance, A);
    assign(&mut peer, asked(A, 4, "tiny")).await;
    reported(&mut peer, A, 4, AssignmentPhase::Refused).await;
    let attempt = peer.attempt(&job("tiny", &[1, 2], 4)).await;
    assert_eq!(peer.answer(attempt).await.tokens.len(), 4);
    running.ask_to_leave();
    peer.until_closed().await;
    let again = running.event("the end", |e| match e {
        Event::Loading { .. } => Some(true),
        Event::Draining { .. } => Some(false),
        _ => None,
    });
    assert!(!again.await, "its weights were read again");
    running.ended().await.unwrap();
}

#[tokio::test]
async fn a_machine_that_is_cut_off_holds_its_model_until_the_lease_ends() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    models::tiny("tiny", &home.path().join("shelf"));
    let mut running = Running::start(managed(&fake, home.path()));
    let (mut peer, _) = joined(&fake).await;
    inventory(&mut peer, has("tiny")).await;
    assign(&mut peer, Assignment { lease_us: 60_000_000, ..asked(A, 1, "tiny") }).await;
    reported(&mut peer, A, 1, AssignmentPhase::Ready).await;
    // A renewal may also shorten: this one is short enough for a test.
    let leases = vec![Lease { instance: A, epoch: Epoch(1) }];
    peer.send(&FromCoordinator::RenewLeases(Leases { lease_us: 300_000, leases })).await;
    drop(peer);
    running.event("memory", |e| matches!(e, Event::Unloaded { .. }).then_some(())).await;
    let (mut peer, register) = joined(&fake).await;
    assert!(register.holds.is_empty() && register.instances.is_empty(), "{register:?}");
    // The coordinator never took it back: it can have it again.
    assign(&mut peer, asked(A, 1, "tiny")).await;
    reported(&mut peer, A, 1, AssignmentPhase::Ready).await;
    running.leave_from(peer).await;
}

#[tokio::test]
async fn a_machine_whose_owner_decides_refuses() {
    let (fake, home) = (Fake::new().await, tempfile::tempdir().unwrap());
    let running = Running::start(crate::fake::config(&fake, home.path()));
    let (mut peer, register) = joined(&fake).await;
    assert!(!register.managed);
    assign(&mut peer, asked(A, 1, "tiny")).await;
    let refused = reported(&mut peer, A, 1, AssignmentPhase::Refused).await;
    assert!(refused.detail.contains("--managed"), "{}", refused.detail);
    running.leave_from(peer).await;
}
