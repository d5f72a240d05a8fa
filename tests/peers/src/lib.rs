//! Real peers for tests: processes and servers that speak the real protocols over real sockets.

pub mod etcd;
pub mod s3;

pub use etcd::{Etcd, EtcdOptions};
pub use s3::S3;
