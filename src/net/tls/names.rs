//! OpenSSL's names for versions, ciphers and curves, as the settings have them, and what of it rustls
//! knows. Nothing that it does not know is weakened in silence: it is named in a warning.

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion, version};

use crate::config::TlsProtocol;

/// OpenSSL's name of each cipher for TLS 1.2 that rustls knows. TLS 1.3 has one name for both.
const TLS12: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// Words of OpenSSL and libtls for whole groups of ciphers. rustls has only strong ones, so each means
/// all of them.
const GROUPS: [&str; 8] = ["default", "secure", "compat", "legacy", "insecure", "all", "fast", "normal"];

/// Names of curves, of OpenSSL and of the standards.
const CURVES: [(&str, NamedGroup); 8] = [
    ("x25519", NamedGroup::X25519),
    ("prime256v1", NamedGroup::secp256r1),
    ("secp256r1", NamedGroup::secp256r1),
    ("p-256", NamedGroup::secp256r1),
    ("secp384r1", NamedGroup::secp384r1),
    ("p-384", NamedGroup::secp384r1),
    ("x25519mlkem768", NamedGroup::X25519MLKEM768),
    ("secp256r1mlkem768", NamedGroup::secp256r1MLKEM768),
];

/// The versions of a `*_tls_protocols` setting, and whether some of them are too old for rustls.
pub fn versions(protocols: &[TlsProtocol]) -> (Vec<&'static SupportedProtocolVersion>, bool) {
    let (mut tls12, mut tls13, mut old) = (false, false, false);
    for protocol in protocols {
        match protocol {
            TlsProtocol::Tls10 | TlsProtocol::Tls11 => old = true,
            TlsProtocol::Tls12 => tls12 = true,
            TlsProtocol::Tls13 => tls13 = true,
            TlsProtocol::Tls1 | TlsProtocol::All | TlsProtocol::Legacy => {
                (tls12, tls13, old) = (true, true, true);
            }
            TlsProtocol::Secure | TlsProtocol::Default => (tls12, tls13) = (true, true),
        }
    }
    let known = [(tls13, &version::TLS13), (tls12, &version::TLS12)];
    (known.into_iter().filter_map(|(wanted, version)| wanted.then_some(version)).collect(), old)
}

/// The ciphers of `*_tls_ciphers` (TLS 1.2) and `*_tls13_ciphers`, and the names that are unknown.
pub fn ciphers(
    tls12: &str,
    tls13: Option<&str>,
    provider: &CryptoProvider,
) -> (Vec<SupportedCipherSuite>, Vec<String>) {
    let mut unknown = Vec::new();
    let (mut wanted, mut refused) = (Vec::new(), Vec::new());
    for word in words(tls12) {
        match (word.strip_prefix(['!', '-']), tls12_suite(word)) {
            (Some(name), _) => match tls12_suite(name) {
                Some(suite) => refused.push(suite),
                // A class that we have and cannot take away; classes that we lack are away already.
                None if is_group(name) => unknown.push(word.to_owned()),
                None => {}
            },
            (None, Some(suite)) => wanted.push(suite),
            (None, None) if is_group(word) => wanted.extend(TLS12.map(|(_, suite)| suite)),
            // `+X` and `@STRENGTH` only sort.
            (None, None) if word.starts_with(['+', '@']) => {}
            (None, None) => unknown.push(word.to_owned()),
        }
    }
    wanted.retain(|suite| !refused.contains(suite));
    let of_tls13 = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some());
    let names = |name: &str| of_tls13.clone().find(|suite| openssl_name(suite.suite()) == name).copied();
    let mut suites: Vec<_> = match tls13.map(words).filter(|words| words.clone().next().is_some()) {
        None => of_tls13.clone().copied().collect(),
        Some(words) => words
            .filter_map(|word| {
                let suite = names(word);
                if suite.is_none() {
                    unknown.push(word.to_owned());
                }
                suite
            })
            .collect(),
    };
    let by_id = |id: &CipherSuite| provider.cipher_suites.iter().find(|suite| suite.suite() == *id).copied();
    for suite in wanted.iter().filter_map(by_id) {
        if !suites.contains(&suite) {
            suites.push(suite);
        }
    }
    (suites, unknown)
}

