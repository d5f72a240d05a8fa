//! Headers: one proto message for each message type.

use streaming_proto::messages as pb;

use crate::{
    MessageType, Properties,
    properties::{PropertyError, PropertyFault, key},
};

/// The header of one message type.
pub trait Header: prost::Message + Default + PartialEq {
    const TYPE: MessageType;
}

macro_rules! headers {
    ($($kind:ident: $header:ident;)*) => {
        $(impl Header for pb::$header {
            const TYPE: MessageType = MessageType::$kind;
        })*

        /// Whether `bytes` are a header of a message of type `kind`.
        #[must_use]
        pub fn header_decodes(kind: MessageType, bytes: &[u8]) -> bool {
            match kind {
                $(MessageType::$kind => <pb::$header as prost::Message>::decode(bytes).is_ok(),)*
            }
        }
    };
}

headers! {
    TimeTick: TimeTickMessageHeader;
    Insert: InsertMessageHeader;
    Delete: DeleteMessageHeader;
    Flush: FlushMessageHeader;
    CreateCollection: CreateCollectionMessageHeader;
    DropCollection: DropCollectionMessageHeader;
    CreatePartition: CreatePartitionMessageHeader;
    DropPartition: DropPartitionMessageHeader;
    ManualFlush: ManualFlushMessageHeader;
    CreateSegment: CreateSegmentMessageHeader;
    Import: ImportMessageHeader;
    SchemaChange: SchemaChangeMessageHeader;
    AlterCollection: AlterCollectionMessageHeader;
    AlterLoadConfig: AlterLoadConfigMessageHeader;
    DropLoadConfig: DropLoadConfigMessageHeader;
    CreateDatabase: CreateDatabaseMessageHeader;
    AlterDatabase: AlterDatabaseMessageHeader;
    DropDatabase: DropDatabaseMessageHeader;
    AlterAlias: AlterAliasMessageHeader;
    DropAlias: DropAliasMessageHeader;
    RestoreRbac: RestoreRbacMessageHeader;
    AlterUser: AlterUserMessageHeader;
    DropUser: DropUserMessageHeader;
    AlterRole: AlterRoleMessageHeader;
    DropRole: DropRoleMessageHeader;
    AlterUserRole: AlterUserRoleMessageHeader;
    DropUserRole: DropUserRoleMessageHeader;
    AlterPrivilege: AlterPrivilegeMessageHeader;
    DropPrivilege: DropPrivilegeMessageHeader;
    AlterPrivilegeGroup: AlterPrivilegeGroupMessageHeader;
    DropPrivilegeGroup: DropPrivilegeGroupMessageHeader;
    AlterResourceGroup: AlterResourceGroupMessageHeader;
    DropResourceGroup: DropResourceGroupMessageHeader;
    CreateIndex: CreateIndexMessageHeader;
    AlterIndex: AlterIndexMessageHeader;
    DropIndex: DropIndexMessageHeader;
    AlterReplicateConfig: AlterReplicateConfigMessageHeader;
    BeginTxn: BeginTxnMessageHeader;
    CommitTxn: CommitTxnMessageHeader;
    RollbackTxn: RollbackTxnMessageHeader;
    Txn: TxnMessageHeader;
}

pub(super) fn decode<H: Header>(properties: &Properties) -> Result<H, PropertyError> {
    if properties.message_type()? != H::TYPE {
        return Err(PropertyFault::OtherHeader.of(key::TYPE));
    }
    H::decode(&*properties.header_bytes()?).map_err(|_| PropertyFault::NotDecodable.of(key::HEADER))
}

pub(super) fn rewrite<H: Header>(
    properties: &mut Properties,
    change: impl FnOnce(&mut H),
) -> Result<(), PropertyError> {
    let mut header: H = decode(properties)?;
    let mut bytes = unknown_fields::<H>(&properties.header_bytes()?);
    change(&mut header);
    bytes.extend(header.encode_to_vec());
    properties.set_header_bytes(&bytes);
    Ok(())
}

/// The fields of `bytes` that `P` does not know. They must stand in front of an encoded `P`: a known field that was
/// written with its default value looks unknown here, and the later one of two values counts.
pub(super) fn unknown_fields<P: prost::Message + Default + PartialEq>(mut bytes: &[u8]) -> Vec<u8> {
    let mut unknown = Vec::new();
    while let Some(length) = field_length(bytes) {
        let (field, rest) = bytes.split_at(length);
        if P::decode(field).is_ok_and(|known| known == P::default()) {
            unknown.extend_from_slice(field);
        }
        bytes = rest;
    }
    unknown
}

/// Length of the first field, tag included; `None` at the end, or where a group or anything broken begins.
fn field_length(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let tag = varint(&mut rest)?;
    let value = match tag & 7 {
        0 => {
            let mut after = rest;
            varint(&mut after)?;
            rest.len() - after.len()
        }
        1 => 8,
        2 => usize::try_from(varint(&mut rest)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let end = (bytes.len() - rest.len()).checked_add(value)?;
    (end <= bytes.len()).then_some(end)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
