//! What each call needs: the one table.

use woodpecker_base::net::{Need, Role};

const NOTHING: Need = Need::Nothing;
const READ: Need = Need::Role(Role::Read);
const WRITE: Need = Need::Role(Role::Write);
const ADMIN: Need = Need::Role(Role::Admin);
const OPERATOR: Need = Need::Operator;

/// Methods by service. A method that does not stand here needs an admin.
const METHODS: &[(&str, &[(&str, Need)])] = &[
    ("grpc.health.v1.Health", &[("Check", NOTHING), ("List", NOTHING), ("Watch", NOTHING)]),
    ("grpc.reflection.v1.ServerReflection", &[("ServerReflectionInfo", READ)]),
    ("milvus.proto.streaming.StreamingNodeStateService", &[("GetComponentStates", NOTHING)]),
    ("milvus.proto.streaming.StreamingCoordBroadcastService", &[("Broadcast", WRITE), ("Ack", ADMIN)]),
    (
        "milvus.proto.streaming.StreamingCoordAssignmentService",
        &[("AssignmentDiscover", READ), ("UpdateReplicateConfiguration", ADMIN), ("UpdateWALBalancePolicy", ADMIN)],
    ),
    (
        "milvus.proto.streaming.StreamingNodeHandlerService",
        &[("Consume", READ), ("GetReplicateCheckpoint", READ), ("Produce", WRITE)],
    ),
    ("streaming.node.v1.ReadPoints", &[("Latest", READ)]),
    ("streaming.node.v1.Consumers", &[("List", READ)]),
    (
        "milvus.proto.streaming.StreamingNodeManagerService",
        &[("Assign", ADMIN), ("Remove", ADMIN), ("CollectStatus", ADMIN)],
    ),
    (
        "milvus.proto.data.DataCoord",
        &[
            ("GetChannelRecoveryInfo", READ),
            ("AllocSegment", WRITE),
            ("SaveBinlogPaths", WRITE),
            ("UpdateChannelCheckpoint", WRITE),
            ("DropVirtualChannel", ADMIN),
        ],
    ),
    (
        "milvus.proto.rootcoord.RootCoord",
        &[
            ("GetComponentStates", NOTHING),
            ("DescribeCollectionInternal", READ),
            ("GetPChannelInfo", READ),
            ("AllocTimestamp", WRITE),
            ("AllocID", WRITE),
        ],
    ),
    (
        "woodpecker.logstore.v1.LogStore",
        &[
            ("Read", READ),
            ("Describe", READ),
            ("List", READ),
            ("Status", READ),
            ("Append", WRITE),
            // Who opens a log to write fences it.
            ("Fence", WRITE),
            ("Release", ADMIN),
            ("Decommission", OPERATOR),
            ("DeleteNamespace", OPERATOR),
        ],
    ),
];

/// What a call of `/package.Service/Method` needs.
pub(super) fn needs(path: &str) -> Need {
    let found = path.strip_prefix('/').and_then(|path| path.split_once('/')).and_then(|(service, method)| {
        let (_, methods) = METHODS.iter().find(|(name, _)| *name == service)?;
        methods.iter().find(|(name, _)| *name == method)
    });
    found.map_or(ADMIN, |(_, need)| *need)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_of_every_service_stands_in_the_table() {
        let files = FileDescriptorSet::decode(streaming_proto::FILE_DESCRIPTOR_SET).unwrap().file;
        let mut served = BTreeSet::new();
        for file in &files {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                served.extend(service.method.iter().map(|method| (name.clone(), method.name().to_owned())));
            }
        }
        assert!(served.len() > 25, "{served:?}");
        let listed: BTreeSet<_> = METHODS
            .iter()
            .filter(|(service, _)| !service.starts_with("grpc."))
            .flat_map(|(service, methods)| methods.iter().map(|(name, _)| ((*service).to_owned(), (*name).to_owned())))
            .collect();
        assert_eq!(listed, served);
    }

    #[test]
    fn what_nobody_knows_needs_an_admin() {
        for path in ["", "/", "nonsense", "/milvus.proto.streaming.StreamingNodeHandlerService/Erase", "/a.B/C/D"] {
            assert_eq!(needs(path), ADMIN, "{path}");
        }
        assert_eq!(needs("/milvus.proto.streaming.StreamingNodeHandlerService/Produce"), WRITE);
        assert_eq!(needs("/grpc.health.v1.Health/Check"), NOTHING);
    }
}
