//! A page, as a browser or Prometheus asks for it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// Status and body; `None` when nobody is there.
pub async fn try_get(address: impl ToSocketAddrs, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    // To this version nobody answers in pieces.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers with text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Some((status.expect("a status"), body.to_owned()))
}

/// The same of who is there.
pub async fn get(address: impl ToSocketAddrs, path: &str) -> (u16, String) {
    try_get(address, path).await.expect("the page is served")
}
