//! Messages, clients and servers of the streaming protocol, generated from the `.proto` files beside this crate.
//!
//! Package, service and field numbers are those of Milvus 2.6, so that peers of that release can talk to us. There is no
//! logic here: what a field means is said by `streaming-types` and by the services themselves.
//!
//! A decoded message loses fields that it does not know. Payloads and property values therefore stay bytes and strings,
//! and a header is decoded and encoded again only by who really rewrites it.

mod message;
mod properties;

pub use self::properties::{MAX_PROPERTIES, Properties};

/// One module for each package; siblings, because generated code names other packages through `super`.
macro_rules! package {
    ($(#[$doc:meta])* $module:ident, $package:literal $(, $by_hand:ident)?) => {
        $(#[$doc])*
        pub mod $module {
            #![allow(clippy::all, clippy::pedantic, clippy::restriction, rustdoc::all, unused_qualifications, reason = "generated")]
            tonic::include_proto!($package);
            $(pub use crate::message::$by_hand;)?
        }
    };
}

package!(
    /// The five services and what they exchange.
    streaming, "milvus.proto.streaming"
);
package!(
    /// Message types, headers, version-2 bodies and property values.
    messages, "milvus.proto.messages", Message
);
package!(
    /// Ids, immutable messages, replication topology, status.
    common, "milvus.proto.common", ImmutableMessage
);
package!(
    /// Component states and the entities that headers name.
    milvus, "milvus.proto.milvus"
);
package!(
    /// Resource groups.
    rg, "milvus.proto.rg"
);
package!(
    /// Collection schemas.
    schema, "milvus.proto.schema"
);
package!(
    /// Credentials.
    internal, "milvus.proto.internal"
);
package!(
    /// Index definitions.
    index, "milvus.proto.index"
);
package!(
    /// Bodies of version-1 messages.
    msg, "milvus.proto.msg"
);
package!(
    /// The root coordinator: timestamps, ids, what lives on a pchannel.
    rootcoord, "milvus.proto.rootcoord"
);
package!(
    /// The data coordinator: segments, recovery, checkpoints.
    data, "milvus.proto.data"
);
package!(
    /// States shared with the metadata catalogue.
    etcd, "milvus.proto.etcd"
);

package!(
    /// The log stores of Woodpecker's quorum backend.
    logstore, "woodpecker.logstore.v1"
);

package!(
    /// Read points of a streaming node.
    node, "streaming.node.v1"
);

/// Every `.proto` file as an encoded `google.protobuf.FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests;
