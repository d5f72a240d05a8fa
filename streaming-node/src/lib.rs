//! The streaming node: serves write-ahead logs to producers and consumers.

mod coordinator;
mod identity;
mod metrics;
mod node;
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
pub use node::{Node, Parts, StartError};
pub use serve::{Edges, serve, server};
pub use settings::{Settings, SettingsError};
pub use timestamps::{TimestampError, TimestampSource};
