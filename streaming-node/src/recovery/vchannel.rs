//! One vchannel as messages make it: a collection's shard with its partitions and schemas.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use streaming_proto::{
    messages::{CreateCollectionMessageHeader, CreatePartitionMessageHeader, DropPartitionMessageHeader},
    streaming::{CollectionInfoOfVChannel, PartitionInfoOfVChannel, VChannelMeta, VChannelSchemaState, VChannelState},
};
use streaming_types::MessageType;

use super::seen::Seen;

/// See the module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VChannel {
    pub collection_id: i64,
    pub partitions: BTreeSet<i64>,
    /// By rising tick.
    pub schemas: Vec<Schema>,
    /// What is at or before this tick is in here.
    pub tick: u64,
    dropped: bool,
}

/// The schema from a tick on, as it came.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Schema {
    /// An encoded `schema.CollectionSchema`, maybe of a later release.
    pub schema: Bytes,
    pub tick: u64,
}

/// `streaming.CollectionSchemaOfVChannel` with its schema left as it is: on the wire, bytes and a submessage are the same.
#[derive(Clone, PartialEq, Message)]
struct WireSchema {
    #[prost(bytes = "bytes", tag = "1")]
    schema: Bytes,
    #[prost(uint64, tag = "2")]
    checkpoint_time_tick: u64,
    #[prost(int32, tag = "3")]
    state: i32,
}

/// The schema in the bodies of `CreateCollection` (bytes, or since a later release a message), `SchemaChange`
/// and, one level deeper, `AlterCollection`.
#[derive(Clone, PartialEq, Message)]
struct CreateBody {
    #[prost(bytes = "bytes", tag = "8")]
    schema: Bytes,
    #[prost(bytes = "bytes", tag = "13")]
    collection_schema: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct ChangeBody {
    #[prost(bytes = "bytes", tag = "1")]
    schema: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct AlterBody {
    #[prost(message, optional, tag = "1")]
    updates: Option<AlterUpdates>,
}

#[derive(Clone, PartialEq, Message)]
struct AlterUpdates {
    #[prost(bytes = "bytes", tag = "5")]
    schema: Bytes,
}

impl Schema {
    pub fn encode(&self) -> Vec<u8> {
        let Self { schema, tick } = self.clone();
        let state = VChannelSchemaState::VchannelSchemaStateNormal.into();
        WireSchema { schema, checkpoint_time_tick: tick, state }.encode_to_vec()
    }

    pub fn decode(bytes: Bytes) -> Option<Self> {
        let wire = WireSchema::decode(bytes).ok()?;
        Some(Self { schema: wire.schema, tick: wire.checkpoint_time_tick })
    }
}

/// Largest schema, in bytes: it has to fit into one transaction of a metadata store.
pub const LARGEST_SCHEMA: usize = 1 << 20;

/// The schema in the body of a message that brings one; `None` if it cannot be read.
pub fn schema_in(kind: MessageType, body: &[u8]) -> Option<Bytes> {
    match kind {
        MessageType::CreateCollection => {
            let body = CreateBody::decode(body).ok()?;
            Some(if body.schema.is_empty() { body.collection_schema } else { body.schema })
        }
        MessageType::SchemaChange => Some(ChangeBody::decode(body).ok()?.schema),
        MessageType::AlterCollection => Some(AlterBody::decode(body).ok()?.updates?.schema),
        _ => None,
    }
}

impl VChannel {
    /// The vchannel that a `CreateCollection` makes.
    pub fn created(seen: &Seen<'_>) -> Option<Self> {
        let header: CreateCollectionMessageHeader = seen.header()?;
        let schema = schema_in(seen.kind, seen.payload)?;
        Some(Self {
            collection_id: header.collection_id,
            partitions: header.partition_ids.into_iter().collect(),
            // One without a schema could not be read by peers.
            schemas: vec![Schema { schema, tick: seen.tick }],
            tick: seen.tick,
            dropped: false,
        })
    }

    /// The tick of the message that made it, as far as that is known.
    pub fn created_tick(&self) -> u64 {
        self.schemas.first().map_or(0, |schema| schema.tick)
    }

    pub fn is_dropped(&self) -> bool {
        self.dropped
    }

    /// Takes a message of this vchannel that is newer than it; says whether anything changed.
    pub fn apply(&mut self, seen: &Seen<'_>) -> bool {
        if seen.tick <= self.tick {
            return false;
        }
        let changed = match seen.kind {
            MessageType::DropCollection => {
                self.dropped = true;
                true
            }
            MessageType::CreatePartition => seen
                .header::<CreatePartitionMessageHeader>()
                .is_some_and(|header| self.partitions.insert(header.partition_id)),
            MessageType::DropPartition => seen
                .header::<DropPartitionMessageHeader>()
                .is_some_and(|header| self.partitions.remove(&header.partition_id)),
            MessageType::SchemaChange | MessageType::AlterCollection => {
                self.set_schema(schema_in(seen.kind, seen.payload), seen.tick)
            }
            _ => false,
        };
        if changed {
            self.tick = seen.tick;
        }
        changed
    }

    fn set_schema(&mut self, schema: Option<Bytes>, tick: u64) -> bool {
        let Some(schema) = schema.filter(|schema| !schema.is_empty()) else { return false };
        // It is there already where a former owner wrote it, and not the vchannel any more.
        if self.schemas.iter().all(|known| known.tick != tick) {
            self.schemas.push(Schema { schema, tick });
        }
        true
    }

    /// The wire form, which leaves the schemas to keys of their own.
    pub fn to_proto(&self, name: &str) -> VChannelMeta {
        let partition = |id: &i64| PartitionInfoOfVChannel { partition_id: *id };
        VChannelMeta {
            vchannel: name.to_owned(),
            state: VChannelState::VchannelStateNormal.into(),
            collection_info: Some(CollectionInfoOfVChannel {
                collection_id: self.collection_id,
                partitions: self.partitions.iter().map(partition).collect(),
                schemas: Vec::new(),
            }),
            checkpoint_time_tick: self.tick,
        }
    }

    pub fn from_proto(proto: &VChannelMeta) -> Self {
        let collection = proto.collection_info.clone().unwrap_or_default();
        Self {
            collection_id: collection.collection_id,
            partitions: collection.partitions.iter().map(|partition| partition.partition_id).collect(),
            schemas: Vec::new(),
            tick: proto.checkpoint_time_tick,
            dropped: false,
        }
    }
}
