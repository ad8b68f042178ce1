//! The read-only pages of a running master.

mod support;

use support::{eventually, spawn, spawn_unheard};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request; returns the status line's code and all that came.
async fn ask(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: sbk\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let code = answer.split(' ').nth(1)?.parse().ok()?;
    Some((code, answer))
}

#[tokio::test]
async fn pages_are_there_and_change_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = sbk_ports::kept(2);
    let cluster = format!("1=127.0.0.1:{}", ports[0]);
    let _member = spawn(&dir.path().join("m"), 1, ports[0], ports[1], &cluster, &[]);
    let ready = eventually("a ready member", || async {
        ask(ports[1], "GET", "/readyz").await.filter(|(code, _)| *code == 200)
    });
    assert!(ready.await.1.contains("leader 1"));
    for (path, expected) in [
        ("/", "sbkctl"),
        ("/status", "\"leads_with_quorum\":true"),
        ("/healthz", "ok"),
        ("/metrics", "sbk_master_leads 1"),
    ] {
        let (code, text) = ask(ports[1], "GET", path).await.expect("answers");
        assert_eq!(code, 200, "{path}");
        assert!(text.contains(expected), "{path}: {text}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for path in ["/", "/status", "/volumes/x"] {
            let (code, text) = ask(ports[1], method, path).await.expect("answers");
            assert_eq!(code, 501, "{method} {path}");
            assert!(text.contains("sbkctl"), "{method} {path}: {text}");
        }
    }
    assert_eq!(ask(ports[1], "GET", "/nothing").await.expect("answers").0, 404);
}

/// A disk for logs is full: that is no reason to end, and all members would at once.
#[tokio::test]
async fn a_member_whose_log_can_not_be_written_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = sbk_ports::kept(2);
    let cluster = format!("1=127.0.0.1:{}", ports[0]);
    let mut member = spawn_unheard(&dir.path().join("m"), 1, ports[0], ports[1], &cluster);
    let ready = eventually("a ready member", || async {
        ask(ports[1], "GET", "/readyz").await.filter(|(code, _)| *code == 200)
    });
    assert!(ready.await.1.contains("leader 1"));
    member.terminate();
    assert_eq!(member.ended().await.code(), Some(0));
}
