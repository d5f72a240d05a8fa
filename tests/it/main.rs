//! End to end: the real binary, real files and sockets, a real etcd, `kill -9`.

#![expect(clippy::disallowed_methods, reason = "tests drive processes, in real time")]

mod admin;
mod balance;
mod chaos;
mod cluster;
mod consumers;
mod failover;
mod first_stream;
mod full_disk;
mod limits;
mod load;
mod log;
mod logstore;
mod machine;
mod mounts;
mod network;
mod observability;
mod outages;
mod process;
mod proxy;
mod quorum;
mod readme;
mod replicate;
mod restored;
mod security;
mod segments;
mod stores;
mod txn;
mod wire;
