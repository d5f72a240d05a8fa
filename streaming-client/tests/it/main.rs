//! The client against a coordinator and nodes that do what a test tells them, over real gRPC on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "all of it is test code, also what stands outside of the test functions"
)]

mod assignment;
mod close;
mod consume;
mod fake;
mod produce;
mod throughput;
mod tls;
mod txn;
