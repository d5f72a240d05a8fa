#![expect(clippy::disallowed_methods, reason = "the peer and its tests live in real time")]

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, future::join_all};
use object_store::{
    Attribute, Attributes, ClientOptions, Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig, UpdateVersion, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};

use super::{Conditional, Fault, Op, S3};

fn client(s3: &S3) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(s3.endpoint())
        .with_bucket_name("bucket")
        .with_region(S3::REGION)
        .with_access_key_id(S3::ACCESS_KEY)
        .with_secret_access_key(S3::SECRET_KEY)
        .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(2)))
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
}

async fn started() -> (S3, AmazonS3) {
    let s3 = S3::start("bucket").await.unwrap();
    let store = client(&s3).build().unwrap();
    (s3, store)
}

#[tokio::test]
async fn racing_conditional_puts_have_one_winner() {
    let (_s3, store) = started().await;
    let store = Arc::new(store);
    for round in 0..50 {
        let path = Path::from(format!("race/{round}"));
        let puts = (0..8).map(|writer: u8| {
            let (store, path) = (Arc::clone(&store), path.clone());
            tokio::spawn(async move { store.put_opts(&path, vec![writer].into(), PutMode::Create.into()).await })
        });
        let results: Vec<_> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<_> = (0..8).filter(|writer| results[*writer].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {results:?}");
        let losers = results.iter().filter(|result| matches!(result, Err(Error::AlreadyExists { .. })));
        assert_eq!(losers.count(), 7, "round {round}: {results:?}");
        let kept = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(usize::from(kept[0]), winners[0]);
    }
}

#[tokio::test]
async fn racing_updates_of_one_version_have_one_winner() {
    let (_s3, store) = started().await;
    let store = Arc::new(store);
    let path = Path::from("counter");
    let mut version: UpdateVersion = store.put(&path, "0".into()).await.unwrap().into();
    for round in 0..20 {
        let puts = (0..8).map(|_| {
            let (store, path, mode) = (Arc::clone(&store), path.clone(), PutMode::Update(version.clone()));
            tokio::spawn(async move { store.put_opts(&path, "1".into(), mode.into()).await })
        });
        let results = join_all(puts).await.into_iter().map(Result::unwrap);
        let mut won: Vec<_> = results.filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "round {round}");
        version = won.remove(0).into();
    }
}

#[tokio::test]
async fn a_wrong_secret_or_key_or_no_signature_is_refused() {
    let (s3, store) = started().await;
    let path = Path::from("a");
    store.put(&path, "x".into()).await.unwrap();
    let intruders = [
        client(&s3).with_secret_access_key("guess"),
        client(&s3).with_access_key_id("nobody"),
        client(&s3).with_skip_signature(true),
    ];
    for intruder in intruders {
        let intruder = intruder.build().unwrap();
        let put = intruder.put(&path, "y".into()).await;
        assert!(matches!(put, Err(Error::PermissionDenied { .. })), "{put:?}");
        let get = intruder.get(&path).await;
        assert!(matches!(get, Err(Error::PermissionDenied { .. })), "{get:?}");
    }
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "x");
}

