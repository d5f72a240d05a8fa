//! Signals: the first asks for a drain, the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use woodpecker_base::tasks::Tasks;

/// Exit status after a second signal, as a shell reports an interrupt.
const INTERRUPTED: i32 = 130;

/// Stops `tasks` on the first SIGINT or SIGTERM. Handlers are in place when this returns.
///
/// # Errors
/// The handlers cannot be installed.
pub(crate) fn on_signal(tasks: &Tasks) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopping = tasks.clone();
    #[expect(clippy::disallowed_methods, reason = "nobody waits for the task that waits for the operator")]
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        tracing::info!("stopping; signal again to exit at once");
        stopping.stop();
        next().await;
        #[expect(clippy::disallowed_methods, reason = "the operator asked twice")]
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}
