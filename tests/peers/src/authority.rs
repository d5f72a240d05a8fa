//! An authority that signs certificates, for whom TLS is tested with.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, Error, IsCa, KeyPair};

/// An authority of its own, which nobody trusts yet.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Another one than any before.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new() -> Result<Self, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its certificate: who has it trusts what it signs.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `names`, as `change` wants it, and its key.
    ///
    /// # Errors
    /// A name is none, or what `change` wants cannot be signed.
    pub fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Result<(String, String), Error> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        change(&mut params);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.0)?.pem(), key.serialize_pem()))
    }
}
