//! What a log store says of itself in the metadata store, under a lease that it keeps alive.

use serde::{Deserialize, Serialize};

use crate::ids::StoreId;

/// A registered log store: the JSON under [`key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRecord {
    pub id: StoreId,
    /// Where clients dial, `host:port`.
    pub address: String,
    #[serde(default)]
    pub region: String,
    /// The availability zone: what fails together.
    #[serde(default)]
    pub zone: String,
    #[serde(default)]
    pub resource_group: String,
    /// 0 idle to 1000 full.
    #[serde(default)]
    pub load: u32,
    #[serde(default)]
    pub state: StoreState,
}

/// What a store takes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreState {
    /// Everything.
    #[default]
    Active,
    /// New segments only when there is no other store: it asks its writers to slow down.
    Slowed,
    /// Reads only.
    ReadOnly,
    /// No new segments: what it holds is being moved away.
    Decommissioning,
    /// Nothing: it may be removed.
    Decommissioned,
    /// What a later release wrote: no new segments.
    #[serde(other)]
    Unknown,
}

/// The key of a store's record. `prefix` is that of the instance's log engine, without a trailing slash.
#[must_use]
pub fn key(prefix: &str, id: StoreId) -> String {
    format!("{}{id}", keys(prefix))
}

/// What the keys of all stores' records start with.
#[must_use]
pub fn keys(prefix: &str) -> String {
    format!("{prefix}/logstores/")
}

impl StoreRecord {
    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers: serialisation has nothing to fail on.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From what was stored, by this release or a later one.
    ///
    /// # Errors
    /// It is no JSON of this shape.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_its_written_form() {
        let record = StoreRecord {
            id: StoreId(0xabc),
            address: "10.0.0.5:22222".into(),
            region: "r".into(),
            zone: "z1".into(),
            resource_group: "g".into(),
            load: 250,
            state: StoreState::ReadOnly,
        };
        let text = concat!(
            r#"{"id":"00000000000000000000000000000abc","address":"10.0.0.5:22222","region":"r","zone":"z1","#,
            r#""resource_group":"g","load":250,"state":"read_only"}"#
        );
        assert_eq!(String::from_utf8(record.encode()).unwrap(), text);
        assert_eq!(StoreRecord::decode(text.as_bytes()).unwrap(), record);
        assert_eq!(key("by-dev/woodpecker", record.id), "by-dev/woodpecker/logstores/00000000000000000000000000000abc");
    }

    #[test]
    fn a_later_releases_record_is_read_and_takes_no_new_segments() {
        let text = r#"{"id":"1","address":"a:1","state":"half_asleep","colour":"red"}"#;
        let record = StoreRecord::decode(text.as_bytes()).unwrap();
        assert_eq!((record.id, record.state, record.load), (StoreId(1), StoreState::Unknown, 0));
        assert!(StoreRecord::decode(br#"{"id":"x","address":"a:1"}"#).is_err());
    }
}
