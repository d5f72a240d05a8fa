//! What a verb shows to servers, and whom it trusts.

use std::path::Path;

use anyhow::Context;
use woodpecker_base::{
    metadata::{EtcdTls, EtcdUser},
    net::{ClientTls, Connector, Pem, Token, tcp_connector},
};

use crate::cli::{CredentialArgs, EtcdCredentialArgs};

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Http,
}

/// Makes connections as the arguments say.
///
/// # Errors
/// A file cannot be read, or is not what it should be.
pub(super) fn connector(arguments: &CredentialArgs, protocol: Protocol) -> anyhow::Result<Connector> {
    let CredentialArgs { token_file, ca, cert, key, server_name } = arguments;
    let mut connector = tcp_connector();
    if let Some(ca) = ca {
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let pem = Pem { identity, authorities: Some(read(ca)?) };
        let tls = match protocol {
            Protocol::Grpc => ClientTls::grpc(&pem, server_name.as_deref()),
            Protocol::Http => ClientTls::http(&pem, server_name.as_deref()),
        };
        connector = connector.with_tls(tls.context("--ca, --cert, --key")?);
    }
    if let Some(file) = token_file {
        connector = connector.with_token(Token::new(&text(file)?).with_context(|| file.display().to_string())?);
    }
    Ok(connector)
}

/// TLS to etcd, if the arguments want it.
pub(super) fn etcd_tls(arguments: &EtcdCredentialArgs) -> Option<EtcdTls> {
    let ca_file = arguments.etcd_ca.clone()?;
    Some(EtcdTls { ca_file, client: arguments.etcd_cert.clone().zip(arguments.etcd_key.clone()) })
}

/// The user of etcd, if the arguments name one.
///
/// # Errors
/// The password's file cannot be read.
pub(super) fn etcd_user(arguments: &EtcdCredentialArgs) -> anyhow::Result<Option<EtcdUser>> {
    let (Some(name), Some(file)) = (&arguments.etcd_user, &arguments.etcd_password_file) else { return Ok(None) };
    Ok(Some(EtcdUser { name: name.clone(), password: text(file)?.trim_end_matches(['\r', '\n']).to_owned() }))
}

fn text(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
