//! The S3 peer as a process of its own.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test of a peer, in real time")]

use std::{process::Stdio, time::Duration};

use object_store::{ObjectStoreExt, aws::AmazonS3Builder, path::Path};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};

async fn start(arguments: &[&str]) -> (Child, serde_json::Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_s3"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    (child, serde_json::from_str(&line).unwrap())
}

#[tokio::test]
async fn it_says_where_it_is_serves_and_ends_with_its_standard_input() {
    let (mut child, said) = start(&["--bucket", "mine", "--put-delay", "50ms"]).await;
    let field = |name: &str| said[name].as_str().unwrap();
    let store = AmazonS3Builder::new()
        .with_endpoint(field("endpoint"))
        .with_bucket_name(field("bucket"))
        .with_region(field("region"))
        .with_access_key_id(field("access_key"))
        .with_secret_access_key(field("secret_key"))
        .with_allow_http(true)
        .build()
        .unwrap();
    let begin = Instant::now();
    store.put(&Path::from("a"), "x".into()).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(50));
    assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), "x");

    drop(child.stdin.take());
    let status = timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn it_ends_on_a_termination_signal() {
    let (mut child, _said) = start(&[]).await;
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    let status = timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}
