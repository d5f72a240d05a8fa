use std::net::Ipv4Addr;

use futures::StreamExt;
use object_store::{Error, ObjectStoreExt};
use test_peers::{
    Authority, S3,
    s3::{Conditional, Fault, Op},
};
use tokio::{io::copy_bidirectional, net::TcpStream};
use woodpecker_base::{
    clock::Clock,
    net::{ClientAuth, Gate, Listener, Need, Pem, Refusals, ServerTls},
    random::Random,
    tasks::Tasks,
};

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

/// What a server of one's own authority puts in front of an S3 store.
async fn behind_tls(s3: &S3, authority: &Authority, tasks: &Tasks) -> String {
    let (certificate, key) = authority.sign(&["127.0.0.1"], |_| ()).unwrap();
    let pem = Pem { identity: Some((certificate.into(), key.into())), authorities: None };
    let clock = Clock::system();
    let gate = Gate {
        tls: Some(ServerTls::http(&pem, ClientAuth::None).unwrap()),
        tokens: None,
        needs: |_| Need::Nothing,
        connections: 100,
        calls: 100,
        refusals: Refusals::new(clock.clone()),
        clock,
    };
    let mut listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap().behind(&gate);
    let endpoint = format!("https://{}", listener.address());
    let (inner, spawned) = (s3.endpoint().trim_start_matches("http://").to_owned(), tasks.clone());
    tasks.spawn_until_stopped(async move {
        while let Some(connection) = listener.next().await {
            let (Ok(mut connection), inner) = (connection, inner.clone()) else { continue };
            spawned.spawn_until_stopped(async move {
                let mut inner = TcpStream::connect(inner).await.unwrap();
                let _ = copy_bidirectional(&mut connection, &mut inner).await;
            });
        }
    });
    endpoint
}

#[tokio::test]
async fn a_store_that_a_private_authority_vouches_for_is_trusted_by_who_knows_that_authority() {
    let directory = tempfile::tempdir().unwrap();
    let (tasks, authority) = (Tasks::new(), Authority::new().unwrap());
    let (s3, plain) = peer().await;
    let endpoint = behind_tls(&s3, &authority, &tasks).await;
    let stranger = ObjectStoreSettings { endpoint, allow_http: false, ..plain };
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let settings = ObjectStoreSettings { ca_file: file("ca.pem", &authority.pem()), ..stranger.clone() };
    probe(&*settings.open().unwrap(), &Random::seeded(1)).await.unwrap();

    let other = Authority::new().unwrap().pem();
    let wrong = ObjectStoreSettings { ca_file: file("other.pem", &other), ..stranger.clone() };
    let refused = probe(&*wrong.open().unwrap(), &Random::seeded(1)).await;
    assert!(matches!(refused, Err(StoreOpenError::Unavailable(_))), "{refused:?}");
    for ca_file in [file("empty.pem", ""), file("text.pem", "no certificate"), directory.path().join("missing.pem")] {
        assert_eq!(refused_key(&ObjectStoreSettings { ca_file, ..stranger.clone() }), "ca_file");
    }
    tasks.stop();
}

#[test]
fn a_client_that_cannot_be_made_is_refused_with_the_reason_at_the_end_of_the_chain() {
    #[derive(Debug, thiserror::Error)]
    #[error("builder error")]
    struct Builder(#[source] std::io::Error);
    let source = Box::new(Builder(std::io::Error::other("no authorities were found")));
    let error = refused(&Error::Generic { store: "HTTP client", source });
    let told = "object_store.endpoint: Generic HTTP client error: builder error: no authorities were found";
    assert_eq!(error.to_string(), told);
}
