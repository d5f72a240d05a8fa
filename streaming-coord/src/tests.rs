//! A coordinator on real gRPC over loopback, with scripted nodes and a metadata store in memory.

mod cluster;
mod discovery;
mod ended;
mod failover;
mod health;
mod log;
pub(crate) mod loss;
mod metrics;
mod placement;
mod replication;
mod root_coord;
mod trouble;
