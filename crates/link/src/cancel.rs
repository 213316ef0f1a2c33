//! A wait that can be ended from another thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Ends what waits on it, once and for all. Cheap to clone.
#[derive(Clone, Default)]
pub struct Cancel(Arc<(Mutex<bool>, Condvar)>);

impl Cancel {
    /// One that nobody has ended yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every wait, now and later.
    pub fn cancel(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether it was ended.
    pub fn is_cancelled(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `pause`, or less where it is ended; whether it was.
    pub fn wait(&self, pause: Duration) -> bool {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, _) = self
            .0
            .1
            .wait_timeout_while(guard, pause, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        *ended
    }
}
