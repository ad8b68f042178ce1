//! How long NBD clients may do nothing, on a clock that jumps ahead whenever all wait; and how long
//! their requests are held.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use sbk_datanode::catalogue::{Catalogue, Volume};
use sbk_datanode::frontend::Frontends;
use sbk_datanode::frontend::nbd::{self, AtStop};
use sbk_datanode::volume::Registry;
use sbk_engine::authority::Limits;
use sbk_engine::forward::Params;
use sbk_engine::types::{NodeId, VolumeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const READ: u16 = 0;
const WRITE: u16 = 1;
const MAX: u32 = 32 << 20;
const VOLUMES: u128 = 4;
/// Volumes with limits.
const LIMITED: std::ops::Range<u128> = 10..20;

/// A server of volumes that have no primary: requests wait.
async fn server() -> SocketAddr {
    server_within(Params::default()).await
}

async fn server_within(params: Params) -> SocketAddr {
    let volume = |n: u128| Volume {
        retired: BTreeMap::new(),
        wish: sbk_engine::types::Wish::default(),
        limits: Limits { bandwidth: (n >= LIMITED.start).then_some(2 << 20), ..Limits::default() },
        id: VolumeId(Uuid::from_u128(n)),
        name: format!("vol{n}"),
        blocks: 1 << 20,
        created_blocks: 1 << 20,
        encrypted: false,
        replicas: BTreeMap::new(),
        config: None,
        deleted: false,
    };
    let volumes =
        (0..VOLUMES).chain(LIMITED).map(volume).map(|volume| (volume.id, Arc::new(volume)));
    let catalogue = Catalogue { volumes: volumes.collect(), heard: true };
    let (told, watched) = watch::channel(Arc::new(catalogue));
    let frontends =
        Frontends::new(watched, Registry::default(), NodeId(Uuid::from_u128(9)), params);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let stop = CancellationToken::new();
        nbd::serve(frontends, listener, None, stop, AtStop::Answer)
            .await
            .expect("nothing to flush");
        drop(told);
    });
    addr
}

async fn greeted(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    stream.read_exact(&mut [0; 18]).await.expect("is greeted");
    stream
}

/// In the transmission phase of the first volume.
async fn export(addr: SocketAddr) -> TcpStream {
    export_of(addr, 0).await
}

/// In the transmission phase of one of the volumes.
async fn export_of(addr: SocketAddr, volume: u128) -> TcpStream {
    let mut stream = greeted(addr).await;
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT");
    let name = format!("vol{volume}");
    bytes.extend(1u32.to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name.as_bytes());
    stream.write_all(&bytes).await.expect("sends");
    stream.read_exact(&mut [0; 10]).await.expect("agrees");
    stream
}

