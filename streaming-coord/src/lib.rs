//! Under construction.
#![allow(dead_code)]
mod active;
mod allocator;
mod assignment;
mod balancer;
mod catalog;
mod nodes;
mod pchannel;
mod policy;
mod runtime_policy;
mod services;
mod settings;
mod shared;
