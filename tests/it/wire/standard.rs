//! What standard gRPC tools ask of any server: health and reflection. Both in bytes, as there are no stubs for them here.

use prost::Message;

use super::{raw::unary, server::Server};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// `HealthCheckRequest`; `ServerReflectionRequest` has its question in other fields.
#[derive(Clone, PartialEq, Message)]
struct Check {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct Reflect {
    #[prost(string, optional, tag = "4")]
    file_containing_symbol: Option<String>,
    #[prost(string, optional, tag = "7")]
    list_services: Option<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_says_that_it_serves_and_what() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let coord = [
        "milvus.proto.streaming.StreamingCoordAssignmentService",
        "milvus.proto.streaming.StreamingCoordBroadcastService",
        "milvus.proto.rootcoord.RootCoord",
    ];
    let node = [
        "milvus.proto.streaming.StreamingNodeHandlerService",
        "milvus.proto.streaming.StreamingNodeManagerService",
        "milvus.proto.streaming.StreamingNodeStateService",
    ];
    for (channel, services) in [(&server.coord, coord), (&server.node.channel, node)] {
        for service in std::iter::once("").chain(services) {
            let answer = unary(channel, CHECK, &Check { service: service.to_owned() }).await?;
            assert_eq!(answer.as_ref(), [0x08, 0x01], "{service:?} is SERVING");
        }
        let listed = Reflect { list_services: Some(String::new()), ..Reflect::default() };
        let listed = unary(channel, REFLECTION, &listed).await?;
        let names = |name: &str| listed.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(services.into_iter().chain(["grpc.health.v1.Health"]).all(names), "{listed:?}");
        assert!(!names("woodpecker.logstore"), "what is not served is not listed");
        let described = Reflect { file_containing_symbol: Some(services[0].to_owned()), ..Reflect::default() };
        let described = unary(channel, REFLECTION, &described).await?;
        assert!(described.len() > 1000, "the file that describes {}", services[0]);
    }
    Ok(())
}
