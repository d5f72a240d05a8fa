//! The streaming node: serves write-ahead logs to producers and consumers.

mod backoff;
mod coordinator;
mod identity;
mod metrics;
mod node;
mod service;
mod settings;
mod timestamps;
mod wal;
mod wals;

pub use coordinator::RootCoord;
pub use node::{Node, Parts};
pub use settings::{Settings, SettingsError};
pub use timestamps::{TimestampError, TimestampSource};
