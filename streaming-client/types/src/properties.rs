//! Properties of a message: what the streaming system itself knows of it, as text, beside what users attach.

use std::ops::{Deref, DerefMut};

use smallvec::SmallVec;
use streaming_proto::messages::{BroadcastHeader, CipherHeader, ReplicateHeader};

use crate::{
    MessageId, MessageType, TimeTick, TxnContext,
    message::Version,
    short::{self, Base36},
    time_tick::from_base36,
};

/// Keys that the streaming system owns. Every key with a leading underscore is reserved, also one not named here.
pub mod key {
    /// Version of the message: `1` or `2`; absent in messages from before there were versions.
    pub const VERSION: &str = "_v";
    /// Number of the message type.
    pub const TYPE: &str = "_t";
    /// Header, in base64. Always there, also when the header is empty.
    pub const HEADER: &str = "_h";
    /// VChannel. Absent in a message that concerns every vchannel.
    pub const VCHANNEL: &str = "_vc";
    /// Broadcast header, in base64.
    pub const BROADCAST: &str = "_bh";
    /// Barrier: the time tick must become greater than this one. Base 36.
    pub const BARRIER: &str = "_btt";
    /// Transaction, in base64.
    pub const TXN: &str = "_tx";
    /// Time tick, given by the node. Base 36.
    pub const TIME_TICK: &str = "_tt";
    /// Last confirmed message id, given by the node.
    pub const LAST_CONFIRMED: &str = "_lc";
    /// Present instead of [`LAST_CONFIRMED`] when that would be the message's own id.
    pub const LAST_CONFIRMED_IS_SELF: &str = "_lcs";
    /// Term under which the message was appended, given by the node. Base 36.
    pub const WAL_TERM: &str = "_wt";
    /// Cipher header, in base64: the payload is ciphertext.
    pub const CIPHER: &str = "_ch";
    /// Present on a time tick that exists in memory only.
    pub const NOT_PERSISTED: &str = "_np";
    /// Replicate header, in base64.
    pub const REPLICATE: &str = "_rh";
    /// Idempotency key: of messages of one vchannel that carry the same one, only the first is appended.
    pub const IDEMPOTENCY: &str = "_ik";
    /// Place in a trace, as W3C writes it. Not reserved: to others it is a property of users.
    pub const TRACE_PARENT: &str = "traceparent";
    /// Which piece of a split message a log entry holds, from 0. Decimal; no reader of messages sees it.
    pub const CHUNK_INDEX: &str = "_ci";
    /// How many pieces a split message has. Decimal; no reader of messages sees it.
    pub const CHUNK_TOTAL: &str = "_ct";
}

/// Longest idempotency key, in bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 256;

/// What only the node that appends a message may set.
pub const SET_BY_NODE: [&str; 7] = [
    key::TIME_TICK,
    key::LAST_CONFIRMED,
    key::LAST_CONFIRMED_IS_SELF,
    key::WAL_TERM,
    key::NOT_PERSISTED,
    key::CHUNK_INDEX,
    key::CHUNK_TOTAL,
];

/// Whether a key belongs to the streaming system and not to users.
#[must_use]
pub fn is_reserved(key: &str) -> bool {
    key.starts_with('_')
}

/// A property that is missing or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("property {key}: {fault}")]
pub struct PropertyError {
    pub key: &'static str,
    pub fault: PropertyFault,
}

/// What is wrong with a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyFault {
    #[error("missing")]
    Missing,
    #[error("not a decimal number")]
    NotDecimal,
    #[error("not a base 36 number")]
    NotBase36,
    #[error("not base64")]
    NotBase64,
    #[error("its base64 does not hold the message it should")]
    NotDecodable,
    #[error("unknown version")]
    UnknownVersion,
    #[error("unknown message type")]
    UnknownType,
    #[error("not a message id")]
    NotMessageId,
    #[error("the header belongs to another message type")]
    OtherHeader,
}

impl PropertyFault {
    pub(crate) fn of(self, key: &'static str) -> PropertyError {
        PropertyError { key, fault: self }
    }
}

/// Properties by key. Whatever is not read through a typed accessor passes through untouched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(streaming_proto::Properties);

/// Plain access is that of the wire's properties.
impl Deref for Properties {
    type Target = streaming_proto::Properties;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Properties {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Properties {
    /// The properties that users attached.
    pub fn user(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(key, _)| !is_reserved(key))
    }

    #[must_use]
    pub fn into_proto(self) -> streaming_proto::Properties {
        self.0
    }
}

/// Reading. `Ok(None)` means absent.
impl Properties {
    /// Version 0 when absent or empty.
    pub fn version(&self) -> Result<Version, PropertyError> {
        match self.get(key::VERSION) {
            None | Some("") => Ok(Version::V0),
            Some(text) => match text.parse::<u32>() {
                Ok(number) => {
                    Version::from_number(number).ok_or_else(|| PropertyFault::UnknownVersion.of(key::VERSION))
                }
                Err(_) => Err(PropertyFault::NotDecimal.of(key::VERSION)),
            },
        }
    }

    pub fn message_type(&self) -> Result<MessageType, PropertyError> {
        let text = self.get(key::TYPE).ok_or_else(|| PropertyFault::Missing.of(key::TYPE))?;
        let number = text.parse::<i32>().map_err(|_| PropertyFault::NotDecimal.of(key::TYPE))?;
        MessageType::from_number(number).ok_or_else(|| PropertyFault::UnknownType.of(key::TYPE))
    }

    /// The encoded header, which must be there.
    pub fn header_bytes(&self) -> Result<SmallVec<[u8; 128]>, PropertyError> {
        self.bytes(key::HEADER)?.ok_or_else(|| PropertyFault::Missing.of(key::HEADER))
    }

