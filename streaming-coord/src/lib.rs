//! Under construction.
#![allow(dead_code)]
mod allocator;
mod assignment;
mod balancer;
mod catalog;
mod nodes;
mod pchannel;
mod policy;
mod runtime_policy;
mod settings;
