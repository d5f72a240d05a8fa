//! The streaming coordinator: says which node serves which channel, and sees to it that one does.
//!
//! One of several is active, by election. It watches the nodes' sessions, gives every channel to a node under a term that
//! is durable before any node hears of it, tells clients who serves what, and hands out timestamps and ids.
//!
//! [`serve`] runs the role on a listener of its own; [`Coordinator::start`] and [`Coordinator::register`] let a process
//! put its services beside others.

mod active;
mod allocator;
mod assignment;
mod balancer;
mod catalog;
mod coordinator;
mod metrics;
mod nodes;
mod pchannel;
mod policy;
mod replication;
mod runtime_policy;
mod serve;
mod services;
mod settings;
mod shared;

pub use self::{
    active::Parts,
    balancer::{CHANNEL_TROUBLE, ChannelState, ChannelStatus},
    coordinator::{Coordinator, CoordinatorError},
    serve::{Edges, serve},
    settings::{Balance, Channels, Nodes, OnLeadershipLoss, Settings, SettingsError},
};

#[cfg(test)]
mod tests;
