//! TLS toward clients and servers: [`Tls`] is what the settings make of it.
//!
//! rustls does the cryptography. Here is what PgBouncer's settings mean to it, which certificates are
//! believed, and how a connection is read and written from inside one poll.

mod binding;
pub mod names;
pub mod stream;
pub mod trust;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, Connection, InconsistentKeys, ServerConfig, ServerConnection};
use sha2::{Digest, Sha256};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::auth::ChannelBinding;
use crate::config::{Settings, SslMode, TlsProtocol};
use crate::net::stream::Stream;
use stream::TlsStream;
use trust::{Check, Trust};

/// What PostgreSQL calls itself in TLS (ALPN), since its version 17.
const ALPN: &[u8] = b"postgresql";

/// Largest TLS record toward a client, with its header of 5 bytes: 8 kB of data, as PostgreSQL sends them. libpq
/// makes room for that and reads once; what is left in the TLS library makes no socket readable.
const RECORD_MAX: usize = 8192 + 5;

/// Why TLS cannot be had with these settings.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting}: cannot read {}: {error}", .path.display())]
    Read {
        /// The setting that names it.
        setting: String,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has not what it should have.
    #[error("{setting}: {} has no {wanted} in PEM format", .path.display())]
    Content {
        /// The setting that names it.
        setting: String,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
    },
    /// One setting needs another.
    #[error("{0}")]
    Missing(String),
    /// rustls's own word.
    #[error("{setting}: {error}")]
    Rustls {
        /// The setting that it is about.
        setting: String,
        /// What rustls says.
        error: rustls::Error,
    },
}

/// What the settings make of TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// For clients; `None` when they are answered `N`.
    pub acceptor: Option<Arc<Acceptor>>,
    /// For servers; `None` when they are not asked.
    pub connector: Option<Arc<Connector>>,
}

/// How clients are let in.
#[derive(Debug)]
pub struct Acceptor {
    /// `client_tls_sslmode`
    pub mode: SslMode,
    /// What SCRAM binds to on connections that this one has accepted; `None` with a certificate of Ed25519.
    pub channel: Option<ChannelBinding>,
    config: Arc<ServerConfig>,
    trust: Arc<Trust>,
    fingerprint: [u8; 32],
}

/// How servers are dialled.
#[derive(Debug)]
pub struct Connector {
    /// `server_tls_sslmode`
    pub mode: SslMode,
    config: Arc<ClientConfig>,
    fingerprint: [u8; 32],
}

/// One side's settings, whose names begin with `prefix`.
struct Side<'a> {
    prefix: &'static str,
    mode: SslMode,
    ca: Option<&'a Path>,
    certificate: Option<&'a Path>,
    key: Option<&'a Path>,
    ciphers: &'a str,
    tls13_ciphers: Option<&'a str>,
    protocols: &'a [TlsProtocol],
    curve: &'a str,
}

/// The files of one side, read.
#[derive(Default)]
struct Files {
    authorities: Option<Vec<CertificateDer<'static>>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    digest: Sha256,
}

impl Tls {
    /// Reads the certificates and keys. What is the same as in `old` stays the same object, so that no
    /// connection is renewed for it. The second value has a warning for each wish that is not met.
    ///
    /// Fails when a file is not there or no good, or when nothing is left of versions or ciphers.
    pub fn load(settings: &Settings, old: &Tls) -> Result<(Tls, Vec<String>), TlsError> {
        let mut warnings = Vec::new();
        let clients = Side {
            prefix: "client",
            mode: settings.client_tls_sslmode,
            ca: settings.client_tls_ca_file.as_deref(),
            certificate: settings.client_tls_cert_file.as_deref(),
            key: settings.client_tls_key_file.as_deref(),
            ciphers: &settings.client_tls_ciphers,
            tls13_ciphers: settings.client_tls13_ciphers.as_deref(),
            protocols: &settings.client_tls_protocols,
            curve: &settings.client_tls_ecdhcurve,
        };
        let servers = Side {
            prefix: "server",
            mode: settings.server_tls_sslmode,
            ca: settings.server_tls_ca_file.as_deref(),
            certificate: settings.server_tls_cert_file.as_deref(),
            key: settings.server_tls_key_file.as_deref(),
            ciphers: &settings.server_tls_ciphers,
            tls13_ciphers: settings.server_tls13_ciphers.as_deref(),
            protocols: &settings.server_tls_protocols,
            curve: "auto",
        };
        let acceptor = Acceptor::load(&clients, &mut warnings)?;
        let connector = Connector::load(&servers, &mut warnings)?;
        let tls = Tls {
            acceptor: known_or_new(&old.acceptor, acceptor, |one| &one.fingerprint),
            connector: known_or_new(&old.connector, connector, |one| &one.fingerprint),
        };
        Ok((tls, warnings))
    }
}

