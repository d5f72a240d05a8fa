//! What every role stands on: the metadata store, sessions and election, and the edges to the outside world that tests
//! and the simulation replace.
//!
//! # The edges
//! A role takes all of these from outside, and so runs unchanged in one process with others, in a test, or on a
//! simulated machine:
//! - [`clock::Clock`]: wall clock, monotonic time and every timer;
//! - [`random::Random`]: every random number, from one seed;
//! - [`tasks::Tasks`]: who runs, how it is told to stop, how one waits for it;
//! - [`disk::Disk`]: files, and the threads that block on them;
//! - [`net`]: listeners and connectors;
//! - [`health::HealthReporter`]: where a role says how it is.
//!
//! # The metadata store
//! [`metadata::MetadataStore`] is a small linearizable key-value store with transactions, watches and leases. There are
//! three: [`metadata::EtcdStore`] for a cluster, [`metadata::RedbStore`] for a single process without etcd, and
//! [`metadata::MemoryStore`] for tests and the simulation. One suite, `metadata::conformance` (feature `conformance`),
//! holds all three to the same contract.
//!
//! # Who is there
//! At its start a process takes a number that no other has had ([`server_id::allocate`]), and registers a
//! [`session::Session`] under it: a key that dies with a lease. Others find it with [`session::watch_sessions`]. Of an
//! exclusive role only one process is active at a time, which [`election::campaign`] decides. Keys and JSON are those of
//! the cluster's other servers and clients, so that both find one another.
//!
//! A session tells *unreachable* from *lost*. While the store cannot be reached nothing is lost: whatever is guarded by a
//! fence goes on. What nothing guards stops at [`session::Session::valid_until`]. Only when the store says so is a session
//! lost, and its owner then stops and registers anew.

pub mod backoff;
pub mod clock;
pub mod disk;
pub mod election;
pub mod health;
pub mod level;
pub mod metadata;
pub mod net;
pub mod random;
pub mod server_id;
pub mod session;
pub mod tasks;
pub mod trace;
