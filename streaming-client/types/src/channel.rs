//! Names of channels, and a pchannel under its term.

use std::fmt;

use streaming_proto::streaming::{PChannelAccessMode, PChannelInfo};

use crate::StreamingError;

const CONTROL_SUFFIX: &str = "_vcchan";
const REPLICA_INFIX: &str = "_vreplica:";

/// The name of pchannel number `index` of a cluster (`by-dev` by default): `<cluster>-rootcoord-dml_<index>`.
#[must_use]
pub fn pchannel_name(cluster: &str, index: usize) -> String {
    format!("{cluster}-rootcoord-dml_{index}")
}

/// The name of one shard of a collection on a pchannel: `<pchannel>_<collection>v<shard>`.
#[must_use]
pub fn vchannel_name(pchannel: &str, collection_id: i64, shard: u32) -> String {
    format!("{pchannel}_{collection_id}v{shard}")
}

/// The name of the control channel on a pchannel.
#[must_use]
pub fn control_channel(pchannel: &str) -> String {
    format!("{pchannel}{CONTROL_SUFFIX}")
}

/// Whether this is the name of a control channel.
#[must_use]
pub fn is_control_channel(name: &str) -> bool {
    name.ends_with(CONTROL_SUFFIX)
}

/// Whether a name is that of a pchannel: what follows its last `_` has no `v`.
#[must_use]
pub fn is_physical(name: &str) -> bool {
    name.rsplit_once('_').is_none_or(|(_, last)| !last.contains('v'))
}

/// The pchannel of a vchannel; the name of a pchannel stays as it is.
#[must_use]
pub fn to_physical(name: &str) -> &str {
    match name.rsplit_once('_') {
        Some((pchannel, last)) if last.contains('v') => pchannel,
        _ => name,
    }
}

/// The name under which a pchannel's replication to another cluster says what it needs of the log. It belongs to the
/// pchannel as a vchannel's name does, and no vchannel has it.
#[must_use]
pub fn replica_consumer(pchannel: &str, target_cluster: &str) -> String {
    // The last `_` ends the pchannel's name.
    format!("{pchannel}{REPLICA_INFIX}{}", target_cluster.replace('_', "~"))
}

/// Whether a consumer of that name is a pchannel's replication to another cluster.
#[must_use]
pub fn is_replica_consumer(name: &str) -> bool {
    name.contains(REPLICA_INFIX)
}

/// A vchannel's name in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VChannelName<'a> {
    pub pchannel: &'a str,
    pub collection_id: i64,
    pub shard: u32,
}

impl<'a> VChannelName<'a> {
    /// `None` for the name of a pchannel, of a control channel, or anything else.
    #[must_use]
    pub fn parse(name: &'a str) -> Option<Self> {
        let (pchannel, last) = name.rsplit_once('_')?;
        let (collection, shard) = last.split_once('v')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if pchannel.is_empty() || !digits(collection) || !digits(shard) {
            return None;
        }
        Some(Self { pchannel, collection_id: collection.parse().ok()?, shard: shard.parse().ok()? })
    }
}

impl fmt::Display for VChannelName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}v{}", self.pchannel, self.collection_id, self.shard)
    }
}

/// A pchannel under one term of ownership. The name is never empty and the term at least 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PChannel {
    name: String,
    term: i64,
    read_only: bool,
}

/// Why a pchannel from the wire was refused. A peer that receives such a pchannel may not survive it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PChannelError {
    #[error("pchannel is missing")]
    Missing,
    #[error("pchannel has no name")]
    NoName,
    #[error("pchannel {name} has term {term}, terms begin at 1")]
    BadTerm { name: String, term: i64 },
    #[error("pchannel {name} has unknown access mode {mode}")]
    BadAccessMode { name: String, mode: i32 },
}

