//! The roles a process can play, and the only place that links them all.

mod access;
mod banner;
mod cluster;
mod consumers;
mod live;
mod logstore;
mod maintenance;
mod process;
mod reload;
mod replicate;
mod security;
mod settings;
mod standalone;
mod storage;

pub(crate) use self::{
    cluster::{coord, node},
    live::Live,
    logstore::logstore,
    process::Reporters,
    replicate::replicate,
    standalone::{Standalone, standalone},
    storage::{Machine, logs, metadata as open_metadata, open_logs, open_objects},
};