/// The object that is there already, if the new one is the same.
fn known_or_new<T>(
    known: &Option<Arc<T>>,
    new: Option<T>,
    fingerprint: impl Fn(&T) -> &[u8; 32],
) -> Option<Arc<T>> {
    let new = new?;
    let same = known.clone().filter(|known| fingerprint(known) == fingerprint(&new));
    Some(same.unwrap_or_else(|| Arc::new(new)))
}

impl Side<'_> {
    /// The full name of one of them.
    fn name(&self, setting: &str) -> String {
        format!("{}_tls_{setting}", self.prefix)
    }

    /// The files that are named, read.
    fn files(&self) -> Result<Files, TlsError> {
        let mut files = Files::default();
        let wishes = (self.mode, self.ciphers, self.tls13_ciphers, self.protocols, self.curve);
        files.digest.update(format!("{wishes:?}"));
        if let Some(path) = self.ca {
            files.authorities = Some(certificates(&self.name("ca_file"), path, &mut files.digest)?);
        }
        let (certificate, key) = (self.name("cert_file"), self.name("key_file"));
        files.identity = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(_), None) => {
                return Err(TlsError::Missing(format!("{certificate} is set: {key} must be too")));
            }
            (None, Some(_)) => {
                return Err(TlsError::Missing(format!("{key} is set: {certificate} must be too")));
            }
            (Some(chain), Some(path)) => {
                let chain = certificates(&certificate, chain, &mut files.digest)?;
                let pem = read(&key, path, &mut files.digest)?;
                let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Content {
                    setting: key,
                    path: path.to_owned(),
                    wanted: "private key (without a passphrase)",
                })?;
                Some((chain, secret))
            }
        };
        Ok(files)
    }

    /// What rustls may use, after the wishes for ciphers and curves.
    fn provider(&self, warnings: &mut Vec<String>) -> Result<CryptoProvider, TlsError> {
        let mut provider = ring::default_provider();
        let (suites, unknown) = names::ciphers(self.ciphers, self.tls13_ciphers, &provider);
        let setting = self.name("ciphers");
        for name in unknown {
            warnings.push(format!("{setting}: cipher {name} is not supported, and left out"));
        }
        match names::curves(self.curve, &provider) {
            Ok(groups) => provider.kx_groups = groups,
            Err(name) => {
                warnings.push(format!("client_tls_ecdhcurve: curve {name} is not supported: auto is used"));
            }
        }
        provider.cipher_suites = suites;
        Ok(provider)
    }

    fn versions(
        &self,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, TlsError> {
        let (versions, too_old) = names::versions(self.protocols);
        let setting = self.name("protocols");
        match (versions.is_empty(), too_old) {
            (true, _) => Err(TlsError::Missing(format!(
                "{setting} has only versions that are not supported: allow tlsv1.2 or tlsv1.3"
            ))),
            (false, true) => {
                warnings.push(format!("{setting}: tlsv1.0 and tlsv1.1 are not supported, and left out"));
                Ok(versions)
            }
            (false, false) => Ok(versions),
        }
    }

    fn failed(&self, setting: &str) -> impl FnOnce(rustls::Error) -> TlsError + use<> {
        let setting = self.name(setting);
        move |error| TlsError::Rustls { setting, error }
    }

    /// The CAs, without which nothing can be checked.
    fn authorities(&self, files: &mut Files) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let (mode, ca) = (self.name("sslmode"), self.name("ca_file"));
        let missing = || TlsError::Missing(format!("{mode} is {}: {ca} must be set", self.mode.as_str()));
        files.authorities.take().ok_or_else(missing)
    }
}

