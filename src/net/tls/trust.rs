//! Whose certificates are believed: [`Trust`].
//!
//! webpki decides first. It is stricter than OpenSSL, which PgBouncer's certificates were made for, so
//! what OpenSSL accepts is looked at again here: certificates of version 1, a self-signed certificate
//! that is its own CA, and a name that stands in the CN alone.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, RootCertStore,
    SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What is asked of the other side's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Any will do.
    Nothing,
    /// A CA of ours must have signed it.
    Chain,
    /// And it must be for the name that was dialled.
    ChainAndName,
}

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug)]
enum Usage {
    Server,
    Client,
}

impl Usage {
    fn for_webpki(self) -> KeyUsage {
        match self {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        }
    }

    /// Whether the certificate's extended key usage, if it has one, allows it.
    fn fits(self, certificate: &X509Certificate<'_>) -> bool {
        let allowed = match certificate.extended_key_usage() {
            Ok(None) => return true,
            Ok(Some(allowed)) => allowed,
            Err(_) => return false,
        };
        let named = match self {
            Usage::Server => allowed.value.server_auth,
            Usage::Client => allowed.value.client_auth,
        };
        named || allowed.value.any
    }
}

/// A verifier of certificates, toward clients and servers.
#[derive(Debug)]
pub struct Trust {
    check: Check,
    authorities: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// Believes what one of the authorities signed.
    ///
    /// Fails when one of them is no certificate.
    pub fn new(
        check: Check,
        authorities: Vec<CertificateDer<'static>>,
        provider: &CryptoProvider,
    ) -> Result<Arc<Self>, Error> {
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone())?;
        }
        let subjects = roots.subjects();
        let algorithms = provider.signature_verification_algorithms;
        Ok(Arc::new(Trust { check, authorities, roots, subjects, algorithms }))
    }

    /// Whether a CA of ours has signed a client's certificate, which comes first.
    pub fn knows_client(&self, chain: &[CertificateDer<'_>]) -> bool {
        let [leaf, between @ ..] = chain else { return false };
        self.check_chain(leaf, between, UnixTime::now(), Usage::Client).is_ok()
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        let strict = EndEntityCert::try_from(leaf).and_then(|leaf| {
            let (algorithms, roots) = (self.algorithms.all, &self.roots.roots);
            let path =
                leaf.verify_for_usage(algorithms, roots, between, now, usage.for_webpki(), None, None)?;
            let anchor = self.roots.roots.iter().position(|root| root == path.anchor());
            Ok(anchor.map(|at| &self.authorities[at]))
        });
        match strict {
            Ok(Some(authority)) if self.may_issue(authority, leaf, now) => Ok(()),
            Ok(_) => Err(CertificateError::UnknownIssuer.into()),
            Err(error) if is_openssl_milder(&error) && self.is_known_as_openssl_knows(leaf, now, usage) => {
                Ok(())
            }
            Err(error) => Err(certificate_error(&error)),
        }
    }

    /// Whether the leaf is one of our CAs itself, or one of them has signed it. Certificates that the other
    /// side offers count only with webpki, which holds them to their limits.
    fn is_known_as_openssl_knows(&self, leaf: &CertificateDer<'_>, now: UnixTime, usage: Usage) -> bool {
        let Some(leaf) = parse(leaf) else { return false };
        let is_issuer = |issuer: &X509Certificate<'_>| {
            is_authority(issuer)
                && is_in_date(issuer, now)
                && issuer.subject().as_raw() == leaf.issuer().as_raw()
                && self.has_signed(issuer, &leaf)
        };
        let mut authorities = self.authorities.iter().filter_map(parse);
        is_in_date(&leaf, now)
            && usage.fits(&leaf)
            && authorities.any(|authority| authority.as_raw() == leaf.as_raw() || is_issuer(&authority))
    }

    /// Whether an authority that webpki went by may be one: it looks at neither date nor kind of those, and
    /// OpenSSL does.
    fn may_issue(&self, authority: &CertificateDer<'_>, leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
        parse(authority)
            .is_some_and(|known| is_in_date(&known, now) && (is_authority(&known) || authority == leaf))
    }

    fn has_signed(&self, issuer: &X509Certificate<'_>, issued: &X509Certificate<'_>) -> bool {
        let spki = SubjectPublicKeyInfoDer::from(issuer.public_key().raw);
        let Ok(key) = RawPublicKeyEntity::try_from(&spki) else { return false };
        let body = issued.tbs_certificate.as_ref();
        let signature = &issued.signature_value.data;
        // An algorithm that is not the signature's fails like a forged signature.
        self.algorithms.all.iter().any(|algorithm| key.verify_signature(*algorithm, body, signature).is_ok())
    }

    /// The handshake's signature, by the certificate's key, whatever else the certificate is.
    fn check_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let leaf = parse(leaf).ok_or(CertificateError::BadEncoding)?;
        let spki = SubjectPublicKeyInfoDer::from(leaf.public_key().raw);
        let key = RawPublicKeyEntity::try_from(&spki).map_err(|error| certificate_error(&error))?;
        let known = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, algorithms) = known.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let fits = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
            key.verify_signature(*algorithm, message, signed.signature()).is_ok()
        };
        match algorithms.iter().any(fits) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn check_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let leaf = parse(leaf).ok_or(CertificateError::BadEncoding)?;
        let spki = SubjectPublicKeyInfoDer::from(leaf.public_key().raw);
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

