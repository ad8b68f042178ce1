//! `sbkctl health`: does a process answer? For the health checks of containers and scripts, where
//! there may be no other client.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::Usage;
use crate::http;

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// What an NBD server says first, to whoever connects.
const NBD_HELLO: &[u8; 8] = b"NBDMAGIC";

/// Asks, and returns what was said.
///
/// # Errors
/// If nobody answers within 5 s, a page is not answered with 200, or it is no NBD server.
pub async fn ask(url: &str) -> anyhow::Result<String> {
    if let Some(rest) = url.strip_prefix("http://") {
        let (addr, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/healthz" } else { path };
        return Ok(http::get_text(addr, path).await?.trim().to_owned());
    }
    if let Some(rest) = url.strip_prefix("nbd://") {
        let addr = rest.split('/').next().unwrap_or(rest);
        return timeout(LIMIT, nbd_hello(addr))
            .await
            .map_err(|_| anyhow!("no answer within {} s", LIMIT.as_secs()))
            .and_then(|result| result)
            .with_context(|| format!("asking {url}"));
    }
    Err(Usage(format!("'{url}' is neither http://HOST:PORT/PAGE nor nbd://HOST:PORT")).into())
}

/// Goes no further than the greeting: an export that is opened may be taken from who has it.
async fn nbd_hello(addr: &str) -> anyhow::Result<String> {
    let mut hello = [0; NBD_HELLO.len()];
    TcpStream::connect(addr).await?.read_exact(&mut hello).await?;
    if &hello != NBD_HELLO {
        bail!("it is no NBD server");
    }
    Ok("it serves NBD".to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection, and tells what was asked for.
    async fn asked(
        scheme: &str,
        path: &str,
        answer: &'static [u8],
    ) -> (anyhow::Result<String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("addr");
        let http = scheme == "http";
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = vec![0; 4096];
            let read = if http { stream.read(&mut request).await.expect("request") } else { 0 };
            stream.write_all(answer).await.expect("answer");
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let said = ask(&format!("{scheme}://{addr}{path}")).await;
        (said, server.await.expect("server"))
    }

    #[tokio::test]
    async fn a_page_is_asked_for() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";
        let (said, request) = asked("http", "/readyz", ok).await;
        assert_eq!(said.expect("is ready"), "ready");
        assert!(request.starts_with("GET /readyz "), "{request}");
        let (_, request) = asked("http", "", ok).await;
        assert!(request.starts_with("GET /healthz "), "{request}");
        let (said, _) = asked("http", "/readyz", b"HTTP/1.1 503 x\r\n\r\nno leader\n").await;
        let error = format!("{:#}", said.expect_err("is not ready"));
        assert!(error.contains("no leader"), "{error}");
    }

    #[tokio::test]
    async fn an_nbd_server_is_known_by_its_greeting() {
        let (said, _) = asked("nbd", "/db", b"NBDMAGICIHAVEOPT\0\x03").await;
        assert_eq!(said.expect("serves"), "it serves NBD");
        assert!(asked("nbd", "", b"SSH-2.0-OpenSSH\r\n").await.0.is_err());
        assert!(asked("nbd", "", b"NBD").await.0.is_err(), "cut short");
        assert!(ask("nbd://127.0.0.1:1").await.is_err(), "nobody listens");
    }

    #[tokio::test]
    async fn nothing_else_is_asked() {
        let error = ask("https://127.0.0.1:1/").await.expect_err("is refused");
        assert!(error.is::<Usage>(), "{error}");
    }
}
