//! What this machine does at most: bytes read and multiply-adds done in a second, by loops that do nothing else.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use crate::buffer::Buffer;
use crate::dots::{DotKernel, Dots};
use crate::isa::Isa;
use crate::lanes::{Kernel, LANES, Lanes};
use crate::team::Team;

/// Rounds of an arithmetic loop: some milliseconds.
const ROUNDS: usize = 400_000;
/// Accumulators: more than the latency of an instruction times how many begin in a cycle.
const CHAINS: usize = 12;
/// How often each loop runs; the fastest counts, since a ceiling is asked for.
const RUNS: usize = 5;

/// Multiply-adds of f32 a second, by all of the team, from registers.
pub fn f32_ceiling(team: &Team, isa: Isa) -> f64 {
    ceiling(team, ROUNDS * CHAINS * LANES, &|| isa.dispatch(Chains))
}

/// Multiply-adds of bytes into 32-bit integers a second, by all of the team, activations from the nearest cache.
pub fn int8_ceiling(team: &Team, isa: Isa) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if isa.tiles() {
        use crate::tiles::{ROUND, rounds_of_products};
        return ceiling(team, ROUNDS / 4 * ROUND, &|| {
            // SAFETY: whoever has tiles was permitted to use them.
            unsafe { rounds_of_products(ROUNDS / 4) };
            0.0
        });
    }
    ceiling(team, ROUNDS * CHAINS * 4 * 4 * isa.dots().rows, &|| isa.dispatch_dots(Chains))
}

/// Bytes a second that all of the team read together from memory: `bytes` of them, far more than caches hold, with
/// prefetches and huge pages as weights have them.
///
/// # Errors
/// No memory.
pub fn read_ceiling(team: &Team, isa: Isa, bytes: usize) -> io::Result<f64> {
    let mut memory = Buffer::<f32>::zeroed(bytes / 4 / 1024 * 1024)?;
    memory.fill(1.0);
    let parts = memory.len() / 1024;
    let step = parts.div_ceil(team.workers() * 8).max(1);
    let fastest = fastest(|| {
        team.share(parts, step, &|_, part| {
            let values = &memory[part.start * 1024..part.end * 1024];
            black_box(isa.dispatch(Read(values)));
        });
    });
    Ok((memory.len() * 4) as f64 / fastest)
}

/// `each` on every worker at once, which is `work` units each.
fn ceiling(team: &Team, work: usize, each: &(dyn Fn() -> f32 + Sync)) -> f64 {
    let workers = team.workers();
    let fastest = fastest(|| {
        team.share(workers, 1, &|_, part| {
            for _ in part {
                black_box(each());
            }
        });
    });
    (work * workers) as f64 / fastest
}

fn fastest(run: impl Fn()) -> f64 {
    let timed = |_| {
        let begun = Instant::now();
        run();
        begun.elapsed().as_secs_f64()
    };
    (0..RUNS).map(timed).fold(f64::INFINITY, f64::min)
}

struct Chains;

impl Kernel for Chains {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let (a, b) = (L::splat(black_box(0.5)), L::splat(black_box(1.0)));
            let mut sums = [L::splat(0.0); CHAINS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = L::fma(*sum, a, b);
                }
            }
            let mut all = sums[0];
            for sum in sums {
                all = L::add(all, sum);
            }
            L::sum(all)
        }
    }
}

impl DotKernel for Chains {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<D: Dots>(self) -> f32 {
        let bytes = black_box([3u8; 64]);
        let x = black_box([5i8; 16]);
        // SAFETY: a register's bytes and sixteen activations are there; the caller vouches for the instructions.
        unsafe {
            let w = D::bytes(bytes.as_ptr());
            let mut sums = [D::splat_int(0); CHAINS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = D::dot(*sum, [w; 4], x.as_ptr());
                }
            }
            let mut out = [0.0f32; 16];
            for sum in sums {
                let so_far = D::load(out.as_ptr());
                D::store(out.as_mut_ptr(), D::add(so_far, D::float(sum)));
            }
            out[0]
        }
    }
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        let start = self.0.as_ptr();
        // SAFETY: sixteen elements are there at each multiple of sixteen below a multiple of 64; a prefetch may point
        // anywhere.
        unsafe {
            let mut sums = [L::splat(0.0); 4];
            for at in (0..self.0.len() / 64 * 64).step_by(64) {
                for (line, sum) in sums.iter_mut().enumerate() {
                    let from = start.add(at + line * LANES);
                    L::prefetch(from.cast::<u8>().wrapping_add(2560));
                    *sum = L::add(*sum, L::load(from));
                }
            }
            L::sum(L::add(L::add(sums[0], sums[1]), L::add(sums[2], sums[3])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_set_of_this_machine_reads_and_multiplies() {
        let (team, isa) = (Team::new(1), Isa::detect());
        assert!(read_ceiling(&team, isa, 1 << 22).unwrap() > 1e6);
        // A ceiling that the optimiser has done away with would be absurd.
        for ceiling in [f32_ceiling(&team, isa), int8_ceiling(&team, isa)] {
            assert!(ceiling > 1e6 && ceiling < 1e13, "{ceiling}");
        }
    }

    #[test]
    fn every_element_is_read() {
        let values: Vec<f32> = (0..128).map(|at| at as f32).collect();
        for isa in Isa::available() {
            assert_eq!(isa.dispatch(Read(&values)), 8128.0);
        }
    }
}
