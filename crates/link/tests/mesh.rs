//! Real sockets: groups that form exactly as asked, sum over sealed links, and end with the culprit's name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use base::{Epoch, Incarnation, InstanceId};
use collective::{Cause, Communicator, Fault, Group, WireType};
use link::{Cancel, FormError, Gathering, LinkError, Links, Listener, Member, Place, Timing, form};
use trust::MachineKeys;
use wire::link::Mode;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn timing() -> Timing {
    Timing {
        total: Duration::from_secs(20),
        attempt: Duration::from_secs(5),
        patience: Duration::from_secs(10),
    }
}

struct Rank {
    keys: MachineKeys,
    listener: Listener,
    place: Place,
    roster: Vec<Member>,
    timing: Timing,
    cancel: Cancel,
}

impl Rank {
    fn form(&self) -> Result<Group<Links>, FormError> {
        form(&Gathering {
            listener: &self.listener,
            keys: &self.keys,
            place: &self.place,
            roster: &self.roster,
            timing: self.timing,
            cancel: &self.cancel,
        })
    }
}

/// Everything that `ranks` machines need to form a group, which a test may then bend.
fn ranks(ranks: usize) -> Vec<Rank> {
    let keys: Vec<MachineKeys> = (0..ranks).map(|_| MachineKeys::generate()).collect();
    let listeners: Vec<Listener> = (0..ranks).map(|_| Listener::bind(&[LOOPBACK]).unwrap()).collect();
    let roster: Vec<Member> = keys
        .iter()
        .zip(&listeners)
        .enumerate()
        .map(|(rank, (keys, listener))| Member {
            machine: keys.machine(),
            incarnation: Incarnation(rank as u64 + 100),
            key: keys.signing_key(),
            addresses: listener.addresses(),
            meeting: Vec::new(),
        })
        .collect();
    keys.into_iter()
        .zip(listeners)
        .enumerate()
        .map(|(rank, (keys, listener))| Rank {
            keys,
            listener,
            place: Place {
                instance: InstanceId(7),
                epoch: Epoch(3),
                rank,
                model: [1; 32],
                shard_map: [2; 32],
                mode: Mode::Tensor,
                dtype: WireType::F32,
            },
            roster: roster.clone(),
            timing: timing(),
            cancel: Cancel::new(),
        })
        .collect()
}

