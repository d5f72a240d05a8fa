//! `streaming consumers`: for whom the log of a channel is kept.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;
use streaming_client::RegisteredConsumer;
use streaming_types::channel::to_physical;

use super::{connect, list::table, pick_channel, print_json};
use crate::{
    cli::{ConsumersArgs, ConsumersVerb},
    print::say,
};

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    position: String,
    time_tick: Option<u64>,
    behind_ms: Option<u64>,
}

impl From<RegisteredConsumer> for Line {
    fn from(consumer: RegisteredConsumer) -> Self {
        let RegisteredConsumer { name, position, time_tick, behind_ms } = consumer;
        let (segment, entry) = position.to_u64();
        Self { name, position: format!("{segment}:{entry}"), time_tick: time_tick.map(u64::from), behind_ms }
    }
}

/// Lists registered consumers, or forgets one.
///
/// # Errors
/// The channel's owner does not answer, or there is no such consumer.
pub(crate) async fn consumers(arguments: ConsumersArgs) -> anyhow::Result<()> {
    match arguments.verb {
        ConsumersVerb::List { connect: arguments, channel, json } => {
            let cluster = connect(&arguments).await?;
            let channel = pick_channel(&cluster, channel.as_deref(), &arguments).await?;
            let consumers = cluster.client.registered_consumers(channel.pchannel.name()).await?;
            cluster.client.close().await;
            let lines: Vec<Line> = consumers.into_iter().map(Line::from).collect();
            if json {
                return print_json(&lines);
            }
            let mut table = table(["CONSUMER", "NEEDS FROM", "BEHIND"]);
            for line in lines {
                let behind = match line.behind_ms.map(Duration::from_millis) {
                    Some(behind) => humantime::format_duration(behind).to_string(),
                    None => "unknown".to_owned(),
                };
                table.add_row([line.name, line.position, behind]);
            }
            say!("{table}");
        }
        ConsumersVerb::Forget { connect: arguments, name } => {
            let cluster = connect(&arguments).await?;
            let channel = pick_channel(&cluster, Some(to_physical(&name)), &arguments).await?;
            let known = cluster.client.registered_consumers(channel.pchannel.name()).await?;
            let is_known = known.iter().any(|consumer| consumer.name == name);
            ensure!(is_known, "{name} is no registered consumer\n`streaming consumers list` names those that are");
            cluster.client.forget_consumer(&name).await?;
            cluster.client.close().await;
            say!("the log is kept for {name} no more");
        }
    }
    Ok(())
}
