//! The HTTP pages for Kubernetes and Prometheus: `/metrics`, `/livez` and `/readyz`. [`router`] makes
//! them from a [`Health`]; who listens, and where, is the caller's.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

/// What the pages ask of the process.
pub trait Health: Clone + Send + Sync + 'static {
    /// Whether new clients are welcome: the listeners are open and no shutdown has begun.
    fn is_ready(&self) -> bool;
    /// The text of the metrics page, see [`super::scrape::Scrape::page`]; `None` when the data
    /// plane does not answer.
    fn metrics(&self) -> impl Future<Output = Option<String>> + Send;
}

/// The pages. `/livez` answers 200 while the process runs, `/readyz` 200 or 503.
pub fn router<H: Health>(health: H) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<H>))
        .route("/metrics", get(metrics::<H>))
        .with_state(health)
}

async fn readyz<H: Health>(State(health): State<H>) -> impl IntoResponse {
    match health.is_ready() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

async fn metrics<H: Health>(State(health): State<H>) -> impl IntoResponse {
    let content_type = |text| [(header::CONTENT_TYPE, text)];
    match health.metrics().await {
        Some(page) => {
            let header = content_type("text/plain; version=0.0.4; charset=utf-8");
            (StatusCode::OK, header, page)
        }
        None => {
            let header = content_type("text/plain; charset=utf-8");
            (StatusCode::SERVICE_UNAVAILABLE, header, "the data plane does not answer\n".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[derive(Clone)]
    struct Fake {
        ready: bool,
    }

    impl Health for Fake {
        fn is_ready(&self) -> bool {
            self.ready
        }

        async fn metrics(&self) -> Option<String> {
            self.ready.then(|| "pgweir_up 1\n".to_owned())
        }
    }

    async fn fetch(ready: bool, path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = axum::serve(listener, router(Fake { ready })).into_future();
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::select! {
            _ = server => unreachable!("the server runs until it is dropped"),
            answer = client => answer,
        }
    }

    #[tokio::test]
    async fn pages_answer_by_the_state_of_the_process() {
        for (ready, path, status, body) in [
            (true, "/livez", "200", "ok\n"),
            (false, "/livez", "200", "ok\n"),
            (true, "/readyz", "200", "ok\n"),
            (false, "/readyz", "503", "not ready\n"),
            (true, "/metrics", "200", "pgweir_up 1\n"),
            (false, "/metrics", "503", "the data plane does not answer\n"),
            (true, "/", "404", ""),
        ] {
            let answer = fetch(ready, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            let (_, found) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(found, body, "{path}");
        }
        let answer = fetch(true, "/metrics").await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    }
}
