use object_store::{Error, ObjectStoreExt};
use test_peers::{
    S3,
    s3::{Conditional, Fault, Op},
};
use woodpecker_base::random::Random;

use super::*;

async fn peer() -> (S3, ObjectStoreSettings) {
    let s3 = S3::start("bucket").await.unwrap();
    let settings = ObjectStoreSettings {
        bucket: "bucket".to_owned(),
        root: "some/root".to_owned(),
        endpoint: s3.endpoint(),
        region: S3::REGION.to_owned(),
        access_key: S3::ACCESS_KEY.to_owned(),
        secret_key: Secret(S3::SECRET_KEY.to_owned()),
        allow_http: true,
        ..ObjectStoreSettings::default()
    };
    (s3, settings)
}

fn refused_key(settings: &ObjectStoreSettings) -> &'static str {
    match settings.open() {
        Err(StoreOpenError::Setting { key, .. }) => key,
        other => panic!("expected a refused setting, got {other:?}"),
    }
}

#[tokio::test]
async fn honest_stores_pass_the_probe_and_keep_nothing_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let (_s3, s3) = peer().await;
    let file = ObjectStoreSettings {
        provider: Provider::File,
        path: directory.path().join("made/on/demand"),
        ..ObjectStoreSettings::default()
    };
    let memory = ObjectStoreSettings { provider: Provider::Memory, ..ObjectStoreSettings::default() };
    for settings in [s3, file, memory] {
        let store = settings.open().unwrap();
        probe(store.as_ref(), &Random::seeded(1)).await.unwrap();
        let left = store.list_with_delimiter(None).await.unwrap();
        assert!(left.objects.is_empty() && left.common_prefixes.len() <= 1, "{left:?}");
    }
}

#[tokio::test]
async fn stores_without_conditional_puts_are_refused() {
    let (s3, settings) = peer().await;
    let store = settings.open().unwrap();
    for conditional in [Conditional::Ignored, Conditional::Refused] {
        s3.faults().conditional(conditional);
        let verdict = probe(store.as_ref(), &Random::seeded(1)).await;
        assert!(matches!(verdict, Err(StoreOpenError::NoConditionalPut(_))), "{conditional:?}: {verdict:?}");
    }
}

#[tokio::test]
async fn the_probe_sees_through_failing_requests_and_lost_answers() {
    let (s3, settings) = peer().await;
    s3.faults().chance(Op::Put, 0.2, Fault::Misreport(500));
    s3.faults().chance(Op::Put, 0.2, Fault::Refuse(503));
    let store = settings.open().unwrap();
    probe(store.as_ref(), &Random::seeded(1)).await.unwrap();
}

#[tokio::test]
async fn a_store_that_cannot_be_entered_is_unavailable() {
    let (_s3, mut settings) = peer().await;
    settings.secret_key = Secret("wrong".to_owned());
    let store = settings.open().unwrap();
    let verdict = probe(store.as_ref(), &Random::seeded(1)).await;
    assert!(matches!(verdict, Err(StoreOpenError::Unavailable(_))), "{verdict:?}");
}

#[tokio::test]
async fn the_root_is_put_before_every_name() {
    let (_s3, settings) = peer().await;
    let below = settings.open().unwrap();
    let top = ObjectStoreSettings { root: String::new(), ..settings }.open().unwrap();
    below.put(&Path::from("a"), "x".into()).await.unwrap();
    assert!(matches!(top.get(&Path::from("a")).await, Err(Error::NotFound { .. })));
    top.get(&Path::from("some/root/a")).await.unwrap();
}

#[tokio::test]
async fn impossible_settings_name_their_key() {
    let (_s3, good) = peer().await;
    assert_eq!(refused_key(&ObjectStoreSettings { bucket: String::new(), ..good.clone() }), "bucket");
    assert_eq!(refused_key(&ObjectStoreSettings { allow_http: false, ..good.clone() }), "allow_http");
    assert_eq!(refused_key(&ObjectStoreSettings { endpoint: "here:9000".to_owned(), ..good.clone() }), "endpoint");
    assert_eq!(refused_key(&ObjectStoreSettings { access_key: String::new(), ..good.clone() }), "access_key");
    assert_eq!(refused_key(&ObjectStoreSettings { root: "a//b".to_owned(), ..good.clone() }), "root");
    assert_eq!(refused_key(&ObjectStoreSettings { provider: Provider::File, ..good }), "path");
}

#[test]
fn settings_read_from_text_refuse_unknown_keys_and_print_no_secret() {
    let settings: ObjectStoreSettings =
        serde_json::from_str(r#"{"provider":"gcs","bucket":"b","secret_key":"hidden"}"#).unwrap();
    assert_eq!((settings.provider, settings.bucket.as_str()), (Provider::Gcs, "b"));
    assert!(!format!("{settings:?}").contains("hidden"));
    assert!(serde_json::from_str::<ObjectStoreSettings>(r#"{"buckett":"b"}"#).is_err());
}
