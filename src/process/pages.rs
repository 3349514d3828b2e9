//! The HTTP pages at `metrics_listen_addr`: [`listen`] and [`serve`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::admin::http::{Health, router};
use crate::admin::scrape::Scrape;
use crate::session::plane::Shared;
use crate::session::views;

/// So many ask at the same time; the kernel's queue has the others.
const CONNECTIONS_MAX: usize = 64;

/// For one question and its answer. It is also the default of Prometheus's `scrape_timeout`.
pub(super) const TIME_MAX: Duration = Duration::from_secs(10);

/// How long the data plane may take to answer.
const SCRAPE_TIME_MAX: Duration = Duration::from_secs(5);

const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

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

/// One question for each connection, within `time_max`: who never ends a question takes nobody's place for long.
pub(super) async fn serve(listener: TcpListener, health: impl Health, time_max: Duration) {
    let pages = TowerToHyperService::new(router(health));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!("cannot accept a connection at metrics_listen_addr: {error}");
                sleep(PAUSE_AFTER_ERROR).await;
                continue;
            }
        };
        let connection =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), pages.clone());
        tokio::spawn(async move {
            // Who goes in the middle of an answer, or takes too long, has none.
            let _ = timeout(time_max, connection).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
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

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_says_nothing_is_cut_off_and_others_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let time_max = Duration::from_millis(300);
        tokio::spawn(serve(listener, Ready, time_max));
        assert!(ask(address).await.ends_with("\r\n\r\nok\n"));
        let began = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").await.unwrap();
            silent.push(stream);
        }
        assert!(ask(address).await.ends_with("\r\n\r\nok\n"));
        assert!(began.elapsed() >= time_max, "there was a place before");
        for mut stream in silent {
            let mut said = Vec::new();
            // By an end or a reset.
            let _ = stream.read_to_end(&mut said).await;
            assert!(said.is_empty(), "{said:?}");
        }
    }
}
