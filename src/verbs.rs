//! What an operator or a script does with a running cluster.

mod connect;
mod consume;
mod list;
mod produce;
mod records;

pub(crate) use self::{
    connect::{Cluster, connect, pick_channel},
    consume::consume,
    list::{channels, describe, nodes},
    produce::{line_message, produce},
};

/// Prints `value` for a program.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
