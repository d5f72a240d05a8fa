//! Ships what is appended to one cluster to the clusters that follow it.
//!
//! A [`Replicator`] runs beside its source. It asks every pchannel of every other cluster in the topology whom it follows,
//! and how far it is; where the answer is the source, it reads the source's log from there and sends what it finds, in the
//! source's order. It keeps nothing: the target's own checkpoint says where to go on, whoever was killed, so several of
//! them at a time do no harm. A planned switch-over is a message like any other: behind everything that the old primary
//! took, and the last one that the target takes from it.

mod channel;
mod introduction;
mod metrics;
mod replicator;
mod rewrite;
mod settings;

pub use replicator::Replicator;
pub use rewrite::RewriteError;
pub use settings::{InvalidSetting, Settings};
