//! The client of the streaming system: appends to channels and reads them, wherever they are served.
pub mod error;
mod assignment;
mod backoff;
mod client;
mod connections;
mod consumer;
mod metrics;
mod producer;
mod settings;

pub use assignment::{Channel, Node, Version};
pub use client::{Client, Coordinator};
pub use consumer::{ConsumeOptions, Consumer, Delivery, Txn};
pub use error::{AppendError, ConsumeError, NotReady};
pub use producer::{Append, AppendResult, Producer};
pub use settings::{Discovery, Edges, InvalidSetting, Limits, Order, Settings, Timeouts};
