//! Logs on several log stores: which of them, when an entry is durable, and how a segment is taken from its writer.
//!
//! Every entry is sent to all stores of a [`ReplicaSet`](crate::ids::ReplicaSet) and is durable when `ack` of them have
//! it. So an acked entry is missing on at most `stores - ack` of them, and among any `stores - ack + 1` at least one has
//! it: that many must answer a fence.

pub mod appending;
pub mod recovery;
pub mod selection;
pub mod store_record;