#[tokio::test]
async fn ranges_and_heads_tell_the_truth() {
    let (_s3, store) = started().await;
    let path = Path::from("deep/er/name with space");
    let data: Vec<u8> = (0..=255).collect();
    store.put(&path, data.clone().into()).await.unwrap();
    assert_eq!(store.get_range(&path, 10..20).await.unwrap(), &data[10..20]);
    assert_eq!(store.get_range(&path, 250..999).await.unwrap(), &data[250..]);
    let tail = GetOptions { range: Some(object_store::GetRange::Suffix(3)), ..GetOptions::default() };
    assert_eq!(store.get_opts(&path, tail).await.unwrap().bytes().await.unwrap(), &data[253..]);
    assert!(store.get_range(&path, 256..300).await.is_err(), "beyond the end");
    assert_eq!(store.head(&path).await.unwrap().size, 256);
    assert!(matches!(store.head(&Path::from("none")).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.get(&Path::from("none")).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn listing_goes_in_pages_of_a_thousand_in_key_order() {
    let (s3, store) = started().await;
    let names: Vec<_> = (0..2100).map(|n| Path::from(format!("list/{n:05}"))).collect();
    futures::stream::iter(&names)
        .map(|path| store.put(path, "v".into()))
        .buffer_unordered(32)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
    store.put(&Path::from("other/1"), "v".into()).await.unwrap();

    let before = s3.counts().lists;
    let prefix = Path::from("list");
    let listed: Vec<_> = store.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect().await.unwrap();
    assert_eq!(listed, names);
    assert_eq!(s3.counts().lists - before, 3);

    let after = store.list_with_offset(Some(&prefix), &names[2000]);
    let after: Vec<_> = after.map_ok(|meta| meta.location).try_collect().await.unwrap();
    assert_eq!(after, &names[2001..]);

    let top = store.list_with_delimiter(None).await.unwrap();
    assert_eq!(top.common_prefixes, [Path::from("list"), Path::from("other")]);
    assert!(top.objects.is_empty());
}

#[tokio::test]
async fn deletes_take_one_or_many_and_do_not_mind_what_is_gone() {
    let (_s3, store) = started().await;
    let names: Vec<_> = (0..20).map(|n| Path::from(format!("d/{n:02}"))).collect();
    for name in &names {
        store.put(name, "v".into()).await.unwrap();
    }
    store.delete(&names[0]).await.unwrap();
    store.delete(&names[0]).await.unwrap();
    let locations = futures::stream::iter(names.clone().into_iter().take(15).map(Ok)).boxed();
    store.delete_stream(locations).try_collect::<Vec<_>>().await.unwrap();
    let left: Vec<_> = store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
    assert_eq!(left, &names[15..]);
}

#[tokio::test]
async fn multipart_uploads_appear_whole() {
    let (_s3, store) = started().await;
    let path = Path::from("big");
    let data: Vec<u8> = (0..11 * 1024 * 1024).map(|n: u32| n.to_le_bytes()[1]).collect();
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&path).await.unwrap(), 5 * 1024 * 1024);
    upload.write(&data);
    assert!(store.head(&path).await.is_err());
    upload.finish().await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), data);

    let mut upload = store.put_multipart(&Path::from("never")).await.unwrap();
    upload.put_part("x".into()).await.unwrap();
    upload.abort().await.unwrap();
    assert!(store.head(&Path::from("never")).await.is_err());
}

#[tokio::test]
async fn user_metadata_comes_back() {
    let (_s3, store) = started().await;
    let path = Path::from("m");
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::Metadata("writer".into()), "w-1".into());
    store.put_opts(&path, "x".into(), PutOptions::from(attributes.clone())).await.unwrap();
    let got = store.get(&path).await.unwrap().attributes;
    assert_eq!(got.get(&Attribute::Metadata("writer".into())), Some(&"w-1".into()));
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let (s3, store) = started().await;
    let create = || PutOptions::from(PutMode::Create);
    let path = |name: &str| Path::from(name);

    s3.faults().next(Op::Put, 1, Fault::Refuse(503));
    assert!(store.put_opts(&path("refused"), "x".into(), create()).await.is_err());
    assert!(store.head(&path("refused")).await.is_err(), "not done");

    for (name, fault) in [("lost", Fault::LoseAnswer), ("misreported", Fault::Misreport(500))] {
        s3.faults().next(Op::Put, 1, fault);
        assert!(store.put_opts(&path(name), "x".into(), create()).await.is_err());
        let again = store.put_opts(&path(name), "x".into(), create()).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    }

    s3.faults().next(Op::Get, 1, Fault::Hang);
    let hung = tokio::time::timeout(Duration::from_millis(100), store.get(&path("lost"))).await;
    assert!(hung.is_err(), "{hung:?}");
    assert!(store.get(&path("lost")).await.is_ok());

    s3.faults().conditional(Conditional::Refused);
    assert!(store.put_opts(&path("conditional"), "x".into(), create()).await.is_err());
    store.put(&path("plain"), "x".into()).await.unwrap();
    s3.faults().conditional(Conditional::Ignored);
    store.put_opts(&path("plain"), "y".into(), create()).await.unwrap();
    s3.faults().clear();
    let honest = store.put_opts(&path("plain"), "z".into(), create()).await;
    assert!(matches!(honest, Err(Error::AlreadyExists { .. })), "{honest:?}");
}

#[tokio::test]
async fn delays_chances_and_counts_are_as_set() {
    let (s3, store) = started().await;
    s3.faults().delay(Op::Put, Duration::from_millis(60));
    let begin = tokio::time::Instant::now();
    let paths: Vec<_> = (0..5).map(|n| Path::from(format!("{n}"))).collect();
    join_all(paths.iter().map(|path| store.put(path, "12345".into()))).await;
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(60) && took < Duration::from_millis(290), "{took:?}");
    let counts = s3.counts();
    assert_eq!((counts.puts, counts.bytes_in, counts.puts_at_once), (5, 25, 5));

    s3.faults().clear();
    s3.faults().chance(Op::Get, 0.3, Fault::Refuse(500));
    let mut failed = 0;
    for _ in 0..200 {
        failed += u32::from(store.get(&paths[0]).await.is_err());
    }
    assert!((30..90).contains(&failed), "{failed} of 200 at 30 %");
    assert_eq!(s3.counts().gets, 200);
}
