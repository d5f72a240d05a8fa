//! TLS: who trusts whom.

use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use streaming_client::{Discovery, Settings, Tls};
use test_peers::Authority;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::fake::{Coordinator, SOON, channel, connect};

fn authority() -> Authority {
    Authority::new().unwrap()
}

/// A certificate for `name`, and its key.
fn sign(authority: &Authority, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    authority.sign(&[name], |params| params.extended_key_usages = vec![usage]).unwrap()
}

/// A coordinator that is called `coordinator.internal` and asks its clients for a certificate.
async fn coordinator(authority: &Authority) -> Coordinator {
    let (certificate, key) = sign(authority, "coordinator.internal", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(authority.pem()));
    let coordinator = Coordinator::start_on(1, Server::builder().tls_config(tls).unwrap()).await;
    coordinator.push(1, 0, vec![(10, "127.0.0.1:1".to_owned(), vec![channel(1)])]);
    coordinator
}

#[tokio::test]
async fn only_who_trusts_and_is_trusted_gets_through() {
    let (authority, stranger) = (authority(), authority());
    let coordinator = &coordinator(&authority).await;
    let client_certificate = |by: &Authority| Some(sign(by, "client", ExtendedKeyUsagePurpose::ClientAuth));
    let good = Tls {
        ca: authority.pem(),
        client: client_certificate(&authority),
        domain: Some("coordinator.internal".to_owned()),
    };
    let cases = [
        ("both trust each other", Some(good.clone()), true),
        ("no TLS", None, false),
        ("an authority that did not sign the server's", Some(Tls { ca: stranger.pem(), ..good.clone() }), false),
        ("the server is called otherwise", Some(Tls { domain: None, ..good.clone() }), false),
        ("no certificate of one's own", Some(Tls { client: None, ..good.clone() }), false),
        ("one that a stranger signed", Some(Tls { client: client_certificate(&stranger), ..good }), false),
    ];
    let tried = cases.map(|(what, tls, works)| async move {
        let discovery = Discovery::Address(coordinator.address.clone());
        let client = connect(discovery, |settings: &mut Settings| settings.tls = tls);
        let limit = if works { SOON } else { Duration::from_millis(1500) };
        let ready = client.wait_ready(limit).await;
        assert_eq!(ready.is_ok(), works, "{what}: {ready:?}");
        client.close().await;
    });
    futures::future::join_all(tried).await;
}

#[tokio::test]
async fn what_is_no_certificate_is_named_at_once() {
    let authority = authority();
    let discovery = || Discovery::Address("127.0.0.1:1".to_owned());
    let tls = Tls { ca: authority.pem(), client: Some(("no".into(), "certificate".into())), domain: None };
    let settings = Settings { tls: Some(tls), ..Settings::new(discovery()) };
    let edges = streaming_client::Edges {
        connector: woodpecker_base::net::tcp_connector(),
        clock: woodpecker_base::clock::Clock::system(),
        random: woodpecker_base::random::Random::seeded(1),
    };
    let error = streaming_client::Client::connect(settings, edges).unwrap_err();
    assert_eq!(error.name, "tls");
}
