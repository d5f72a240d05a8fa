//! The model of the streaming protocol: messages and their properties, ids, channel names, time ticks, errors.
//!
//! Everything here is pure: no I/O, no clock, no runtime. Decoders take whatever a peer sent and answer with a typed
//! error; none of them panics.

pub mod channel;
pub mod deliver;
pub mod error;
pub mod local;
pub mod message;
pub mod message_id;
pub mod metadata;
pub mod properties;
mod short;
pub mod time_tick;
pub mod txn;

pub use channel::PChannel;
pub use deliver::{DeliverFilter, DeliverPolicy};
pub use error::StreamingError;
pub use local::LocalNode;
pub use message::{ImmutableMessage, Message, MessageBuilder, MessageType};
pub use message_id::MessageId;
pub use properties::Properties;
pub use streaming_proto::streaming::StreamingCode;
pub use time_tick::TimeTick;
pub use txn::TxnContext;

/// Largest message that is accepted unless configured otherwise: 16 MiB of payload and properties together.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
