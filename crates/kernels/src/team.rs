//! A fixed set of threads that run one closure together.
//!
//! A forward pass is hundreds of short parallel loops, microseconds apart: workers spin for a moment between them,
//! and sleep where no next one comes, since other processes want the cores too.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins for what it waits for before it sleeps: several times the gap between two loops of a
/// forward pass (a few microseconds), and about what a wake-up costs. Longer burns cores that others need.
const SPIN: Duration = Duration::from_micros(50);

/// Threads that run closures together: the caller is worker 0, the others wait in between.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

type Job = *const (dyn Fn(usize, usize) + Sync);

struct Shared {
    /// Grows with each job (and once to stop): what waiting workers look at.
    epoch: AtomicU64,
    /// Written before `epoch` grows, read after, never while a job runs.
    job: UnsafeCell<Option<Job>>,
    /// Workers other than the caller that have not finished the current job.
    unfinished: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held to fall asleep and to wake: see `wait_for_job` and `wait_for_workers`.
    sleep: Mutex<()>,
    workers_wake: Condvar,
    workers_asleep: AtomicUsize,
    caller_wake: Condvar,
    caller_asleep: AtomicBool,
}

// SAFETY: `job` is only written by the caller while no worker runs, and only read by workers after the epoch that
// announces it; the closure behind it is `Sync`, and outlives the job because `run` waits for all workers.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Team {
    /// A team of `threads` (at least one), the caller of [`Team::run`] included: `threads - 1` are started.
    pub fn new(threads: usize) -> Self {
        let workers = threads.max(1);
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            unfinished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            workers_wake: Condvar::new(),
            workers_asleep: AtomicUsize::new(0),
            caller_wake: Condvar::new(),
            caller_asleep: AtomicBool::new(false),
        });
        let threads = (1..workers)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("team-{worker}"))
                    .spawn(move || shared.serve(worker, workers))
                    .expect("a process that cannot start its compute threads cannot serve")
            })
            .collect();
        Self { shared, threads, turn: Mutex::new(()) }
    }

    /// How many run together.
    pub fn workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `job(worker, workers)` once on each worker, `worker` from 0, and returns when all have finished. With
    /// one worker that is a plain call.
    ///
    /// A panic in any of them comes out here, after all have finished. Jobs of several callers run one after the
    /// other; a job must not call `run` of any team.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        if self.threads.is_empty() {
            return job(0, 1);
        }
        assert!(!INSIDE.get(), "a team's job must not run another");
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `run` does not return before no worker uses it.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Job>(job) };
        // SAFETY: no job is running, so no worker reads it.
        unsafe { *shared.job.get() = Some(erased) };
        shared.unfinished.store(self.threads.len(), Ordering::SeqCst);
        shared.announce();
        INSIDE.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| job(0, self.threads.len() + 1)));
        INSIDE.set(false);
        shared.wait_for_workers();
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.announce();
        for thread in self.threads.drain(..) {
            // A worker catches its job's panics, so it ends in order; and a destructor has nobody to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, worker: usize, workers: usize) {
        INSIDE.set(true);
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: written before the epoch grew, and not written again before this worker has finished.
            let job = unsafe { (*self.job.get()).expect("an epoch announces a job or the end") };
            // SAFETY: the caller waits for this worker, so what it borrowed is still there.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker, workers))) {
                *lock(&self.panic) = Some(panic);
            }
            if self.unfinished.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_asleep.load(Ordering::SeqCst)
            {
                drop(lock(&self.sleep));
                self.caller_wake.notify_one();
            }
        }
    }

    fn announce(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.workers_asleep.load(Ordering::SeqCst) > 0 {
            // A worker that counted itself asleep holds the lock until it really waits: past this it hears us.
            drop(lock(&self.sleep));
            self.workers_wake.notify_all();
        }
    }

    fn wait_for_job(&self, seen: u64) -> u64 {
        if spin_until(|| self.epoch.load(Ordering::Acquire) != seen) {
            return self.epoch.load(Ordering::SeqCst);
        }
        let mut asleep = lock(&self.sleep);
        self.workers_asleep.fetch_add(1, Ordering::SeqCst);
        // No deadline: between jobs there is nothing else to do, and dropping the team ends the wait.
        while self.epoch.load(Ordering::SeqCst) == seen {
            asleep = self.workers_wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.workers_asleep.fetch_sub(1, Ordering::SeqCst);
        self.epoch.load(Ordering::SeqCst)
    }

    fn wait_for_workers(&self) {
        if spin_until(|| self.unfinished.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut asleep = lock(&self.sleep);
        self.caller_asleep.store(true, Ordering::SeqCst);
        // No deadline: the job borrows from the caller, who must not go on before it ends.
        while self.unfinished.load(Ordering::SeqCst) > 0 {
            asleep = self.caller_wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_asleep.store(false, Ordering::SeqCst);
    }
}

fn spin_until(done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        for _ in 0..64 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begun.elapsed() > SPIN {
            return false;
        }
    }
}

/// No state behind these locks can be left half-changed, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_job_once() {
        for threads in [0, 1, 2, 3, 5] {
            let team = Team::new(threads);
            assert_eq!(team.workers(), threads.max(1));
            let runs: Vec<_> = (0..team.workers()).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..200 {
                team.run(&|worker, workers| {
                    assert_eq!(workers, runs.len());
                    runs[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(runs.iter().all(|count| count.load(Ordering::Relaxed) == 200));
        }
    }

    #[test]
    fn a_job_announced_to_sleeping_workers_wakes_them() {
        let team = Team::new(3);
        let runs = AtomicUsize::new(0);
        for round in 1..20 {
            let begun = Instant::now();
            while team.shared.workers_asleep.load(Ordering::SeqCst) < 2 {
                assert!(begun.elapsed() < Duration::from_secs(30), "idle workers never fall asleep");
                std::thread::yield_now();
            }
            team.run(&|_, _| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.load(Ordering::Relaxed), 3 * round);
        }
    }

    #[test]
    fn a_panic_of_any_worker_reaches_the_caller_and_the_team_works_on() {
        let team = Team::new(2);
        for guilty in [0, 1] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|worker, _| assert_ne!(worker, guilty, "on purpose"));
            }));
            assert!(outcome.is_err());
        }
        let runs = AtomicUsize::new(0);
        team.run(&|_, _| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn several_callers_take_turns() {
        let team = Team::new(2);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        team.run(&|_, workers| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < workers);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }
}
