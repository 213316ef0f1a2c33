//! The threads that work on constraints: one compiles what arrives, one finds what may come next while the step runs.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::desk::{Accepted, Desk};
use crate::grammar::{Grammars, Guide, Mask};
use crate::sink::Refusal;

/// How long to wait for what may come next at most: its fuel lasts for a hundredth of it on a machine that is not busy.
const MASK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Grammars are read by functions that call themselves.
const STACK_BYTES: usize = 64 << 20;

/// A guide on its way to the thread that moves it on, and the token to move it by.
struct Move {
    guide: Box<Guide>,
    token: u32,
    endless: bool,
    back: Sender<Moved>,
}

/// A guide that was moved on, and what may come next.
type Moved = (Box<Guide>, Result<Option<Mask>, String>);

/// Constraint work for one engine.
pub(crate) struct Guides {
    compile: Sender<Accepted>,
    threads: Vec<JoinHandle<()>>,
}

impl Guides {
    /// Starts the threads; `places` attempts are with them at most.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(grammars: Grammars, desk: Arc<Desk>, places: usize) -> std::io::Result<Self> {
        let (compile, arriving) = bounded::<Accepted>(places);
        let (moves, moving) = bounded::<Move>(places);
        let compiler = move || {
            for accepted in arriving {
                prepare(&grammars, &desk, &moves, accepted);
            }
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        let threads = vec![
            thread("grammar-compile").spawn(compiler)?,
            thread("grammar-mask").spawn(move || move_all(&moving))?,
        ];
        Ok(Self { compile, threads })
    }

    /// Takes an attempt that the desk has a place for; it comes to the desk with a guide, or its sink is told why not.
    pub(crate) fn prepare(&self, accepted: Accepted) -> Result<(), Box<Accepted>> {
        self.compile.try_send(accepted).map_err(|error| Box::new(error.into_inner()))
    }

    /// Ends the threads. What they have is done first; answers that still run keep theirs until they end.
    pub(crate) fn stop(self) {
        drop(self.compile);
        for thread in self.threads {
            // A thread that panicked has dropped what it had: its answers know.
            let _ = thread.join();
        }
    }
}

fn prepare(grammars: &Grammars, desk: &Desk, moves: &Sender<Move>, mut accepted: Accepted) {
    let constraint = accepted.job.ask.constraint.as_ref().expect("only constrained attempts come here");
    let endless = accepted.job.ask.ignore_stop_tokens;
    let made = grammars.guide(constraint, &accepted.job.generated).and_then(|mut guide| {
        let first = guide.mask(endless)?;
        Ok(Guided::new(guide, first, endless, moves.clone()))
    });
    match made {
        Ok(guided) => {
            accepted.guide = Some(guided);
            desk.enter(accepted);
        }
        Err(detail) => {
            desk.withdraw(&accepted);
            accepted.sink.refused(&Refusal::BadConstraint { detail });
        }
    }
}

fn move_all(moving: &Receiver<Move>) {
    for Move { mut guide, token, endless, back } in moving {
        let next = guide.advance(token).and_then(|()| guide.mask(endless));
        // Whoever sent it may have ended.
        let _ = back.send((guide, next));
    }
}

/// What an answer knows of its constraint.
pub(crate) struct Guided {
    /// Here, unless it is being moved on.
    guide: Option<Box<Guide>>,
    next: Result<Option<Mask>, String>,
    endless: bool,
    moves: Sender<Move>,
    back: (Sender<Moved>, Receiver<Moved>),
}

impl Guided {
    fn new(guide: Guide, first: Option<Mask>, endless: bool, moves: Sender<Move>) -> Self {
        Self { guide: Some(Box::new(guide)), next: Ok(first), endless, moves, back: bounded(1) }
    }

    /// What may come next; waits for it where it is not there yet.
    ///
    /// # Errors
    /// The form has become too complex, in words.
    pub(crate) fn next(&mut self) -> Result<Option<&Mask>, String> {
        if self.guide.is_none() {
            let (guide, next) = self.back.1.recv_timeout(MASK_WAIT_MAX).map_err(|_| {
                format!("its grammar took longer than {} s for one token", MASK_WAIT_MAX.as_secs())
            })?;
            self.guide = Some(guide);
            self.next = next;
        }
        self.next.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }

    /// The answer goes on with `token`: what may come after it is found while the step runs.
    pub(crate) fn advance(&mut self, token: u32) {
        let Some(mut guide) = self.guide.take() else { return };
        if !guide.binds() {
            // Nothing to compute but whether it binds now.
            let moved = guide.advance(token);
            if !guide.binds() || moved.is_err() {
                self.next = moved.map(|()| None);
            } else {
                self.next = guide.mask(self.endless);
            }
            self.guide = Some(guide);
            return;
        }
        let step = Move { guide, token, endless: self.endless, back: self.back.0.clone() };
        if self.moves.try_send(step).is_err() {
            self.next = Err("the engine's constraint thread is gone".to_owned());
        }
    }
}
