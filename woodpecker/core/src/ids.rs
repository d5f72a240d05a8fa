//! Names of things in a log.

use std::{collections::BTreeSet, fmt, num::ParseIntError, str::FromStr};

use serde::{Deserialize, Serialize};

/// A log's number, unique within an instance and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub u64);

/// Epoch of a log's ownership. Raised by every writer that opens the log, durable before use; it never falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One segment of one log. Segments are numbered from 1, so that no entry id encodes to the empty string on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentKey {
    pub log: LogId,
    pub segment: u64,
}

/// An entry's place in its log: strictly increasing, never reused. Entries of a segment are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    pub segment: u64,
    pub entry: u64,
}

/// A volume's identity, random and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u128);

/// A log store's identity, drawn once and kept on its disk: a store whose disk was lost comes back under another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u128);

/// One attempt at sealing a segment, random and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealId(pub u128);

/// Where a segment lives; kept in the segment's metadata record, so any process can find it again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Placement {
    /// In one volume; a segment never spans two.
    Volume {
        volume: VolumeId,
        /// The first batch of the volume that may hold a block of the segment: where a scan for it starts.
        from_batch: u64,
    },
    /// On log stores, each of which is sent every entry.
    Replicas(ReplicaSet),
}

/// The log stores that hold replicas of a segment, and how many of them make an entry durable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "UncheckedReplicaSet")]
pub struct ReplicaSet {
    stores: Vec<StoreId>,
    ack: usize,
}

#[derive(Deserialize)]
struct UncheckedReplicaSet {
    stores: Vec<StoreId>,
    ack: usize,
}

/// No replica set: stores that are named twice, or an ack quorum that is no majority of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{ack} of {stores} log stores, each named once, must be a majority")]
pub struct BadReplicaSet {
    stores: usize,
    ack: usize,
}

impl ReplicaSet {
    /// Replicas on `stores`; an entry is durable when `ack` of them have it.
    ///
    /// # Errors
    /// A store is named twice, or `ack` is no majority.
    pub fn new(stores: Vec<StoreId>, ack: usize) -> Result<Self, BadReplicaSet> {
        let distinct: BTreeSet<StoreId> = stores.iter().copied().collect();
        if distinct.len() != stores.len() || ack > stores.len() || ack * 2 <= stores.len() {
            return Err(BadReplicaSet { stores: stores.len(), ack });
        }
        Ok(Self { stores, ack })
    }

    /// The stores. Every entry is sent to each of them, so their number is the write quorum.
    #[must_use]
    pub fn stores(&self) -> &[StoreId] {
        &self.stores
    }

    /// How many stores must have an entry before it is acked.
    #[must_use]
    pub fn ack(&self) -> usize {
        self.ack
    }
}

impl TryFrom<UncheckedReplicaSet> for ReplicaSet {
    type Error = BadReplicaSet;

    fn try_from(unchecked: UncheckedReplicaSet) -> Result<Self, BadReplicaSet> {
        Self::new(unchecked.stores, unchecked.ack)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.log, self.segment)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.entry)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume { volume, .. } => volume.fmt(f),
            Self::Replicas(set) => {
                for (index, store) in set.stores.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{store}")?;
                }
                Ok(())
            }
        }
    }
}

/// Written as 32 hexadecimal digits, in text and in records.
macro_rules! hexadecimal {
    ($id:ident) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($id))
            }
        }

        impl FromStr for $id {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                u128::from_str_radix(text, 16).map(Self)
            }
        }

        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hexadecimal!(VolumeId);
hexadecimal!(StoreId);
hexadecimal!(SealId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_keeps_its_written_form() {
        let volume = Placement::Volume { volume: VolumeId(0xabc), from_batch: 9 };
        let text = r#"{"volume":"00000000000000000000000000000abc","from_batch":9}"#;
        assert_eq!(serde_json::to_string(&volume).unwrap(), text);
        assert_eq!(serde_json::from_str::<Placement>(text).unwrap(), volume);
        let set = ReplicaSet::new(vec![StoreId(2), StoreId(1), StoreId(3)], 2).unwrap();
        let text = concat!(
            r#"{"stores":["00000000000000000000000000000002","00000000000000000000000000000001","#,
            r#""00000000000000000000000000000003"],"ack":2}"#
        );
        assert_eq!(serde_json::to_string(&Placement::Replicas(set.clone())).unwrap(), text);
        assert_eq!(serde_json::from_str::<Placement>(text).unwrap(), Placement::Replicas(set));
    }

    #[test]
    fn a_replica_set_that_loses_acked_entries_is_refused() {
        let stores = |ids: &[u128]| ids.iter().copied().map(StoreId).collect();
        for (ids, ack) in [(&[1, 2, 3][..], 1), (&[1, 2, 2], 2), (&[], 0), (&[1, 2], 1), (&[1, 2, 3], 4)] {
            assert!(ReplicaSet::new(stores(ids), ack).is_err(), "{ack} of {ids:?}");
        }
        assert!(ReplicaSet::new(stores(&[1, 2]), 2).is_ok());
        assert!(serde_json::from_str::<Placement>(r#"{"stores":["1","1","2"],"ack":2}"#).is_err());
    }
}
