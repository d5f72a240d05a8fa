//! Gates and connectors on real sockets, with the health service behind them.

use std::{net::Ipv4Addr, time::Duration};

use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tonic::{
    Code, Status,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    ClientAuth, ClientTls, Connector, Dialed, Gate, Listener, Need, Pem, Refusals, Role, ServerTls, TlsError, Token,
    Tokens, tcp_connector,
};
use crate::{clock::Clock, tasks::Tasks};

const READ: &str = "reads-0123456789";
const WRITE: &str = "writes-0123456789";
/// For what must come.
const SOON: Duration = Duration::from_secs(10);

/// An authority, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self, change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem().into(), key.serialize_pem().into())
    }

    /// Who has a certificate of this authority and trusts it.
    fn pem(&self) -> Pem {
        Pem { identity: Some(self.identity(|_| {})), ..self.trust() }
    }

    /// Who only trusts it.
    fn trust(&self) -> Pem {
        Pem { identity: None, authorities: Some(self.0.pem().into()) }
    }
}

fn needs(path: &str) -> Need {
    if path.ends_with("/Check") { Need::Role(Role::Write) } else { Need::Nothing }
}

fn gate() -> Gate {
    let clock = Clock::system();
    Gate { tls: None, tokens: None, needs, connections: 8, calls: 8, refusals: Refusals::new(clock.clone()), clock }
}

fn encrypted(pem: &Pem, clients: ClientAuth) -> Gate {
    Gate { tls: Some(ServerTls::grpc(pem, clients).unwrap()), ..gate() }
}

/// A server behind a gate; its address.
async fn serve(gate: &Gate, tasks: &Tasks) -> String {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap().behind(gate);
    let address = listener.address().to_owned();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(listener.guard()).add_service(health).serve_with_incoming(listener);
    tasks.spawn_until_stopped(server);
    address
}

fn client(connector: &Connector, address: &str) -> HealthClient<Dialed> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_timeout(SOON);
    HealthClient::new(connector.dial(endpoint))
}

async fn check(connector: &Connector, address: &str) -> Result<(), Status> {
    client(connector, address).check(HealthCheckRequest::default()).await.map(drop)
}

