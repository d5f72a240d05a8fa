//! The wire, spoken by hand to the real processes: requests and metadata are written and responses and trailers read
//! here, without the client library, in the forms that components of other make use and depend on. One file a topic.

#![expect(clippy::expect_used, clippy::panic, reason = "what is not as the protocol says fails the test")]

mod consume;
mod coordinator;
mod destination;
mod discover;
mod manager;
mod messages;
mod ownership;
mod produce;
mod raw;
mod segments;
mod server;
mod standard;
mod txn;
