//! The coordinator, two nodes and a client on a simulated network, disk and clock, with faults drawn from a seed.
//!
//! One call of [`scenario::run`] is one run. In a fresh process, the same seed gives the same run, to the last line of
//! its trace.

pub mod cluster;
pub mod disk;
pub mod faults;
pub mod net;
pub mod scenario;
pub mod trace;
pub mod workload;