impl From<PChannelError> for StreamingError {
    fn from(error: PChannelError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl PChannel {
    /// A pchannel opened for reading and writing.
    pub fn read_write(name: impl Into<String>, term: i64) -> Result<Self, PChannelError> {
        Self::checked(name.into(), term, false)
    }

    /// A pchannel opened for reading.
    pub fn read_only(name: impl Into<String>, term: i64) -> Result<Self, PChannelError> {
        Self::checked(name.into(), term, true)
    }

    fn checked(name: String, term: i64, read_only: bool) -> Result<Self, PChannelError> {
        if name.is_empty() {
            return Err(PChannelError::NoName);
        }
        if term <= 0 {
            return Err(PChannelError::BadTerm { name, term });
        }
        Ok(Self { name, term, read_only })
    }

    /// Reads a field that must be there.
    pub fn from_proto(info: Option<&PChannelInfo>) -> Result<Self, PChannelError> {
        let info = info.ok_or(PChannelError::Missing)?;
        let read_only = match PChannelAccessMode::try_from(info.access_mode) {
            Ok(PChannelAccessMode::PchannelAccessReadwrite) => false,
            Ok(PChannelAccessMode::PchannelAccessReadonly) => true,
            Err(_) => {
                return Err(PChannelError::BadAccessMode { name: info.name.clone(), mode: info.access_mode });
            }
        };
        Self::checked(info.name.clone(), info.term, read_only)
    }

    #[must_use]
    pub fn to_proto(&self) -> PChannelInfo {
        let mode = if self.read_only {
            PChannelAccessMode::PchannelAccessReadonly
        } else {
            PChannelAccessMode::PchannelAccessReadwrite
        };
        PChannelInfo { name: self.name.clone(), term: self.term, access_mode: mode.into() }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn term(&self) -> i64 {
        self.term
    }

    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl fmt::Display for PChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.term)?;
        if self.read_only { f.write_str(" (read only)") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_built_as_peers_build_them() {
        let pchannel = pchannel_name("by-dev", 0);
        assert_eq!(pchannel, "by-dev-rootcoord-dml_0");
        assert_eq!(vchannel_name(&pchannel, 1, 0), "by-dev-rootcoord-dml_0_1v0");
        assert_eq!(control_channel(&pchannel), "by-dev-rootcoord-dml_0_vcchan");
    }

    #[test]
    fn pchannel_of_a_name_is_what_stands_before_its_last_part() {
        for (name, pchannel) in [
            ("by-dev-rootcoord-dml_0_1v0", "by-dev-rootcoord-dml_0"),
            ("by-dev-rootcoord-dml_0_vcchan", "by-dev-rootcoord-dml_0"),
            ("by-dev-rootcoord-dml_0", "by-dev-rootcoord-dml_0"),
            ("v1", "v1"),
            ("", ""),
            ("_v", ""),
        ] {
            assert_eq!(to_physical(name), pchannel);
            assert_eq!(is_physical(name), name == pchannel, "{name}");
        }
        assert!(is_control_channel("p_vcchan"));
        assert!(!is_control_channel("p_1v0"));
    }

    #[test]
    fn replication_to_another_cluster_is_a_consumer_of_the_pchannel() {
        let name = replica_consumer("by-dev-rootcoord-dml_0", "in_west_vault");
        assert_eq!(to_physical(&name), "by-dev-rootcoord-dml_0");
        assert!(is_replica_consumer(&name) && VChannelName::parse(&name).is_none());
        assert!(!is_replica_consumer("by-dev-rootcoord-dml_0_1v0"));
    }

    #[test]
    fn only_the_name_of_a_shard_has_parts() {
        let parts = VChannelName { pchannel: "by-dev-rootcoord-dml_0", collection_id: 449, shard: 3 };
        assert_eq!(VChannelName::parse("by-dev-rootcoord-dml_0_449v3"), Some(parts));
        for name in [
            "",
            "p",
            "p_1",
            "p_v",
            "p_1v",
            "p_v1",
            "_1v0",
            "p_1v0v0",
            "p_vcchan",
            "p_-1v0",
            "p_+1v0",
            "p_99999999999999999999v0",
        ] {
            assert_eq!(VChannelName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn pchannel_without_name_or_term_or_with_another_mode_is_refused() {
        let good = PChannelInfo { name: "p".to_owned(), term: 1, access_mode: 1 };
        assert_eq!(PChannel::from_proto(Some(&good)), PChannel::read_only("p", 1));
        assert_eq!(PChannel::from_proto(None), Err(PChannelError::Missing));
        let nameless = PChannelInfo { name: String::new(), ..good };
        assert_eq!(PChannel::from_proto(Some(&nameless)), Err(PChannelError::NoName));
        for term in [0, -1, i64::MIN] {
            let bad = PChannelInfo { term, ..good.clone() };
            assert_eq!(PChannel::from_proto(Some(&bad)), Err(PChannelError::BadTerm { name: "p".to_owned(), term }));
        }
        let mode = PChannelInfo { access_mode: 2, ..good };
        assert_eq!(
            PChannel::from_proto(Some(&mode)),
            Err(PChannelError::BadAccessMode { name: "p".to_owned(), mode: 2 })
        );
    }

    proptest! {
        #[test]
        fn shard_names_read_back(pchannel in "[a-z0-9_-]{1,20}", collection_id in 0..=i64::MAX, shard: u32) {
            let name = vchannel_name(&pchannel, collection_id, shard);
            let parts = VChannelName { pchannel: &pchannel, collection_id, shard };
            prop_assert_eq!(VChannelName::parse(&name), Some(parts));
            prop_assert_eq!(to_physical(&name), &pchannel);
            prop_assert_eq!(parts.to_string(), name);
        }

        #[test]
        fn any_name_is_read_or_refused(name: String) {
            prop_assert!(name.starts_with(to_physical(&name)));
            prop_assert_eq!(is_physical(&name), to_physical(&name) == name);
            if let Some(parts) = VChannelName::parse(&name) {
                prop_assert_eq!(parts.pchannel, to_physical(&name));
            }
        }

        #[test]
        fn pchannels_read_back(name in ".{1,20}", term in 1..=i64::MAX, read_only: bool) {
            let channel = PChannel::checked(name, term, read_only).unwrap();
            prop_assert_eq!(PChannel::from_proto(Some(&channel.to_proto())), Ok(channel));
        }
    }
}
