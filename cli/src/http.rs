//! One small HTTP GET, for the read-only pages of masters and datanodes.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Most bytes of one answer.
const MAX_ANSWER: u64 = 64 << 20;
/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Gets `path` (with its query) from `addr` (`host:port`) and reads the body as JSON.
///
/// # Errors
/// If nobody answers within 5 s, the status is not 200, or the body is no such JSON.
pub async fn get_json<T: DeserializeOwned>(addr: &str, path: &str) -> anyhow::Result<T> {
    let body = get_body(addr, path).await?;
    serde_json::from_slice(&body).with_context(|| format!("the answer of http://{addr}{path}"))
}

/// Gets `path` (with its query) from `addr` (`host:port`) and reads the body as a text.
///
/// # Errors
/// If nobody answers within 5 s, the status is not 200, or the body is no text.
pub async fn get_text(addr: &str, path: &str) -> anyhow::Result<String> {
    let body = get_body(addr, path).await?;
    String::from_utf8(body).with_context(|| format!("the answer of http://{addr}{path}"))
}

async fn get_body(addr: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    timeout(LIMIT, get(addr, path))
        .await
        .map_err(|_| anyhow!("no answer within {} s", LIMIT.as_secs()))
        .and_then(|result| result)
        .with_context(|| format!("asking http://{addr}{path}"))
}

/// Gets `path` from `addr` (`host:port`) as it is.
///
/// # Errors
/// If nobody answers within `limit`, or the status is not 200.
pub async fn get_bytes(addr: &str, path: &str, limit: Duration) -> anyhow::Result<Vec<u8>> {
    timeout(limit, get(addr, path))
        .await
        .map_err(|_| anyhow!("no answer within {limit:?}"))
        .and_then(|result| result)
        .with_context(|| format!("asking http://{addr}{path}"))
}

async fn get(addr: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
    if read as u64 > MAX_ANSWER {
        bail!("the answer has more than {MAX_ANSWER} bytes");
    }
    let (head, body) = split(&answer)?;
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        bail!("it answered '{line}': {}", String::from_utf8_lossy(body).trim());
    }
    Ok(body.to_vec())
}

/// Head and body of an answer. A body cut short is an error if its length was announced.
fn split(answer: &[u8]) -> anyhow::Result<(&str, &[u8])> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("it is no HTTP answer")?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    let head = std::str::from_utf8(head).context("it is no HTTP answer")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    if let Some(length) = length {
        let length = length.context("it is no HTTP answer")?;
        if body.len() < length {
            bail!("the answer ends after {} of {length} bytes", body.len());
        }
    }
    Ok((head, body))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answered_with(text: &'static str) -> anyhow::Result<serde_json::Value> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("addr").to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.expect("request");
            stream.write_all(text.as_bytes()).await.expect("answer");
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let result = get_json(&addr, "/trace?volume=v").await;
        let request = server.await.expect("server");
        assert!(request.starts_with("GET /trace?volume=v HTTP/1.0\r\n"), "{request}");
        result
    }

    #[tokio::test]
    async fn a_document_is_read() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"a\": 1}";
        assert_eq!(answered_with(answer).await.expect("reads"), serde_json::json!({"a": 1}));
    }

    #[tokio::test]
    async fn what_is_wrong_is_told() {
        for (answer, part) in [
            ("HTTP/1.1 404 Not Found\r\n\r\nno such page", "no such page"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}", "2 of 100 bytes"),
            ("SSH-2.0-OpenSSH\r\n", "no HTTP answer"),
            ("HTTP/1.1 200 OK\r\n\r\nnonsense", "the answer of"),
        ] {
            let error = format!("{:#}", answered_with(answer).await.expect_err(answer));
            assert!(error.contains(part), "{error}");
        }
    }
}
