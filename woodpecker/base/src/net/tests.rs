//! Gates and connectors on real sockets, with the health service behind them.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use futures::StreamExt;
use rcgen::{CertificateParams, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use test_peers::Authority;
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    ClientAuth, ClientTls, Connection, Connector, Demands, Dialed, Gate, Listener, Need, OldestTls, Pem, Refusals,
    Role, ServerTls, TlsError, Token, Tokens, is_host_and_port, tcp_connector,
};
use crate::{clock::Clock, tasks::Tasks};

const READ: &str = "reads-0123456789";
const WRITE: &str = "writes-0123456789";
const ADMIN: &str = "rules-0123456789";
/// For what must come.
const SOON: Duration = Duration::from_secs(10);

fn authority() -> Authority {
    Authority::new().unwrap()
}

fn identity(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, Vec<u8>) {
    let (certificate, key) = authority.sign(&["127.0.0.1"], change).unwrap();
    (certificate.into(), key.into())
}

/// Who has a certificate of the authority and trusts it.
fn signed(authority: &Authority) -> Pem {
    Pem { identity: Some(identity(authority, |_| {})), ..trusting(authority) }
}

/// Who only trusts it.
fn trusting(authority: &Authority) -> Pem {
    Pem { identity: None, authorities: Some(authority.pem().into()) }
}

#[test]
fn an_address_is_a_host_and_a_port_that_can_be_dialled_and_nothing_else() {
    for good in ["127.0.0.1:53100", "coord-0.coords:1", "my_coord:65535", "[::1]:53100"] {
        assert!(is_host_and_port(good), "{good}");
    }
    let wrong = "coord coord: : :53100 []:53100 coord:0 coord:70000 ::1:53100 http://coord:53100 coord:53100/ co/ord:1 me@coord:1";
    for wrong in wrong.split(' ').chain(["", "co ord:53100", "c\u{f6}:1"]) {
        assert!(!is_host_and_port(wrong), "{wrong}");
    }
}

fn needs(path: &str) -> Need {
    if path.ends_with("/Check") { Need::Role(Role::Write) } else { Need::Nothing }
}

fn gate() -> Gate {
    let clock = Clock::system();
    Gate { tls: None, tokens: None, needs, connections: 8, calls: 8, refusals: Refusals::new(clock.clone()), clock }
}

fn encrypted(pem: &Pem, demands: impl Into<Demands>) -> Gate {
    Gate { tls: Some(ServerTls::grpc(pem, demands).unwrap()), ..gate() }
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
    let (ours, stranger, tasks) = (authority(), authority(), Tasks::new());
    let address = serve(&encrypted(&signed(&ours), ClientAuth::None), &tasks).await;
    check(&with_tls(&trusting(&ours)), &address).await.unwrap();
    let cases = [("plaintext", tcp_connector()), ("another authority", with_tls(&trusting(&stranger)))];
    for (what, connector) in cases {
        let refused = check(&connector, &address).await.unwrap_err();
        assert!(never_answered(&refused), "{what}: {refused:?}");
    }
    // The server lives, and a client that speaks TLS to one that does not is no better off.
    check(&with_tls(&trusting(&ours)), &address).await.unwrap();
    let plain = serve(&gate(), &tasks).await;
    check(&with_tls(&trusting(&ours)), &plain).await.unwrap_err();
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn a_client_with_tls_1_2_only_is_refused_where_1_3_is_demanded() {
    let (ours, tasks) = (authority(), Tasks::new());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ours.pem().as_bytes()).unwrap()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let old = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]);
    let old = TlsConnector::from(Arc::new(old.unwrap().with_root_certificates(roots).with_no_client_auth()));
    for (oldest, lets_in) in [(OldestTls::Tls12, true), (OldestTls::Tls13, false)] {
        let demands = Demands { clients: ClientAuth::None, oldest };
        let address = serve(&encrypted(&signed(&ours), demands), &tasks).await;
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let met = old.connect("127.0.0.1".try_into().unwrap(), stream).await;
        assert_eq!(met.is_ok(), lets_in, "{oldest:?}: {met:?}");
        check(&with_tls(&trusting(&ours)), &address).await.unwrap();
    }
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn mutual_tls_lets_in_only_whom_our_authority_has_signed() {
    let (ours, stranger, tasks) = (authority(), authority(), Tasks::new());
    let signed_by_stranger = Pem { identity: signed(&stranger).identity, ..trusting(&ours) };
    let required = serve(&encrypted(&signed(&ours), ClientAuth::Required), &tasks).await;
    let optional = serve(&encrypted(&signed(&ours), ClientAuth::Optional), &tasks).await;
    for (what, pem, by_required, by_optional) in [
        ("signed by ours", signed(&ours), true, true),
        ("no certificate", trusting(&ours), false, true),
        ("signed by another", signed_by_stranger, false, false),
    ] {
        assert_eq!(check(&with_tls(&pem), &required).await.is_ok(), by_required, "{what}");
        assert_eq!(check(&with_tls(&pem), &optional).await.is_ok(), by_optional, "{what}");
    }
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused_until_it_is_renewed() {
    let (ours, tasks) = (authority(), Tasks::new());
    let expired = identity(&ours, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    });
    let old = Pem { identity: Some(expired), ..trusting(&ours) };
    let tls = ServerTls::grpc(&old, ClientAuth::None).unwrap();
    let address = serve(&Gate { tls: Some(tls.clone()), ..gate() }, &tasks).await;
    let refused = check(&with_tls(&trusting(&ours)), &address).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    tls.replace(&signed(&ours), ClientAuth::None).unwrap();
    check(&with_tls(&trusting(&ours)), &address).await.unwrap();
    tasks.drain(&Clock::system(), SOON).await;
}

