//! TLS: files with certificates and keys, made into what connections are accepted with.
//!
//! Owns: reading those files and every check on them, at the start and whenever they change. Never: sockets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use crate::cluster::StartError;
use crate::config::{Config, TlsSection};

/// What gRPC speaks above TLS.
const ALPN_H2: &[u8] = b"h2";

/// A certificate or a file that cannot be used: the key to look at, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    key: &'static str,
    why: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.why)
    }
}

impl From<Unusable> for StartError {
    fn from(Unusable { key, why }: Unusable) -> Self {
        Self::Config { key, why }
    }
}

/// A file, by the key that names it.
#[derive(Clone, Debug)]
struct NamedFile {
    key: &'static str,
    path: PathBuf,
}

impl NamedFile {
    fn new(key: &'static str, path: &Path) -> Self {
        Self { key, path: path.to_owned() }
    }

    fn unusable(&self, why: impl fmt::Display) -> Unusable {
        Unusable { key: self.key, why: format!("{} {why}", self.path.display()) }
    }

    fn read(&self) -> Result<Vec<u8>, Unusable> {
        std::fs::read(&self.path).map_err(|error| {
            self.unusable(format_args!(
                "cannot be read: {error}; name a PEM file that this user may read"
            ))
        })
    }

    /// The certificates in this content of the file, at least one.
    fn certificates(&self, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let all = all.map_err(|error| self.unusable(format_args!("is not a PEM file: {error}")))?;
        match all.is_empty() {
            true => {
                Err(self
                    .unusable("holds no certificate: it takes PEM, '-----BEGIN CERTIFICATE-----'"))
            }
            false => Ok(all),
        }
    }

    fn private_key(&self, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Unusable> {
        PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
            self.unusable(
                "holds no private key that can be used: it takes PEM, PKCS#8, PKCS#1 or SEC1, without a passphrase",
            )
        })
    }

    fn roots(&self, pem: &[u8]) -> Result<Arc<RootCertStore>, Unusable> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(pem)? {
            roots.add(certificate).map_err(|error| {
                self.unusable(format_args!(
                    "holds a certificate that cannot be an authority's: {error}"
                ))
            })?;
        }
        Ok(Arc::new(roots))
    }
}

/// The files of one side.
#[derive(Clone, Debug)]
struct Files {
    certificate: NamedFile,
    key: NamedFile,
    authority: Option<NamedFile>,
}

/// What the files held when they were last read.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<Vec<u8>>,
}

impl Files {
    fn read(&self) -> Result<Contents, Unusable> {
        Ok(Contents {
            certificate: self.certificate.read()?,
            key: self.key.read()?,
            authority: self.authority.as_ref().map(NamedFile::read).transpose()?,
        })
    }

    /// What connections are accepted with.
    fn server(&self, contents: &Contents) -> Result<ServerConfig, Unusable> {
        let provider = provider();
        let roots = match (&self.authority, &contents.authority) {
            (Some(file), Some(pem)) => Some((file, file.roots(pem)?)),
            _ => None,
        };
        let chain = self.certificate.certificates(&contents.certificate)?;
        let key = self.key.private_key(&contents.key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| self.certificate.unusable(error))?;
        let builder = match roots {
            None => builder.with_no_client_auth(),
            Some((file, roots)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| file.unusable(error))?)
            }
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => self.key.unusable(format_args!(
                "is not the key of the certificate in {}: give the two that were made together",
                self.certificate.path.display()
            )),
            error => self.certificate.unusable(format_args!("cannot be used: {error}")),
        })?;
        server.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(server)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What client connections are accepted with.
pub(crate) struct ClientTls {
    server: RwLock<Arc<ServerConfig>>,
}

impl ClientTls {
    /// Reads the files that the configuration names; `None` if it names none.
    pub(crate) fn load(config: &Config) -> Result<Option<Arc<Self>>, Unusable> {
        let TlsSection { cert_file, key_file, client_ca_file } = &config.tls;
        let (Some(certificate), Some(key)) = (cert_file, key_file) else { return Ok(None) };
        let files = Files {
            certificate: NamedFile::new("tls.cert_file", certificate),
            key: NamedFile::new("tls.key_file", key),
            authority: client_ca_file.as_ref().map(|it| NamedFile::new("tls.client_ca_file", it)),
        };
        let server = files.server(&files.read()?)?;
        Ok(Some(Arc::new(Self { server: RwLock::new(Arc::new(server)) })))
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.server.read()))
    }
}
