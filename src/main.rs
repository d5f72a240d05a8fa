//! `streaming`: every role and every operator verb in one binary.

mod config;

fn main() {}
