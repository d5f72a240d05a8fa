//! The coordinator, two nodes and a client on a simulated network, disk and clock, with faults drawn from a seed.
//!
//! One call of [`scenario::run`] is one run. The seed decides the faults, the network and every random number; two runs of a
//! seed may still differ in what the libraries below draw by themselves.

pub mod cluster;
pub mod disk;
pub mod faults;
pub mod net;
pub mod scenario;
pub mod trace;
pub mod workload;
