//! What every role stands on: the metadata store, sessions and election, and the edges to the outside world
//! (clock, randomness, tasks, disk, network) that tests and the simulation replace.

pub mod backoff;
pub mod clock;
pub mod disk;
pub mod election;
pub mod metadata;
pub mod net;
pub mod random;
pub mod server_id;
pub mod session;
pub mod tasks;
