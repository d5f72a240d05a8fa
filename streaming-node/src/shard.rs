//! Collections on a WAL, and the growing segments that inserts into them go to.
//!
//! A message that creates a collection makes its vchannel known here. From then on every insert into it is given a growing
//! segment that has room, which a `CreateSegment` message right before it makes known; `Flush`, or a message that needs the
//! vchannel for itself, ends a segment. A WAL on which no collection lives is a plain log: nothing is checked or assigned.

mod growth;
mod ids;
mod layer;
mod sealer;
mod segment;
mod table;

pub use self::{
    growth::Growth,
    ids::IdPool,
    layer::{ShardLayer, Sharding, Shards},
    sealer::Sealer,
    table::Table,
};

#[cfg(test)]
pub use self::layer::samples;
