//! What a process that goes on with a kernel device relies on, against real processes: it takes the volume from
//! the process before it, under the same name as often as it must, and from nobody else. The kernel's part is
//! played by a client that begins with the transmission phase.

use std::time::Duration;

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::NbdClient;
use sbk_datanode::frontend::nbd::{Direct, Left};
use sbk_datanode::frontend::{Attachment, Remote};
use sbk_engine::forward::Params;
use sbk_engine::types::{LossGeneration, SessionId, VolumeId};
use sbk_proto::v1::ResizeVolumeRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ENOSPC: u32 = 28;

struct Scene {
    cluster: DevCluster,
    volume: VolumeId,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().join("cluster")).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        options.volumes.push(VolumeSpec { name: "v".into(), size: 16 << 20 });
        let cluster = DevCluster::start(options).await.expect("starts");
        let masters = cluster.client();
        let volume = wait::until("all replicas to be in sync", LIMIT, async || {
            wait::answered(masters.get_volume("v").await, |info| {
                let view = VolumeView::of(&info);
                let whole = view.is_whole() && view.serving;
                if whole { Look::Done(info.id) } else { Look::NotYet(format!("{view:?}")) }
            })
        });
        let id: [u8; 16] = volume.await.expect("comes about").as_ref().try_into().expect("a UUID");
        Self { cluster, volume: VolumeId(Uuid::from_bytes(id)), _dir: dir }
    }

    /// As a process of its own does it: with a frontend of its own.
    async fn attach(
        &self,
        name: SessionId,
        follows: Option<Attachment>,
    ) -> Result<(Process, Attachment), String> {
        let remote = Remote::start(self.cluster.client(), self.volume, true, Params::default());
        remote.heard().await;
        let stop = CancellationToken::new();
        let attaching =
            Direct::attach(remote.frontends(), self.volume, name, follows, stop.clone());
        let (direct, attachment) = attaching.await?;
        Ok((Process { _remote: remote, direct, stop }, attachment))
    }

    /// Any other client, at a datanode.
    async fn client(&self, export: &str) -> Result<NbdClient, String> {
        let node = &self.cluster.file().datanodes[0];
        NbdClient::connect(&node.nbd, export).await.map_err(|error| error.to_string())
    }

    /// A client that would share the volume while another has it to itself is refused. A datanode that has no
    /// word of the primary for two seconds lets it in, and the primary refuses what it asks for then.
    async fn refused(&self) {
        wait::until("a client to be refused", LIMIT, async || {
            Ok(match self.client("v").await {
                Ok(client) => {
                    client.read(0, BLOCK as u32).await.expect_err("the volume is held");
                    client.disconnect().await;
                    Look::NotYet("it was let in".into())
                }
                Err(why) if why.contains("attached exclusively") => Look::Done(()),
                Err(why) => Look::NotYet(why),
            })
        })
        .await
        .expect("is refused");
    }
}

struct Process {
    _remote: Remote,
    direct: Direct,
    stop: CancellationToken,
}

type Served = (Result<Left, String>, Process);

impl Process {
    /// Serves a kernel; what becomes of it is told at the end.
    fn serve(self) -> (Kernel, JoinHandle<Served>, CancellationToken) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let Self { _remote, mut direct, stop } = self;
        let serving = tokio::spawn(async move {
            let left = direct.serve(ours).await.map_err(|error| error.to_string());
            (left, Process { _remote, direct, stop: CancellationToken::new() })
        });
        (Kernel { socket: theirs, cookie: 0 }, serving, stop)
    }
}

/// One request at a time, as the kernel frames them.
struct Kernel {
    socket: UnixStream,
    cookie: u64,
}

impl Kernel {
    async fn send(&mut self, kind: u16, offset: u64, length: usize, data: &[u8]) {
        self.cookie += 1;
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend((length as u32).to_be_bytes());
        request.extend(data);
        self.socket.write_all(&request).await.expect("is taken");
    }

    /// Sends a request and reads its answer: the error, and what was read.
    async fn ask(&mut self, kind: u16, offset: u64, length: usize, data: &[u8]) -> (u32, Vec<u8>) {
        self.send(kind, offset, length, data).await;
        assert_eq!(self.socket.read_u32().await.expect("an answer"), 0x6744_6698);
        let error = self.socket.read_u32().await.expect("an answer");
        assert_eq!(self.socket.read_u64().await.expect("an answer"), self.cookie);
        let mut read = vec![0; if kind == READ && error == 0 { length } else { 0 }];
        self.socket.read_exact(&mut read).await.expect("what was read");
        (error, read)
    }

    async fn write(&mut self, block: u64, byte: u8) -> u32 {
        self.ask(WRITE, block * BLOCK as u64, BLOCK, &[byte; BLOCK]).await.0
    }

    async fn read(&mut self, block: u64) -> Vec<u8> {
        let (error, data) = self.ask(READ, block * BLOCK as u64, BLOCK, &[]).await;
        assert_eq!(error, 0);
        data
    }
}

