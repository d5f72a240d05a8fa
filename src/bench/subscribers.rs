//! Many subscribers of one channel, in a process of their own. They stand for other machines, so they take only what the
//! rest leaves of this one.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use futures::future::{pending, try_join_all};
use streaming_client::{ConsumeOptions, Consumer};
use streaming_types::DeliverPolicy;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use woodpecker_base::{clock::Clock, tasks::Tasks};

use super::stream::client;
use crate::{cli::BenchArgs, print::say, roles::Machine};

/// How many.
pub(super) const SUBSCRIBERS: usize = 64;
/// For all of them to be at the channel's tail.
const LIMIT: Duration = Duration::from_secs(60);
/// What the process says then.
const READY: &str = "ready";
/// The lowest priority there is.
const LOWEST: &str = "-n19";

/// The process; killed when it is dropped.
pub(super) struct Subscribers(Child);

impl Subscribers {
    /// Starts it with the arguments of this one, and waits until all subscribers are at the tail of the channel.
    pub(super) async fn start(address: &str, channel: &str, clock: &Clock) -> anyhow::Result<Self> {
        // From its start on, because a priority is a thread's own.
        let mut command = Command::new("nice");
        command.arg(LOWEST).arg(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).args(["--subscribe", address, channel]);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().context("nice cannot be run")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let said = clock.timeout(LIMIT, lines.next_line()).await.context("subscribers are not ready")??;
        ensure!(said.as_deref() == Some(READY), "the process of the subscribers has ended");
        Ok(Self(child))
    }

    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        Ok(self.0.kill().await?)
    }
}

/// What the process does until it is killed: reads what comes, as each of the subscribers.
pub(super) async fn follow(arguments: &BenchArgs) -> anyhow::Result<()> {
    let [address, channel] = arguments.subscribe.as_slice() else { return pending().await };
    let machine = Machine::real(&arguments.configuration.load()?)?;
    let client = client(address, None, &machine).await?;
    let consumer = || {
        let tail = ConsumeOptions::new(channel, DeliverPolicy::Latest);
        client.consume(ConsumeOptions { time_ticks: true, ..tail })
    };
    let consumers = try_join_all((0..SUBSCRIBERS).map(|_| ready(consumer()))).await?;
    say!("{READY}");
    let tasks = Tasks::new();
    for mut consumer in consumers {
        tasks.spawn(async move { while consumer.next().await.is_ok() {} });
    }
    pending().await
}

/// A consumer that is at the tail has got a tick.
async fn ready<E>(consumer: Result<Consumer, E>) -> anyhow::Result<Consumer>
where
    anyhow::Error: From<E>,
{
    let mut consumer = consumer?;
    consumer.next().await?;
    Ok(consumer)
}
