//! Woodpecker: durable, totally ordered logs on a local disk or in object storage.
//!
//! ```text
//! Client ── Log ── Writer   append → durable ack, in order, fenced by epoch
//!             └── Reader   from any position to the tail and on
//! ```

mod catalog;
mod client;
mod error;
mod holds;
mod log;
mod maintenance;
mod reader;
mod retry;
mod takeover;
mod tending;
mod verify;
mod view;
mod views;
mod writer;

pub use client::{Client, Settings};
pub use error::{AppendError, LogError, OpenWriterError, ReadError};
pub use log::{Log, LogDescription, SegmentDescription};
pub use maintenance::{Maintenance, MaintenanceSettings, Pass};
pub use reader::{Entry, Position, Reader};
pub use verify::{Verified, VerifiedSegment};
pub use woodpecker_core::{
    ids::{EntryId, Epoch},
    record::{Compression, LogSettings},
};
pub use writer::{Append, Appended, Writer};
