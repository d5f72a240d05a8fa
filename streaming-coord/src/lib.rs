//! Under construction.
#![allow(dead_code)]
mod allocator;
mod assignment;
mod catalog;
mod nodes;
mod pchannel;
mod policy;
mod settings;
