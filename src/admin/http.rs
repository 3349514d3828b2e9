//! The HTTP pages: `/metrics`, `/livez` and `/readyz` for Kubernetes and Prometheus, `/` for people, which looks
//! at `/status.json`. [`router`] makes them from a [`Health`]; who listens, and where, is the caller's.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::scrape::Scrape;
use super::status::Status;

/// What the pages ask of the process.
pub trait Health: Clone + Send + Sync + 'static {
    /// Whether new clients are welcome: the listeners are open and no shutdown has begun.
    fn is_ready(&self) -> bool;
    /// The data plane at this moment; `None` when it does not answer.
    fn scrape(&self) -> impl Future<Output = Option<Scrape>> + Send;
}

/// The pages. `/livez` answers 200 while the process runs, `/readyz` 200 or 503.
pub fn router<H: Health>(health: H) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<H>))
        .route("/metrics", get(metrics::<H>))
        .route("/status.json", get(status::<H>))
        .route("/", get(page))
        .with_state(health)
}

async fn readyz<H: Health>(State(health): State<H>) -> impl IntoResponse {
    match health.is_ready() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

async fn metrics<H: Health>(State(health): State<H>) -> Response {
    answer(&health, "text/plain; version=0.0.4; charset=utf-8", Scrape::page).await
}

async fn status<H: Health>(State(health): State<H>) -> Response {
    answer(&health, "application/json", |scrape| Status::from(scrape).json()).await
}

async fn answer<H: Health>(health: &H, kind: &'static str, text: fn(&Scrape) -> String) -> Response {
    match health.scrape().await {
        Some(scrape) => ([(header::CONTENT_TYPE, kind)], text(&scrape)).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the data plane does not answer\n").into_response(),
    }
}

/// It loads nothing but our own `/status.json`, and nobody may put it into a frame.
async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                  connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html"))
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

        async fn scrape(&self) -> Option<Scrape> {
            self.ready.then(Scrape::default)
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
            (false, "/metrics", "503", "the data plane does not answer\n"),
            (false, "/status.json", "503", "the data plane does not answer\n"),
            (true, "/nothing", "404", ""),
        ] {
            let answer = fetch(ready, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            let (_, found) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(found, body, "{path}");
        }
        let answer = fetch(true, "/metrics").await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\npgweir_up 1\n"), "{answer}");
        let answer = fetch(true, "/status.json").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: Status = serde_json::from_str(body).unwrap();
        assert_eq!(status, Status::from(&Scrape::default()));
    }

    #[tokio::test]
    async fn the_page_for_people_is_whole_in_itself() {
        // It is there when the data plane is not, and says so.
        let answer = fetch(false, "/").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("default-src 'none'"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
            // The name of SVG's elements is no address.
            let body = body.replace("http://www.w3.org/2000/svg", "");
            assert!(!body.contains(outside), "{outside}");
        }
    }
}