fn name() -> SessionId {
    SessionId(Uuid::new_v4())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_takes_the_device_from_the_one_before_it_and_from_nobody_else() {
    let scene = Scene::new().await;
    let (first, was) = scene.attach(name(), None).await.expect("attaches");
    assert_eq!(first.direct.bytes(), 16 << 20);
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CACHE, FAST_ZERO; not MULTI_CONN.
    assert_eq!(first.direct.flags(), 0b1100_0110_1101);
    let (mut old, serving, _) = first.serve();
    assert_eq!(old.write(0, 1).await, 0);
    assert_eq!(old.ask(FLUSH, 0, 0, &[]).await.0, 0);

    // It says nothing any more. Nobody shares the volume meanwhile.
    scene.refused().await;

    // The next one was killed before it learned that it is attached: another repeats what it asked.
    let (again, name_of_both) = (Some(was), name());
    let (killed, stands) = scene.attach(name_of_both, again).await.expect("attaches");
    assert_eq!(stands.generation, was.generation.next());
    drop(killed);
    let (next, repeated) = scene.attach(name_of_both, again).await.expect("attaches");
    assert_eq!(repeated, stands);
    let (mut kernel, served, stop) = next.serve();
    assert_eq!(kernel.read(0).await, [1; BLOCK]);
    assert_eq!(kernel.write(1, 2).await, 0);
    // What the old one had not asked for by then never happens.
    assert_ne!(old.write(0, 9).await, 0, "its attachment has ended");
    assert_eq!(kernel.read(0).await, [1; BLOCK]);
    drop((old, serving));

    // Stopped while the kernel goes on: what it asked is answered, and the volume stays its own.
    assert_eq!(kernel.write(2, 3).await, 0);
    stop.cancel();
    let (left, stopped) = served.await.expect("ends");
    assert_eq!(left, Ok(Left::Stopped));
    drop(stopped);
    scene.refused().await;

    // Named in another loss generation, it is not the same volume.
    let lost = LossGeneration(stands.loss_generation.0 + 1);
    let wrong = Attachment { loss_generation: lost, ..stands };
    let why = scene.attach(name(), Some(wrong)).await.err().expect("is refused");
    assert!(why.contains("may have been lost"), "{why}");

    // Another machine has it for a moment. Whatever it wrote, the device's user has not seen.
    let other = scene.client("v,exclusive").await.expect("takes the volume");
    other.write(0, Bytes::from(vec![7; BLOCK])).await.expect("writes");
    other.disconnect().await;
    let why = scene.attach(name(), Some(stands)).await.err().expect("is refused");
    assert!(why.contains("newer attachment"), "{why}");

    // A new device sees what is there. One that is disconnected leaves the volume to all.
    let (anew, over) = scene.attach(name(), None).await.expect("attaches");
    let (mut kernel, served, _) = anew.serve();
    for (block, byte) in [(0, 7), (1, 2), (2, 3)] {
        assert_eq!(kernel.read(block).await, [byte; BLOCK]);
    }
    kernel.send(DISCONNECT, 0, 0, &[]).await;
    let (left, ended) = served.await.expect("ends");
    assert_eq!(left, Ok(Left::InOrder));
    ended.direct.leave().await;
    scene.client("v").await.expect("there is room for all").disconnect().await;
    // It has left: others shared the volume in its own generation, and it is not gone on with.
    let why = scene.attach(name(), Some(over)).await.err().expect("is refused");
    assert!(why.contains("ended it"), "{why}");
    scene.cluster.stop().await.expect("stops");
}

/// The kernel can be told of another size, as no client that negotiated one can: what it asks for beyond the
/// size that it began with is served from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_follows_the_volumes_size() {
    let scene = Scene::new().await;
    let (process, _) = scene.attach(name(), None).await.expect("attaches");
    let mut sizes = process.direct.sizes(process.direct.bytes());
    let (mut kernel, served, _) = process.serve();
    let resize = async |size_bytes: u64| {
        let name_or_id = "v".to_owned();
        let request = ResizeVolumeRequest { name_or_id, size_bytes, shrink: true };
        scene.cluster.client().resize_volume(request).await.expect("is taken");
    };
    let last = (32 << 20) / BLOCK as u64 - 1;
    assert_eq!(kernel.write(last, 1).await, ENOSPC);
    resize(32 << 20).await;
    assert_eq!(sizes.next().await, 32 << 20);
    assert_eq!(kernel.write(last, 1).await, 0);
    assert_eq!(kernel.read(last).await, [1; BLOCK]);
    assert_eq!(kernel.write(last + 1, 1).await, ENOSPC);
    assert_eq!(kernel.ask(TRIM, last * BLOCK as u64, BLOCK, &[]).await.0, 0);
    resize(16 << 20).await;
    assert_eq!(sizes.next().await, 16 << 20);
    assert_eq!(kernel.write(last, 1).await, ENOSPC);
    kernel.send(DISCONNECT, 0, 0, &[]).await;
    let (left, ended) = served.await.expect("ends");
    assert_eq!(left, Ok(Left::InOrder));
    ended.direct.leave().await;
    scene.cluster.stop().await.expect("stops");
}
