//! `streaming produce`: a file, or standard input, into a channel, line by line.

use std::{collections::VecDeque, io::IsTerminal, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use streaming_client::{Append, AppendResult, Producer};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{Message, MessageBuilder, channel::vchannel_name};
use tokio::io::{AsyncBufRead, BufReader};

use super::{connect, pick_channel, print_json, records::Records};
use crate::{cli::ProduceArgs, print::say};

/// The collection whose messages carry lines: messages need one, lines do not.
const LINES_COLLECTION: i64 = 1;
/// How many appends may wait for their acks before the oldest is awaited.
const MAX_UNACKED: usize = 4096;

/// What was appended.
#[derive(Debug, Serialize)]
struct Report {
    channel: String,
    messages: u64,
    bytes: u64,
    first: Option<String>,
    last: Option<String>,
    seconds: f64,
}

/// Appends everything and waits for every ack.
///
/// # Errors
/// The input cannot be read, or an append failed for good; the report of what was acked goes to standard error.
pub(crate) async fn produce(arguments: ProduceArgs) -> anyhow::Result<()> {
    let cluster = connect(&arguments.connect).await?;
    let channel = pick_channel(&cluster, arguments.channel.as_deref(), &arguments.connect).await?;
    let channel = channel.pchannel.name().to_owned();
    let (input, size): (Box<dyn AsyncBufRead + Unpin>, u64) = match &arguments.file {
        None => (Box::new(BufReader::new(tokio::io::stdin())), 0),
        Some(path) => {
            let file = tokio::fs::File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
            let size = file.metadata().await?.len();
            (Box::new(BufReader::with_capacity(1 << 20, file)), size)
        }
    };
    let limit = usize::try_from(arguments.max_record.as_u64())?;
    let started = cluster.clock.now();
    let mut lines = Lines {
        producer: cluster.client.producer(&channel),
        vchannel: vchannel_name(&channel, LINES_COLLECTION, 0),
        unacked: VecDeque::new(),
        progress: progress_bar(size),
        report: Report { channel, messages: 0, bytes: 0, first: None, last: None, seconds: 0.0 },
    };
    let outcome = lines.append_all(Records::new(input, limit)).await;
    lines.progress.finish_and_clear();
    let report = Report { seconds: started.elapsed().as_secs_f64(), ..lines.report };
    cluster.client.close().await;
    if outcome.is_err() {
        eprintln!("acknowledged before the failure: {} messages, {} bytes", report.messages, report.bytes);
    }
    outcome?;
    if arguments.json { print_json(&report) } else { print_report(&report) }
}

struct Lines {
    producer: Producer,
    vchannel: String,
    /// Appends in order, with the bytes each carries.
    unacked: VecDeque<(Append, u64)>,
    progress: ProgressBar,
    report: Report,
}

impl Lines {
    async fn append_all(&mut self, mut records: Records<Box<dyn AsyncBufRead + Unpin>>) -> anyhow::Result<()> {
        while let Some(record) = records.next().await.context("cannot read the input")? {
            let bytes = record.len() as u64;
            let append = self.producer.append(line_message(&self.vchannel, record.into())?).await?;
            self.unacked.push_back((append, bytes));
            if self.unacked.len() >= MAX_UNACKED {
                self.await_oldest().await?;
            }
        }
        while !self.unacked.is_empty() {
            self.await_oldest().await?;
        }
        Ok(())
    }

    async fn await_oldest(&mut self) -> anyhow::Result<()> {
        let Some((append, bytes)) = self.unacked.pop_front() else { return Ok(()) };
        let AppendResult { id, .. } = append.await?;
        self.report.messages += 1;
        self.report.bytes += bytes;
        self.report.first.get_or_insert_with(|| id.to_string());
        self.report.last = Some(id.to_string());
        self.progress.inc(bytes);
        Ok(())
    }
}

/// One line as a message: the payload is the line, newline and all.
///
/// # Errors
/// Never for a line; what the builder refuses.
pub(crate) fn line_message(vchannel: &str, line: Bytes) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment {
        partition_id: 1,
        rows: 1,
        binary_size: line.len() as u64,
        ..PartitionSegmentAssignment::default()
    };
    let header = InsertMessageHeader { collection_id: LINES_COLLECTION, partitions: vec![partition] };
    Ok(MessageBuilder::new(&header).vchannel(vchannel).payload(line).build()?)
}

/// Shows on a terminal only.
fn progress_bar(size: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = if size > 0 {
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} acknowledged, {eta} to go"
    } else {
        "{spinner} {bytes} {bytes_per_sec} acknowledged"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = if size > 0 { ProgressBar::new(size) } else { ProgressBar::new_spinner() };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(style)
}

fn print_report(report: &Report) -> anyhow::Result<()> {
    let Report { channel, messages, bytes, first, last, seconds } = report;
    let range = match (first, last) {
        (Some(first), Some(last)) => format!(", ids {first} to {last}"),
        _ => String::new(),
    };
    say!("{messages} messages, {} in {seconds:.2} s to {channel}{range}", bytesize::ByteSize(*bytes));
    Ok(())
}