/// A certificate and its key, to be shown. rustls would take no certificate of X.509 version 1 here, as OpenSSL
/// does, since it reads it with the eyes of one who must believe it.
///
/// Fails when the key is not the certificate's.
fn identity(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<Arc<SingleCertAndKey>, rustls::Error> {
    let key = provider.key_provider.load_private_key(key)?;
    let shown = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    if let (Some((_, shown)), Some(own)) = (shown, key.public_key())
        && *shown.public_key().raw != *own
    {
        return Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch));
    }
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
}

impl Acceptor {
    fn load(side: &Side<'_>, warnings: &mut Vec<String>) -> Result<Option<Self>, TlsError> {
        if side.mode == SslMode::Disable {
            return Ok(None);
        }
        let mut files = side.files()?;
        let missing = || {
            let [mode, certificate, key] = ["sslmode", "cert_file", "key_file"].map(|name| side.name(name));
            TlsError::Missing(format!(
                "{mode} is {}: {certificate} and {key} must be set",
                side.mode.as_str()
            ))
        };
        let (chain, key) = files.identity.take().ok_or_else(missing)?;
        let provider = Arc::new(side.provider(warnings)?);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&side.versions(warnings)?)
            .map_err(side.failed("ciphers"))?;
        let (check, authorities) = match side.mode {
            SslMode::VerifyCa | SslMode::VerifyFull => (Check::Chain, side.authorities(&mut files)?),
            // A certificate is asked for, and looked at only where a rule says `cert`.
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => {
                (Check::Nothing, files.authorities.take().unwrap_or_default())
            }
        };
        let trust = Trust::new(check, authorities, &provider).map_err(side.failed("ca_file"))?;
        let channel = chain.first().and_then(binding::end_point);
        let builder = builder.with_client_cert_verifier(Arc::clone(&trust) as Arc<dyn ClientCertVerifier>);
        let identity = identity(chain, key, &provider).map_err(side.failed("key_file"))?;
        let mut config = builder.with_cert_resolver(identity);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_fragment_size = Some(RECORD_MAX);
        // As PostgreSQL: a connection lives long, and none is resumed.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Some(Acceptor {
            trust,
            channel,
            mode: side.mode,
            config: Arc::new(config),
            fingerprint: files.digest.finalize().into(),
        }))
    }

    /// Makes the handshake with a client. `begun` is what was read of it already.
    ///
    /// Fails with rustls's word for what went wrong.
    pub async fn accept(&self, tcp: Stream, begun: &[u8]) -> io::Result<TlsStream> {
        let connection = ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        let mut stream = TlsStream::new(tcp, connection, begun);
        stream.handshake().await?;
        Ok(stream)
    }

    /// The name in the certificate that the client has shown, if a CA of ours has signed it.
    pub fn proven_name(&self, connection: &Connection) -> Option<String> {
        let chain = connection.peer_certificates()?;
        self.trust.knows_client(chain).then(|| chain.first().and_then(trust::common_name)).flatten()
    }

    /// Whether a client must use TLS.
    pub fn is_required(&self) -> bool {
        is_required(self.mode)
    }
}

impl Connector {
    fn load(side: &Side<'_>, warnings: &mut Vec<String>) -> Result<Option<Self>, TlsError> {
        if side.mode == SslMode::Disable {
            return Ok(None);
        }
        let mut files = side.files()?;
        let provider = Arc::new(side.provider(warnings)?);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&side.versions(warnings)?)
            .map_err(side.failed("ciphers"))?;
        let check = match side.mode {
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => Check::Nothing,
            SslMode::VerifyCa => Check::Chain,
            SslMode::VerifyFull => Check::ChainAndName,
        };
        let authorities = match check {
            Check::Nothing => Vec::new(),
            Check::Chain | Check::ChainAndName => side.authorities(&mut files)?,
        };
        let trust = Trust::new(check, authorities, &provider).map_err(side.failed("ca_file"))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(trust);
        let mut config = match files.identity.take() {
            Some((chain, key)) => {
                let identity = identity(chain, key, &provider).map_err(side.failed("key_file"))?;
                builder.with_client_cert_resolver(identity)
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Some(Connector {
            mode: side.mode,
            config: Arc::new(config),
            fingerprint: files.digest.finalize().into(),
        }))
    }

