//! How fast a WAL may be written, so that what stands behind it keeps up: the node's memory, its own recovery, those who
//! consume it.
//!
//! Each source of pressure has a controller of its own; the tightest one wins. Only messages that bring data wait, in
//! front of the WAL's budget; producers that understand it are told the limit, and the others are held back by the stream.

mod controller;
mod governor;
mod limiter;
mod memory;

pub use self::{
    controller::Limit,
    governor::{Gauges, Governor},
    limiter::{Limiter, to_wire},
    memory::{Memory, Usage},
};