/// The curves of `client_tls_ecdhcurve`; `Err` names the one that is unknown.
pub fn curves(text: &str, provider: &CryptoProvider) -> Result<Vec<&'static dyn SupportedKxGroup>, String> {
    if matches!(text.to_ascii_lowercase().as_str(), "" | "auto" | "none") {
        return Ok(provider.kx_groups.clone());
    }
    words(text)
        .map(|word| {
            let name = word.to_ascii_lowercase();
            let group = CURVES.iter().find(|(known, _)| *known == name).map(|(_, group)| *group);
            let known = provider.kx_groups.iter().find(|known| Some(known.name()) == group).copied();
            known.ok_or_else(|| word.to_owned())
        })
        .collect()
}

/// A cipher's name as OpenSSL, and so PgBouncer's SHOW CLIENTS, prints it.
pub fn openssl_name(suite: CipherSuite) -> String {
    let known = TLS12.iter().find(|(_, id)| *id == suite).map(|(name, _)| (*name).to_owned());
    known.unwrap_or_else(|| format!("{suite:?}").replacen("TLS13_", "TLS_", 1))
}

/// A curve's name as OpenSSL prints it.
pub fn openssl_curve(group: NamedGroup) -> String {
    match group {
        NamedGroup::secp256r1 => "prime256v1".to_owned(),
        other => format!("{other:?}"),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> + Clone {
    text.split([':', ',', ' ']).filter(|word| !word.is_empty())
}

fn tls12_suite(name: &str) -> Option<CipherSuite> {
    TLS12.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, suite)| *suite)
}

/// A class of ciphers, like `HIGH` or `ECDHE+AESGCM`, as opposed to the name of one.
fn is_group(word: &str) -> bool {
    GROUPS.iter().any(|group| group.eq_ignore_ascii_case(word))
        || word.split('+').all(|part| {
            matches!(
                part,
                "HIGH" | "MEDIUM" | "ECDHE" | "EECDH" | "kECDHE" | "AESGCM" | "CHACHA20" | "TLSv1.2"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring::default_provider;

    fn ids(text: &str, tls13: Option<&str>) -> (Vec<String>, Vec<String>) {
        let (suites, unknown) = ciphers(text, tls13, &default_provider());
        (suites.iter().map(|suite| openssl_name(suite.suite())).collect(), unknown)
    }

    #[test]
    fn ciphers_are_read_as_openssl_writes_them() {
        let tls13 = ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"];
        assert_eq!(ids("default", None).0.len(), 9);
        let (suites, unknown) = ids("HIGH:MEDIUM:+3DES:!aNULL:!ECDHE-RSA-AES128-GCM-SHA256", None);
        assert_eq!((suites.len(), unknown.len()), (8, 0));
        let (suites, unknown) = ids("ECDHE-RSA-AES128-GCM-SHA256:AES256-SHA", None);
        assert_eq!(suites, [&tls13[..], &["ECDHE-RSA-AES128-GCM-SHA256"]].concat());
        assert_eq!(unknown, ["AES256-SHA"]);
        let (suites, unknown) = ids("NONSENSE", Some("TLS_AES_128_GCM_SHA256:TLS_AES_128_CCM_SHA256"));
        assert_eq!(suites, ["TLS_AES_128_GCM_SHA256"]);
        assert_eq!(unknown, ["NONSENSE", "TLS_AES_128_CCM_SHA256"]);
    }

    #[test]
    fn old_versions_are_left_out_and_reported() {
        let check = |protocols: &[TlsProtocol], count, old| {
            let (versions, too_old) = versions(protocols);
            assert_eq!((versions.len(), too_old), (count, old), "{protocols:?}");
        };
        check(&[TlsProtocol::Secure], 2, false);
        check(&[TlsProtocol::Tls13], 1, false);
        check(&[TlsProtocol::All], 2, true);
        check(&[TlsProtocol::Tls10, TlsProtocol::Tls12], 1, true);
        check(&[TlsProtocol::Tls11], 0, true);
    }

    #[test]
    fn curves_have_openssls_names_or_the_standards() {
        let provider = default_provider();
        assert_eq!(curves("auto", &provider).unwrap().len(), provider.kx_groups.len());
        assert_eq!(curves("prime256v1:P-384", &provider).unwrap().len(), 2);
        assert_eq!(curves("secp521r1", &provider).unwrap_err(), "secp521r1");
    }
}
