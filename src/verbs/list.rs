//! `streaming channels`, `nodes`, `describe`: who serves what.

use anyhow::ensure;
use comfy_table::{Table, presets};
use serde::Serialize;
use streaming_client::Channel;

use super::{connect, look_at, print_json};
use crate::{
    cli::{DescribeArgs, ListArgs},
    print::say,
};

#[derive(Debug, Serialize)]
struct ChannelLine {
    name: String,
    term: i64,
    access: &'static str,
    node: i64,
    address: String,
}

impl From<&Channel> for ChannelLine {
    fn from(channel: &Channel) -> Self {
        Self {
            name: channel.pchannel.name().to_owned(),
            term: channel.pchannel.term(),
            access: if channel.pchannel.is_read_only() { "read-only" } else { "read-write" },
            node: channel.owner.server_id,
            address: channel.owner.address.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
struct NodeLine {
    id: i64,
    address: String,
    channels: usize,
}

/// Lists the channels that are assigned.
///
/// # Errors
/// The cluster does not answer.
pub(crate) async fn channels(arguments: ListArgs) -> anyhow::Result<()> {
    let cluster = connect(&arguments.connect).await?;
    let lines: Vec<ChannelLine> = cluster.client.channels().iter().map(ChannelLine::from).collect();
    cluster.client.close().await;
    if arguments.json {
        return print_json(&lines);
    }
    let mut table = table(["CHANNEL", "TERM", "ACCESS", "NODE", "ADDRESS"]);
    for line in lines {
        table.add_row([line.name, line.term.to_string(), line.access.into(), line.node.to_string(), line.address]);
    }
    say!("{table}");
    Ok(())
}

/// Lists the live nodes.
///
/// # Errors
/// The cluster does not answer.
pub(crate) async fn nodes(arguments: ListArgs) -> anyhow::Result<()> {
    let cluster = connect(&arguments.connect).await?;
    let channels = cluster.client.channels();
    let owned = |id| channels.iter().filter(|channel| channel.owner.server_id == id).count();
    let nodes = cluster.client.nodes().into_iter();
    let lines: Vec<NodeLine> = nodes
        .map(|node| NodeLine { id: node.server_id, channels: owned(node.server_id), address: node.address })
        .collect();
    cluster.client.close().await;
    if arguments.json {
        return print_json(&lines);
    }
    let mut table = table(["NODE", "ADDRESS", "CHANNELS"]);
    for line in lines {
        table.add_row([line.id.to_string(), line.address, line.channels.to_string()]);
    }
    say!("{table}");
    Ok(())
}

/// A channel with what is known of it.
#[derive(Debug, Serialize)]
struct Described {
    #[serde(flatten)]
    line: Option<ChannelLine>,
    /// What failed lately.
    trouble: Option<String>,
}

/// Shows one channel.
///
/// # Errors
/// It is not served, or the cluster does not answer.
pub(crate) async fn describe(arguments: DescribeArgs) -> anyhow::Result<()> {
    let name = &arguments.channel;
    let (owner, trouble) = look_at(name, &arguments.connect).await?;
    let line = owner.as_ref().map(ChannelLine::from);
    if arguments.json {
        print_json(&Described { line, trouble })?;
    } else {
        let mut table = table(["KEY", "VALUE"]);
        table.add_row(["channel", name]);
        if let Some(line) = line {
            table.add_row(["term", &line.term.to_string()]);
            table.add_row(["access", line.access]);
            table.add_row(["node", &line.node.to_string()]);
            table.add_row(["address", &line.address]);
        }
        if let Some(trouble) = trouble {
            table.add_row(["trouble", &trouble]);
        }
        say!("{table}");
    }
    ensure!(owner.is_some(), "{name} is not served");
    Ok(())
}

/// A table as all verbs print it.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}
