//! The HTTP pages at `metrics_listen_addr`: [`listen`] and [`serve`].

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::admin::http::{Health, router};
use crate::admin::scrape::Scrape;
use crate::listener::after_error;
use crate::session::plane::Shared;
use crate::session::views;

/// Connections at the same time. Beyond them the oldest is closed: an honest one takes milliseconds, so that probes are
/// answered whatever else there is.
const CONNECTIONS_MAX: usize = 64;

/// For one question and its answer. It is also the default of Prometheus's `scrape_timeout`.
const TIME_MAX: Duration = Duration::from_secs(10);

/// How long the data plane may take to answer.
const SCRAPE_TIME_MAX: Duration = Duration::from_secs(5);

/// What the pages know of a process.
#[derive(Clone)]
pub(super) struct Pages(pub(super) Arc<Shared>);

impl Health for Pages {
    fn is_ready(&self) -> bool {
        self.0.lifecycle.is_ready()
    }

    async fn scrape(&self) -> Option<Scrape> {
        timeout(SCRAPE_TIME_MAX, views::scrape(&self.0)).await.ok()
    }
}

/// Fails when the address is taken, or not ours.
pub(super) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on metrics_listen_addr {address}: {error}"))
    };
    let listener = TcpListener::bind(address).await.map_err(named)?;
    tracing::info!("metrics on {address}");
    Ok(listener)
}

/// Answers one question on each connection.
pub(super) async fn serve(listener: TcpListener, health: impl Health) {
    let pages = TowerToHyperService::new(router(health));
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    let mut told: Option<Instant> = None;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                after_error("a connection at metrics_listen_addr", &error).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS_MAX
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
            if told.is_none_or(|told| told.elapsed() > TIME_MAX) {
                tracing::warn!("{CONNECTIONS_MAX} connections at metrics_listen_addr: the oldest are closed");
                told = Some(Instant::now());
            }
        }
        let connection =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), pages.clone());
        // Whoever leaves in the middle, or takes too long, gets no more.
        connections.push_back(tokio::spawn(timeout(TIME_MAX, connection)).abort_handle());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[derive(Clone)]
    struct Ready;

    impl Health for Ready {
        fn is_ready(&self) -> bool {
            true
        }

        async fn scrape(&self) -> Option<Scrape> {
            Some(Scrape::default())
        }
    }

    async fn begin(address: SocketAddr, question: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(question.as_bytes()).await.unwrap();
        stream
    }

    async fn end(mut stream: TcpStream) -> io::Result<String> {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    }

    #[tokio::test]
    async fn who_never_ends_a_question_keeps_nobody_from_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Ready));
        let mut unfinished = VecDeque::new();
        for _ in 0..CONNECTIONS_MAX {
            unfinished.push_back(begin(address, "GET /livez HTTP/1.1\r\nHost:").await);
        }
        let asking = begin(address, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let answer = end(asking).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        // The oldest had to go, by an end or a reset; the others have their time.
        let oldest = unfinished.pop_front().unwrap();
        assert_eq!(end(oldest).await.unwrap_or_default(), "");
        let mut next = unfinished.pop_front().unwrap();
        next.write_all(b" x\r\n\r\n").await.unwrap();
        let answer = end(next).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
    }
}
