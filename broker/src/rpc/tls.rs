//! TLS: files with certificates and keys, made into what connections are accepted and opened with.
//!
//! Owns: reading those files, at the start and whenever they change, every check on them, and which node a certificate names. Never: sockets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};
use webpki::EndEntityCert;

use crate::cluster::{NodeId, StartError};
use crate::config::{Config, InternalTlsSection, TlsSection};
use crate::env::Tasks;
use crate::metrics::Metrics;

/// What gRPC speaks above TLS.
const ALPN_H2: &[u8] = b"h2";

/// How a certificate names a node: a subject alternative name of the kind URI that goes on with the node's id.
const NODE_URI: &str = "highwater://node/";

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

    /// What connections are accepted with. With an authority, the other side must show a certificate of it.
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

/// What was made of files, and is made again when they change. What cannot be used changes nothing.
struct Watched<T> {
    files: Files,
    make: fn(&Files, &Contents) -> Result<T, Unusable>,
    held: RwLock<T>,
    last: Mutex<LastLook>,
}

/// What a look at the files has to be compared with.
struct LastLook {
    /// What is held was made of this.
    contents: Contents,
    /// Why what the files hold now is not used.
    refused: Option<Unusable>,
}

impl<T: Clone> Watched<T> {
    fn load(
        files: Files,
        make: fn(&Files, &Contents) -> Result<T, Unusable>,
    ) -> Result<Self, Unusable> {
        let contents = files.read()?;
        let held = RwLock::new(make(&files, &contents)?);
        Ok(Self { files, make, held, last: Mutex::new(LastLook { contents, refused: None }) })
    }

    fn held(&self) -> T {
        self.held.read().clone()
    }

    /// Looks at the files. They are tried again at every look for as long as they are refused: a certificate may not be valid yet.
    fn look(&self, fits: impl FnOnce(&T) -> Result<(), Unusable>) -> Look {
        let mut last = self.last.lock();
        let contents = match self.files.read() {
            Ok(contents) if contents == last.contents => {
                last.refused = None;
                return Look::Same;
            }
            read => read,
        };
        let made = contents.and_then(|contents| {
            let made = (self.make)(&self.files, &contents)?;
            fits(&made)?;
            Ok((made, contents))
        });
        match made {
            Ok((made, contents)) => {
                *self.held.write() = made;
                *last = LastLook { contents, refused: None };
                Look::Changed(self.files.certificate.path.clone())
            }
            Err(why) => {
                let is_new = last.refused.as_ref() != Some(&why);
                last.refused = Some(why.clone());
                Look::Refused { why, is_new }
            }
        }
    }
}

/// What a look at the files came to.
enum Look {
    Same,
    /// What the files hold is in use now; the certificate's path.
    Changed(PathBuf),
    /// The files cannot be used, what was held is; `is_new` unless the last look said the same.
    Refused {
        why: Unusable,
        is_new: bool,
    },
}

/// What connections are accepted and opened with. Follows the files for as long as [`Certificates::keep_up`] runs.
#[derive(Clone)]
pub(crate) struct Certificates {
    /// For clients; `None`: in plain text.
    pub(crate) clients: Option<Arc<ClientTls>>,
    /// For other nodes; `None`: in plain text.
    pub(crate) nodes: Option<Arc<NodeTls>>,
}

impl Certificates {
    /// Reads the files that the configuration names.
    pub(crate) fn load(config: &Config) -> Result<Self, Unusable> {
        Ok(Self { clients: ClientTls::load(config)?, nodes: NodeTls::load(config)? })
    }

    /// Looks at the files again and again: connections from then on are accepted and opened with what they hold, those that stand go
    /// on. Never ends.
    pub(crate) async fn keep_up(self, pause: Duration, tasks: Tasks, metrics: Arc<Metrics>) {
        if self.clients.is_none() && self.nodes.is_none() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(pause).await;
            let looking = self.clone();
            // Reading files blocks.
            let Ok(looks) = tasks.spawn_blocking(move || looking.look()).await else { continue };
            metrics.set_tls_files_refused(
                looks.iter().any(|look| matches!(look, Look::Refused { .. })),
            );
            for look in looks {
                match look {
                    Look::Same | Look::Refused { is_new: false, .. } => {}
                    Look::Changed(path) => {
                        tracing::info!(certificate = %path.display(), "new certificates are in use");
                    }
                    Look::Refused { why, is_new: true } => {
                        tracing::error!(%why, "new certificates cannot be used; the old ones stay");
                    }
                }
            }
        }
    }

    fn look(&self) -> Vec<Look> {
        let clients = self.clients.as_ref().map(|tls| tls.server.look(|_| Ok(())));
        let nodes = self.nodes.as_ref().map(|tls| tls.look());
        clients.into_iter().chain(nodes).collect()
    }
}

