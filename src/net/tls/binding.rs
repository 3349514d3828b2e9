//! What a TLS connection is known by at both its ends: [`end_point`].

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::prelude::{AlgorithmIdentifier, FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

use crate::auth::ChannelBinding;

/// A certificate's hash, as `tls-server-end-point` has it (RFC 5929, 4.1): by the hash function of its own
/// signature, SHA-256 in place of MD5 and SHA-1.
///
/// `None` where the signature has no hash function of its own (Ed25519): then the RFC knows no binding, libpq
/// and PostgreSQL compute none, and SCRAM is to do without.
pub(super) fn end_point(certificate: &CertificateDer<'_>) -> Option<ChannelBinding> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let hash = match hash_of_signature(&parsed.signature_algorithm)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    };
    Some(ChannelBinding(hash.into()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn hash_of_signature(algorithm: &AlgorithmIdentifier<'_>) -> Option<Hash> {
    if let Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) = SignatureAlgorithm::try_from(algorithm) {
        return hash_named(&parameters.hash_algorithm_oid().to_id_string());
    }
    match algorithm.algorithm.to_id_string().as_str() {
        // RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512 and SHA-224 (RFC 8017).
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.12" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" => Some(Hash::Sha512),
        "1.2.840.113549.1.1.14" => Some(Hash::Sha224),
        // ECDSA with SHA-1, SHA-224, SHA-256, SHA-384 and SHA-512 (RFC 5758).
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        "1.2.840.10045.4.3.1" => Some(Hash::Sha224),
        "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        _ => None,
    }
}

/// A hash function by its own identifier, as RSASSA-PSS names it.
fn hash_named(identifier: &str) -> Option<Hash> {
    match identifier {
        // MD5, SHA-1 and SHA-256.
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
        "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
        "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
        _ => None,
    }
}
