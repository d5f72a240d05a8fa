//! The S3 peer as a process, for benches and tests with several processes.
//!
//! Prints one line of JSON (endpoint, bucket, region, keys) when it serves, and ends on SIGTERM or when its standard
//! input is closed, so that it never outlives who started it.

use std::{io, net::SocketAddr, time::Duration};

use clap::Parser;
use test_peers::{S3, s3::Op};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

/// An S3 server in memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The bucket that exists from the start.
    #[arg(long, default_value = "bucket")]
    bucket: String,
    /// Added to each PUT, for example 50ms.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    put_delay: Duration,
    /// Added to each GET.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    get_delay: Duration,
    /// Added to each LIST.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    list_delay: Duration,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let s3 = S3::listen(arguments.listen, &arguments.bucket).await?;
    s3.faults().delay(Op::Put, arguments.put_delay);
    s3.faults().delay(Op::Get, arguments.get_delay);
    s3.faults().delay(Op::List, arguments.list_delay);

    let mut terminate = signal(SignalKind::terminate())?;
    let line = serde_json::json!({
        "endpoint": s3.endpoint(),
        "bucket": arguments.bucket,
        "region": S3::REGION,
        "access_key": S3::ACCESS_KEY,
        "secret_key": S3::SECRET_KEY,
    });
    let mut out = tokio::io::stdout();
    out.write_all(format!("{line}\n").as_bytes()).await?;
    out.flush().await?;

    let input_closed = async {
        let mut input = tokio::io::stdin();
        let mut ignored = [0; 256];
        while input.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        _ = terminate.recv() => {}
        () = input_closed => {}
    }
    // Standard input is read on a thread that cannot be interrupted; returning from main would wait for it.
    #[expect(clippy::disallowed_methods, reason = "nothing is left to drop but memory")]
    std::process::exit(0)
}
