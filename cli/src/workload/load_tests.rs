//! The client and the load against a small NBD server in memory, a correct one and ones that lie.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::super::nbd::NbdError;
use super::*;

const SIZE: usize = 64 * BLOCK;

/// How the server misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    None,
    /// Acknowledges the writes from the 250th on without doing them.
    LoseWrites,
    /// Answers the 50th write with EIO.
    Fail,
    /// Closes the connection at the 50th write.
    Close,
}

/// Starts a server for one connection; its address.
async fn serve(lie: Lie) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr").to_string();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept");
        // The client's end ends the connection; what is left unsaid then is of no interest.
        drop(session(stream, lie).await);
    });
    addr
}

async fn session(mut s: TcpStream, lie: Lie) -> std::io::Result<()> {
    s.write_all(b"NBDMAGICIHAVEOPT").await?;
    s.write_u16(3).await?;
    s.read_u32().await?;
    s.read_u64().await?;
    assert_eq!(s.read_u32().await?, 7, "the client says GO");
    let mut option = vec![0; s.read_u32().await? as usize];
    s.read_exact(&mut option).await?;
    let known = &option[4..option.len() - 2] == b"vol";
    let reply = async |s: &mut TcpStream, kind: u32, data: &[u8]| {
        s.write_u64(0x0003_e889_0455_65a9).await?;
        s.write_u32(7).await?;
        s.write_u32(kind).await?;
        s.write_u32(data.len() as u32).await?;
        s.write_all(data).await
    };
    if !known {
        return reply(&mut s, 0x8000_0006, b"no such volume").await;
    }
    let mut info = vec![0, 0];
    info.extend_from_slice(&(SIZE as u64).to_be_bytes());
    info.extend_from_slice(&1u16.to_be_bytes());
    reply(&mut s, 3, &info).await?;
    reply(&mut s, 1, &[]).await?;
    transmission(&mut s, lie).await
}

async fn transmission(s: &mut TcpStream, lie: Lie) -> std::io::Result<()> {
    let mut image = vec![0; SIZE];
    let writes = AtomicU64::new(0);
    loop {
        assert_eq!(s.read_u32().await?, 0x2560_9513);
        let (_, kind) = (s.read_u16().await?, s.read_u16().await?);
        let handle = s.read_u64().await?;
        let (offset, length) = (s.read_u64().await? as usize, s.read_u32().await? as usize);
        let mut errno = 0;
        let mut data = Vec::new();
        match kind {
            0 => data = image[offset..offset + length].to_vec(),
            1 => {
                let mut payload = vec![0; length];
                s.read_exact(&mut payload).await?;
                let count = writes.fetch_add(1, Ordering::Relaxed) + 1;
                let turn = count.is_multiple_of(50);
                match lie {
                    Lie::LoseWrites if count >= 250 => {}
                    Lie::Fail if turn => errno = 5,
                    Lie::Close if turn => return Ok(()),
                    _ => image[offset..offset + length].copy_from_slice(&payload),
                }
            }
            3 => {}
            2 => return Ok(()),
            other => panic!("command {other}"),
        }
        s.write_u32(0x6744_6698).await?;
        s.write_u32(errno).await?;
        s.write_u64(handle).await?;
        s.write_all(&data).await?;
    }
}

async fn run(lie: Lie) -> (LoadStats, Arc<History>, NbdClient) {
    let client = NbdClient::connect(&serve(lie).await, "vol").await.expect("connects");
    assert_eq!(client.size(), SIZE as u64);
    let history = Arc::new(History::new(Uuid::new_v4()));
    let options = LoadOptions { blocks: 64, ..LoadOptions::default() };
    let load = Load::start(client.clone(), Arc::clone(&history), options).expect("starts");
    let enough = |s: &LoadStats| (s.writes > 500 && s.reads > 50) || s.errors > 0;
    crate::wait::until("a load", Duration::from_secs(60), async || {
        let stats = load.stats();
        let look = if enough(&stats) {
            crate::wait::Look::Done(())
        } else {
            crate::wait::Look::NotYet(format!("{stats:?}"))
        };
        Ok(look)
    })
    .await
    .expect("runs");
    let stats = load.stop(Duration::from_secs(60)).await.expect("stops");
    (stats, history, client)
}

#[tokio::test]
async fn a_correct_server_passes() {
    let (stats, history, client) = run(Lie::None).await;
    assert_eq!((stats.errors, &stats.first_error), (0, &None));
    client.flush().await.expect("flushes");
    read_back(&client, &history, 64, |_| ()).await.expect("reads");
    assert_eq!(history.check(), []);
    assert!(history.acknowledged() >= stats.writes);
    client.disconnect().await;
}

#[tokio::test]
async fn lost_writes_are_found() {
    let (_, history, client) = run(Lie::LoseWrites).await;
    read_back(&client, &history, 64, |_| ()).await.expect("reads");
    assert_ne!(history.check(), []);
}

#[tokio::test]
async fn an_error_is_counted_and_named() {
    let (stats, _, _) = run(Lie::Fail).await;
    assert!(stats.errors > 0);
    let first = stats.first_error.expect("a text");
    assert!(first.contains("error 5"), "{first}");
}

#[tokio::test]
async fn a_connection_that_ends_fails_everything_in_flight() {
    let (stats, _, client) = run(Lie::Close).await;
    assert!(stats.errors > 0);
    let error = client.read(0, 4096).await.expect_err("ended");
    assert!(matches!(error, NbdError::Ended { .. }), "{error}");
}

#[tokio::test]
async fn an_unknown_export_is_refused_in_the_servers_words() {
    let error = NbdClient::connect(&serve(Lie::None).await, "other").await.expect_err("refused");
    assert!(error.to_string().contains("no such volume"), "{error}");
}
