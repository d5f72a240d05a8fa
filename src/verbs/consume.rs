//! `streaming consume`: a channel in order, raw or as JSON.

use std::{
    io::{BufWriter, Write},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use streaming_client::{ConsumeError, ConsumeOptions, Consumer, Delivery, NotReady, ReadPointError};
use streaming_types::{DeliverFilter, DeliverPolicy, ImmutableMessage, MessageId, MessageType, TimeTick};

use super::{Cluster, connect, id_parts, pick_channel};
use crate::{cli::ConsumeArgs, print::printed};

/// How long one waits for a channel without a word. One that is served says every 200 ms how far it is.
const SILENCE: Duration = Duration::from_secs(3);

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
    let mut options = ConsumeOptions::new(&source, policy);
    options.filters = vec![DeliverFilter::message_types([MessageType::Insert])];
    // By them a channel to which nothing is appended is told from one that nobody serves.
    options.time_ticks = true;
    let consumer = cluster.client.consume(options)?;
    let output: Box<dyn Write + Send> = match &arguments.output {
        None => Box::new(std::io::stdout()),
        Some(path) => {
            Box::new(std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
    };
    let mut sink = Sink { output: BufWriter::with_capacity(256 << 10, output), json: arguments.json, messages: 0 };
    let limit = arguments.until_idle.map_or(Duration::MAX, |_| arguments.connect.timeout);
    let source = Source { cluster: &cluster, channel: &source, limit };
    let outcome = copy(&source, consumer, &mut sink, &arguments).await;
    printed(sink.output.flush())?;
    cluster.client.close().await;
    outcome
}

async fn copy(
    source: &Source<'_>,
    mut consumer: Consumer,
    sink: &mut Sink,
    arguments: &ConsumeArgs,
) -> anyhow::Result<()> {
    let clock = &source.cluster.clock;
    // Since when nothing came, and what has to be reached to have read all that was there after that.
    let (mut since, mut end) = (clock.now(), None);
    while arguments.count.is_none_or(|count| sink.messages < count) {
        // What was read is shown before one waits for more.
        let delivery = match clock.timeout(Duration::from_millis(1), consumer.next()).await {
            Ok(delivery) => delivery,
            Err(_) => {
                printed(sink.output.flush())?;
                source.word(consumer.next()).await?
            }
        };
        match delivery {
            Ok(Delivery::Message(message)) => {
                sink.write(&message)?;
                (since, end) = (clock.now(), None);
            }
            Ok(Delivery::Txn(txn)) => {
                for body in &txn.bodies {
                    sink.write(body)?;
                }
                (since, end) = (clock.now(), None);
            }
            Ok(Delivery::TimeTick { .. }) => {}
            Err(error @ ConsumeError::Stalled { .. }) => eprintln!("waiting for channel {}: {error}", source.channel),
            Err(error) => return Err(error.into()),
        }
        if arguments.until_idle.is_some_and(|idle| clock.now() - since >= idle) {
            let end = match end {
                Some(end) => end,
                None => *end.insert(source.word(source.end()).await??),
            };
            if consumer.progress() >= Some(end) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The channel that is read.
struct Source<'a> {
    cluster: &'a Cluster,
    channel: &'a str,
    /// How long it may say nothing.
    limit: Duration,
}

impl Source<'_> {
    /// What a channel that is served says within a moment. If it does not, that is said.
    async fn word<T>(&self, word: impl Future<Output = T>) -> anyhow::Result<T> {
        let clock = &self.cluster.clock;
        let mut word = pin!(word);
        if let Ok(said) = clock.timeout(self.limit.min(SILENCE), &mut word).await {
            return Ok(said);
        }
        eprintln!("waiting for channel {}: {}", self.channel, self.silence());
        let said = clock.timeout(self.limit.saturating_sub(SILENCE), word).await;
        let silent = |_| NotReady { after: self.limit, cause: self.silence() };
        said.map_err(silent).with_context(|| format!("channel {}", self.channel))
    }

    fn silence(&self) -> String {
        match self.cluster.client.describe(self.channel) {
            Some(channel) => format!("its node at {} says nothing of it", channel.owner.address),
            None => "no node has it".to_owned(),
        }
    }

    /// The tick by which one has read all that is there. Only the channel's owner knows it: what a reader hears of may be old.
    async fn end(&self) -> Result<TimeTick, ReadPointError> {
        loop {
            match self.cluster.client.latest_time_tick(self.channel).await {
                Err(error) if error.is_retryable() => {}
                told => return told,
            }
        }
    }
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
