//! `streaming`: every role and every operator verb in one binary.

mod admin;
mod bench;
mod cli;
mod config;
mod failure;
mod print;
mod roles;
mod shutdown;
mod telemetry;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Cli, Command};

/// Messages come and go by the hundred thousand a second, across threads: malloc of a C library is a good part of that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tasks that a busy thread runs before it looks at what its sockets brought. With tokio's 61 an append waits longer for the
/// deliveries that many subscribers get than for the disk.
const EVENTS: u32 = 16;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<print::Unread>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", failure::told(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    // The kernel clears a large page of 2 MiB when it is first touched, while an append waits. Where it has none, all is well.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    runtime()?.block_on(execute(command))
}

/// Threads for tasks, as many as there are cores.
fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().event_interval(EVENTS).build()
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Standalone(arguments) => roles::standalone(arguments).await,
        Command::Coord(arguments) => roles::coord(arguments).await,
        Command::Node(arguments) => roles::node(arguments).await,
        Command::Logstore(arguments) => roles::logstore(arguments).await,
        Command::Replicate(arguments) => roles::replicate(arguments).await,
        Command::Produce(arguments) => verbs::produce(arguments).await,
        Command::Consume(arguments) => verbs::consume(arguments).await,
        Command::Channels(arguments) => verbs::channels(arguments).await,
        Command::Nodes(arguments) => verbs::nodes(arguments).await,
        Command::Describe(arguments) => verbs::describe(arguments).await,
        Command::Balance(arguments) => verbs::balance(arguments.verb).await,
        Command::Consumers(arguments) => verbs::consumers(arguments).await,
        Command::Topology(arguments) => verbs::topology(arguments).await,
        Command::Log(arguments) => verbs::log(arguments).await,
        Command::Volume(arguments) => verbs::volume(arguments),
        Command::Doctor(arguments) => verbs::doctor(arguments).await,
        Command::Health(arguments) => verbs::health(arguments).await,
        Command::Config(arguments) => verbs::config(arguments.verb),
        Command::Bench(arguments) => Box::pin(bench::bench(arguments)).await,
    }
}
