//! What travels in gRPC metadata: which pchannel a stream is for, which server a call is meant for, and who leads.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use streaming_proto::streaming::{CreateConsumerRequest, CreateProducerRequest};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::{PChannel, StreamingError};

/// Carries the request of a Produce stream.
pub const CREATE_PRODUCER: &str = "create-producer";
/// Carries the request of a Consume stream.
pub const CREATE_CONSUMER: &str = "create-consumer";
/// Carries the name of the cluster that the caller belongs to.
pub const CLUSTER: &str = "cluster";
/// Carries the decimal id of the server that the call is meant for.
pub const SERVER_ID: &str = "serverid";
/// Asks a coordinator that does not lead for the address of the one that does, and is the answer, in the status with which it
/// ends the stream. Peers that do not know it pass over it.
pub const LEADER: &str = "leader";
/// In the answer to a Remove: why the WAL had ended by itself. Peers that do not know it pass over it.
pub const WAL_ENDED: &str = "wal-ended-bin";

/// Says which pchannel a Produce stream is for.
pub fn set_create_producer(metadata: &mut MetadataMap, pchannel: &PChannel) {
    set(metadata, CREATE_PRODUCER, &CreateProducerRequest { pchannel: Some(pchannel.to_proto()) });
}

/// Says which pchannel a Consume stream is for.
pub fn set_create_consumer(metadata: &mut MetadataMap, pchannel: &PChannel) {
    set(metadata, CREATE_CONSUMER, &CreateConsumerRequest { pchannel: Some(pchannel.to_proto()) });
}

/// The pchannel that a Produce stream is for; anything else than one well-formed pchannel is an invalid argument.
pub fn create_producer(metadata: &MetadataMap) -> Result<PChannel, StreamingError> {
    let request: CreateProducerRequest = get(metadata, CREATE_PRODUCER)
        .ok_or_else(|| StreamingError::invalid_argument("create producer request is required"))?;
    Ok(PChannel::from_proto(request.pchannel.as_ref())?)
}

/// The pchannel that a Consume stream is for; anything else than one well-formed pchannel is an invalid argument.
pub fn create_consumer(metadata: &MetadataMap) -> Result<PChannel, StreamingError> {
    let request: CreateConsumerRequest = get(metadata, CREATE_CONSUMER)
        .ok_or_else(|| StreamingError::invalid_argument("create consumer request is required"))?;
    Ok(PChannel::from_proto(request.pchannel.as_ref())?)
}

/// Says where the call comes from and, if that matters, which server it is meant for.
pub fn set_destination(metadata: &mut MetadataMap, cluster: &str, server_id: Option<i64>) {
    // A name that is no ASCII text cannot travel; without one the call passes everywhere.
    if let Ok(cluster) = MetadataValue::try_from(cluster) {
        metadata.insert(CLUSTER, cluster);
    }
    if let Some(server_id) = server_id {
        metadata.insert(SERVER_ID, MetadataValue::from(server_id));
    }
}

/// Refuses a call that is meant for another cluster or another server. Absent, empty and unreadable values pass.
pub fn check_destination(metadata: &MetadataMap, cluster: &str, server_id: i64) -> Result<(), StreamingError> {
    let text = |key| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wanted = text(CLUSTER);
    if !wanted.is_empty() && wanted != cluster {
        return Err(StreamingError::ignored_operation(format!(
            "cross cluster routing: expected cluster {cluster}, the call is for {wanted}"
        )));
    }
    match text(SERVER_ID).parse::<i64>() {
        Ok(wanted) if wanted != server_id => Err(StreamingError::ignored_operation(format!(
            "node not match: this is server {server_id}, the call is for {wanted}"
        ))),
        _ => Ok(()),
    }
}

/// Says why the WAL that is removed had ended by itself.
pub fn set_wal_ended(metadata: &mut MetadataMap, why: &str) {
    metadata.insert_bin(WAL_ENDED, MetadataValue::from_bytes(why.as_bytes()));
}

/// Why the WAL that was removed had ended by itself, if it is said.
#[must_use]
pub fn wal_ended(metadata: &MetadataMap) -> Option<String> {
    let why = metadata.get_bin(WAL_ENDED)?.to_bytes().ok()?;
    Some(String::from_utf8_lossy(&why).into_owned())
}

/// Asks who leads.
pub fn ask_for_leader(metadata: &mut MetadataMap) {
    metadata.insert(LEADER, MetadataValue::from_static("wanted"));
}

/// Whether the caller asks who leads.
#[must_use]
pub fn asks_for_leader(metadata: &MetadataMap) -> bool {
    metadata.contains_key(LEADER)
}