#[tokio::test]
async fn new_handshakes_use_the_new_certificate_and_old_connections_go_on() {
    let (old, new, tasks) = (authority(), authority(), Tasks::new());
    let tls = ServerTls::grpc(&signed(&old), ClientAuth::None).unwrap();
    let address = serve(&Gate { tls: Some(tls.clone()), ..gate() }, &tasks).await;
    let trusted = ClientTls::grpc(&trusting(&old), None).unwrap();
    let connector = tcp_connector().with_tls(trusted.clone());
    let mut before = client(&connector, &address);
    before.check(HealthCheckRequest::default()).await.unwrap();

    tls.replace(&signed(&new), ClientAuth::None).unwrap();
    before.check(HealthCheckRequest::default()).await.unwrap();
    check(&connector, &address).await.unwrap_err();
    trusted.replace(&trusting(&new)).unwrap();
    check(&connector, &address).await.unwrap();
    // What cannot be used changes nothing.
    assert_eq!(tls.replace(&trusting(&new), ClientAuth::None), Err(TlsError::NoIdentity));
    let mixed =
        Pem { identity: Some((signed(&new).identity.unwrap().0, signed(&old).identity.unwrap().1)), ..trusting(&new) };
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
async fn what_operators_do_needs_an_admin_or_without_tokens_this_machine() {
    fn operators(_: &str) -> Need {
        Need::Operator
    }
    let tasks = Tasks::new();
    let open = Gate { needs: operators, ..gate() };
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = listener.address().to_owned();
    let code =
        async |connector: Connector, address: &str| check(&connector, address).await.map_err(|status| status.code());
    assert_eq!(code(tcp_connector(), &serve(&open, &tasks).await).await, Ok(()));
    // The same connections, said to come from elsewhere.
    let far =
        listener.map(|accepted| accepted.map(|connection| Connection::new(connection, "10.0.0.1:1".parse().ok())));
    let listener = Listener::injected(address.clone(), far.boxed()).behind(&open);
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(listener.guard()).add_service(health).serve_with_incoming(listener);
    tasks.spawn_until_stopped(server);
    assert_eq!(code(tcp_connector(), &address).await, Err(Code::PermissionDenied));
    let tokens = Tokens::parse(&format!("write {WRITE}\nadmin {ADMIN}")).unwrap();
    let address = serve(&Gate { tokens: Some(tokens), ..open }, &tasks).await;
    let showing = |token: &str| tcp_connector().with_token(Token::new(token).unwrap());
    assert_eq!(code(tcp_connector(), &address).await, Err(Code::Unauthenticated));
    assert_eq!(code(showing(WRITE), &address).await, Err(Code::PermissionDenied));
    assert_eq!(code(showing(ADMIN), &address).await, Ok(()));
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

/// Each attempt fails at once while that lasts.
#[tokio::test(start_paused = true)]
async fn a_port_of_a_process_that_may_open_no_more_files_waits_between_attempts_and_goes_on() {
    let clock = Clock::system();
    let failed = (0..100).map(|_| Err(io::Error::from_raw_os_error(24)));
    let taken = Connection::new(tokio::io::duplex(1).0, None);
    let attempts = futures::stream::iter(failed.chain([Ok(taken)]).collect::<Vec<_>>());
    let began = clock.now();
    let mut listener = Listener::injected(String::new(), attempts.boxed()).behind(&gate());
    assert!(listener.next().await.unwrap().is_ok());
    assert!(clock.now() - began >= Duration::from_secs(5), "{:?}", clock.now() - began);
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