/// Runs every rank in a thread of its own, once each has formed its group or could not: a rank that ends while another
/// still forms ends the other's forming, rightly.
fn on_each<R: Send + 'static>(
    ranks: Vec<Rank>,
    work: impl Fn(usize, Result<Group<Links>, FormError>) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let together = Arc::new((Barrier::new(ranks.len()), work));
    let threads: Vec<_> = ranks
        .into_iter()
        .map(|rank| {
            let together = Arc::clone(&together);
            std::thread::spawn(move || {
                let (all, work) = &*together;
                let group = rank.form();
                all.wait();
                work(rank.place.rank, group)
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn any_number_of_ranks_form_and_sum_messages_of_any_size() {
    for count in [2, 3, 4, 5] {
        for dtype in [WireType::F32, WireType::Int8] {
            let mut members = ranks(count);
            members.iter_mut().for_each(|m| m.place.dtype = dtype);
            let sums = on_each(members, move |rank, group| {
                let mut group = group.unwrap();
                assert_eq!((group.rank(), group.ranks()), (rank, count));
                let sums = [1, 2_048, 70_000, 600_000].map(|length| {
                    let mut values: Vec<f32> = (0..length).map(|i| ((rank + 2) * (i % 5)) as f32).collect();
                    group.all_reduce(&mut values).unwrap();
                    if dtype == WireType::F32 {
                        let total: usize = (0..count).map(|r| r + 2).sum();
                        assert!(values.iter().enumerate().all(|(i, &x)| x == (total * (i % 5)) as f32));
                    }
                    values.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                });
                // Kept until all have theirs: who leaves says goodbye, which ends the others' sums.
                (sums, group)
            });
            let (sums, groups): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
            drop(groups);
            assert!(sums.windows(2).all(|w| w[0] == w[1]), "every rank has the same bits");
        }
    }
}

#[test]
fn long_messages_both_ways_at_once_do_not_stand_in_each_others_way() {
    let sums = on_each(ranks(2), |rank, group| {
        let mut group = group.unwrap();
        // 32 MiB each way, far beyond what sockets hold.
        let mut values = vec![rank as f32 + 1.0; 8 << 20];
        group.all_reduce(&mut values).unwrap();
        let traffic = group.traffic();
        assert!(traffic.bytes_sent > 32 << 20 && traffic.bytes_received > 32 << 20);
        assert!(traffic.seal_ns > 0 && traffic.wire_ns > 0);
        (values.iter().all(|&x| x == 3.0), group)
    });
    assert!(sums.iter().all(|(right, _)| *right));
}

#[test]
fn members_may_arrive_late_and_in_any_order() {
    let mut members = ranks(3);
    let late = members.remove(0);
    // Groups are kept until all are through: who leaves says goodbye, which ends what the others still do.
    let stand = |rank: Rank| rank.form().map(|mut group| (group.barrier(), group));
    let waiting: Vec<_> = members.into_iter().map(|m| std::thread::spawn(move || stand(m))).collect();
    // The others have tried and failed by the time that it listens in earnest: its address accepts, and says nothing.
    let first = late.roster[0].addresses[0];
    let knock = TcpStream::connect(first).unwrap();
    drop(knock);
    let mut all = vec![stand(late).unwrap()];
    all.extend(waiting.into_iter().map(|thread| thread.join().unwrap().unwrap()));
    assert!(all.iter().all(|(end, _)| *end == Ok(())));
}

#[test]
fn a_rank_that_never_comes_is_named_with_what_was_tried() {
    let mut members = ranks(3);
    drop(members.remove(1));
    members.iter_mut().for_each(|m| m.timing.total = Duration::from_millis(600));
    let errors = on_each(members, |_, group| group.err().unwrap());
    for error in errors {
        let FormError::Missing { missing, .. } = &error else { panic!("{error}") };
        assert_eq!(missing.iter().map(|m| m.rank).collect::<Vec<_>>(), [1], "{error}");
        assert!(error.to_string().contains("a rank did not come within"), "{error}");
    }
}

#[test]
fn forming_can_be_called_off() {
    let mut members = ranks(2);
    let member = members.remove(0);
    let cancel = member.cancel.clone();
    let started = Instant::now();
    let thread = std::thread::spawn(move || member.form().err().unwrap());
    cancel.cancel();
    assert!(matches!(thread.join().unwrap(), FormError::Cancelled));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_group_of_one_is_no_group() {
    let alone = ranks(1).remove(0);
    let error = alone.form().err().unwrap();
    assert!(error.to_string().contains("at least two ranks"), "{error}");
}

/// Bends rank 1's idea of the group; both sides must refuse, naming `what`.
fn disagreement(what: &str, bend: impl Fn(&mut Rank)) {
    let mut members = ranks(2);
    members.iter_mut().for_each(|m| m.timing.total = Duration::from_millis(1_500));
    bend(&mut members[1]);
    let errors = on_each(members, |_, group| group.err());
    let errors: Vec<FormError> =
        errors.into_iter().map(|e| e.unwrap_or_else(|| panic!("formed, although {what}"))).collect();
    for (rank, error) in errors.iter().enumerate() {
        assert!(error.to_string().contains(what), "rank {rank} should name {what:?}: {error}");
        assert!(error.to_string().contains(&format!("rank {} (m_", 1 - rank)), "{error}");
    }
}

#[test]
fn any_disagreement_refuses_on_both_sides_and_is_named() {
    disagreement("instance differs", |rank| rank.place.instance = InstanceId(8));
    disagreement("epoch differs", |rank| rank.place.epoch = Epoch(2));
    disagreement("model differs", |rank| rank.place.model[0] = 9);
    disagreement("shard map differs", |rank| rank.place.shard_map[31] = 9);
    disagreement("mode differs", |rank| rank.place.mode = Mode::Pipeline);
    disagreement("element type differs", |rank| rank.place.dtype = WireType::Bf16);
    disagreement("start of the machine differs", |rank| {
        // Rank 1 has restarted since the roster that rank 0 has.
        rank.roster[1].incarnation = Incarnation(999);
    });
    disagreement("number of ranks differs", |rank| {
        let another = rank.roster[1].clone();
        rank.roster.push(another);
    });
}

#[test]
fn a_machine_with_another_key_than_the_rosters_is_refused_on_both_sides() {
    let mut members = ranks(2);
    members.iter_mut().for_each(|m| m.timing.total = Duration::from_millis(1_500));
    members[1].keys = MachineKeys::generate();
    let errors = on_each(members, |_, group| group.err().unwrap());
    assert!(errors[0].to_string().contains("holds the key of m_"), "{}", errors[0]);
    assert!(errors[1].to_string().contains("its roster does not name it"), "{}", errors[1]);
}

#[test]
fn strangers_and_noise_neither_enter_nor_hold_up_a_group() {
    use std::io::Write;
    let mut members = ranks(2);
    let (total, attempt) = (Duration::from_secs(240), Duration::from_secs(120));
    members.iter_mut().for_each(|m| m.timing = Timing { total, attempt, ..m.timing });
    let door: SocketAddr = members[0].roster[0].addresses[0];
    let mut noise: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(door).unwrap()).collect();
    for (i, stream) in noise.iter_mut().enumerate() {
        if i % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        }
    }
    let started = Instant::now();
    let ends = on_each(members, |_, group| {
        let mut group = group.unwrap();
        (group.barrier(), group)
    });
    assert!(ends.iter().all(|(end, _)| *end == Ok(())));
    assert!(started.elapsed() < attempt, "silent strangers are not waited for");
}

#[test]
fn a_rank_that_goes_is_known_at_once_by_all_with_its_name() {
    let together = Barrier::new(3);
    let ends = on_each(ranks(3), move |rank, group| {
        let mut group = group.unwrap();
        let stands = group.barrier();
        together.wait();
        stands.unwrap();
        if rank == 2 {
            return (Duration::ZERO, None);
        }
        let started = Instant::now();
        let fault = loop {
            if let Err(fault) = group.all_reduce(&mut [1.0; 100]) {
                break fault;
            }
        };
        assert_eq!(group.barrier().unwrap_err(), fault, "the first fault stays");
        (started.elapsed(), Some(fault))
    });
    for (taken, fault) in &ends[..2] {
        let fault = fault.as_ref().unwrap();
        assert_eq!(fault.culprit, Some(2), "{fault}");
        assert!(taken < &Duration::from_secs(5), "{taken:?}");
    }
}

#[test]
fn an_idle_follower_hears_of_a_fault_between_two_others() {
    let ends = on_each(ranks(3), |rank, group| {
        let mut group = group.unwrap();
        if rank == 1 {
            group.poison(Fault::of(1, Cause::Ended("its memory is damaged".into())));
        }
        let mut plan = Vec::new();
        let fault = loop {
            match if rank == 0 {
                group.receive_bytes(2, &mut plan)
            } else {
                group.follow(0, &mut plan, Duration::from_secs(5)).map(|_| ())
            } {
                Ok(()) => {}
                Err(fault) => break fault,
            }
        };
        // Kept until all know: a connection that closes is a fault too.
        (fault, group)
    });
    for (fault, _) in ends {
        assert_eq!(fault.culprit, Some(1), "{fault}");
        assert!(fault.to_string().contains("its memory is damaged"), "{fault}");
    }
}

#[test]
fn a_group_can_be_stopped_from_outside_and_the_others_are_told() {
    let ends = on_each(ranks(2), |rank, group| {
        let mut group = group.unwrap();
        let stopper = group.transport().stopper();
        let telemetry = group.transport().telemetry();
        if rank == 0 {
            stopper.stop("the model was un-assigned");
            assert!(telemetry.traffic().messages_sent > 0 && telemetry.malformed() == 0);
        }
        let mut plan = Vec::new();
        let fault = loop {
            match group.receive_bytes(1 - rank, &mut plan) {
                Ok(()) => {}
                Err(fault) => break fault,
            }
        };
        (fault, group)
    });
    for (fault, _) in ends {
        assert!(fault.to_string().contains("the model was un-assigned"), "{fault}");
    }
}

#[test]
fn a_link_refusal_is_final_only_where_trying_again_cannot_help() {
    let differs = |what| LinkError::Differs { what, ours: "a".into(), theirs: "b".into() };
    assert!(differs("model").is_final() && differs("mode").is_final());
    assert!(!differs("epoch").is_final() && !differs("instance").is_final());
    assert!(!differs("start of the machine").is_final());
}