    /// The vchannel; an empty name counts as absent.
    #[must_use]
    pub fn vchannel(&self) -> Option<&str> {
        self.get(key::VCHANNEL).filter(|name| !name.is_empty())
    }

    pub fn broadcast(&self) -> Result<Option<BroadcastHeader>, PropertyError> {
        self.proto(key::BROADCAST)
    }

    pub fn barrier(&self) -> Result<Option<TimeTick>, PropertyError> {
        self.base36(key::BARRIER)
    }

    pub fn txn(&self) -> Result<Option<TxnContext>, PropertyError> {
        Ok(self.proto(key::TXN)?.map(|txn: streaming_proto::messages::TxnContext| (&txn).into()))
    }

    pub fn time_tick(&self) -> Result<Option<TimeTick>, PropertyError> {
        self.base36(key::TIME_TICK)
    }

    /// The last confirmed id of the message with id `own`.
    pub fn last_confirmed(&self, own: MessageId) -> Result<Option<MessageId>, PropertyError> {
        if self.contains(key::LAST_CONFIRMED_IS_SELF) {
            return Ok(Some(own));
        }
        let Some(text) = self.get(key::LAST_CONFIRMED) else { return Ok(None) };
        let id = MessageId::decode(text).map_err(|_| PropertyFault::NotMessageId.of(key::LAST_CONFIRMED))?;
        Ok(Some(id))
    }

    pub fn wal_term(&self) -> Result<Option<i64>, PropertyError> {
        let Some(text) = self.get(key::WAL_TERM) else { return Ok(None) };
        let term = from_base36(text).and_then(|term| i64::try_from(term).ok());
        term.map(Some).ok_or_else(|| PropertyFault::NotBase36.of(key::WAL_TERM))
    }

    pub fn cipher(&self) -> Result<Option<CipherHeader>, PropertyError> {
        self.proto(key::CIPHER)
    }

    pub fn replicate(&self) -> Result<Option<ReplicateHeader>, PropertyError> {
        self.proto(key::REPLICATE)
    }

    /// The key under which the message is appended only once.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.get(key::IDEMPOTENCY)
    }

    #[must_use]
    pub fn is_not_persisted(&self) -> bool {
        self.contains(key::NOT_PERSISTED)
    }

    fn bytes(&self, key: &'static str) -> Result<Option<short::Bytes>, PropertyError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        short::from_base64(text).map(Some).ok_or_else(|| PropertyFault::NotBase64.of(key))
    }

    fn proto<P: prost::Message + Default>(&self, key: &'static str) -> Result<Option<P>, PropertyError> {
        let Some(bytes) = self.bytes(key)? else { return Ok(None) };
        P::decode(bytes.as_slice()).map(Some).map_err(|_| PropertyFault::NotDecodable.of(key))
    }

    fn base36(&self, key: &'static str) -> Result<Option<TimeTick>, PropertyError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        TimeTick::from_base36(text).map(Some).ok_or_else(|| PropertyFault::NotBase36.of(key))
    }
}

/// Writing.
impl Properties {
    pub fn set_type(&mut self, message_type: MessageType) {
        self.set(key::TYPE, itoa::Buffer::new().format(message_type.number()));
        self.set(key::VERSION, itoa::Buffer::new().format(message_type.version().number()));
    }

    pub fn set_header_bytes(&mut self, header: &[u8]) {
        short::with_base64(header, |text| self.set(key::HEADER, text));
    }

    pub fn set_vchannel(&mut self, vchannel: impl AsRef<str>) {
        self.set(key::VCHANNEL, vchannel);
    }

    pub fn set_broadcast(&mut self, header: &BroadcastHeader) {
        self.set_proto(key::BROADCAST, header);
    }

    pub fn set_barrier(&mut self, barrier: TimeTick) {
        self.set(key::BARRIER, Base36::new(barrier.0));
    }

    pub fn set_txn(&mut self, txn: TxnContext) {
        self.set_proto(key::TXN, &txn.to_proto());
    }

    pub fn set_time_tick(&mut self, time_tick: TimeTick) {
        self.set(key::TIME_TICK, Base36::new(time_tick.0));
    }

    /// Replaces [`set_last_confirmed_is_self`](Self::set_last_confirmed_is_self).
    pub fn set_last_confirmed(&mut self, id: MessageId) {
        self.remove(key::LAST_CONFIRMED_IS_SELF);
        self.set(key::LAST_CONFIRMED, id.encode());
    }

    /// Replaces [`set_last_confirmed`](Self::set_last_confirmed).
    pub fn set_last_confirmed_is_self(&mut self) {
        self.remove(key::LAST_CONFIRMED);
        self.set(key::LAST_CONFIRMED_IS_SELF, "");
    }

    /// A term is never negative; a negative one is written as 0.
    pub fn set_wal_term(&mut self, term: i64) {
        self.set(key::WAL_TERM, Base36::new(u64::try_from(term).unwrap_or(0)));
    }

    pub fn set_cipher(&mut self, header: &CipherHeader) {
        self.set_proto(key::CIPHER, header);
    }

    pub fn set_replicate(&mut self, header: &ReplicateHeader) {
        self.set_proto(key::REPLICATE, header);
    }

    pub fn set_idempotency_key(&mut self, key: impl AsRef<str>) {
        self.set(key::IDEMPOTENCY, key);
    }

    pub fn set_not_persisted(&mut self) {
        self.set(key::NOT_PERSISTED, "");
    }

    fn set_proto(&mut self, key: &'static str, message: &impl prost::Message) {
        short::with_base64(&short::encode(message), |text| self.set(key, text));
    }
}

impl From<streaming_proto::Properties> for Properties {
    fn from(properties: streaming_proto::Properties) -> Self {
        Self(properties)
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
