//! The streaming node: serves write-ahead logs to producers and consumers.

mod coordinator;
mod flow;
mod identity;
mod ids;
mod metrics;
mod node;
mod recovery;
mod registration;
mod replication;
mod serve;
mod service;
mod settings;
mod shard;
mod tenure;
#[cfg(test)]
mod tests;
mod timestamps;
mod wal;
mod wals;

pub use coordinator::RootCoord;
pub use flow::{Memory, Usage};
pub use ids::{IdError, IdSource};
pub use node::{Node, NodeCell, Parts, StartError};
pub use recovery::acks::{AckError, BroadcastAcks};
pub use serve::{Edges, serve, server};
pub use settings::{Adaptive, Flow, Marks, Recovering, Recovery, Segments, Settings, SettingsError, Slowdown};
pub use timestamps::{TimestampError, TimestampSource};
