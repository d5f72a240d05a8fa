//! A message of the source as the target takes it: names of channels replaced, and where it comes from written on it. The
//! payload stays as it is, unless it names channels. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::encoding::{decode_varint, encode_varint};
use streaming_proto::{common::ReplicateConfiguration, messages::ReplicateHeader};
use streaming_types::{
    ImmutableMessage, Message, MessageType, TimeTick, TxnContext,
    channel::to_physical,
    properties::{PropertyError, SET_BY_NODE, key},
};

/// Fields of `msg.CreateCollectionRequest` that hold names of channels.
const VIRTUAL_CHANNELS: u64 = 9;
const PHYSICAL_CHANNELS: u64 = 10;

/// What the channels of the source are called at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    source_cluster: String,
    pchannels: BTreeMap<String, String>,
}

/// A message that cannot be brought into the target's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    #[error(transparent)]
    Property(#[from] PropertyError),
    #[error("channel {0} has no counterpart")]
    UnknownChannel(String),
}

impl RewriteError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Property(_) => "REPLICATE_BAD_MESSAGE",
            Self::UnknownChannel(_) => "REPLICATE_UNKNOWN_CHANNEL",
        }
    }

    /// Whether it may succeed later: not as long as the topology is the same.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// Nothing was sent.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

impl Names {
    /// `None` if one of the clusters is not in the topology.
    pub(crate) fn new(topology: &ReplicateConfiguration, source: &str, target: &str) -> Option<Self> {
        let pchannels = |id: &str| {
            let cluster = topology.clusters.iter().find(|cluster| cluster.cluster_id == id)?;
            Some(cluster.pchannels.iter().cloned())
        };
        Some(Self {
            source_cluster: source.to_owned(),
            pchannels: pchannels(source)?.zip(pchannels(target)?).collect(),
        })
    }

