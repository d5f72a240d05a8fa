//! What a node asks of a message before it accepts it from a producer.

use streaming_proto::{
    MAX_PROPERTIES,
    messages::{BroadcastHeader, ReplicateHeader},
};

use crate::{
    Message, MessageType, StreamingCode, StreamingError, TimeTick, TxnContext,
    channel::to_physical,
    message::{Version, header_decodes},
    properties::{MAX_IDEMPOTENCY_KEY_BYTES, PropertyError, PropertyFault, SET_BY_NODE, key},
};

/// What a message of another cluster may have beside what its source let in: the place where it stands there, and longer
/// names of channels.
const REPLICATION_BYTES: usize = 64 << 10;

/// How many properties a message may have. What nodes and replication add still makes one that can be read.
const PROPERTIES: usize = 1024;
const _: () = assert!(2 * PROPERTIES <= MAX_PROPERTIES);

/// What was read of a message while it was checked, so that nobody reads it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Produced {
    pub message_type: MessageType,
    /// The tick that the message's own must exceed.
    pub barrier: Option<TimeTick>,
    pub txn: Option<TxnContext>,
    pub broadcast: Option<BroadcastHeader>,
    pub replicate: Option<ReplicateHeader>,
}

/// Why a message was refused. The same message is refused again however often it is sent, so a producer is told
/// `UNRECOVERABLE`; with any other code clients would send it for ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("message of {size} bytes is larger than {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("message of {count} properties has more than {PROPERTIES}")]
    TooManyProperties { count: usize },
    #[error(transparent)]
    Property(#[from] PropertyError),
    #[error("property {0} is set by the node that appends, not by a client")]
    SetByClient(&'static str),
    #[error("unsupported message type {0}")]
    UnsupportedType(String),
    #[error("property _t: a message of type {0} is written by the node only")]
    SelfControlled(MessageType),
    #[error("property _v: a message of type {message_type} has version {}, not {}", message_type.version().number(), got.number())]
    OtherVersion { message_type: MessageType, got: Version },
    #[error("property _vc: a broadcast message must name the vchannel of this copy")]
    BroadcastWithoutVChannel,
    #[error("property _vc: {vchannel} is no vchannel of {pchannel}")]
    OtherPChannel { vchannel: String, pchannel: String },
    #[error("property _tx: a message of type {0} is no part of a transaction")]
    NotInTxn(MessageType),
    #[error("property _tx: a message of type {0} needs its transaction")]
    WithoutTxn(MessageType),
    #[error("property _ik: a key has 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes, not {0}")]
    BadIdempotencyKey(usize),
    #[error("payload is empty, a message of type {0} has a body")]
    EmptyPayload(MessageType),
}

impl InvalidMessage {
    #[must_use]
    pub fn code(&self) -> StreamingCode {
        StreamingCode::Unrecoverable
    }

    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// Nothing was written.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

impl From<InvalidMessage> for StreamingError {
    fn from(error: InvalidMessage) -> Self {
        Self::unrecoverable(error.to_string())
    }
}

/// Checks a message that a producer of `pchannel` sent. What is not looked at here passes through as it is: properties
/// of users, reserved properties of later releases, the payload.
pub fn check_produced(message: &Message, pchannel: &str, limit: usize) -> Result<Produced, InvalidMessage> {
    // The estimate would believe what a cipher header claims.
    let properties = &message.properties;
    let size = message.payload.len().saturating_add(properties.size());
    let more = if properties.contains(key::REPLICATE) { REPLICATION_BYTES } else { 0 };
    if size > limit.saturating_add(more) {
        return Err(InvalidMessage::TooLarge { size, limit });
    }
    let (count, more) = (properties.count(), if properties.contains(key::REPLICATE) { SET_BY_NODE.len() } else { 0 });
    if count > PROPERTIES + more {
        return Err(InvalidMessage::TooManyProperties { count });
    }
    if let Some(key) = SET_BY_NODE.into_iter().find(|key| properties.contains(key)) {
        return Err(InvalidMessage::SetByClient(key));
    }
    let message_type = check_type(message)?;
    if message_type.version() == Version::V1 && message.payload.is_empty() {
        return Err(InvalidMessage::EmptyPayload(message_type));
    }
    properties.cipher()?;
    if let Some(key) = properties.idempotency_key()
        && !(1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&key.len())
    {
        return Err(InvalidMessage::BadIdempotencyKey(key.len()));
    }
    let produced = Produced {
        message_type,
        barrier: properties.barrier()?,
        txn: properties.txn()?,
        broadcast: properties.broadcast()?,
        replicate: properties.replicate()?,
    };
    check_vchannel(message, pchannel, produced.broadcast.is_some())?;
    check_txn(&produced)?;
    Ok(produced)
}

fn check_type(message: &Message) -> Result<MessageType, InvalidMessage> {
    let properties = &message.properties;
    let unsupported = || InvalidMessage::UnsupportedType(properties.get(key::TYPE).unwrap_or_default().to_owned());
    let message_type = match properties.message_type() {
        Err(PropertyError { fault: PropertyFault::UnknownType, .. }) => return Err(unsupported()),
        other => other?,
    };
    if message_type.is_in_memory_only() {
        return Err(unsupported());
    }
    // What the node of another cluster wrote is for the replication layer to judge.
    if message_type.is_self_controlled() && !properties.contains(key::REPLICATE) {
        return Err(InvalidMessage::SelfControlled(message_type));
    }
    match properties.version()? {
        Version::V0 => return Err(PropertyFault::Missing.of(key::VERSION).into()),
        got if got != message_type.version() => return Err(InvalidMessage::OtherVersion { message_type, got }),
        _ => {}
    }
    if !header_decodes(message_type, &properties.header_bytes()?) {
        return Err(PropertyFault::NotDecodable.of(key::HEADER).into());
    }
    Ok(message_type)
}

fn check_vchannel(message: &Message, pchannel: &str, broadcast: bool) -> Result<(), InvalidMessage> {
    match message.properties.vchannel() {
        None if broadcast => Err(InvalidMessage::BroadcastWithoutVChannel),
        None => Err(PropertyFault::Missing.of(key::VCHANNEL).into()),
        Some(vchannel) if vchannel == pchannel || to_physical(vchannel) == pchannel => Ok(()),
        Some(vchannel) => {
            Err(InvalidMessage::OtherPChannel { vchannel: vchannel.to_owned(), pchannel: pchannel.to_owned() })
        }
    }
}

fn check_txn(produced: &Produced) -> Result<(), InvalidMessage> {
    let message_type = produced.message_type;
    match message_type {
        MessageType::CommitTxn | MessageType::RollbackTxn if produced.txn.is_none() => {
            Err(InvalidMessage::WithoutTxn(message_type))
        }
        MessageType::CommitTxn | MessageType::RollbackTxn => Ok(()),
        // A begin that comes from another cluster keeps the transaction it got there.
        MessageType::BeginTxn if produced.replicate.is_some() => Ok(()),
        _ if produced.txn.is_some() && !message_type.is_txn_body() => Err(InvalidMessage::NotInTxn(message_type)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
