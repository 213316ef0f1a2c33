//! The collectives over memory: the same bits on every rank, whatever the way they were summed, and one culprit when a
//! rank is lost at any message.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use collective::{
    Cause, Communicator, DIRECT_BYTES_MAX, Fault, Group, GroupTerms, InMemory, Transport, TransportError,
    WireType, in_memory, quantise,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn terms(dtype: WireType) -> GroupTerms {
    GroupTerms { epoch: 3, dtype, patience: PATIENCE }
}

/// Runs `work` on every rank, each in a thread of its own, and returns what each returned, in order.
fn on_each<T: Transport + 'static, R: Send + 'static>(
    transports: Vec<T>,
    terms: GroupTerms,
    work: impl Fn(&mut Group<T>) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let work = Arc::new(work);
    let threads: Vec<_> = transports
        .into_iter()
        .map(|transport| {
            let work = Arc::clone(&work);
            std::thread::spawn(move || work(&mut Group::new(transport, terms)))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// What `rank` contributes: values of unlike size and sign, so that the order of a sum shows in its bits.
fn contribution(rank: usize, length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed ^ (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mantissa = ((state >> 33) as i32 - (1 << 30)) as f32 / (1 << 30) as f32;
            mantissa * [1e-3, 1.0, 300.0][(state >> 20) as usize % 3]
        })
        .collect()
}

/// The definition: each contribution rounded to the wire's type, summed in the order of ranks, the sum rounded alike.
fn expected(members: &[usize], length: usize, seed: u64, dtype: WireType) -> Vec<f32> {
    let mut parts = members.iter().map(|&rank| {
        let mut part = contribution(rank, length, seed);
        if members.len() > 1 {
            quantise(&mut part, dtype);
        }
        part
    });
    let mut sum = parts.next().unwrap();
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    if members.len() > 1 {
        quantise(&mut sum, dtype);
    }
    sum
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_rank_gets_the_same_bits_for_every_size_and_type() {
    let above = DIRECT_BYTES_MAX / 4 + 33;
    for ranks in 1..=8 {
        for dtype in [WireType::F32, WireType::Bf16, WireType::F16, WireType::Int8] {
            let lengths = [0, 1, 2, 31, 32, 33, 257, 2_048, above, 4 * above + 1];
            let results = on_each(in_memory(ranks), terms(dtype), move |group| {
                lengths.map(|length| {
                    let mut values = contribution(group.rank(), length, 11);
                    group.all_reduce(&mut values).unwrap();
                    values
                })
            });
            let everyone: Vec<_> = (0..ranks).collect();
            for (index, length) in lengths.into_iter().enumerate() {
                let expected = bits(&expected(&everyone, length, 11, dtype));
                for (rank, result) in results.iter().enumerate() {
                    assert!(
                        bits(&result[index]) == expected,
                        "{ranks} ranks, rank {rank}, {length} {dtype:?}"
                    );
                }
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]

    /// Any members of any group, any lengths, several operations in a row with others in between.
    #[test]
    fn operations_among_some_or_all_agree_with_their_definition(
        ranks in 1usize..=8,
        mask in 1u32..256,
        length in 0usize..40_000,
        seed: u64,
        kind in 0usize..4,
    ) {
        let dtype = [WireType::F32, WireType::Bf16, WireType::F16, WireType::Int8][kind];
        let mut members: Vec<usize> = (0..ranks).filter(|&r| mask >> r & 1 == 1).collect();
        if members.is_empty() {
            members = vec![ranks - 1];
        }
        let counts: Vec<usize> = members.iter().map(|m| (seed as usize >> m) % 97).collect();
        let total: usize = counts.iter().sum();
        let (wanted, asked, taken) = (members.clone(), members.clone(), counts.clone());
        let results = on_each(in_memory(ranks), terms(dtype), move |group| {
            let me = group.rank();
            let mut announced = if me == ranks - 1 { seed.to_le_bytes().to_vec() } else { vec![9; 3] };
            group.broadcast(ranks - 1, &mut announced).unwrap();
            let mut sum = Vec::new();
            let mut all = vec![0.0; total];
            let mut at_root = vec![0.0; total];
            if let Some(place) = asked.iter().position(|&m| m == me) {
                sum = contribution(me, length, seed);
                group.all_reduce_among(&asked, &mut sum).unwrap();
                let mine = contribution(me, taken[place], seed ^ 1);
                group.all_gather_among(&asked, &mine, &taken, &mut all).unwrap();
                group.gather_among(&asked, asked[0], &mine, &taken, &mut at_root).unwrap();
            }
            group.barrier().unwrap();
            // Round the ring: everyone to the next.
            let (next, last) = ((me + 1) % ranks, (me + ranks - 1) % ranks);
            let mut came = vec![0.0; 5];
            if ranks > 1 {
                group.send(next, &[me as f32; 5]).unwrap();
                group.receive(last, &mut came).unwrap();
                group.send_bytes(next, &[1, 2, me as u8]).unwrap();
                let mut bytes = Vec::new();
                group.receive_bytes(last, &mut bytes).unwrap();
                assert_eq!((came, bytes), (vec![last as f32; 5], vec![1, 2, last as u8]));
            }
            (announced, sum, all, at_root)
        });
        let gathered: Vec<f32> =
            wanted.iter().zip(&counts).flat_map(|(&m, &count)| contribution(m, count, seed ^ 1)).collect();
        for (rank, (announced, sum, all, at_root)) in results.into_iter().enumerate() {
            proptest::prop_assert_eq!(announced, seed.to_le_bytes().to_vec());
            if wanted.contains(&rank) {
                proptest::prop_assert!(bits(&sum) == bits(&expected(&wanted, length, seed, dtype)));
                proptest::prop_assert_eq!(bits(&all), bits(&gathered));
            }
            if rank == wanted[0] {
                proptest::prop_assert_eq!(bits(&at_root), bits(&gathered));
            }
        }
    }
}

/// What a faulty transport does to one message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    /// The rank dies before it.
    Die,
    /// It never goes out, and nothing after it.
    Swallow,
    /// A byte at this place is another.
    Change(usize),
    /// It ends early.
    Cut,
    /// It goes twice.
    Repeat,
}

/// A transport that harms the `at`-th message of rank `on`.
struct Faulty {
    inner: Option<InMemory>,
    rank: usize,
    ranks: usize,
    on: usize,
    harm: Harm,
    left: usize,
    silent: bool,
}

impl Transport for Faulty {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn send(&mut self, to: usize, message: &[u8], patience: Duration) -> Result<(), TransportError> {
        let gone = TransportError { culprit: Some(self.rank), cause: Cause::Ended("I am dead".into()) };
        if self.silent {
            return Ok(());
        }
        let inner = self.inner.as_mut().ok_or_else(|| gone.clone())?;
        if self.rank != self.on || self.left > 0 {
            self.left = self.left.saturating_sub(1);
            return inner.send(to, message, patience);
        }
        self.left = usize::MAX;
        let mut bent = message.to_vec();
        match self.harm {
            Harm::Die => {
                self.inner = None;
                return Err(gone);
            }
            Harm::Swallow => {
                self.silent = true;
                return Ok(());
            }
            Harm::Change(place) => bent[place] ^= 0x41,
            Harm::Cut => bent.truncate(message.len() - 1),
            Harm::Repeat => inner.send(to, &bent, patience)?,
        }
        inner.send(to, &bent, patience)
    }

    fn receive(&mut self, from: usize, into: &mut Vec<u8>, patience: Duration) -> Result<(), TransportError> {
        let gone = TransportError { culprit: Some(self.rank), cause: Cause::Ended("I am dead".into()) };
        self.inner.as_mut().ok_or(gone)?.receive(from, into, patience)
    }

    fn poison(&mut self, fault: &Fault) {
        // A rank that does not see its own harm takes the others' word; it may not be the first to speak.
        if self.rank != self.on
            && let Some(inner) = &mut self.inner
        {
            inner.poison(fault);
        }
    }
}

/// A few operations of every kind; the first fault, and what two later calls say.
fn work(group: &mut dyn Communicator) -> Result<(), Fault> {
    let (me, ranks) = (group.rank(), group.ranks());
    for round in 0..3 {
        let mut plan = if me == 0 { vec![round; 40] } else { Vec::new() };
        group.broadcast(0, &mut plan)?;
        assert_eq!(plan, [round; 40]);
        let everyone: Vec<usize> = (0..ranks).collect();
        for length in [16, 3_000, 20_000] {
            let mut values = contribution(me, length, 5);
            group.all_reduce(&mut values)?;
            assert!(bits(&values) == bits(&expected(&everyone, length, 5, WireType::F32)));
        }
        let counts = vec![7; ranks];
        let mut all = vec![0.0; 7 * ranks];
        group.all_gather(&[me as f32; 7], &counts, &mut all)?;
        assert!(all.iter().enumerate().all(|(i, &x)| x == (i / 7) as f32));
    }
    group.barrier()
}

#[test]
fn a_fault_at_any_message_ends_every_rank_and_names_the_culprit() {
    for ranks in 2..=4 {
        let sends = Arc::new(AtomicUsize::new(0));
        for harm in [Harm::Die, Harm::Cut, Harm::Change(1), Harm::Change(8), Harm::Change(16), Harm::Repeat] {
            // Every message of the last rank, until one lies beyond its last.
            for at in 0.. {
                let on = ranks - 1;
                let patience = Duration::from_secs(20);
                let reached = Arc::new(Mutex::new(false));
                let transports: Vec<_> = in_memory(ranks)
                    .into_iter()
                    .enumerate()
                    .map(|(rank, inner)| Faulty {
                        inner: Some(inner),
                        rank,
                        ranks,
                        on,
                        harm,
                        left: at,
                        silent: false,
                    })
                    .collect();
                let seen = Arc::clone(&reached);
                let ends =
                    on_each(transports, GroupTerms { patience, ..GroupTerms::default() }, move |group| {
                        let end = work(group);
                        if group.rank() == on && group.transport().left > at && group.transport().left != 0 {
                            *seen.lock().unwrap() = true;
                        }
                        if let Err(first) = &end {
                            for _ in 0..2 {
                                assert_eq!(group.barrier().as_ref(), Err(first), "the first fault stays");
                            }
                        }
                        end
                    });
                if !*reached.lock().unwrap() {
                    sends.fetch_max(at, Ordering::Relaxed);
                    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
                    break;
                }
                for (rank, end) in ends.iter().enumerate().filter(|(rank, _)| *rank != on) {
                    match end {
                        // What was repeated last of all nobody waits for any more.
                        Ok(()) if harm == Harm::Repeat => {}
                        Ok(()) => assert!(ends.iter().any(Result::is_err), "{ranks} {harm:?} {at} {rank}"),
                        Err(fault) => {
                            assert_eq!(fault.culprit, Some(on), "{ranks} {harm:?} {at} {rank}: {fault}");
                        }
                    }
                }
            }
        }
        assert!(sends.load(Ordering::Relaxed) >= 13, "few messages were harmed: {sends:?}");
    }
}

#[test]
fn a_rank_that_falls_silent_is_late_and_named_within_the_patience() {
    for ranks in 2..=4 {
        let on = ranks - 1;
        let transports: Vec<_> = in_memory(ranks)
            .into_iter()
            .enumerate()
            .map(|(rank, inner)| Faulty {
                inner: Some(inner),
                rank,
                ranks,
                on,
                harm: Harm::Swallow,
                left: 0,
                silent: false,
            })
            .collect();
        let patience = Duration::from_millis(50);
        let started = std::time::Instant::now();
        let ends = on_each(transports, GroupTerms { patience, ..GroupTerms::default() }, |group| work(group));
        assert!(started.elapsed() < Duration::from_secs(15));
        assert!(ends[..on].iter().all(Result::is_err), "{ends:?}");
        // Nobody else is blamed by all: the first to speak names the silent one, or one that waits for it.
        assert!(ends.iter().flatten().count() == 0, "{ends:?}");
    }
}

#[test]
fn ranks_that_do_different_things_find_out() {
    let ends = on_each(in_memory(2), terms(WireType::F32), |group| {
        if group.rank() == 0 { group.all_reduce(&mut [0.0; 8]) } else { group.all_reduce(&mut [0.0; 9]) }
    });
    let fault = ends.iter().find_map(|end| end.as_ref().err()).unwrap();
    assert!(fault.to_string().contains("the shape should be (1, "), "{fault}");

    let ends = on_each(in_memory(2), terms(WireType::F32), |group| {
        if group.rank() == 0 { group.barrier() } else { group.all_gather(&[0.0], &[0, 1], &mut [0.0]) }
    });
    let fault = ends.iter().find_map(|end| end.as_ref().err()).unwrap();
    assert!(fault.to_string().contains("the operation should be "), "{fault}");
}

#[test]
fn a_follower_waits_for_work_without_blaming_anyone() {
    let ends = on_each(in_memory(2), terms(WireType::F32), |group| {
        if group.rank() == 0 {
            group.receive_bytes(1, &mut Vec::new())?;
            group.broadcast(0, &mut vec![42])?;
            return Ok(vec![42]);
        }
        let mut plan = Vec::new();
        assert!(!group.follow(0, &mut plan, Duration::from_millis(5))?);
        group.send_bytes(0, b"now")?;
        while !group.follow(0, &mut plan, Duration::from_millis(5))? {}
        Ok::<_, Fault>(plan)
    });
    assert_eq!(ends, [Ok(vec![42]), Ok(vec![42])]);
}

/// Rank 2 of three, whose links find that rank 1 was silent for as long as anybody looks.
struct Quiet(Vec<Duration>);

impl Transport for Quiet {
    fn rank(&self) -> usize {
        2
    }

    fn ranks(&self) -> usize {
        3
    }

    fn send(&mut self, _to: usize, _message: &[u8], _patience: Duration) -> Result<(), TransportError> {
        Ok(())
    }

    fn receive(&mut self, _: usize, _: &mut Vec<u8>, patience: Duration) -> Result<(), TransportError> {
        let told = self.0.pop().unwrap_or(patience);
        Err(TransportError { culprit: Some(1), cause: Cause::Late(told) })
    }

    fn poison(&mut self, _fault: &Fault) {}
}

#[test]
fn a_short_look_for_work_blames_no_silent_rank_and_hears_of_a_fault() {
    let (short, patience) = (Duration::from_millis(5), terms(WireType::F32).patience);
    assert!(short < patience);
    let mut group = Group::new(Quiet(Vec::new()), terms(WireType::F32));
    assert_eq!(group.follow(0, &mut Vec::new(), short), Ok(false));
    // What the group's end was is another's word, of another time.
    let mut group = Group::new(Quiet(vec![patience]), terms(WireType::F32));
    assert_eq!(group.follow(0, &mut Vec::new(), short).unwrap_err().culprit, Some(1));
    let mut group = Group::new(Quiet(Vec::new()), terms(WireType::F32));
    assert_eq!(group.receive_bytes(0, &mut Vec::new()).unwrap_err().culprit, Some(1));
}

#[test]
fn a_group_that_is_told_to_end_says_so_on_every_rank() {
    let ends = on_each(in_memory(3), terms(WireType::F32), |group| {
        group.barrier().unwrap();
        if group.rank() == 1 {
            group.poison(Fault::ended("the model was un-assigned"));
        }
        group.barrier().and_then(|()| group.barrier()).unwrap_err()
    });
    for end in ends {
        assert_eq!((end.culprit, end.cause.to_string()), (None, "the model was un-assigned".to_owned()));
    }
}

#[test]
fn shorter_types_lose_no_more_than_their_precision() {
    let values = contribution(0, 4_096, 1);
    let most = |block: &[f32]| block.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (dtype, relative) in
        [(WireType::Bf16, 1.0 / 256.0), (WireType::F16, 1.0 / 2048.0), (WireType::Int8, 0.51 / 127.0)]
    {
        let mut rounded = values.clone();
        quantise(&mut rounded, dtype);
        for (rounded, exact) in rounded.chunks(32).zip(values.chunks(32)) {
            let of = if dtype == WireType::Int8 { most(exact) } else { 0.0 };
            for (&r, &x) in rounded.iter().zip(exact) {
                assert!((r - x).abs() <= relative * of.max(x.abs()) + 6e-8, "{dtype:?}: {x} became {r}");
            }
        }
    }
    let mut odd = [f32::INFINITY, f32::NAN, 1e9, -0.0];
    quantise(&mut odd, WireType::F16);
    assert!(
        odd[0] == 65504.0 && odd[1].is_nan() && odd[2] == 65504.0 && odd[3].to_bits() == (-0f32).to_bits()
    );
    let mut broken = [1.0, f32::INFINITY];
    quantise(&mut broken, WireType::Int8);
    assert!(broken.iter().all(|x| x.is_nan()), "what is broken stays visible");
}
