//! Where a consumer starts and what it wants to see.

use std::collections::BTreeSet;

use streaming_proto::streaming::{self as pb, deliver_filter::Filter, deliver_policy::Policy};

use crate::{MessageId, MessageType, StreamingError, TimeTick, message_id::MessageIdError};

/// Where a consumer starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliverPolicy {
    /// At the earliest message there is.
    All,
    /// After the newest message there is.
    Latest,
    /// At this message.
    StartFrom(MessageId),
    /// After this message.
    StartAfter(MessageId),
}

/// A condition on messages; several are joined by AND.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliverFilter {
    TimeTickGreaterThan(TimeTick),
    TimeTickAtLeast(TimeTick),
    /// Numbers of message types. Numbers that are unknown here are allowed: they match nothing.
    MessageTypes(BTreeSet<i32>),
}

/// Why a policy or a filter from the wire was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    #[error("deliver policy is not set")]
    NoPolicy,
    #[error("deliver filter is not set")]
    NoFilter,
    #[error("deliver policy: {0}")]
    MessageId(#[from] MessageIdError),
}

impl From<DeliverError> for StreamingError {
    fn from(error: DeliverError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl DeliverPolicy {
    /// Reads a field that must be there.
    pub fn from_proto(policy: Option<&pb::DeliverPolicy>) -> Result<Self, DeliverError> {
        match policy.and_then(|policy| policy.policy.as_ref()).ok_or(DeliverError::NoPolicy)? {
            Policy::All(()) => Ok(Self::All),
            Policy::Latest(()) => Ok(Self::Latest),
            Policy::StartFrom(id) => Ok(Self::StartFrom(id.try_into()?)),
            Policy::StartAfter(id) => Ok(Self::StartAfter(id.try_into()?)),
        }
    }

    #[must_use]
    pub fn to_proto(self) -> pb::DeliverPolicy {
        let policy = match self {
            Self::All => Policy::All(()),
            Self::Latest => Policy::Latest(()),
            Self::StartFrom(id) => Policy::StartFrom(id.into()),
            Self::StartAfter(id) => Policy::StartAfter(id.into()),
        };
        pb::DeliverPolicy { policy: Some(policy) }
    }
}

impl DeliverFilter {
    /// A filter that lets through these types, and system types as always.
    pub fn message_types(types: impl IntoIterator<Item = MessageType>) -> Self {
        Self::MessageTypes(types.into_iter().map(MessageType::number).collect())
    }

    /// Whether a consumer with this filter sees a message. Begin and body of a transaction pass every time filter,
    /// since the commit, whose tick they are delivered at, decides; a type filter never drops system types.
    #[must_use]
    pub fn passes(&self, message_type: MessageType, in_txn: bool, time_tick: TimeTick) -> bool {
        let undecided = message_type == MessageType::BeginTxn || (in_txn && message_type != MessageType::CommitTxn);
        match self {
            Self::TimeTickGreaterThan(bound) => undecided || time_tick > *bound,
            Self::TimeTickAtLeast(bound) => undecided || time_tick >= *bound,
            Self::MessageTypes(types) => message_type.is_system() || types.contains(&message_type.number()),
        }
    }

    #[must_use]
    pub fn to_proto(&self) -> pb::DeliverFilter {
        let filter = match self {
            Self::TimeTickGreaterThan(bound) => Filter::TimeTickGt(pb::DeliverFilterTimeTickGt { time_tick: bound.0 }),
            Self::TimeTickAtLeast(bound) => Filter::TimeTickGte(pb::DeliverFilterTimeTickGte { time_tick: bound.0 }),
            Self::MessageTypes(types) => {
                Filter::MessageType(pb::DeliverFilterMessageType { message_types: types.iter().copied().collect() })
            }
        };
        pb::DeliverFilter { filter: Some(filter) }
    }
}

impl TryFrom<&pb::DeliverFilter> for DeliverFilter {
    type Error = DeliverError;

    fn try_from(filter: &pb::DeliverFilter) -> Result<Self, DeliverError> {
        Ok(match filter.filter.as_ref().ok_or(DeliverError::NoFilter)? {
            Filter::TimeTickGt(bound) => Self::TimeTickGreaterThan(bound.time_tick.into()),
            Filter::TimeTickGte(bound) => Self::TimeTickAtLeast(bound.time_tick.into()),
            Filter::MessageType(types) => Self::MessageTypes(types.message_types.iter().copied().collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn an_empty_submessage_counts_as_set() {
        for (bytes, policy) in [(&[0x0a, 0x00], DeliverPolicy::All), (&[0x12, 0x00], DeliverPolicy::Latest)] {
            assert_eq!(policy.to_proto().encode_to_vec(), bytes);
            let proto = pb::DeliverPolicy::decode(bytes.as_slice()).unwrap();
            assert_eq!(DeliverPolicy::from_proto(Some(&proto)), Ok(policy));
        }
        let filter = pb::DeliverFilter::decode([0x0a, 0x00].as_slice()).unwrap();
        assert_eq!(DeliverFilter::try_from(&filter), Ok(DeliverFilter::TimeTickGreaterThan(TimeTick::ZERO)));
    }

    #[test]
    fn what_is_not_set_is_refused() {
        assert_eq!(DeliverPolicy::from_proto(None), Err(DeliverError::NoPolicy));
        assert_eq!(DeliverPolicy::from_proto(Some(&pb::DeliverPolicy::default())), Err(DeliverError::NoPolicy));
        assert_eq!(DeliverFilter::try_from(&pb::DeliverFilter::default()), Err(DeliverError::NoFilter));
        let foreign = Policy::StartFrom(streaming_proto::common::MessageId { wal_name: 1, ..Default::default() });
        assert_eq!(
            DeliverPolicy::from_proto(Some(&pb::DeliverPolicy { policy: Some(foreign) })),
            Err(DeliverError::MessageId(MessageIdError::UnknownWal(1)))
        );
    }

    #[test]
    fn refusals_are_invalid_arguments_that_say_what() {
        let error = StreamingError::from(DeliverError::MessageId(MessageIdError::UnknownWal(1)));
        assert_eq!(
            error,
            StreamingError::invalid_argument(
                "deliver policy: message id belongs to write-ahead log 1, only WoodPecker (4) is known"
            )
        );
    }

    #[test]
    fn time_filters_leave_open_transactions_to_their_commit() {
        let after = DeliverFilter::TimeTickGreaterThan(TimeTick(5));
        let from = DeliverFilter::TimeTickAtLeast(TimeTick(5));
        for (kind, in_txn, at_4, at_5, at_6) in [
            (MessageType::Insert, false, false, true, true),
            (MessageType::TimeTick, false, false, true, true),
            (MessageType::CommitTxn, true, false, true, true),
        ] {
            assert_eq!(from.passes(kind, in_txn, TimeTick(4)), at_4);
            assert_eq!(from.passes(kind, in_txn, TimeTick(5)), at_5);
            assert_eq!(after.passes(kind, in_txn, TimeTick(5)), at_4);
            assert_eq!(after.passes(kind, in_txn, TimeTick(6)), at_6);
        }
        for (kind, in_txn) in [
            (MessageType::BeginTxn, false),
            (MessageType::BeginTxn, true),
            (MessageType::Insert, true),
            (MessageType::Delete, true),
        ] {
            assert!(after.passes(kind, in_txn, TimeTick(1)) && from.passes(kind, in_txn, TimeTick(1)), "{kind}");
        }
    }

    #[test]
    fn type_filter_drops_what_is_not_listed_but_no_system_type() {
        let inserts = DeliverFilter::message_types([MessageType::Insert]);
        for kind in MessageType::ALL {
            let wanted = *kind == MessageType::Insert || kind.is_system();
            for in_txn in [false, true] {
                assert_eq!(inserts.passes(*kind, in_txn, TimeTick(1)), wanted, "{kind}");
            }
        }
    }

    fn policies() -> impl Strategy<Value = DeliverPolicy> {
        let id = (0..=i64::MAX, 0..=i64::MAX).prop_map(|(segment, entry)| MessageId { segment, entry });
        prop_oneof![
            Just(DeliverPolicy::All),
            Just(DeliverPolicy::Latest),
            id.clone().prop_map(DeliverPolicy::StartFrom),
            id.prop_map(DeliverPolicy::StartAfter),
        ]
    }

    fn filters() -> impl Strategy<Value = DeliverFilter> {
        prop_oneof![
            any::<u64>().prop_map(|tick| DeliverFilter::TimeTickGreaterThan(TimeTick(tick))),
            any::<u64>().prop_map(|tick| DeliverFilter::TimeTickAtLeast(TimeTick(tick))),
            proptest::collection::btree_set(any::<i32>(), 0..5).prop_map(DeliverFilter::MessageTypes),
        ]
    }

    proptest! {
        #[test]
        fn policies_read_back(policy in policies()) {
            let bytes = policy.to_proto().encode_to_vec();
            prop_assert_eq!(DeliverPolicy::from_proto(pb::DeliverPolicy::decode(bytes.as_slice()).ok().as_ref()), Ok(policy));
        }

        #[test]
        fn filters_read_back(filter in filters()) {
            let bytes = filter.to_proto().encode_to_vec();
            let proto = pb::DeliverFilter::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(DeliverFilter::try_from(&proto), Ok(filter));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(proto) = pb::DeliverPolicy::decode(bytes.as_slice()) {
                let read = DeliverPolicy::from_proto(Some(&proto));
                match proto.policy {
                    None => prop_assert_eq!(read, Err(DeliverError::NoPolicy)),
                    Some(Policy::All(())) => prop_assert_eq!(read, Ok(DeliverPolicy::All)),
                    Some(Policy::Latest(())) => prop_assert_eq!(read, Ok(DeliverPolicy::Latest)),
                    Some(Policy::StartFrom(id) | Policy::StartAfter(id)) => {
                        prop_assert_eq!(read.is_ok(), MessageId::try_from(&id).is_ok());
                    }
                }
            }
            if let Ok(proto) = pb::DeliverFilter::decode(bytes.as_slice()) {
                prop_assert_eq!(DeliverFilter::try_from(&proto).is_ok(), proto.filter.is_some());
            }
        }
    }
}
