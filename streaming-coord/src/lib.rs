//! Under construction.
#![allow(dead_code)]
mod allocator;
mod pchannel;
mod policy;