/// The transport failed, at whatever step: its codes differ, an answer has no source.
fn never_answered(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn with_tls(pem: &Pem) -> Connector {
    tcp_connector().with_tls(ClientTls::grpc(pem, None).unwrap())
}

#[tokio::test]
async fn only_who_trusts_the_server_and_speaks_tls_gets_through() {
    let (ours, stranger, tasks) = (Authority::new(), Authority::new(), Tasks::new());
    let address = serve(&encrypted(&ours.pem(), ClientAuth::None), &tasks).await;
    check(&with_tls(&ours.trust()), &address).await.unwrap();
    let cases = [("plaintext", tcp_connector()), ("another authority", with_tls(&stranger.trust()))];
    for (what, connector) in cases {
        let refused = check(&connector, &address).await.unwrap_err();
        assert!(never_answered(&refused), "{what}: {refused:?}");
    }
    // The server lives, and a client that speaks TLS to one that does not is no better off.
    check(&with_tls(&ours.trust()), &address).await.unwrap();
    let plain = serve(&gate(), &tasks).await;
    check(&with_tls(&ours.trust()), &plain).await.unwrap_err();
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn mutual_tls_lets_in_only_whom_our_authority_has_signed() {
    let (ours, stranger, tasks) = (Authority::new(), Authority::new(), Tasks::new());
    let signed_by_stranger = Pem { identity: stranger.pem().identity, ..ours.trust() };
    let required = serve(&encrypted(&ours.pem(), ClientAuth::Required), &tasks).await;
    let optional = serve(&encrypted(&ours.pem(), ClientAuth::Optional), &tasks).await;
    for (what, pem, by_required, by_optional) in [
        ("signed by ours", ours.pem(), true, true),
        ("no certificate", ours.trust(), false, true),
        ("signed by another", signed_by_stranger, false, false),
    ] {
        assert_eq!(check(&with_tls(&pem), &required).await.is_ok(), by_required, "{what}");
        assert_eq!(check(&with_tls(&pem), &optional).await.is_ok(), by_optional, "{what}");
    }
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused_until_it_is_renewed() {
    let (ours, tasks) = (Authority::new(), Tasks::new());
    let expired = ours.identity(|params| {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    });
    let old = Pem { identity: Some(expired), ..ours.trust() };
    let tls = ServerTls::grpc(&old, ClientAuth::None).unwrap();
    let address = serve(&Gate { tls: Some(tls.clone()), ..gate() }, &tasks).await;
    let refused = check(&with_tls(&ours.trust()), &address).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    tls.replace(&ours.pem(), ClientAuth::None).unwrap();
    check(&with_tls(&ours.trust()), &address).await.unwrap();
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn new_handshakes_use_the_new_certificate_and_old_connections_go_on() {
    let (old, new, tasks) = (Authority::new(), Authority::new(), Tasks::new());
    let tls = ServerTls::grpc(&old.pem(), ClientAuth::None).unwrap();
    let address = serve(&Gate { tls: Some(tls.clone()), ..gate() }, &tasks).await;
    let trusted = ClientTls::grpc(&old.trust(), None).unwrap();
    let connector = tcp_connector().with_tls(trusted.clone());
    let mut before = client(&connector, &address);
    before.check(HealthCheckRequest::default()).await.unwrap();

    tls.replace(&new.pem(), ClientAuth::None).unwrap();
    before.check(HealthCheckRequest::default()).await.unwrap();
    check(&connector, &address).await.unwrap_err();
    trusted.replace(&new.trust()).unwrap();
    check(&connector, &address).await.unwrap();
    // What cannot be used changes nothing.
    assert_eq!(tls.replace(&new.trust(), ClientAuth::None), Err(TlsError::NoIdentity));
    let mixed = Pem { identity: Some((new.pem().identity.unwrap().0, old.pem().identity.unwrap().1)), ..new.trust() };
    assert!(matches!(tls.replace(&mixed, ClientAuth::None), Err(TlsError::Key(_))));
    check(&connector, &address).await.unwrap();
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn a_call_needs_a_token_of_the_role_that_its_method_needs() {
    let tasks = Tasks::new();
    let tokens = Tokens::parse(&format!("read {READ}\nwrite {WRITE}")).unwrap();
    let address = serve(&Gate { tokens: Some(tokens.clone()), ..gate() }, &tasks).await;
    let showing = |token: &str| tcp_connector().with_token(Token::new(token).unwrap());
    let code = async |connector: Connector| check(&connector, &address).await.map_err(|status| status.code());
    assert_eq!(code(tcp_connector()).await, Err(Code::Unauthenticated));
    assert_eq!(code(showing("nonsense")).await, Err(Code::Unauthenticated));
    assert_eq!(code(showing(READ)).await, Err(Code::PermissionDenied));
    assert_eq!(code(showing(WRITE)).await, Ok(()));
    // Another method needs nothing.
    client(&tcp_connector(), &address).watch(HealthCheckRequest::default()).await.unwrap();
    // Tokens are replaced on both sides while they are in use.
    let own = Token::new(READ).unwrap();
    let mut used = client(&tcp_connector().with_token(own.clone()), &address);
    assert_eq!(used.check(HealthCheckRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    own.replace(WRITE).unwrap();
    used.check(HealthCheckRequest::default()).await.unwrap();
    tokens.replace(&format!("read {READ}")).unwrap();
    assert_eq!(used.check(HealthCheckRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_until_one_ends() {
    fn all(_: &str) -> Need {
        Need::Role(Role::Read)
    }
    let tasks = Tasks::new();
    let address = serve(&Gate { calls: 1, needs: all, ..gate() }, &tasks).await;
    let mut client = client(&tcp_connector(), &address);
    // A stream that stays open keeps its place.
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    let refused = client.check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    drop(stream);
    let clock = Clock::system();
    let freed = async {
        while client.check(HealthCheckRequest::default()).await.is_err() {
            clock.sleep(Duration::from_millis(5)).await;
        }
    };
    clock.timeout(SOON, freed).await.unwrap();
    tasks.drain(&clock, SOON).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_until_one_goes() {
    let tasks = Tasks::new();
    let address = serve(&Gate { connections: 1, ..gate() }, &tasks).await;
    let mut first = client(&tcp_connector(), &address);
    first.check(HealthCheckRequest::default()).await.unwrap();
    let refused = check(&tcp_connector(), &address).await.unwrap_err();
    assert!(never_answered(&refused), "{refused:?}");
    first.check(HealthCheckRequest::default()).await.unwrap();
    drop(first);
    let clock = Clock::system();
    let freed = async {
        while check(&tcp_connector(), &address).await.is_err() {
            clock.sleep(Duration::from_millis(5)).await;
        }
    };
    clock.timeout(SOON, freed).await.unwrap();
    tasks.drain(&clock, SOON).await;
}
