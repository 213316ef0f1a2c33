//! How a program is told to end: Ctrl-C, SIGTERM, or the death of the program that started it.

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first Ctrl-C or SIGTERM. At a second one the program ends at once.
pub(crate) fn on_signals() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let told = token.clone();
    tokio::spawn(async move {
        for patience in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !patience {
                eprintln!("\nending at once");
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    Ok(token)
}

/// Asks the kernel to end this process when its parent does, so that a killed `phalanx up` leaves nothing behind.
///
/// # Errors
/// The parent is gone already.
pub(crate) fn with_parent(parent: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("asking to end with the parent")?;
    // The parent may have died before the request was made.
    if getppid().map(Pid::as_raw_nonzero).map(|p| p.get().unsigned_abs()) != Some(parent) {
        anyhow::bail!("the program that started this one (process {parent}) is gone");
    }
    Ok(())
}
