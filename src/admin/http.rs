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
    use axum::body::{Body, to_bytes};
    use axum::http::{HeaderMap, Request};
    use tower::ServiceExt;

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

    async fn fetch(ready: bool, path: &str) -> (StatusCode, HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (parts, body) = router(Fake { ready }).oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn pages_answer_by_the_state_of_the_process() {
        for (ready, path, expected, text) in [
            (true, "/livez", 200, "ok\n"),
            (false, "/livez", 200, "ok\n"),
            (true, "/readyz", 200, "ok\n"),
            (false, "/readyz", 503, "not ready\n"),
            (false, "/metrics", 503, "the data plane does not answer\n"),
            (false, "/status.json", 503, "the data plane does not answer\n"),
            (true, "/nothing", 404, ""),
        ] {
            let (status, _, body) = fetch(ready, path).await;
            assert_eq!((status.as_u16(), &*body), (expected, text), "{path}");
        }
        let (_, headers, body) = fetch(true, "/metrics").await;
        assert_eq!(headers[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        assert!(body.contains("\npgweir_up 1\n"), "{body}");
        let (_, _, body) = fetch(true, "/status.json").await;
        let status: Status = serde_json::from_str(&body).unwrap();
        assert_eq!(status, Status::from(&Scrape::default()));
    }

    #[tokio::test]
    async fn the_page_for_people_is_whole_in_itself() {
        // It is there when the data plane is not, and says so.
        let (status, headers, body) = fetch(false, "/").await;
        assert_eq!(status, StatusCode::OK);
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
            // The name of SVG's elements is no address.
            let body = body.replace("http://www.w3.org/2000/svg", "");
            assert!(!body.contains(outside), "{outside}");
        }
    }
}
