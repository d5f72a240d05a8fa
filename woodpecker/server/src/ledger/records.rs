//! Keys and values of the facts. Values are JSON, so that a person can read what a store believes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use woodpecker_base::metadata::KeyValue;
use woodpecker_core::ids::{StoreId, VolumeId};

use crate::{refusal::Refusal, released::Released, replica::ReplicaKey};

pub(super) const STORE: &str = "store";

/// The store itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMeta {
    /// Written once.
    pub id: StoreId,
    pub decommissioning: bool,
}

/// A namespace, under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// What stands for it on the disk.
    pub number: u32,
    pub deleted: bool,
}

/// What is known of a replica beside its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Appends of epochs below are refused; 0 for none.
    pub fenced: u64,
    /// Every entry below was known to be acked.
    pub committed: u64,
    /// How many entries recovery found the segment to hold, and its epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// The end of a replica's segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub entries: u64,
    pub epoch: u64,
}

/// All facts, as found at the start.
#[derive(Debug, Default)]
pub struct Facts {
    pub store: Option<StoreMeta>,
    pub namespaces: BTreeMap<String, NamespaceRecord>,
    pub volumes: BTreeSet<VolumeId>,
    pub replicas: BTreeMap<ReplicaKey, ReplicaRecord>,
    /// By namespace and log.
    pub released: BTreeMap<(u32, u64), Released>,
}

pub(super) fn namespace(name: &str) -> String {
    format!("namespace/{name}")
}

pub(super) fn volume(id: VolumeId) -> String {
    format!("volume/{id}")
}

pub(super) fn replica(key: ReplicaKey) -> String {
    format!("replica/{}/{}/{}", key.namespace, key.log, key.segment)
}

pub(super) fn released(key: ReplicaKey) -> String {
    format!("released/{}/{}", key.namespace, key.log)
}

/// The prefixes of what is known of a namespace's replicas.
pub(super) fn of_namespace(number: u32) -> [String; 2] {
    [format!("released/{number}/"), format!("replica/{number}/")]
}

pub(super) fn encode(record: &impl Serialize) -> Bytes {
    // Plain structs of numbers, strings and lists: nothing in them can fail.
    serde_json::to_vec(record).unwrap_or_default().into()
}

impl Facts {
    /// Reads the records.
    ///
    /// # Errors
    /// [`Refusal::Corrupt`] with the key that makes no sense: a newer program's, or another's.
    pub(super) fn read(items: &[KeyValue]) -> Result<Self, Refusal> {
        let mut facts = Self::default();
        for item in items {
            facts.add(item).ok_or_else(|| {
                Refusal::Corrupt(format!("the store's facts: {:?} is not understood", item.key).into())
            })?;
        }
        Ok(facts)
    }

    fn add(&mut self, item: &KeyValue) -> Option<()> {
        let value = &item.value;
        match item.key.split_once('/') {
            None if item.key == STORE => self.store = Some(decode(value)?),
            Some(("namespace", name)) => drop(self.namespaces.insert(name.to_owned(), decode(value)?)),
            Some(("volume", id)) => drop(self.volumes.insert(VolumeId(u128::from_str_radix(id, 16).ok()?))),
            Some(("replica", place)) => {
                let [namespace, log, segment] = numbers(place)?;
                let key = ReplicaKey { namespace: u32::try_from(namespace).ok()?, log, segment };
                self.replicas.insert(key, decode(value)?);
            }
            Some(("released", place)) => {
                let [namespace, log] = numbers(place)?;
                self.released.insert((u32::try_from(namespace).ok()?, log), decode(value)?);
            }
            _ => return None,
        }
        Some(())
    }
}

fn decode<T: DeserializeOwned>(value: &Bytes) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn numbers<const N: usize>(place: &str) -> Option<[u64; N]> {
    let numbers: Vec<u64> = place.split('/').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_named() {
        for (key, value) in [
            ("replica/1/2", "{}"),
            ("replica/1/2/3", "nonsense"),
            ("replica/5000000000/2/3", r#"{"fenced":1,"committed":1}"#),
            ("volume/xyz", ""),
            ("later/1", "{}"),
        ] {
            let item =
                KeyValue { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, lease: None };
            let error = Facts::read(&[item]).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