fn header(command: u16, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(command.to_be_bytes());
    bytes.extend([0; 16]);
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Waits until the server hangs up; how long that took on the clock that jumps.
async fn ends(mut stream: TcpStream) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    // A reset is an end too.
    let _end = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, Vec::<u8>::new());
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_negotiate_is_not_waited_for() {
    let addr = server().await;
    let silent = greeted(addr).await;
    assert!(ends(silent).await >= Duration::from_secs(20), "a slow client has some time");
    // A byte now and then is no progress either.
    let mut slow = greeted(addr).await;
    let started = Instant::now();
    let flags_and_magic = [&3u32.to_be_bytes()[..], b"IHAVEOPT"].concat();
    let mut sent = 0;
    for byte in flags_and_magic.iter().cycle() {
        sleep(Duration::from_secs(5)).await;
        if slow.write_all(&[*byte]).await.is_err() {
            break;
        }
        sent += 1;
        assert!(sent < 100, "it is waited for, for {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_may_pause_as_long_as_nobody_waits_for_its_memory() {
    let addr = server().await;
    let mut idle = export(addr).await;
    let mut half = export(addr).await;
    half.write_all(&header(WRITE, MAX)).await.expect("sends");
    half.write_all(&[1; 1000]).await.expect("sends");
    sleep(Duration::from_secs(3600)).await;
    for stream in [&mut idle, &mut half] {
        stream.write_all(&[1; 1000]).await.expect("the connection stands");
        let mut byte = [0];
        let silence = tokio::time::timeout(Duration::from_secs(1), stream.peek(&mut byte)).await;
        // The idle one said what is no request, an hour later: that ends it.
        assert!(silence.is_err() || matches!(silence, Ok(Ok(0))), "{silence:?}");
    }
    let mut byte = [0];
    let open = tokio::time::timeout(Duration::from_secs(1), half.peek(&mut byte)).await;
    assert!(open.is_err(), "the paused client lost its connection: {open:?}");
}

#[tokio::test(start_paused = true)]
async fn clients_that_pause_with_all_the_memory_lose_their_connections() {
    let addr = server().await;
    // Seven times 32 MiB and what the requests cost themselves are 256 MiB but for a little. And each volume
    // has room for one.
    const ALL: u128 = 7 + VOLUMES;
    let (mut stalled, mut waiting) = (Vec::new(), Vec::new());
    for n in 0..ALL + 2 {
        let mut stream = export_of(addr, n % VOLUMES).await;
        stream.write_all(&header(WRITE, MAX)).await.expect("sends");
        stream.write_all(&[1; 1000]).await.expect("sends");
        if n < ALL { stalled.push(stream) } else { waiting.push(stream) }
    }
    // As many as it takes for the other two lose theirs.
    let mut ending: FuturesUnordered<_> = stalled.into_iter().map(ends).collect();
    for _ in 0..2 {
        let ended = ending.next().await.expect("there are some");
        assert!(ended < Duration::from_secs(60), "{ended:?}");
    }
    // Those that waited have the memory now, and nobody waits for it.
    sleep(Duration::from_secs(3600)).await;
    for mut stream in waiting {
        stream.write_all(&[1; 1000]).await.expect("the connection stands");
        let mut byte = [0];
        let open = tokio::time::timeout(Duration::from_secs(1), stream.peek(&mut byte)).await;
        assert!(open.is_err(), "a client lost its connection: {open:?}");
    }
}

/// A read in the middle of nowhere is refused as soon as there is memory for it.
async fn is_read_on(mut stream: TcpStream) {
    let mut read = header(READ, MAX);
    read[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
    stream.write_all(&read).await.expect("sends");
    let mut reply = [0; 16];
    let answered = tokio::time::timeout(Duration::from_secs(600), stream.read_exact(&mut reply));
    answered.await.expect("there is memory for it").expect("is answered");
    assert_eq!(reply[4..8], 22_u32.to_be_bytes(), "EINVAL");
}

#[tokio::test(start_paused = true)]
async fn clients_of_volumes_without_a_primary_leave_memory_for_others() {
    let addr = server().await;
    let mut waiting = Vec::new();
    for without in 0..3 {
        // What they ask waits in whole, so they are not to blame: as much as there is for all volumes.
        for _ in 0..9 {
            let mut stream = export_of(addr, without).await;
            stream.write_all(&header(READ, MAX)).await.expect("sends");
            waiting.push(stream);
        }
        sleep(Duration::from_secs(5)).await;
        is_read_on(export_of(addr, 3).await).await;
    }
    for stream in waiting {
        let silent = stream.try_read(&mut [0]).expect_err("it waits for a primary");
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// Each could fill its share, and all of them the whole: they get half of it, and of it a second's worth each.
#[tokio::test(start_paused = true)]
async fn clients_of_volumes_with_limits_leave_memory_for_others() {
    let addr = server().await;
    let mut waiting = Vec::new();
    for volume in LIMITED {
        for _ in 0..4 {
            let mut stream = export_of(addr, volume).await;
            stream.write_all(&header(READ, MAX)).await.expect("sends");
            waiting.push(stream);
        }
    }
    sleep(Duration::from_secs(5)).await;
    for volume in 0..VOLUMES {
        is_read_on(export_of(addr, volume).await).await;
    }
    for stream in waiting {
        let silent = stream.try_read(&mut [0]).expect_err("it waits for a primary");
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// On the clock that runs, which the sessions' requests are timed by.
#[tokio::test]
async fn a_request_is_held_as_long_as_was_said() {
    let ask = async |timeout| {
        let mut stream = export(server_within(Params::giving_up_after(timeout)).await).await;
        stream.write_all(&header(READ, 4096)).await.expect("sends");
        stream
    };
    let given_up = async |mut stream: TcpStream| {
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).await.expect("is answered");
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        assert_eq!(reply[4..8], 5_u32.to_be_bytes(), "EIO");
        Instant::now()
    };
    let started = Instant::now();
    let (short, long) = (Duration::from_millis(300), Duration::from_millis(900));
    let for_ever = ask(Duration::ZERO).await;
    let (first, second) =
        tokio::join!(async { given_up(ask(short).await).await - started }, async {
            given_up(ask(long).await).await - started
        },);
    assert!(short <= first && long <= second, "{first:?}, {second:?}");
    let nothing = for_ever.try_read(&mut [0]).expect_err("it is not given up");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}
