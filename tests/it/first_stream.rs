//! One command, one file in, the same file out.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::process::{Role, printed, run, sha256};

fn standalone(directory: &Path) -> anyhow::Result<Role> {
    let data = directory.join("data").display().to_string();
    Role::start("standalone", directory, &["--data".into(), data])
}

fn file_of_lines(directory: &Path, bytes: usize) -> anyhow::Result<(PathBuf, u64)> {
    let path = directory.join("lines.txt");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path)?);
    let mut random = fastrand::Rng::with_seed(42);
    let (mut written, mut lines) = (0, 0);
    while written < bytes {
        let words = (0..random.usize(0..120)).map(|_| random.alphanumeric());
        let line: String = std::iter::once(format!("{lines} ")).chain(words.map(String::from)).collect();
        writeln!(out, "{line}")?;
        written += line.len() + 1;
        lines += 1;
    }
    out.flush()?;
    Ok((path, lines))
}

fn round_trip(server: &Role, directory: &Path, input: &Path, channel: &str) -> anyhow::Result<serde_json::Value> {
    let coordinator = server.address("coordinator");
    let file = input.display().to_string();
    let report = printed(["produce", "--coordinator", coordinator, "--json", "--file", &file, channel])?;
    let report: serde_json::Value = serde_json::from_slice(&report)?;
    let output = directory.join("out");
    let (out, count) = (output.display().to_string(), report["messages"].to_string());
    printed(["consume", "--coordinator", coordinator, "--count", &count, "--output", &out, channel])?;
    assert_eq!(sha256(input)?, sha256(&output)?);
    Ok(report)
}

#[test]
fn a_large_text_file_comes_back_byte_for_byte() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (input, lines) = file_of_lines(directory.path(), 100 << 20)?;
    let mut server = standalone(directory.path())?;
    let report = round_trip(&server, directory.path(), &input, "by-dev-rootcoord-dml_0")?;
    assert_eq!(report["messages"], lines);
    server.signal("TERM")?;
    assert!(server.wait(Duration::from_secs(30))?.success(), "{}", server.log());
    Ok(())
}

#[test]
fn any_bytes_come_back_and_survive_a_kill() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let input = directory.path().join("binary");
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(3 << 20).collect();
    bytes.extend(vec![b'\n'; 1000]);
    bytes.extend(vec![0; 3 << 20]);
    std::fs::write(&input, &bytes)?;
    let mut server = standalone(directory.path())?;
    let report = round_trip(&server, directory.path(), &input, "by-dev-rootcoord-dml_3")?;
    server.kill()?;

    let server = standalone(directory.path())?;
    let output = directory.path().join("after");
    printed([
        "consume",
        "--coordinator",
        server.address("coordinator"),
        "--count",
        &report["messages"].to_string(),
        "--output",
        &output.display().to_string(),
        "by-dev-rootcoord-dml_3",
    ])?;
    assert_eq!(sha256(&input)?, sha256(&output)?);
    Ok(())
}

#[test]
fn the_first_lines_tell_what_to_do_and_a_signal_drains() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut server = standalone(directory.path())?;
    let coordinator = server.address("coordinator").to_owned();
    let channels = printed(["channels", "--json", "--coordinator", &coordinator])?;
    let channels: serde_json::Value = serde_json::from_slice(&channels)?;
    assert_eq!(channels.as_array().map(Vec::len), Some(16));
    let nodes: serde_json::Value =
        serde_json::from_slice(&printed(["nodes", "--json", "--coordinator", &coordinator])?)?;
    assert_eq!(nodes.as_array().map(Vec::len), Some(1));
    let one = printed(["describe", "--json", "--coordinator", &coordinator, "by-dev-rootcoord-dml_5"])?;
    let one: serde_json::Value = serde_json::from_slice(&one)?;
    assert_eq!(one["name"], "by-dev-rootcoord-dml_5");
    assert!(one["term"].as_i64() >= Some(2), "{one}");
    server.signal("INT")?;
    assert!(server.wait(Duration::from_secs(30))?.success(), "{}", server.log());
    Ok(())
}

#[test]
fn a_wrong_key_or_value_stops_the_start_and_is_named() -> anyhow::Result<()> {
    for (assignment, named) in [
        ("etcd.endpoint=x", "endpoint"),
        ("rootCoord.dmlChannelNum=0", "rootCoord.dmlChannelNum"),
        ("rootCoord.dmlChannelNum=5000", "rootCoord.dmlChannelNum"),
    ] {
        let output = run(["standalone", "--set", assignment])?;
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(named), "{assignment}: {error}");
    }
    Ok(())
}

#[test]
fn an_unknown_channel_is_an_error_with_a_way_out() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let server = standalone(directory.path())?;
    let coordinator = server.address("coordinator");
    let output = run(["consume", "--coordinator", coordinator, "no-such-channel"])?;
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("no-such-channel") && error.contains("streaming channels"), "{error}");
    Ok(())
}

#[test]
fn an_idle_process_says_nothing() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut server = standalone(directory.path())?;
    let coordinator = server.address("coordinator").to_owned();
    // Somebody wrote, and somebody waits for more.
    let (input, lines) = file_of_lines(directory.path(), 10_000)?;
    let file = input.display().to_string();
    let channel = "by-dev-rootcoord-dml_1";
    printed(["produce", "--coordinator", &coordinator, "--file", &file, channel])?;
    let waiting = std::thread::spawn(move || {
        printed(["consume", "--coordinator", &coordinator, "--from", "earliest", "--until-idle", "4s", channel])
    });
    std::thread::sleep(Duration::from_secs(1));
    let said = server.log();
    let received = waiting.join().map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
    let more = server.log();
    assert!(received.split(|byte| *byte == b'\n').count() as u64 > lines);
    assert!(more.lines().count() <= said.lines().count() + 3, "{}", &more[said.len()..]);
    server.signal("TERM")?;
    assert!(server.wait(Duration::from_secs(30))?.success(), "{}", server.log());
    Ok(())
}
