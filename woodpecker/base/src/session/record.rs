//! The JSON of a session, field for field what the protocol's other components write and read.

use std::collections::BTreeMap;

use bytes::Bytes;
use semver::{Prerelease, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The resource group of whoever names none.
const DEFAULT_RESOURCE_GROUP: &str = "__default_resource_group";

/// What a session says. Unknown fields of others are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// At most one of the role is active at a time. Candidates of such a role say so as well.
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

    /// The resource group that the process belongs to.
    #[must_use]
    pub fn resource_group(&self) -> &str {
        self.labels.get("RESOURCE_GROUP").map_or(DEFAULT_RESOURCE_GROUP, String::as_str)
    }

    /// As it stands in the store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Strings, numbers and maps with string keys: nothing here can fail to be JSON.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Whether the version is `minimum` or later, by semantic versioning's order. One that does not parse is not.
    #[must_use]
    pub fn is_at_least(&self, minimum: &Version) -> bool {
        Version::parse(&self.version).is_ok_and(|version| version >= *minimum)
    }

    /// Reads a record, of whatever maker.
    ///
    /// # Errors
    /// It is no JSON of this shape.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        // Only an object: an array would be taken for the fields in their order.
        let object: Map<String, Value> = serde_json::from_slice(bytes)?;
        serde_json::from_value(Value::Object(object))
    }
}

/// The first version that knows of streaming, `2.6.0-dev`: sessions of earlier ones are no streaming nodes.
#[must_use]
pub fn first_streaming_version() -> Version {
    Version { pre: Prerelease::new("dev").unwrap_or_default(), ..Version::new(2, 6, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_semantic_versioning() {
        let minimum = first_streaming_version();
        assert_eq!(minimum.to_string(), "2.6.0-dev");
        let is_streaming = |version: &str| SessionRecord::new("r", 1, "a", version).is_at_least(&minimum);
        for version in ["2.6.0-dev", "2.6.0", "2.6.11", "2.10.0", "3.0.0-alpha"] {
            assert!(is_streaming(version), "{version}");
        }
        for version in ["2.5.99", "2.6.0-alpha", "", "2.6", "v2.6.2", "master"] {
            assert!(!is_streaming(version), "{version}");
        }
    }

    #[test]
    fn a_full_record_keeps_its_order_and_an_empty_one_its_constant_fields() {
        let mut record = SessionRecord::new("querynode", 1, "a:1", "2.6.0");
        (record.exclusive, record.stopping, record.trigger_kill) = (true, true, false);
        record.index_engine_version.insert("CurrentIndexVersion".to_owned(), 6.into());
        (record.index_non_encoding, record.lease_id, record.host_name) = (true, 5, "h".to_owned());
        record.labels = [("b", "2"), ("a", "1")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let json = concat!(
            r#"{"ServerID":1,"ServerName":"querynode","Address":"a:1","Exclusive":true,"Stopping":true,"#,
            r#""TriggerKill":false,"Version":"2.6.0","IndexEngineVersion":{"CurrentIndexVersion":6},"#,
            r#""ScalarIndexEngineVersion":{},"IndexNonEncoding":true,"LeaseID":5,"HostName":"h","#,
            r#""ServerLabels":{"a":"1","b":"2"}}"#
        );
        assert_eq!(record.encode(), json);
        assert_eq!(SessionRecord::decode(json.as_bytes()).unwrap(), record);
        let empty = r#"{"TriggerKill":false,"Version":"","IndexEngineVersion":{},"ScalarIndexEngineVersion":{}}"#;
        assert_eq!(SessionRecord::default().encode(), empty);
    }

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
