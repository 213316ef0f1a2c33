//! Running a coordinator: connections in, one drain, and an end within a bound.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use store::{JOIN_TOKEN, Store, StoreError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tower::ServiceExt;
use wire::trace::Span;

use crate::api;
use crate::config::{Config, ConfigError};
use crate::core::{Core, span};

/// How long a listener that fails (most likely for want of file handles) is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long tasks may take to end once they were told to, after the drain.
const JOIN_FOR: Duration = Duration::from_secs(5);

/// Why a coordinator does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its settings contradict each other.
    #[error("a setting cannot be")]
    Config(#[from] ConfigError),
    /// Its store fails.
    #[error("the store could not be read")]
    Store(#[from] StoreError),
    /// Nobody called [`crate::bootstrap`].
    #[error("the store has no join token: it was not prepared")]
    NotPrepared,
}

/// Serves on `listener` until `shutdown` is over; then takes nothing new, lets what runs finish for
/// `config.http.drain_us`, and ends everything that it started.
///
/// # Errors
/// It does not start. Once it serves, faults are answered and logged, and end nothing.
pub async fn run(
    config: Config,
    listener: TcpListener,
    store: Arc<dyn Store>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    run_traced(config, listener, store, shutdown, None).await
}

/// As [`run`], and tells `spans` what became of each request's time. Spans that find no room are counted and gone.
///
/// # Errors
/// As [`run`].
pub async fn run_traced(
    config: Config,
    listener: TcpListener,
    store: Arc<dyn Store>,
    shutdown: impl Future<Output = ()>,
    spans: Option<mpsc::Sender<Span>>,
) -> Result<(), RunError> {
    config.check()?;
    let join_token = store.setting(JOIN_TOKEN).await?.ok_or(RunError::NotPrepared)?;
    let core = Arc::new(Core::new(config, store, &join_token, spans));
    core.remember().await?;
    core.begin_deployments().await?;
    core.tasks.spawn(Arc::clone(&core).tick_groups());
    let connections = Arc::new(Semaphore::new(core.config.http.connections_max.min(Semaphore::MAX_PERMITS)));
    let server = Server { router: api::router(Arc::clone(&core)), core: Arc::clone(&core), connections };
    api::warm();
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => server.accept(stream, peer, graceful.watcher()),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    tracing::info!("draining: nothing new is taken");
    core.draining.cancel();
    // Probes and refusals still get answers while requests finish: connections are taken until all are through.
    let drained = async {
        while core.places.available_permits() < core.config.requests.running_max {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, peer)) = accepted {
                        server.accept(stream, peer, graceful.watcher());
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    if tokio::time::timeout(span(core.config.http.drain_us), drained).await.is_err() {
        tracing::warn!("requests still run at the end of http.drain_us: they are ended");
    }
    drop(listener);
    core.end.cancel();
    core.goodbye();
    let _ = tokio::time::timeout(JOIN_FOR, graceful.shutdown()).await;
    core.tasks.close();
    if tokio::time::timeout(JOIN_FOR, core.tasks.wait()).await.is_err() {
        tracing::warn!(left = core.tasks.len(), "tasks did not end in time");
    }
    Ok(())
}

struct Server {
    router: Router,
    core: Arc<Core>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Serves one connection, in a task of its own.
    fn accept(&self, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!("a connection was dropped: http.connections_max are open");
            return;
        };
        // Tokens are small and must not wait for each other.
        let _ = stream.set_nodelay(true);
        let router = self.router.clone();
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move {
            let _place = place;
            let header = span(core.config.http.header_us);
            let heard = Arc::new(AtomicBool::new(false));
            let heard_by_service = Arc::clone(&heard);
            let service = service_fn(move |request: Request<Incoming>| {
                heard_by_service.store(true, Ordering::Relaxed);
                let router = router.clone();
                async move {
                    let mut request = request.map(axum::body::Body::new);
                    request.extensions_mut().insert(api::Peer(peer));
                    Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {}))
                }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(header).max_headers(100);
            builder
                .http2()
                .timer(TokioTimer::new())
                .max_concurrent_streams(256)
                .max_header_list_size(32 << 10)
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(20));
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            // The builder's own time-out begins once it knows the protocol; a peer that says nothing never tells.
            let silent = async {
                tokio::time::sleep(header).await;
                if heard.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                ended = watcher.watch(connection) => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection broke");
                    }
                }
                () = silent => {}
                () = async {
                    core.end.cancelled().await;
                    tokio::time::sleep(JOIN_FOR).await;
                } => {}
            }
        });
    }
}
