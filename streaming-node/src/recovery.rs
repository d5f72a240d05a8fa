//! What survives a term: the checkpoint of a WAL, its vchannels and growing segments, and the way back to them.
//!
//! ```text
//! the log ─ replay ─┐                          ┌─ acknowledgements of broadcasts
//!                   ├─ state ── keeper ────────┼─ catalog: components first, checkpoint last
//! the tail ─ follower┘                         └─ truncation of the log behind it
//! ```
//!
//! The same state takes messages while a log is replayed and while it is appended to. A message counts as done when its
//! effects are in the metadata store and everyone who had to be told of it has been; the checkpoint stays before the first
//! message that is not. It is written last, so a crash in between costs a replay of messages that change nothing.

pub mod acks;
pub mod catalog;
pub mod follower;
pub mod keeper;
mod key_span;
pub mod replay;
pub mod seen;
mod segments;
pub mod state;
#[cfg(test)]
mod tests;
mod truncation;
mod vchannel;