/// What client connections are accepted with.
pub(crate) struct ClientTls {
    server: Watched<Arc<ServerConfig>>,
}

impl ClientTls {
    fn load(config: &Config) -> Result<Option<Arc<Self>>, Unusable> {
        let TlsSection { cert_file, key_file, client_ca_file, .. } = &config.tls;
        let (Some(certificate), Some(key)) = (cert_file, key_file) else { return Ok(None) };
        let files = Files {
            certificate: NamedFile::new("tls.cert_file", certificate),
            key: NamedFile::new("tls.key_file", key),
            authority: client_ca_file.as_ref().map(|it| NamedFile::new("tls.client_ca_file", it)),
        };
        let make = |files: &Files, contents: &Contents| files.server(contents).map(Arc::new);
        Ok(Some(Arc::new(Self { server: Watched::load(files, make)? })))
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server.held())
    }
}

/// What connections between nodes are accepted and opened with: each side shows a certificate of the authority, which says
/// which node it is.
pub(crate) struct NodeTls {
    node: NodeId,
    ends: Watched<Ends>,
}

/// Both ends of a connection as this node holds them.
#[derive(Clone)]
struct Ends {
    /// The node that the certificate names.
    node: NodeId,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl NodeTls {
    pub(super) fn load(config: &Config) -> Result<Option<Arc<Self>>, Unusable> {
        let InternalTlsSection { cert_file, key_file, ca_file } = &config.internal_tls;
        let (Some(certificate), Some(key), Some(authority)) = (cert_file, key_file, ca_file) else {
            return Ok(None);
        };
        let files = Files {
            certificate: NamedFile::new("internal_tls.cert_file", certificate),
            key: NamedFile::new("internal_tls.key_file", key),
            authority: Some(NamedFile::new("internal_tls.ca_file", authority)),
        };
        let ends = Watched::load(files, Files::ends)?;
        Ok(Some(Arc::new(Self { node: ends.held().node, ends })))
    }

    fn look(&self) -> Look {
        self.ends.look(|ends| match ends.node == self.node {
            true => Ok(()),
            false => Err(self
                .ends
                .files
                .certificate
                .unusable(format_args!("is node {}'s, and this is node {}", ends.node, self.node))),
        })
    }

    /// The node that the certificate names: this one.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// For the next connection from another node.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.ends.held().server)
    }

    /// For the next connection to another node.
    pub(super) fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.ends.held().client)
    }
}

impl Files {
    /// Both ends of connections between nodes.
    fn ends(&self, contents: &Contents) -> Result<Ends, Unusable> {
        let server = self.server(contents)?;
        let chain = self.certificate.certificates(&contents.certificate)?;
        let key = self.key.private_key(&contents.key)?;
        let roots = match (&self.authority, &contents.authority) {
            (Some(file), Some(pem)) => file.roots(pem)?,
            // Between nodes there is always one.
            _ => Arc::new(RootCertStore::empty()),
        };
        let unusable = |error: rustls::Error| {
            self.certificate.unusable(format_args!("would be refused by other nodes: {error}"))
        };
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(self.certificate.unusable("holds no certificate"));
        };
        let node = node_of(own).map_err(|why| self.certificate.unusable(why))?;
        let verifier = NodeVerifier { roots: Arc::clone(&roots), provider: provider() };
        // What every other node will check, as a client's certificate and as a server's, is found out here first.
        verifier.verify_chain(own, intermediates, UnixTime::now()).map_err(unusable)?;
        WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| self.certificate.unusable(error))?
            .verify_client_cert(own, intermediates, UnixTime::now())
            .map_err(unusable)?;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A node is known by its certificate, not by the name of the host that it runs on.
        client.enable_sni = false;
        Ok(Ends { node, server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Which node a certificate names. The error is the rest of a sentence that begins with the certificate.
pub(super) fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeId, String> {
    let parsed = EndEntityCert::try_from(certificate)
        .map_err(|error| format!("is not a certificate that can be read: {error:?}"))?;
    let ids = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix(NODE_URI)?.parse().ok());
    let ids: Vec<NodeId> = ids.filter(|id| *id != 0).collect();
    match ids[..] {
        [id] => Ok(id),
        [] => Err(format!("names no node: it needs the subject alternative name URI:{NODE_URI}ID")),
        _ => Err("names more than one node".to_owned()),
    }
}

/// Believes every certificate of the authorities that names a node. Which node it must be is the dialer's to check: addresses may
/// change, and a node that founds or joins a cluster does not know who is behind one.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl NodeVerifier {
    fn verify_chain(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_chain(certificate, intermediates, now)?;
        node_of(certificate)
            .map_err(|why| rustls::Error::General(format!("the peer's certificate {why}")))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
