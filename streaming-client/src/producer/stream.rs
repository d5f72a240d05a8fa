//! One Produce stream: its opening, and the form of what goes into it.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use prost::{
    Message as _,
    bytes::BufMut,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use streaming_proto::{
    messages::Message,
    streaming::{
        CloseProducerRequest, ProduceMessageRequest, ProduceRequest, ProduceResponse, produce_request,
        produce_response::Response,
    },
};
use streaming_types::{StreamingError, local::Stream, metadata::set_create_producer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{
    assignment::Channel,
    client::Core,
    connections::{Class, status_error},
};

const PATH: &str = "/milvus.proto.streaming.StreamingNodeHandlerService/Produce";
/// Requests that wait for the connection. Several must be ready at once to share a packet.
const READY: usize = 256;

/// A `ProduceRequest` as it is kept until it is acknowledged: sending it again must not copy the message.
#[derive(Debug)]
pub(crate) enum Outbound {
    Produce { id: i64, message: Arc<Message> },
    Close,
}

pub(crate) struct ProduceStream {
    pub(crate) requests: mpsc::Sender<Outbound>,
    pub(crate) responses: Stream<ProduceResponse>,
    /// Whether the node is in this process.
    pub(crate) is_local: bool,
}

impl Outbound {
    /// As the protocol has it, for a node to which nothing is encoded.
    fn into_request(self) -> ProduceRequest {
        let request = match self {
            Self::Produce { id, message } => {
                let message = Some(Arc::unwrap_or_clone(message));
                produce_request::Request::Produce(ProduceMessageRequest { request_id: id, message })
            }
            Self::Close => produce_request::Request::Close(CloseProducerRequest {}),
        };
        ProduceRequest { request: Some(request) }
    }
}

/// Opens a stream to the channel's owner and waits for its `create`.
pub(crate) async fn open(core: Arc<Core>, channel: Channel) -> Result<ProduceStream, StreamingError> {
    let limit = core.settings.timeouts.open;
    match core.clock.timeout(limit, handshake(&core, &channel)).await {
        Ok(opened) => opened,
        Err(_) => Err(StreamingError::unknown(format!(
            "{} did not open a produce stream within {limit:?}",
            channel.owner.address
        ))),
    }
}

async fn handshake(core: &Core, channel: &Channel) -> Result<ProduceStream, StreamingError> {
    let (requests, outbound) = mpsc::channel(READY);
    let outbound = ReceiverStream::new(outbound);
    let local = core.local(channel);
    let mut responses = match local {
        Some(node) => {
            let outbound = outbound.map(|request: Outbound| Ok(request.into_request())).boxed();
            node.produce(&channel.pchannel, outbound).map_err(|status| status_error(&status))?
        }
        None => remote(core, channel, outbound).await?,
    };
    let first = responses.try_next().await.map_err(|status| status_error(&status))?;
    match first.and_then(|first| first.response) {
        Some(Response::Create(_)) => Ok(ProduceStream { requests, responses, is_local: local.is_some() }),
        other => {
            Err(StreamingError::unknown(format!("the first answer on a produce stream was not create but {other:?}")))
        }
    }
}

async fn remote(
    core: &Core,
    channel: &Channel,
    outbound: ReceiverStream<Outbound>,
) -> Result<Stream<ProduceResponse>, StreamingError> {
    let server = channel.server();
    let connection = core.connections.channel(&server, Class::Append)?;
    let mut grpc = tonic::client::Grpc::new(connection).max_decoding_message_size(core.settings.limits.max_receive);
    grpc.ready().await.map_err(|error| StreamingError::unknown(error.to_string()))?;

    let mut request = Request::new(outbound);
    core.connections.address_call(&server, request.metadata_mut());
    set_create_producer(request.metadata_mut(), &channel.pchannel);

    let path = http::uri::PathAndQuery::from_static(PATH);
    let response = grpc.streaming(request, path, ProduceCodec).await.map_err(|status| status_error(&status))?;
    Ok(response.into_inner().boxed())
}

/// Writes [`Outbound`] as `ProduceRequest` into a buffer that is reserved once.
#[derive(Debug, Default)]
struct ProduceCodec;

impl Codec for ProduceCodec {
    type Encode = Outbound;
    type Decode = ProduceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for ProduceCodec {
    type Item = Outbound;
    type Error = Status;

    fn encode(&mut self, item: Outbound, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(encoded_len(&item));
        encode(&item, buffer);
        Ok(())
    }
}

impl Decoder for ProduceCodec {
    type Item = ProduceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<ProduceResponse>, Status> {
        let response = ProduceResponse::decode(buffer);
        response.map(Some).map_err(|error| Status::internal(format!("undecodable answer: {error}")))
    }
}

// Field numbers of wire.md §1.1: ProduceRequest{produce=1 {request_id=1, message=2}, close=2}.
const PRODUCE: u32 = 1;
const CLOSE: u32 = 2;
const REQUEST_ID: u32 = 1;
const MESSAGE: u32 = 2;

fn delimited(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn produce_len(id: i64, message_len: usize) -> usize {
    key_len(REQUEST_ID) + encoded_len_varint(id.cast_unsigned()) + delimited(MESSAGE, message_len)
}

/// Bytes that `message` takes on the wire as the payload of one request, its envelope included.
pub(super) fn request_len(message: &Message) -> usize {
    // Request ids are small, but one that is not must not escape the account.
    delimited(PRODUCE, produce_len(i64::MAX, message.encoded_len()))
}

fn encoded_len(item: &Outbound) -> usize {
    match item {
        Outbound::Produce { id, message } => delimited(PRODUCE, produce_len(*id, message.encoded_len())),
        Outbound::Close => delimited(CLOSE, 0),
    }
}

fn encode(item: &Outbound, buffer: &mut impl BufMut) {
    match item {
        Outbound::Produce { id, message } => {
            let message_len = message.encoded_len();
            encode_key(PRODUCE, WireType::LengthDelimited, buffer);
            encode_varint(produce_len(*id, message_len) as u64, buffer);
            encode_key(REQUEST_ID, WireType::Varint, buffer);
            encode_varint(id.cast_unsigned(), buffer);
            encode_key(MESSAGE, WireType::LengthDelimited, buffer);
            encode_varint(message_len as u64, buffer);
            message.encode_raw(buffer);
        }
        Outbound::Close => {
            encode_key(CLOSE, WireType::LengthDelimited, buffer);
            encode_varint(0, buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use streaming_proto::streaming::{
        CloseProducerRequest, ProduceMessageRequest, ProduceRequest, produce_request::Request as Arm,
    };

    use super::*;

    fn encoded(item: &Outbound) -> Vec<u8> {
        let mut buffer = Vec::new();
        encode(item, &mut buffer);
        assert_eq!(buffer.len(), encoded_len(item));
        buffer
    }

    #[test]
    fn close_is_an_empty_submessage() {
        let generated = ProduceRequest { request: Some(Arm::Close(CloseProducerRequest {})) }.encode_to_vec();
        assert_eq!(encoded(&Outbound::Close), [0x12, 0x00]);
        assert_eq!(generated, [0x12, 0x00]);
    }

    proptest! {
        #[test]
        fn requests_are_encoded_as_the_generated_code_does(
            id in 1..=i64::MAX,
            payload in prop::collection::vec(any::<u8>(), 0..300),
            properties in prop::collection::btree_map("[a-z_]{0,6}", ".{0,20}", 0..6),
        ) {
            let message = Message { payload: payload.into(), properties: properties.into() };
            let generated = ProduceRequest {
                request: Some(Arm::Produce(ProduceMessageRequest { request_id: id, message: Some(message.clone()) })),
            };
            let bytes = encoded(&Outbound::Produce { id, message: Arc::new(message.clone()) });
            prop_assert_eq!(&bytes, &generated.encode_to_vec());
            prop_assert!(bytes.len() <= request_len(&message));
        }
    }
}
