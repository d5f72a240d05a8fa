//! How fast a process serves again that was killed with much of its log after the checkpoint.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
};

use super::{SMALL, disk::forget, stream::fill};
use crate::roles::Machine;

/// For a process to serve.
const LIMIT: Duration = Duration::from_secs(300);
/// No checkpoint is written by itself.
const NEVER: [&str; 2] = ["streaming.walRecovery.persistInterval=1d", "streaming.walRecovery.persistSize=1TiB"];

/// Writes `bytes` as small messages to one channel of a process, kills it, and says how long another one takes from its
/// start until it serves the channel. With `cold`, the system has forgotten the files.
pub(super) async fn restart(data: &Path, bytes: u64, cold: bool, machine: &Machine) -> anyhow::Result<Duration> {
    let data = Data(data.join("restart"));
    let mut first = Process::start(&data.0, &machine.clock).await?;
    fill(&first.coordinator, usize::try_from(bytes)? / SMALL, machine).await?;
    first.kill().await?;
    if cold {
        let volumes = data.0.join("woodpecker").join("volumes");
        for volume in RealDisk.list(&volumes)? {
            forget(&RealDisk, &volumes.join(volume))?;
        }
    }
    let begun = machine.clock.now();
    let mut next = Process::start(&data.0, &machine.clock).await?;
    let took = begun.elapsed();
    next.kill().await?;
    Ok(took)
}

/// A directory that goes away with the measurement.
struct Data(PathBuf);

impl Drop for Data {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `streaming standalone` with one channel; killed when it is dropped.
struct Process {
    child: Child,
    coordinator: String,
}

impl Process {
    /// Starts it and waits until it serves.
    async fn start(data: &Path, clock: &Clock) -> anyhow::Result<Self> {
        let own = ["rootCoord.port=0", "streamingNode.port=0", "admin.enabled=false", "rootCoord.dmlChannelNum=1"];
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("standalone").arg("--data").arg(data).stdout(Stdio::piped()).kill_on_drop(true);
        command.args(["--set", "log.level=error"]);
        for setting in own.iter().chain(&NEVER) {
            command.args(["--set", *setting]);
        }
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let ready = async {
            let mut coordinator = None;
            while let Some(line) = lines.next_line().await? {
                match line.split_whitespace().collect::<Vec<_>>()[..] {
                    ["coordinator", address] => coordinator = Some(address.to_owned()),
                    ["ready"] => return coordinator.context("a process without a coordinator"),
                    _ => {}
                }
            }
            bail!("the process ended before it was ready")
        };
        let coordinator = clock.timeout(LIMIT, ready).await.context("not ready")??;
        Ok(Self { child, coordinator })
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}
