//! The JSON of a session, field for field what the protocol's other components write and read.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a session says. Unknown fields of others are ignored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionRecord {
    #[serde(rename = "ServerID", skip_serializing_if = "is_zero")]
    pub server_id: i64,
    /// The role: `mixcoord`, `streamingnode`, …
    #[serde(rename = "ServerName", skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// Where peers dial, `host:port`.
    #[serde(rename = "Address", skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// At most one of the role at a time.
    #[serde(rename = "Exclusive", skip_serializing_if = "is_false")]
    pub exclusive: bool,
    /// A graceful stop was announced.
    #[serde(rename = "Stopping", skip_serializing_if = "is_false")]
    pub stopping: bool,
    /// The process ends its role when the lease is lost.
    #[serde(rename = "TriggerKill")]
    pub trigger_kill: bool,
    /// Semantic version; what does not parse is invisible to others.
    #[serde(rename = "Version")]
    pub version: String,
    /// Of query nodes; always written, carried as it is.
    #[serde(rename = "IndexEngineVersion")]
    pub index_engine_version: Map<String, Value>,
    #[serde(rename = "ScalarIndexEngineVersion")]
    pub scalar_index_engine_version: Map<String, Value>,
    #[serde(rename = "IndexNonEncoding", skip_serializing_if = "is_false")]
    pub index_non_encoding: bool,
    #[serde(rename = "LeaseID", skip_serializing_if = "is_zero")]
    pub lease_id: i64,
    #[serde(rename = "HostName", skip_serializing_if = "String::is_empty")]
    pub host_name: String,
    #[serde(rename = "ServerLabels", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl SessionRecord {
    /// A record of a process that ends its role when the lease is lost.
    #[must_use]
    pub fn new(role: &str, server_id: i64, address: &str, version: &str) -> Self {
        Self {
            server_id,
            role: role.into(),
            address: address.into(),
            trigger_kill: true,
            version: version.into(),
            ..Self::default()
        }
    }

    /// As it stands in the store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Strings, numbers and maps with string keys: nothing here can fail to be JSON.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Reads a record, of whatever maker.
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
    fn a_record_is_written_as_the_protocol_has_it() {
        let mut record = SessionRecord::new("streamingnode", 9, "10.0.0.5:22222", "2.6.2");
        record.lease_id = 7_587_870_000_000_001;
        record.host_name = "h".into();
        assert_eq!(
            record.encode(),
            r#"{"ServerID":9,"ServerName":"streamingnode","Address":"10.0.0.5:22222","TriggerKill":true,"Version":"2.6.2","IndexEngineVersion":{},"ScalarIndexEngineVersion":{},"LeaseID":7587870000000001,"HostName":"h"}"#
        );
        record.exclusive = true;
        record.stopping = true;
        let text = String::from_utf8(record.encode().to_vec()).unwrap();
        assert!(text.contains(r#""Exclusive":true,"Stopping":true,"TriggerKill":true"#), "{text}");
        assert_eq!(SessionRecord::decode(text.as_bytes()).unwrap(), record);
    }

    #[test]
    fn records_of_others_are_read_and_nonsense_is_an_error() {
        let theirs = r#"{"ServerID":3,"Address":"a:1","Version":"2.6.0-dev","Unheard":[1],"IndexEngineVersion":{"MinimalIndexVersion":1}}"#;
        let record = SessionRecord::decode(theirs.as_bytes()).unwrap();
        assert_eq!((record.server_id, record.address.as_str()), (3, "a:1"));
        for nonsense in ["", "{", "[1]", r#"{"ServerID":"x"}"#, "null"] {
            assert!(SessionRecord::decode(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
    }
}
