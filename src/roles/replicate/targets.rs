//! How to get into each cluster that follows.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context;
use woodpecker_base::net::{ClientTls, Connector, Pem, Token, tcp_connector};

use crate::{
    config::{Config, ReplicateTarget},
    roles::{
        reload::Watched,
        security::{bytes, own_identity, text},
    },
};

/// Clusters by their id. Clones are one.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    config: Config,
    known: BTreeMap<String, Target>,
}

#[derive(Debug, Clone, Default)]
struct Target {
    tls: Option<ClientTls>,
    token: Option<Token>,
}

impl Targets {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// One cannot be read, or is not what it should be; with its key.
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        let mut targets = Self { config: config.clone(), known: BTreeMap::new() };
        for (id, wanted) in &config.replicate.targets {
            let mut target = Target::default();
            if let Some((key, pem)) = targets.pem(id, wanted)? {
                let name = Some(wanted.server_name.as_str()).filter(|name| !name.is_empty());
                target.tls = Some(ClientTls::grpc(&pem, name).context(key)?);
            }
            if let Some((key, token)) = token(id, wanted)? {
                target.token = Some(Token::new(&token).context(key)?);
            }
            targets.known.insert(id.clone(), target);
        }
        Ok(targets)
    }

    /// What makes connections to each; `ours` makes those to our own cluster.
    pub(super) fn connectors(&self, ours: &Connector) -> BTreeMap<String, Connector> {
        let connector = |Target { tls, token }: &Target| {
            let connector = tls.clone().map_or_else(|| ours.clone(), |tls| tcp_connector().with_tls(tls));
            token.iter().fold(connector, |connector, token| connector.with_token(token.clone()))
        };
        self.known.iter().map(|(id, target)| (id.clone(), connector(target))).collect()
    }

    /// The files, which are used from then on when they change.
    pub(super) fn watched(&self) -> Watched {
        let Config { tls, replicate, .. } = &self.config;
        let named = |target: &ReplicateTarget| [target.ca.clone(), target.token_file.clone()];
        let mut files: Vec<PathBuf> = replicate.targets.values().flat_map(named).collect();
        // Our own are shown to those with authorities of their own too.
        files.extend([tls.cert.clone(), tls.key.clone()]);
        files.retain(|file| !file.as_os_str().is_empty());
        let renewed = self.clone();
        Watched::new("targets", files, move || renewed.renew())
    }

    fn renew(&self) -> anyhow::Result<()> {
        // What is wrong with one is found before another is renewed.
        Self::open(&self.config)?;
        for (id, wanted) in &self.config.replicate.targets {
            let Some(Target { tls, token: shown }) = self.known.get(id) else { continue };
            if let (Some(tls), Some((key, pem))) = (tls, self.pem(id, wanted)?) {
                tls.replace(&pem).context(key)?;
            }
            if let (Some(shown), Some((key, token))) = (shown, token(id, wanted)?) {
                shown.replace(&token).context(key)?;
            }
        }
        Ok(())
    }

    fn pem(&self, id: &str, wanted: &ReplicateTarget) -> anyhow::Result<Option<(String, Pem)>> {
        if wanted.ca.as_os_str().is_empty() {
            return Ok(None);
        }
        let key = format!("replicate.targets.{id}.ca");
        let authorities = Some(bytes(&key, &wanted.ca)?);
        Ok(Some((key, Pem { identity: own_identity(&self.config.tls)?, authorities })))
    }
}

fn token(id: &str, wanted: &ReplicateTarget) -> anyhow::Result<Option<(String, String)>> {
    if wanted.token_file.as_os_str().is_empty() {
        return Ok(None);
    }
    let key = format!("replicate.targets.{id}.tokenFile");
    let token = text(&key, &wanted.token_file)?;
    Ok(Some((key, token)))
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use futures::StreamExt;
    use test_peers::Authority;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use woodpecker_base::{
        clock::Clock,
        net::{ClientAuth, Gate, Listener, ServerTls},
        tasks::Tasks,
    };

    use super::*;
    use crate::{
        config::Tls,
        roles::{reload, security::Security},
    };

    const SOON: Duration = Duration::from_secs(20);
    const OFTEN: Duration = Duration::from_millis(20);

    /// What an authority has signed for this machine.
    fn identity(authority: &Authority) -> (Vec<u8>, Vec<u8>) {
        let (certificate, key) = authority.sign(&["127.0.0.1"], |_| {}).unwrap();
        (certificate.into(), key.into())
    }

    /// In our files.
    fn certify(tls: &Tls, authority: &Authority) {
        let (certificate, key) = identity(authority);
        std::fs::write(&tls.cert, certificate).unwrap();
        std::fs::write(&tls.key, key).unwrap();
    }

    #[tokio::test]
    async fn a_certificate_of_ours_that_was_renewed_is_shown_to_a_target_with_an_authority_of_its_own() {
        let (place, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let [old, new, theirs] = [(); 3].map(|()| Authority::new().unwrap());
        // It trusts only what our certificate will be signed by.
        let shown = Pem { identity: Some(identity(&theirs)), authorities: Some(new.pem().into()) };
        let open = Security::open(&Config::default(), &clock).unwrap().ports;
        let gate = Gate { tls: Some(ServerTls::grpc(&shown, ClientAuth::Required).unwrap()), ..open };
        let mut port = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap().behind(&gate);

        let [cert, key, ca] = ["cert", "key", "their-ca"].map(|name| place.path().join(name));
        let mut config = Config { tls: Tls { enabled: true, cert, key, ..Tls::default() }, ..Config::default() };
        certify(&config.tls, &old);
        std::fs::write(&ca, theirs.pem()).unwrap();
        config.replicate.targets.insert("east".to_owned(), ReplicateTarget { ca, ..ReplicateTarget::default() });
        let (targets, tasks) = (Targets::open(&config).unwrap(), Tasks::new());
        reload::watch(vec![targets.watched()], OFTEN, clock.clone(), &tasks).unwrap();
        certify(&config.tls, &new);

        let connectors = targets.connectors(&tcp_connector());
        let address: http::Uri = format!("https://{}", port.address()).parse().unwrap();
        let dialling = async {
            loop {
                // With TLS 1.3 the caller is done before it is judged, and hears of it when it reads.
                let mut connection = connectors["east"].connect(address.clone()).await.unwrap();
                connection.flush().await.unwrap();
                let _ = connection.read(&mut [0]).await;
                clock.sleep(OFTEN).await;
            }
        };
        let let_in = async {
            tokio::select! {
                connection = port.next() => connection.is_some_and(|connection| connection.is_ok()),
                () = dialling => false,
            }
        };
        assert_eq!(clock.timeout(SOON, let_in).await, Ok(true));
        tasks.stop();
    }
}
