//! Real peers for tests: processes and servers that speak the real protocols over real sockets.

pub mod authority;
pub mod etcd;
pub mod port;
pub mod s3;
pub mod usage;

pub use authority::Authority;
pub use etcd::{Etcd, EtcdOptions};
pub use port::Port;
pub use s3::S3;
