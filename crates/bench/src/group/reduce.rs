//! What a sum over ranks takes, by its size: over memory, and over sealed links on the loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use base::{Epoch, Incarnation, InstanceId};
use collective::{Communicator, Group, GroupTerms, WireType, in_memory};
use link::{Cancel, Gathering, Listener, Member, Place, Timing, form};
use serde::Serialize;
use trust::MachineKeys;
use wire::link::Mode;

use crate::ranks::{pin, unpin};

/// One size.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) transport: &'static str,
    pub(crate) ranks: usize,
    pub(crate) bytes: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Sums of 64 B to 8 MiB over 2, 3 and 4 ranks, each a thread pinned to a core as far as there are any.
pub(crate) fn table(quick: bool) -> anyhow::Result<Vec<Row>> {
    let ranks: &[usize] = if quick { &[2] } else { &[2, 3, 4] };
    let mut rows = Vec::new();
    for &ranks in ranks {
        let memory = in_memory(ranks)
            .into_iter()
            .map(|transport| Box::new(Group::new(transport, GroupTerms::default())) as Box<dyn Communicator>);
        rows.extend(measure("memory", memory.collect(), quick)?);
        rows.extend(measure("link", linked(ranks)?, quick)?);
    }
    Ok(rows)
}

fn linked(ranks: usize) -> anyhow::Result<Vec<Box<dyn Communicator>>> {
    let keys: Vec<MachineKeys> = (0..ranks).map(|_| MachineKeys::generate()).collect();
    let listen = || Listener::bind(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let listeners = (0..ranks).map(|_| listen()).collect::<std::io::Result<Vec<_>>>()?;
    let roster: Vec<Member> = keys
        .iter()
        .zip(&listeners)
        .map(|(keys, listener)| Member {
            machine: keys.machine(),
            incarnation: Incarnation(1),
            key: keys.signing_key(),
            addresses: listener.addresses(),
            meeting: Vec::new(),
        })
        .collect();
    let one = |(rank, (keys, listener)): (usize, (&MachineKeys, &Listener))| {
        let place = Place {
            instance: InstanceId(1),
            epoch: Epoch(1),
            rank,
            model: [0; 32],
            shard_map: [0; 32],
            mode: Mode::Tensor,
            dtype: WireType::F32,
        };
        let timing = Timing { patience: Duration::from_secs(10), ..Timing::default() };
        let cancel = Cancel::new();
        form(&Gathering { listener, keys, place: &place, roster: &roster, timing, cancel: &cancel })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            keys.iter().zip(&listeners).enumerate().map(|member| scope.spawn(move || one(member))).collect();
        let groups = threads.into_iter().map(|thread| {
            let group = thread.join().map_err(|_| anyhow!("a rank broke down"))??;
            Ok(Box::new(group) as Box<dyn Communicator>)
        });
        groups.collect()
    })
}

fn measure(
    transport: &'static str,
    groups: Vec<Box<dyn Communicator>>,
    quick: bool,
) -> anyhow::Result<Vec<Row>> {
    let ranks = groups.len();
    let sizes: Vec<usize> = match quick {
        true => vec![64, 8 << 10],
        false => (0..18).map(|power| 64 << power).collect(),
    };
    let sizes = &sizes;
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = groups
            .into_iter()
            .enumerate()
            .map(|(rank, mut group)| {
                scope.spawn(move || {
                    // Cores are counted as far as this thread may use them, and who calls may be bound to one.
                    unpin();
                    pin(rank % std::thread::available_parallelism().map_or(1, usize::from));
                    let times = sizes.iter().map(|&bytes| time(group.as_mut(), bytes));
                    // Who leaves says goodbye, which ends the others' sums: nobody leaves before all have ended theirs.
                    (times.collect::<Result<Vec<_>, _>>(), group)
                })
            })
            .collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        let mut times = Vec::new();
        for rank in &ended {
            let (measured, _) = rank.as_ref().map_err(|_| anyhow!("a rank broke down"))?;
            times.push(measured.clone()?);
        }
        Ok::<_, anyhow::Error>(times.swap_remove(0))
    })?;
    let rows = sizes.iter().zip(times).map(|(&bytes, mut times)| {
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        Row { transport, ranks, bytes, p50_us: at(0.5), p99_us: at(0.99) }
    });
    Ok(rows.collect())
}

/// About thirty megabytes of each size, or thirty times at least.
fn time(group: &mut dyn Communicator, bytes: usize) -> Result<Vec<Duration>, collective::Fault> {
    let mut values: Vec<f32> = (0..bytes / 4).map(|i| (i % 7) as f32 - 3.0).collect();
    let times = ((32 << 20) / bytes).clamp(30, 1000);
    let mut out = Vec::with_capacity(times);
    for _ in 0..times {
        // Every sum waits for all ranks, so that one begins when the last has ended everywhere: nothing else keeps step.
        let begun = Instant::now();
        group.all_reduce(&mut values)?;
        out.push(begun.elapsed());
        // Sums of sums would grow without bound.
        values.iter_mut().enumerate().for_each(|(i, value)| *value = (i % 7) as f32 - 3.0);
    }
    Ok(out)
}