    /// TLS where the other side has it, with whatever certificate: as `server_tls_sslmode=prefer` without files.
    pub fn opportunistic() -> Option<Arc<Self>> {
        Tls::load(&Settings::default(), &Tls::default()).ok()?.0.connector
    }

    /// For directories, whose certificates must be of a CA in this file and for the name that is dialled;
    /// without a file any will do.
    ///
    /// Fails when the file is no good.
    pub fn for_directories(authorities: Option<&Path>) -> Result<Arc<Self>, TlsError> {
        let server_tls_sslmode = if authorities.is_some() { SslMode::VerifyFull } else { SslMode::Require };
        let server_tls_ca_file = authorities.map(Path::to_owned);
        let settings = Settings { server_tls_sslmode, server_tls_ca_file, ..Settings::default() };
        let connector = Tls::load(&settings, &Tls::default())?.0.connector;
        let connector = connector.expect("TLS is switched on");
        let mut config = ClientConfig::clone(&connector.config);
        // They do not speak PostgreSQL.
        config.alpn_protocols.clear();
        let (mode, fingerprint) = (connector.mode, connector.fingerprint);
        Ok(Arc::new(Connector { mode, config: Arc::new(config), fingerprint }))
    }

    /// Makes the handshake with a server, whose certificate is to be for `name`.
    ///
    /// Fails with rustls's word for what went wrong.
    pub async fn connect(&self, tcp: Stream, name: &str) -> io::Result<TlsStream> {
        let name = match ServerName::try_from(name.to_owned()) {
            Ok(name) => name,
            // Nobody looks at it.
            Err(_) if self.mode != SslMode::VerifyFull => {
                ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED))
            }
            Err(_) => {
                let text = format!("\"{name}\" is no name that a certificate could have");
                return Err(io::Error::other(text));
            }
        };
        let connection = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let mut stream = TlsStream::new(tcp, connection, &[]);
        stream.handshake().await?;
        Ok(stream)
    }

    /// Whether a server that has no TLS is none.
    pub fn is_required(&self) -> bool {
        is_required(self.mode)
    }
}

/// What SCRAM binds to on a connection to a server: the certificate that this one has shown.
pub fn channel_of_server(connection: &Connection) -> Option<ChannelBinding> {
    connection.peer_certificates()?.first().and_then(binding::end_point)
}

/// When the certificate that the other side has shown ends, in seconds since 1970.
pub fn shown_until(connection: &Connection) -> Option<i64> {
    connection.peer_certificates()?.first().and_then(end)
}

/// When the first of these certificates in PEM format ends, in seconds since 1970; `None` if one cannot be read.
pub fn valid_until(pem: &[u8]) -> Option<i64> {
    let certificates = CertificateDer::pem_slice_iter(pem);
    let ends: Option<Vec<i64>> = certificates.map(|one| end(&one.ok()?)).collect();
    ends?.into_iter().min()
}

fn end(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn is_required(mode: SslMode) -> bool {
    match mode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => true,
    }
}

/// What SHOW CLIENTS and SHOW SERVERS say of a connection, as PgBouncer writes it.
pub fn describe(connection: &Connection) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let cipher = connection.negotiated_cipher_suite().map(|suite| names::openssl_name(suite.suite()));
    let group = connection.negotiated_key_exchange_group().map(|group| names::openssl_curve(group.name()));
    format!("{version}/{}/ECDH={}", cipher.unwrap_or_default(), group.unwrap_or_default())
}

fn read(setting: &str, path: &Path, digest: &mut Sha256) -> Result<Vec<u8>, TlsError> {
    let failed = |error| TlsError::Read { setting: setting.to_owned(), path: path.to_owned(), error };
    let bytes = fs::read(path).map_err(failed)?;
    digest.update(bytes.len().to_be_bytes());
    digest.update(&bytes);
    Ok(bytes)
}

fn certificates(
    setting: &str,
    path: &Path,
    digest: &mut Sha256,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(setting, path, digest)?;
    let content =
        || TlsError::Content { setting: setting.to_owned(), path: path.to_owned(), wanted: "certificate" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(content)
}
