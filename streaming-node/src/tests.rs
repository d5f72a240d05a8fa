//! The node through its gRPC services, as any peer sees it: raw requests over a loopback connection, logs on the memory
//! backend.

mod clock;
mod consume;
mod fence;
mod flow;
mod hanging;
mod harness;
mod idempotency;
mod manage;
mod metrics;
mod model;
mod parts;
mod produce;
mod recovery;
mod refusals;
mod registration;
mod replicate;
mod scanner;
mod shard;
mod stuck;
mod trouble;
mod txn;
mod without_coordinator;
