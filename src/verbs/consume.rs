//! `streaming consume`: a channel in order, raw or as JSON.

use std::{
    io::{BufWriter, Write},
    time::Duration,
};

use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use streaming_client::{ConsumeError, ConsumeOptions, Consumer, Delivery};
use streaming_types::{DeliverFilter, DeliverPolicy, ImmutableMessage, MessageId, MessageType};

use super::{Cluster, connect, id_parts, pick_channel};
use crate::{cli::ConsumeArgs, print::printed};

/// Reads until the count is reached, nothing comes any more, or for ever.
///
/// # Errors
/// The position is none, the channel is not served, the output cannot be written.
pub(crate) async fn consume(arguments: ConsumeArgs) -> anyhow::Result<()> {
    let policy = position(&arguments.from)?;
    let cluster = connect(&arguments.connect).await?;
    let named = arguments.channel.clone();
    let channel = pick_channel(&cluster, named.as_deref(), &arguments.connect).await?;
    let source = named.unwrap_or_else(|| channel.pchannel.name().to_owned());
    let mut options = ConsumeOptions::new(source, policy);
    options.filters = vec![DeliverFilter::message_types([MessageType::Insert])];
    let consumer = cluster.client.consume(options)?;
    let output: Box<dyn Write + Send> = match &arguments.output {
        None => Box::new(std::io::stdout()),
        Some(path) => {
            Box::new(std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
    };
    let mut sink = Sink { output: BufWriter::with_capacity(256 << 10, output), json: arguments.json, messages: 0 };
    let outcome = copy(&cluster, consumer, &mut sink, &arguments).await;
    printed(sink.output.flush())?;
    cluster.client.close().await;
    outcome
}

async fn copy(
    cluster: &Cluster,
    mut consumer: Consumer,
    sink: &mut Sink,
    arguments: &ConsumeArgs,
) -> anyhow::Result<()> {
    while arguments.count.is_none_or(|count| sink.messages < count) {
        let idle = arguments.until_idle.unwrap_or(Duration::MAX);
        // What was read is shown before one waits for more.
        let delivery = match cluster.clock.timeout(Duration::from_millis(1), consumer.next()).await {
            Ok(delivery) => delivery,
            Err(_) => {
                printed(sink.output.flush())?;
                match cluster.clock.timeout(idle, consumer.next()).await {
                    Ok(delivery) => delivery,
                    Err(_) => return Ok(()),
                }
            }
        };
        match delivery {
            Ok(Delivery::Message(message)) => sink.write(&message)?,
            Ok(Delivery::Txn(txn)) => {
                for body in &txn.bodies {
                    sink.write(body)?;
                }
            }
            Ok(Delivery::TimeTick { .. }) => {}
            Err(error @ ConsumeError::Stalled { .. }) => tracing::warn!(%error, "waiting for the channel"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

struct Sink {
    output: BufWriter<Box<dyn Write + Send>>,
    json: bool,
    messages: u64,
}

/// One message for a program.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    time_tick: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    vchannel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl Sink {
    fn write(&mut self, message: &ImmutableMessage) -> anyhow::Result<()> {
        self.messages += 1;
        if !self.json {
            return printed(self.output.write_all(&message.payload));
        }
        let text = std::str::from_utf8(&message.payload).ok();
        let line = Line {
            id: message.id.to_string(),
            time_tick: message.time_tick()?.0,
            vchannel: message.properties.vchannel(),
            text,
            base64: text.is_none().then(|| BASE64_STANDARD.encode(&message.payload)),
        };
        printed(serde_json::to_writer(&mut self.output, &line).map_err(Into::into))?;
        printed(self.output.write_all(b"\n"))
    }
}

/// `earliest`, `latest` or `SEGMENT:ENTRY`.
fn position(text: &str) -> anyhow::Result<DeliverPolicy> {
    match text {
        "earliest" => return Ok(DeliverPolicy::All),
        "latest" => return Ok(DeliverPolicy::Latest),
        _ => {}
    }
    match id_parts(text).and_then(|(segment, entry)| MessageId::from_u64(segment, entry)) {
        Some(id) => Ok(DeliverPolicy::StartFrom(id)),
        None => bail!("--from {text}: expected earliest, latest, or an id as SEGMENT:ENTRY"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_words_or_ids() {
        assert!(matches!(position("earliest").unwrap(), DeliverPolicy::All));
        assert!(matches!(position("latest").unwrap(), DeliverPolicy::Latest));
        let id = MessageId { segment: 3, entry: 17 };
        for text in ["3:17", "3/17", &id.to_string()] {
            assert_eq!(position(text).unwrap(), DeliverPolicy::StartFrom(id), "{text}");
        }
        for wrong in ["", "first", "3", "3:", ":4", "-1:2", "3:4:5"] {
            assert!(position(wrong).unwrap_err().to_string().contains("earliest"), "{wrong}");
        }
    }
}