/// What webpki refuses on principle, and OpenSSL does not.
fn is_openssl_milder(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::UnsupportedCertVersion | webpki::Error::CaUsedAsEndEntity)
}

fn certificate_error(error: &webpki::Error) -> Error {
    let known = match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other.clone()))),
    };
    Error::InvalidCertificate(known)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// Version 1 has no word for CA: one that the operator named is believed to be one.
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let signs = || certificate.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
    let unnamed = || certificate.basic_constraints().is_ok_and(|found| found.is_none());
    certificate.is_ca() || certificate.version().0 == 0 || unnamed() && signs()
}

fn is_in_date(certificate: &X509Certificate<'_>, now: UnixTime) -> bool {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
}

/// The CN of a certificate's subject, which `auth_type = cert` takes for the user's name. `None` when there
/// are several.
pub fn common_name(der: &CertificateDer<'_>) -> Option<String> {
    let certificate = parse(der)?;
    let mut names = certificate.subject().iter_common_name();
    let (first, second) = (names.next()?, names.next());
    second.is_none().then(|| first.as_str().ok().map(str::to_owned))?
}

/// As OpenSSL and libpq compare: the CN counts only where no alternative name of the kind stands.
fn is_for(der: &CertificateDer<'_>, wanted: &ServerName<'_>) -> bool {
    let Some(certificate) = parse(der) else { return false };
    let Ok(names) = certificate.subject_alternative_name() else { return false };
    let names = names.map_or(&[][..], |extension| &extension.value.general_names[..]);
    let common_name = common_name(der).unwrap_or_default();
    match wanted {
        ServerName::IpAddress(address) => {
            let address = IpAddr::from(*address);
            let mut addresses = names.iter().filter_map(|name| match name {
                GeneralName::IPAddress(bytes) => Some(*bytes),
                _ => None,
            });
            let is_it = |bytes: &[u8]| match address {
                IpAddr::V4(v4) => bytes == v4.octets(),
                IpAddr::V6(v6) => bytes == v6.octets(),
            };
            addresses.any(is_it) || names.is_empty() && common_name.parse() == Ok(address)
        }
        ServerName::DnsName(name) => {
            let mut given = names.iter().filter_map(|name| match name {
                GeneralName::DNSName(pattern) => Some(*pattern),
                _ => None,
            });
            given.any(|pattern| matches_name(pattern, name.as_ref()))
                || names.is_empty() && matches_name(&common_name, name.as_ref())
        }
        _ => false,
    }
}

/// A `*` stands for one whole label, the first (RFC 6125, 6.4.3).
fn matches_name(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return !pattern.is_empty();
    }
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(rest), Some((label, domain))) => {
            !label.is_empty() && rest.contains('.') && rest.eq_ignore_ascii_case(domain)
        }
        _ => false,
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check != Check::Nothing {
            self.check_chain(leaf, between, now, Usage::Server)?;
        }
        if self.check == Check::ChainAndName && !is_for(leaf, name) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn offer_client_auth(&self) -> bool {
        !self.authorities.is_empty()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.check != Check::Nothing
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.check != Check::Nothing {
            self.check_chain(leaf, between, now, Usage::Client)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_whole_first_label() {
        let check =
            |pattern, name, wanted| assert_eq!(matches_name(pattern, name), wanted, "{pattern} {name}");
        check("db.example.org", "DB.example.org", true);
        check("*.example.org", "db.example.org", true);
        check("*.example.org", "a.db.example.org", false);
        check("*.example.org", "example.org", false);
        check("*.org", "example.org", false);
        check("d*.example.org", "db.example.org", false);
        check("", "", false);
    }
}
