//! The streaming node: serves write-ahead logs to producers and consumers.

mod coordinator;
mod identity;
mod ids;
mod metrics;
mod node;
mod recovery;
mod registration;
mod serve;
mod service;
mod settings;
#[cfg(test)]
mod tests;
mod timestamps;
mod wal;
mod wals;

pub use coordinator::RootCoord;
pub use ids::{IdError, IdSource};
pub use node::{Node, Parts, StartError};
pub use recovery::acks::{AckError, BroadcastAcks};
pub use serve::{Edges, serve, server};
pub use settings::{Recovery, Settings, SettingsError};
pub use timestamps::{TimestampError, TimestampSource};
