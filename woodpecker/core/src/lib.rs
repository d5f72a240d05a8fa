//! The rules of Woodpecker as pure state machines: no I/O, no clock, no randomness.

pub mod chain;
pub mod garbage;
pub mod ids;
pub mod opening;
pub mod quorum;
pub mod record;
pub mod sealing;
