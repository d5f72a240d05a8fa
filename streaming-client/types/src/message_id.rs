//! Ids of messages.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message as _;
use streaming_proto::common::{self, WalName};

use crate::short;

/// Where a message stands in its log. Ordered as the log is; the order of ids is not that of time ticks.
///
/// Segments and entries are never negative. Our segments begin at 1, so no id of ours is `(0, 0)`, whose wire form is
/// the empty string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    pub segment: i64,
    pub entry: i64,
}

/// Why an id from the wire was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageIdError {
    #[error("message id is missing")]
    Missing,
    #[error("message id belongs to write-ahead log {0}, only WoodPecker (4) is known")]
    UnknownWal(i32),
    #[error("message id {0:?} is not base64")]
    NotBase64(String),
    #[error("message id {0:?} does not hold a segment and an entry")]
    NotAnId(String),
}

/// What the base64 of an id holds.
#[derive(Clone, PartialEq, prost::Message)]
struct LogMessageIdData {
    #[prost(int64, tag = "1")]
    segment: i64,
    #[prost(int64, tag = "2")]
    entry: i64,
}

impl MessageId {
    #[must_use]
    pub fn new(segment: i64, entry: i64) -> Self {
        Self { segment, entry }
    }

    /// `None` when a part is above `i64::MAX`.
    #[must_use]
    pub fn from_u64(segment: u64, entry: u64) -> Option<Self> {
        Some(Self { segment: i64::try_from(segment).ok()?, entry: i64::try_from(entry).ok()? })
    }

    /// Segment and entry; a negative part, which no decoder lets through, counts as 0.
    #[must_use]
    pub fn to_u64(self) -> (u64, u64) {
        (u64::try_from(self.segment).unwrap_or(0), u64::try_from(self.entry).unwrap_or(0))
    }

    /// The text form, as it stands in `common.MessageID.id` and in the property `_lc`.
    #[must_use]
    pub fn encode(self) -> String {
        STANDARD.encode(short::encode(&self.data()))
    }

    /// Reads [`encode`](Self::encode).
    pub fn decode(text: &str) -> Result<Self, MessageIdError> {
        let bytes = short::from_base64(text).ok_or_else(|| MessageIdError::NotBase64(text.to_owned()))?;
        Self::from_bytes(&bytes)
    }

    /// The form in `msg.MsgPosition.msgID`.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.data().encode_to_vec()
    }

    fn data(self) -> LogMessageIdData {
        LogMessageIdData { segment: self.segment, entry: self.entry }
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageIdError> {
        match LogMessageIdData::decode(bytes) {
            Ok(LogMessageIdData { segment, entry }) if segment >= 0 && entry >= 0 => Ok(Self { segment, entry }),
            _ => Err(MessageIdError::NotAnId(STANDARD.encode(bytes))),
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_proto(self) -> common::MessageId {
        common::MessageId { id: self.encode(), wal_name: WalName::WoodPecker.into() }
    }

    /// Reads the wire form of a field that must be there.
    pub fn from_proto(id: Option<&common::MessageId>) -> Result<Self, MessageIdError> {
        id.ok_or(MessageIdError::Missing)?.try_into()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.entry)
    }
}

impl From<MessageId> for common::MessageId {
    fn from(id: MessageId) -> Self {
        id.to_proto()
    }
}

impl TryFrom<&common::MessageId> for MessageId {
    type Error = MessageIdError;

    fn try_from(id: &common::MessageId) -> Result<Self, MessageIdError> {
        if id.wal_name != i32::from(WalName::WoodPecker) {
            return Err(MessageIdError::UnknownWal(id.wal_name));
        }
        Self::decode(&id.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_ids_have_their_known_texts() {
        for (id, text) in [(MessageId::new(3, 17), "CAMQEQ=="), (MessageId::new(0, 0), "")] {
            assert_eq!(id.encode(), text);
            assert_eq!(MessageId::decode(text), Ok(id));
        }
    }

    #[test]
    fn wire_form_names_the_log() {
        let proto = MessageId::new(3, 17).to_proto();
        assert_eq!((proto.id.as_str(), proto.wal_name), ("CAMQEQ==", 4));
        assert_eq!(MessageId::from_proto(Some(&proto)), Ok(MessageId::new(3, 17)));
        assert_eq!(MessageId::from_proto(None), Err(MessageIdError::Missing));
        for wal_name in [0, 1, 2, 3, 5, 999, -1] {
            let other = common::MessageId { wal_name, ..proto.clone() };
            assert_eq!(MessageId::try_from(&other), Err(MessageIdError::UnknownWal(wal_name)));
        }
    }

    #[test]
    fn broken_and_negative_ids_are_refused() {
        for text in ["CAMQEQ", "CAMQEQ=", "?", "CAMQEQ==\n"] {
            assert_eq!(MessageId::decode(text), Err(MessageIdError::NotBase64(text.to_owned())));
        }
        let negative = [MessageId::new(-1, 3).encode(), MessageId::new(3, -1).encode()];
        for text in ["CA==", "DwEB", negative[0].as_str(), negative[1].as_str()] {
            assert_eq!(MessageId::decode(text), Err(MessageIdError::NotAnId(text.to_owned())));
        }
    }

    #[test]
    fn order_is_by_segment_then_entry() {
        assert!(MessageId::new(1, 9) < MessageId::new(2, 0));
        assert!(MessageId::new(2, 0) < MessageId::new(2, 1));
    }

    #[test]
    fn unsigned_parts_must_fit() {
        assert_eq!(MessageId::from_u64(1, 2).map(MessageId::to_u64), Some((1, 2)));
        assert_eq!(MessageId::from_u64(u64::MAX, 0), None);
    }

    proptest! {
        #[test]
        fn ids_read_back(segment in 0..=i64::MAX, entry in 0..=i64::MAX) {
            let id = MessageId::new(segment, entry);
            prop_assert_eq!(MessageId::decode(&id.encode()), Ok(id));
            prop_assert_eq!(MessageId::try_from(&id.to_proto()), Ok(id));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, text: String) {
            for text in [STANDARD.encode(bytes), text] {
                if let Ok(id) = MessageId::decode(&text) {
                    prop_assert!(id.segment >= 0 && id.entry >= 0);
                }
            }
        }
    }
}
