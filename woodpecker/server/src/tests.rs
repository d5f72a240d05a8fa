//! The store over gRPC, on real sockets and a real disk.

mod append;
mod disk;
mod failing;
mod fence;
mod harness;
mod limits;
mod read;
mod registry;
mod restart;