    /// Every pchannel of the source with its counterpart.
    pub(crate) fn pchannels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pchannels.iter().map(|(source, target)| (source.as_str(), target.as_str()))
    }

    /// The counterpart of a pchannel or vchannel.
    fn of(&self, name: &str) -> Option<String> {
        let pchannel = to_physical(name);
        Some(format!("{}{}", self.pchannels.get(pchannel)?, &name[pchannel.len()..]))
    }

    fn must_be(&self, name: &str) -> Result<String, RewriteError> {
        self.of(name).ok_or_else(|| RewriteError::UnknownChannel(name.to_owned()))
    }

    /// The message for the target; `None` if it is not for others: what each cluster writes for itself, and what the source
    /// had from elsewhere. `place` is the tick of the commit, for the messages of a transaction, its begin included.
    pub(crate) fn rewrite(
        &self,
        message: ImmutableMessage,
        place: Option<TimeTick>,
    ) -> Result<Option<Message>, RewriteError> {
        let kind = message.properties.message_type()?;
        if kind.is_self_controlled() || message.properties.contains(key::REPLICATE) {
            return Ok(None);
        }
        let vchannel = message.properties.vchannel().unwrap_or_default().to_owned();
        let header = ReplicateHeader {
            cluster_id: self.source_cluster.clone(),
            message_id: Some(message.id.to_proto()),
            last_confirmed_message_id: Some(message.last_confirmed()?.to_proto()),
            time_tick: place.map_or_else(|| message.time_tick(), Ok)?.into(),
            vchannel: vchannel.clone(),
        };
        let ImmutableMessage { mut payload, mut properties, .. } = message;
        for key in SET_BY_NODE {
            properties.remove(key);
        }
        properties.set_replicate(&header);
        properties.set_vchannel(self.must_be(&vchannel)?);
        if let Some(mut broadcast) = properties.broadcast()? {
            // A client may name what is no channel of the source. Nobody has that, and it must not stop all that follows.
            broadcast.vchannels = broadcast.vchannels.iter().filter_map(|name| self.of(name)).collect();
            properties.set_broadcast(&broadcast);
        }
        if let Some(txn) = properties.txn()? {
            properties.set_txn(TxnContext::infinite(txn.txn_id));
        }
        if kind == MessageType::CreateCollection {
            payload = self.rename(&payload).unwrap_or(payload);
        }
        Ok(Some(Message { payload, properties }))
    }

    /// Replaces the names of channels in a `msg.CreateCollectionRequest`; what else it holds stays, byte for byte. `None` if
    /// it is none.
    fn rename(&self, body: &Bytes) -> Option<Bytes> {
        let mut renamed = Vec::with_capacity(body.len() + 64);
        let mut rest = body.as_ref();
        while !rest.is_empty() {
            let field = rest;
            let tag = decode_varint(&mut rest).ok()?;
            let length = match tag & 7 {
                0 => {
                    let mut after = rest;
                    decode_varint(&mut after).ok()?;
                    rest.len() - after.len()
                }
                1 => 8,
                2 => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
                5 => 4,
                _ => return None,
            };
            let value = rest.get(..length)?;
            rest = &rest[length..];
            let names_channel = tag == VIRTUAL_CHANNELS << 3 | 2 || tag == PHYSICAL_CHANNELS << 3 | 2;
            match std::str::from_utf8(value).ok().filter(|_| names_channel).and_then(|name| self.of(name)) {
                Some(name) => {
                    encode_varint(tag, &mut renamed);
                    encode_varint(name.len() as u64, &mut renamed);
                    renamed.extend_from_slice(name.as_bytes());
                }
                None => renamed.extend_from_slice(&field[..field.len() - rest.len()]),
            }
        }
        Some(renamed.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use streaming_proto::{
        common::MilvusCluster,
        messages::{
            BeginTxnMessageHeader, BroadcastHeader, CreateCollectionMessageHeader, CreateSegmentMessageHeader,
            InsertMessageHeader,
        },
        msg::CreateCollectionRequest,
    };
    use streaming_types::{MessageBuilder, MessageId};

    use super::*;

    fn names() -> Names {
        let cluster = |id: &str| MilvusCluster {
            cluster_id: id.to_owned(),
            pchannels: vec![format!("{id}-dml_0"), format!("{id}-dml_1")],
            ..MilvusCluster::default()
        };
        let topology = ReplicateConfiguration { clusters: vec![cluster("a"), cluster("b")], ..Default::default() };
        Names::new(&topology, "a", "b").unwrap()
    }

    fn stored(mut message: Message) -> ImmutableMessage {
        message.properties.set_time_tick(TimeTick(77));
        message.properties.set_last_confirmed(MessageId::new(1, 2));
        message.properties.set_wal_term(4);
        message.into_immutable(MessageId::new(1, 5))
    }

    fn rewritten(message: Message) -> Option<Message> {
        names().rewrite(stored(message), None).unwrap()
    }

    fn insert() -> Message {
        let insert = MessageBuilder::new(&InsertMessageHeader::default()).vchannel("a-dml_1_7v0").payload("rows");
        insert.property("user", "mine").idempotency_key("k").build().unwrap()
    }

    #[test]
    fn place_at_the_source_is_written_on_it_and_everything_else_is_kept() {
        let message = rewritten(insert()).unwrap();
        let header = ReplicateHeader {
            cluster_id: "a".into(),
            message_id: Some(MessageId::new(1, 5).to_proto()),
            last_confirmed_message_id: Some(MessageId::new(1, 2).to_proto()),
            time_tick: 77,
            vchannel: "a-dml_1_7v0".into(),
        };
        let mut expected = insert();
        expected.properties.set_vchannel("b-dml_1_7v0");
        expected.properties.set_replicate(&header);
        assert_eq!(message, expected);
    }

    #[test]
    fn transaction_takes_the_place_of_its_commit_and_never_expires() {
        let begin = MessageBuilder::new(&BeginTxnMessageHeader::default()).vchannel("a-dml_0_7v0").build().unwrap();
        let mut begin = stored(begin);
        begin.properties.set_txn(TxnContext::new(9, 1000));
        let begin = names().rewrite(begin, Some(TimeTick(90))).unwrap().unwrap();
        assert_eq!(begin.properties.replicate().unwrap().unwrap().time_tick, 90);
        assert_eq!(begin.properties.txn(), Ok(Some(TxnContext::infinite(9))));
    }

    #[test]
    fn what_is_not_for_others_is_left_out() {
        let segment = MessageBuilder::new(&CreateSegmentMessageHeader::default()).vchannel("a-dml_0_7v0");
        assert_eq!(rewritten(segment.build().unwrap()), None);
        let mut replicated = insert();
        replicated.properties.set_replicate(&ReplicateHeader::default());
        assert_eq!(rewritten(replicated), None);
    }

    #[test]
    fn copies_of_a_broadcast_name_the_targets_channels() {
        let header = CreateCollectionMessageHeader::default();
        let broadcast = MessageBuilder::new(&header).broadcast(["a-dml_0_vcchan", "a-dml_1_7v0"], Vec::new());
        let mut copy = broadcast.payload("?").build().unwrap();
        copy.properties.set_vchannel("a-dml_0_vcchan");
        let copy = rewritten(copy).unwrap();
        assert_eq!(copy.properties.vchannel(), Some("b-dml_0_vcchan"));
        assert_eq!(copy.properties.broadcast().unwrap().unwrap().vchannels, ["b-dml_0_vcchan", "b-dml_1_7v0"]);
        assert_eq!(copy.payload, "?", "what cannot be read stays");
    }

    #[test]
    fn broadcast_that_names_what_is_no_channel_is_shipped_without_that() {
        let mut copy = insert();
        let vchannels = ["nowhere_7v0", "", "a-dml_1_7v0"].map(str::to_owned).into();
        copy.properties.set_broadcast(&BroadcastHeader { vchannels, ..BroadcastHeader::default() });
        let copy = rewritten(copy).unwrap();
        assert_eq!(copy.properties.broadcast().unwrap().unwrap().vchannels, ["b-dml_1_7v0"]);
    }

    #[test]
    fn channel_without_a_counterpart_is_an_error() {
        let mut message = insert();
        message.properties.set_vchannel("a-dml_9_7v0");
        let refused = names().rewrite(stored(message), None);
        assert_eq!(refused, Err(RewriteError::UnknownChannel("a-dml_9_7v0".into())));
    }

    proptest! {
        #[test]
        fn body_of_a_collection_changes_in_its_channels_only(
            schema: Vec<u8>,
            name in ".{0,20}",
            ids in prop::collection::vec(any::<i64>(), 0..4),
        ) {
            let body = |cluster: &str| CreateCollectionRequest {
                schema: schema.clone().into(),
                collection_name: name.clone(),
                partition_i_ds: ids.clone(),
                virtual_channel_names: vec![format!("{cluster}-dml_0_7v0"), format!("{cluster}-dml_1_7v1")],
                physical_channel_names: vec![format!("{cluster}-dml_0"), format!("{cluster}-dml_1")],
                ..CreateCollectionRequest::default()
            };
            let mut sent = body("a").encode_to_vec();
            // A field of a later release.
            sent.extend([0xfa, 0x07, 0x02, 1, 2]);
            let mut expected = body("b").encode_to_vec();
            expected.extend([0xfa, 0x07, 0x02, 1, 2]);
            prop_assert_eq!(names().rename(&sent.into()).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_renamed_or_refused(body: Vec<u8>) {
            let _ = names().rename(&body.into());
        }
    }
}
