//! Real peers for tests: processes and servers that speak the real protocols over real sockets.

pub mod s3;

pub use s3::S3;
