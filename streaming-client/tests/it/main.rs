//! The client against a coordinator and nodes that do what a test tells them, over real gRPC on loopback.

mod assignment;
mod close;
mod consume;
mod fake;
mod produce;
mod throughput;