/// Says who leads. An address that is no ASCII text cannot travel.
pub fn set_leader(metadata: &mut MetadataMap, address: &str) {
    if let Ok(address) = MetadataValue::try_from(address) {
        metadata.insert(LEADER, address);
    }
}

/// Who leads, if it is said.
#[must_use]
pub fn leader(metadata: &MetadataMap) -> Option<String> {
    Some(metadata.get(LEADER)?.to_str().ok()?.to_owned())
}

/// The key has no `-bin`, so base64 is ours to write and to read.
fn set(metadata: &mut MetadataMap, key: &'static str, request: &impl Message) {
    // Base64 is always ASCII, so this never fails.
    let value: Result<MetadataValue<Ascii>, _> = STANDARD.encode(request.encode_to_vec()).try_into();
    if let Ok(value) = value {
        metadata.insert(key, value);
    }
}

fn get<R: Message + Default>(metadata: &MetadataMap, key: &str) -> Option<R> {
    let bytes = STANDARD.decode(metadata.get(key)?.as_bytes()).ok()?;
    R::decode(bytes.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn producer_header(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(CREATE_PRODUCER, value.parse().unwrap());
        metadata
    }

    #[test]
    fn known_pchannels_have_their_known_texts() {
        for (pchannel, text) in [
            (PChannel::read_write("by-dev-rootcoord-dml_0", 1), "ChoKFmJ5LWRldi1yb290Y29vcmQtZG1sXzAQAQ=="),
            (PChannel::read_only("by-dev-rootcoord-dml_0", 3), "ChwKFmJ5LWRldi1yb290Y29vcmQtZG1sXzAQAxgB"),
        ] {
            let pchannel = pchannel.unwrap();
            let mut metadata = MetadataMap::new();
            set_create_producer(&mut metadata, &pchannel);
            set_create_consumer(&mut metadata, &pchannel);
            assert_eq!(metadata.get("create-producer").unwrap(), text);
            assert_eq!(metadata.get("create-consumer").unwrap(), text);
            assert_eq!(create_producer(&metadata), Ok(pchannel.clone()));
            assert_eq!(create_consumer(&metadata), Ok(pchannel));
        }
    }

    #[test]
    fn missing_or_broken_request_is_an_invalid_argument() {
        for metadata in [MetadataMap::new(), producer_header("?"), producer_header("CgE=")] {
            let error = create_producer(&metadata).unwrap_err();
            assert_eq!(error, StreamingError::invalid_argument("create producer request is required"));
            assert_eq!(error.grpc_code(), Code::InvalidArgument);
        }
        assert_eq!(
            create_consumer(&MetadataMap::new()),
            Err(StreamingError::invalid_argument("create consumer request is required"))
        );
        // A request without a pchannel, and one whose pchannel has neither name nor term.
        for text in ["", "CgA="] {
            let error = create_producer(&producer_header(text)).unwrap_err();
            assert_eq!(error.grpc_code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn first_of_several_requests_counts() {
        let mut metadata = producer_header("ChoKFmJ5LWRldi1yb290Y29vcmQtZG1sXzAQAQ==");
        metadata.append(CREATE_PRODUCER, "?".parse().unwrap());
        assert_eq!(create_producer(&metadata).unwrap().term(), 1);
    }

    #[test]
    fn call_for_another_cluster_or_server_is_refused() {
        let mut metadata = MetadataMap::new();
        assert_eq!(check_destination(&metadata, "by-dev", 7), Ok(()));
        set_destination(&mut metadata, "by-dev", Some(7));
        assert_eq!(metadata.get("cluster").unwrap(), "by-dev");
        assert_eq!(metadata.get("serverid").unwrap(), "7");
        assert_eq!(check_destination(&metadata, "by-dev", 7), Ok(()));
        for error in [check_destination(&metadata, "other", 7), check_destination(&metadata, "by-dev", 8)] {
            let error = error.unwrap_err();
            assert!(error.is_ignored());
            assert_eq!(error.grpc_code(), Code::FailedPrecondition);
        }
        set_destination(&mut metadata, "", None);
        metadata.insert(SERVER_ID, "seven".parse().unwrap());
        assert_eq!(check_destination(&metadata, "by-dev", 8), Ok(()));
    }

    proptest! {
        #[test]
        fn any_request_is_read_or_refused(bytes: Vec<u8>, text in "[ -~]{0,40}") {
            for text in [STANDARD.encode(bytes), text] {
                let mut metadata = producer_header(&text);
                metadata.insert(SERVER_ID, text.parse().unwrap());
                let _ = check_destination(&metadata, "by-dev", 1);
                if let Err(error) = create_producer(&metadata) {
                    prop_assert_eq!(error.grpc_code(), Code::InvalidArgument);
                }
            }
        }
    }
}
