//! What an operator or a script does with a running cluster.

mod balance;
mod config;
mod connect;
mod consume;
mod consumers;
mod credentials;
mod doctor;
mod health;
mod list;
mod log;
mod produce;
mod read_back;
mod records;
mod topology;
mod volume;

pub(crate) use self::{
    balance::balance,
    config::config,
    connect::{Cluster, connect, look_at, pick_channel},
    consume::consume,
    consumers::consumers,
    doctor::doctor,
    health::{health, page},
    list::{channels, describe, nodes},
    log::log,
    produce::{line_message, produce},
    topology::topology,
    volume::volume,
};
use crate::print::say;

/// The numbers of an id as it is printed, `SEGMENT:ENTRY`, or as Milvus prints it, `SEGMENT/ENTRY`.
fn id_parts(text: &str) -> Option<(u64, u64)> {
    let (segment, entry) = text.split_once([':', '/'])?;
    Some((segment.parse().ok()?, entry.parse().ok()?))
}

/// Prints `value` for a program.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
