//! The barrier after a mesh is up: every rank shows that it is there, in its place, and sums as the others do.

use collective::{Cause, Communicator, Fault};

/// Long enough that three ranks and more sum it in parts.
const LONG: usize = 40_000;

/// What `rank` contributes at `index`: small whole numbers, so that every sum is exact in every wire type's mantissa
/// that is not blocked, and different for each rank.
fn part(rank: usize, index: usize) -> f32 {
    ((rank + 1) * (index % 7 + 1)) as f32
}

/// Each rank proves its place and the number of ranks, and that sums arrive.
pub(crate) fn verify(group: &mut dyn Communicator) -> Result<(), Fault> {
    let (rank, ranks) = (group.rank(), group.ranks());
    let mut places = vec![0.0; 2 * ranks];
    group.all_gather(&[rank as f32, ranks as f32], &vec![2; ranks], &mut places)?;
    for (other, said) in places.chunks(2).enumerate() {
        if said != [other as f32, ranks as f32] {
            let (expected, got) = (format!("{other} of {ranks}"), format!("{} of {}", said[0], said[1]));
            let cause = Cause::Disagrees { what: "the rank that it proves", expected, got };
            return Err(end(group, Fault::of(other, cause)));
        }
    }
    for length in [64, LONG] {
        let mut sums: Vec<f32> = (0..length).map(|index| part(rank, index)).collect();
        group.all_reduce(&mut sums)?;
        for (index, &got) in sums.iter().enumerate() {
            let expected: f32 = (0..ranks).map(|r| part(r, index)).sum();
            // Shorter wire types round both contributions and sum: 1 % is above what the coarsest loses here.
            if (got - expected).abs() > 0.01 * expected * ranks as f32 {
                let cause = Cause::Ended(format!("a sum of known values is {got}, not {expected}").into());
                return Err(end(group, Fault { culprit: None, cause, operation: 0 }));
            }
        }
    }
    group.barrier()
}

fn end(group: &mut dyn Communicator, fault: Fault) -> Fault {
    group.poison(fault.clone());
    fault
}
