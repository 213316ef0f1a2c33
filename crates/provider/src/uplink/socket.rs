//! Opening the WebSocket to a coordinator, plain or over TLS, with every limit set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, protocol::WebSocketConfig};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use super::machine::clipped;
use super::target::Target;

/// An open connection.
pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The largest message that is read at all. Anything between the session's own limit and this is refused by itself
/// (P3); beyond it the connection closes, since its length is a claim that must not become memory.
pub(crate) const INBOUND_BYTES_MAX: usize = 64 << 20;

/// What is written together at most before the system takes it: small, so that a control message is never far
/// behind data that was written earlier.
const WRITE_BUFFER_BYTES: usize = 32 << 10;

/// The largest message that is written: chunks and pieces of kits are far smaller.
pub(crate) const OUTBOUND_BYTES_MAX: usize = 16 << 20;

// The WebSocket library logs each frame whole at trace level, the join token in the first one included: this level is
// compiled out of every program that holds this crate.
const _: () = assert!(log::STATIC_MAX_LEVEL as usize <= log::LevelFilter::Debug as usize);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot reach {host}:{port}: {source}; is the coordinator running, and is the address right?")]
    Reach { host: String, port: u16, source: std::io::Error },
    #[error("{url} cannot be asked for: {source}")]
    Request { url: String, source: tungstenite::Error },
    #[error(
        "{host} answered HTTP {status} instead of opening an uplink; is that a Phalanx coordinator's address?"
    )]
    Status { host: String, status: u16 },
    #[error(
        "TLS with {host} failed: {detail}; for a coordinator with its own certificate authority, name its file \
             as ca_file"
    )]
    Tls { host: String, detail: String },
    #[error("{host} does not speak the uplink's protocol: {detail}")]
    WebSocket { host: String, detail: String },
}

/// Why the file of certificate authorities is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It cannot be read as PEM.
    #[error("cannot read certificates from {path}: {detail}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// It holds none.
    #[error("{path} holds no usable certificate: expected PEM, beginning with -----BEGIN CERTIFICATE-----")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// TLS that trusts the authorities in `ca_file` and no others.
pub(crate) fn connector(ca_file: &Path) -> Result<Connector, AuthorityError> {
    let read = |e: rustls::pki_types::pem::Error| AuthorityError::Read {
        path: ca_file.to_owned(),
        detail: e.to_string(),
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).map_err(read)? {
        roots.add_parsable_certificates([certificate.map_err(read)?]);
    }
    if roots.is_empty() {
        return Err(AuthorityError::Empty { path: ca_file.to_owned() });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Connector::Rustls(Arc::new(config)))
}

/// Dials. Has no deadline of its own: the uplink's state machine gives up on it. `tls` of `None` trusts the
/// system's authorities.
pub(crate) async fn open(target: Target, tls: Option<Connector>) -> Result<Socket, OpenError> {
    let host = || target.host.clone();
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await;
    // Tokens are small and each is wanted at once.
    let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    let stream = stream.map_err(|source| OpenError::Reach { host: host(), port: target.port, source })?;
    let request = target.url.as_str().into_client_request();
    let request = request.map_err(|source| OpenError::Request { url: target.url.clone(), source })?;
    let connector = if target.tls { tls } else { Some(Connector::Plain) };
    let opened =
        tokio_tungstenite::client_async_tls_with_config(request, stream, Some(limits()), connector).await;
    match opened {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            Err(OpenError::Status { host: host(), status: response.status().as_u16() })
        }
        Err(error)
            if target.tls && matches!(error, tungstenite::Error::Io(_) | tungstenite::Error::Tls(_)) =>
        {
            Err(OpenError::Tls { host: host(), detail: clipped(&error.to_string()) })
        }
        Err(error) => Err(OpenError::WebSocket { host: host(), detail: clipped(&error.to_string()) }),
    }
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(32 << 10)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        // The default is no limit at all: a coordinator that does not read would fill this machine's memory.
        .max_write_buffer_size(WRITE_BUFFER_BYTES + OUTBOUND_BYTES_MAX + (64 << 10))
        .max_message_size(Some(INBOUND_BYTES_MAX))
        .max_frame_size(Some(INBOUND_BYTES_MAX))
}
