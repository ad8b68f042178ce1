//! TLS for NBD: what a client's STARTTLS comes to.
//!
//! A server that has a certificate serves nobody without TLS: of two policies in force at once the
//! weaker one is what an attacker on the path gets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoClientAuth, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// The files that TLS is set up from, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those up to the one that clients trust.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whose certificates clients must show; without it anybody may connect who trusts the server.
    pub client_ca: Option<PathBuf>,
}

/// A server's side of TLS. Clones share it.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is in it is secret.
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or is no PEM of its kind.
    #[error("can't read {what} from {}: {source}", path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("there is no certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    /// The certificate and the key don't go together, or are of a kind that is not known.
    #[error("the certificate {} and the key {} can't be used: {source}", files.cert.display(), files.key.display())]
    Pair {
        /// The files.
        files: Box<TlsFiles>,
        /// Why.
        source: Box<rustls::Error>,
    },
    /// Clients can't be told by these certificates.
    #[error("the client authorities in {} can't be used: {source}", path.display())]
    Clients {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Tls {
    /// Reads the files. Blocks. TLS 1.2 and 1.3 are spoken.
    ///
    /// # Errors
    /// A file that is missing, is not what it should be, or does not go with the others.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Pem {
            what: "a private key",
            path: files.key.clone(),
            source,
        })?;
        let provider = Arc::new(ring::default_provider());
        let verifier = match &files.client_ca {
            None => Arc::new(NoClientAuth),
            Some(path) => {
                let wrong = |source| TlsError::Clients { path: path.clone(), source };
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root).map_err(|source| wrong(source.into()))?;
                }
                let roots = Arc::new(roots);
                WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .build()
                    .map_err(|source: VerifierBuilderError| wrong(source.into()))?
            }
        };
        let pair = |source: rustls::Error| TlsError::Pair {
            files: Box::new(files.clone()),
            source: Box::new(source),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(pair)?;
        Ok(Self { acceptor: Arc::new(config).into() })
    }

    /// The handshake with a client that was told to begin it. Takes as long as the client takes.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem { what: "certificates", path: path.to_owned(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(wrong)?
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if all.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(all)
}
