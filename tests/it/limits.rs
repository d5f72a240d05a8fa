//! What is beyond a limit is refused, the caller told which, and it is logged and counted; within the limit work goes on.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use streaming_proto::streaming::streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    admin::{counted, get},
    process::{Role, printed, run},
};

const WAIT: Duration = Duration::from_secs(30);

fn standalone(directory: &tempfile::TempDir, settings: &[&str]) -> anyhow::Result<Role> {
    let data = format!("woodpecker.storage.rootPath={}", directory.path().join("data").display());
    let settings = ["rootCoord.dmlChannelNum=1", &data].into_iter().chain(settings.iter().copied());
    let arguments: Vec<_> = settings.flat_map(|value| ["--set".to_owned(), value.to_owned()]).collect();
    Role::start("standalone", directory.path(), &arguments)
}

fn refusals(role: &Role, series: &str) -> anyhow::Result<u64> {
    Ok(counted(&get(role, "/metrics", "")?.1, series))
}

fn appends(role: &Role, directory: &tempfile::TempDir) -> anyhow::Result<()> {
    let lines = directory.path().join("lines");
    std::fs::write(&lines, "one\n")?;
    printed(["produce", "--coordinator", role.address("coordinator"), "--file", &lines.display().to_string()])?;
    Ok(())
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_probes_are_not() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let role = standalone(&directory, &["limits.calls=8"])?;
    appends(&role, &directory)?;
    let url = format!("http://{}", role.address("coordinator"));
    let mut client = StreamingCoordAssignmentServiceClient::connect(url.clone()).await?;
    let mut held = Vec::new();
    let refused = loop {
        anyhow::ensure!(held.len() <= 8, "more than eight streams at the same time");
        let (commands, requests) = tokio::sync::mpsc::channel(1);
        match client.assignment_discover(tokio_stream::wrappers::ReceiverStream::new(requests)).await {
            Ok(stream) => held.push((commands, stream)),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains('8'), "{refused:?}");
    assert!(refusals(&role, "streaming_limit_refused_total{limit=\"calls\"}")? > 0);
    assert!(role.log().contains("calls") && role.log().contains("refused: "), "{}", role.log());
    let channel = tonic::transport::Endpoint::from_shared(url)?.connect().await?;
    let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    assert_eq!(health.into_inner().status, 1, "probes do not count");
    Ok(())
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_as_they_come() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let role = standalone(&directory, &["limits.connections=6"])?;
    appends(&role, &directory)?;
    let address: SocketAddr = role.address("coordinator").parse()?;
    let mut held = Vec::new();
    let deadline = Instant::now() + WAIT;
    loop {
        anyhow::ensure!(held.len() <= 6 && Instant::now() < deadline, "more than six connections at the same time");
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(WAIT))?;
        // A server that takes a connection speaks first in HTTP/2.
        match connection.read(&mut [0; 64]) {
            Ok(1..) => held.push(connection),
            Ok(0) | Err(_) => break,
        }
    }
    assert!(refusals(&role, "streaming_limit_refused_total{limit=\"connections\"}")? > 0);
    assert!(role.log().contains("connections") && role.log().contains("refused: "), "{}", role.log());
    drop(held);
    while let Err(error) = appends(&role, &directory) {
        anyhow::ensure!(Instant::now() < deadline, "not served again: {error:#}");
    }
    Ok(())
}

#[test]
fn who_connects_and_says_nothing_is_let_go() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let role = standalone(&directory, &[])?;
    let silent = ["coordinator", "admin"].map(|port| role.address(port).trim_start_matches("http://").to_owned());
    let silent = silent.map(TcpStream::connect);
    for connection in silent {
        let mut connection = connection?;
        connection.set_read_timeout(Some(WAIT))?;
        // Not more than the greeting of HTTP/2, and then the end.
        let mut said = Vec::new();
        connection.read_to_end(&mut said)?;
        assert!(said.len() < 200, "{said:?}");
    }
    appends(&role, &directory)
}

#[tokio::test]
async fn a_message_beyond_the_size_is_refused_with_its_code_and_the_next_one_is_not() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let role = standalone(&directory, &["streaming.maxMessageSize=64KiB"])?;
    let lines = directory.path().join("large");
    std::fs::write(&lines, format!("{}\n", "x".repeat(65 << 10)))?;
    let said = run(["produce", "--coordinator", role.address("coordinator"), "--file", &lines.display().to_string()])?;
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && told.contains("UNRECOVERABLE") && told.contains("65536"), "{told}");
    assert!(
        refusals(&role, "milvus_wal_append_message_total{channel_name=\"by-dev-rootcoord-dml_0\",status=\"error\"}")?
            > 0
    );
    appends(&role, &directory)
}
