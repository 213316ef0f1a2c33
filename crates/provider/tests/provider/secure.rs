//! Joining over TLS: the coordinator's certificate is checked, and what checks it can be named.

use std::path::Path;
use std::sync::Arc;

use provider::{Event, RunError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use wire::control::FromProvider;

use crate::fake::{Fake, Running, config, soon};

/// A server with a certificate for `localhost` by an authority of its own, whose certificate is written to `ca_file`.
fn acceptor(ca_file: &Path) -> TlsAcceptor {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    std::fs::write(ca_file, ca_certificate.pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(server))
}

#[tokio::test]
async fn a_coordinator_whose_authority_is_named_is_joined_over_tls() {
    let mut fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let ca_file = home.path().join("ca.pem");
    let acceptor = acceptor(&ca_file);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fake.url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let mut config = config(&fake, home.path());
    config.ca_file = Some(ca_file);
    let running = Running::start(config);
    let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
    let stream = soon("TLS", acceptor.accept(stream)).await.unwrap();
    let accepting = Box::pin(tokio_tungstenite::accept_async(stream));
    let mut socket = soon("a WebSocket", accepting).await.unwrap();
    let first = soon("a hello", futures_util::StreamExt::next(&mut socket)).await.unwrap().unwrap();
    let Message::Text(text) = first else { panic!("{first:?}") };
    assert!(matches!(FromProvider::decode(&text).unwrap(), FromProvider::Hello(_)));
    running.leave().await;
}

#[tokio::test]
async fn a_coordinator_whose_authority_is_another_is_not_joined_and_the_reason_is_told() {
    let mut fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    let acceptor = acceptor(&home.path().join("theirs.pem"));
    let ca_file = home.path().join("another.pem");
    let _other = self::acceptor(&ca_file);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fake.url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let mut config = config(&fake, home.path());
    config.ca_file = Some(ca_file);
    let mut running = Running::start(config);
    let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
    assert!(soon("TLS", acceptor.accept(stream)).await.is_err());
    let detail = running
        .event("a pause", |e| match e {
            Event::Reconnecting { detail, .. } => Some(detail),
            _ => None,
        })
        .await;
    assert!(detail.contains("TLS with localhost failed") && detail.contains("ca_file"), "{detail}");
    running.leave().await;
}

#[tokio::test]
async fn a_file_without_certificates_is_named_before_anything_starts() {
    let fake = Fake::new().await;
    let home = tempfile::tempdir().unwrap();
    for (name, text) in [("empty.pem", Some("no certificates here\n")), ("missing.pem", None)] {
        let mut config = config(&fake, home.path());
        let file = home.path().join(name);
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        config.ca_file = Some(file);
        match Running::start(config).ended().await {
            Err(error @ RunError::Config(_)) => assert!(error.to_string().contains(name), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}
