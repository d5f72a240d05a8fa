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
        let named = |target: &ReplicateTarget| [target.ca.clone(), target.token_file.clone()];
        let mut files: Vec<PathBuf> = self.config.replicate.targets.values().flat_map(named).collect();
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
