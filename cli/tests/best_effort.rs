//! A `best_effort` volume on real processes: the primary acknowledges alone and says how far the others
//! are behind; a failover that takes writes counts a loss, and whoever was attached before it is told;
//! a handover takes nothing.

mod support;

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::dev::plan::Wanted;
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::{NbdClient, NbdError};
use sbk_proto::v1;
use sbk_proto::v1::CreateVolumeRequest;
use serde_json::Value;
use support::freeze;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
/// The primary's leases last for a second from when they were renewed last.
const WITHIN_LEASES: Duration = Duration::from_millis(700);
/// EIO.
const EIO: u32 = 5;

struct Scene {
    cluster: DevCluster,
    dir: tempfile::TempDir,
    masters: String,
    /// A node without a replica: what is attached there outlives every failover.
    apart: String,
}

fn filled(byte: u8) -> Bytes {
    Bytes::from(vec![byte; BLOCK])
}

impl Scene {
    async fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().to_owned()).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        options.wanted = Wanted { masters: Some(1), datanodes: Some(4), base_port: None };
        let cluster = DevCluster::start(options).await.expect("starts");
        let request = CreateVolumeRequest {
            id: Uuid::new_v4().as_bytes().to_vec().into(),
            name: "v".to_owned(),
            size_bytes: 16 << 20,
            replicas: 3,
            durability: v1::Durability::BestEffort.into(),
            ..CreateVolumeRequest::default()
        };
        cluster.client().create_volume(request).await.expect("creates");
        let masters = cluster.file().master_addrs().join(",");
        let mut scene = Self { cluster, dir, masters, apart: String::new() };
        let view = scene.whole().await;
        let holds = |id: &String| view.members.iter().any(|m| m.node == *id);
        let nodes = scene.cluster.file().datanodes.iter();
        scene.apart = nodes.map(|d| d.id.clone()).find(|id| !holds(id)).expect("one of four");
        scene
    }

    async fn wait(&self, what: &str, right: impl Fn(&VolumeView) -> bool) -> VolumeView {
        let masters = self.cluster.client();
        wait::until(what, LIMIT, async || {
            wait::answered(masters.get_volume("v").await, |info| {
                let view = VolumeView::of(&info);
                if right(&view) { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
            })
        })
        .await
        .expect("comes about")
    }

    async fn whole(&self) -> VolumeView {
        self.wait("all in sync", VolumeView::is_whole).await
    }

    async fn attach(&self) -> NbdClient {
        let nodes = &self.cluster.file().datanodes;
        let apart = nodes.iter().find(|d| d.id == self.apart).expect("a datanode");
        NbdClient::connect(&apart.nbd, "v").await.expect("attaches")
    }

    fn pid(&self, node: &str) -> u32 {
        let all = &self.cluster.file().datanodes;
        all.iter().find(|d| d.id == node).expect("a datanode").pid
    }

    fn signal(&self, node: &str, signal: Signal) {
        let pid = self.pid(node);
        kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), signal).expect("signals");
    }

    fn sbkctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(["--masters", &self.masters])
            .args(args)
            .env("XDG_STATE_HOME", self.dir.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("runs")
    }

    /// How far the replicas are behind, by node, as `volume show` says.
    fn lag(&self) -> Vec<(String, u64)> {
        let shown = self.sbkctl(&["volume", "show", "v", "-o", "json"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        let members = shown["members"].as_array().expect("members").iter();
        let told = members.filter_map(|member| {
            Some((member["node"].as_str()?.to_owned(), member["lag_bytes"].as_u64()?))
        });
        told.collect()
    }

    /// Waits until all three replicas hold everything.
    async fn level(&self) {
        wait::until("nobody to be behind", LIMIT, async || {
            let lag = self.lag();
            let level = lag.len() == 3 && lag.iter().all(|(_, bytes)| *bytes == 0);
            Ok(if level { Look::Done(()) } else { Look::NotYet(format!("{lag:?}")) })
        })
        .await
        .expect("comes about");
    }

    /// All hold `before`. Both others stand still, and a write is acknowledged before anybody can have missed
    /// them: the primary was alone with it. They stand still when this returns. On a machine that is too busy
    /// for one write within a lease the write waits until they left, and all of it is begun once more: they
    /// hold that write when they are back.
    async fn acknowledged_alone(&self, client: &NbdClient, before: u8, byte: u8) -> VolumeView {
        for _ in 0..20 {
            client.write(0, filled(before)).await.expect("writes");
            let view = self.whole().await;
            self.level().await;
            let primary = view.primary.clone().expect("there is one");
            let others = view.isr.iter().filter(|node| **node != primary);
            let until = Instant::now() + WITHIN_LEASES;
            for node in others.clone() {
                freeze(self.pid(node)).await;
            }
            let write = client.write(0, filled(byte));
            tokio::pin!(write);
            if let Ok(done) = timeout_at(until, &mut write).await {
                done.expect("is acknowledged");
                return view;
            }
            others.for_each(|node| self.signal(node, Signal::CONT));
            write.await.expect("is acknowledged, if late");
        }
        panic!("no write was acknowledged within a lease");
    }
}

fn is_eio<T>(result: Result<T, NbdError>) -> bool {
    matches!(result, Err(NbdError::Request { errno: EIO, .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_acknowledges_alone_and_what_a_failover_takes_is_counted_and_told() {
    let mut scene = Scene::set().await;
    let client = scene.attach().await;
    let mut tries = 0;

    let view = scene.acknowledged_alone(&client, 1, 2).await;
    let primary = view.primary.clone().expect("there is one");
    wait::until("the lag to be told", LIMIT, async || {
        let lag = scene.lag();
        let behind = lag.iter().filter(|(node, bytes)| *node != primary && *bytes >= BLOCK as u64);
        Ok(if behind.count() == 2 { Look::Done(()) } else { Look::NotYet(format!("{lag:?}")) })
    })
    .await
    .expect("both are behind");
    let others: Vec<_> = view.isr.iter().filter(|node| **node != primary).cloned().collect();
    others.iter().for_each(|node| scene.signal(node, Signal::CONT));
    let whole = scene.whole().await;
    assert_eq!(whole.loss_generation, 0, "nothing was lost");
    scene.level().await;

    // And now the primary goes with what it alone has: what is under way to the others goes with them.
    let (primary, after) = loop {
        let view = scene.acknowledged_alone(&client, 2, 3).await;
        let primary = view.primary.clone().expect("there is one");
        let others: Vec<_> = view.isr.iter().filter(|node| **node != primary).cloned().collect();
        scene.cluster.kill_datanode(&primary).expect("kills");
        for node in &others {
            scene.cluster.kill_datanode(node).expect("kills");
            scene.cluster.start_datanode(node).expect("starts");
        }
        let moved = |view: &VolumeView| view.primary.as_ref() != Some(&primary);
        let after = scene.wait("another primary, or that nobody can be", |view| {
            if moved(view) { view.serving } else { view.isr.len() < 3 }
        });
        let after = after.await;
        if moved(&after) {
            break (primary, after);
        }
        // It had the time to have them leave, so that nobody but it holds all that was acknowledged.
        scene.cluster.start_datanode(&primary).expect("starts");
        assert_eq!(scene.whole().await.loss_generation, 0, "nothing was lost");
        tries += 1;
        assert!(tries < 10, "the others left each time: {after:?}");
    };
    assert_eq!(after.loss_generation, 1, "{after:?}");
    // Whoever was attached before is told, with everything that it does, until it attaches again.
    assert!(is_eio(client.read(0, BLOCK as u32).await), "a read of what may have been lost");
    assert!(is_eio(client.write(0, filled(4)).await), "a write over it");
    assert!(is_eio(client.flush().await), "a flush of it");
    let again = scene.attach().await;
    assert_eq!(again.read(0, BLOCK as u32).await.expect("reads"), filled(2), "write 3 is lost");
    again.write(0, filled(5)).await.expect("writes");
    again.flush().await.expect("flushes");
    assert!(is_eio(client.read(0, BLOCK as u32).await), "the old session stays closed");
    client.disconnect().await;

    // The primary of before comes back with a write that is no part of the volume any more.
    scene.cluster.start_datanode(&primary).expect("starts");
    let whole = scene.whole().await;
    assert_eq!(whole.loss_generation, 1, "{whole:?}");
    assert_eq!(again.read(0, BLOCK as u32).await.expect("reads"), filled(5));
    let verified = scene.sbkctl(&["volume", "verify", "v"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    again.disconnect().await;
    scene.cluster.stop().await.expect("stops");
}

/// Moved from node to node under load, with an acknowledgement of each write by its primary alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_handover_takes_no_write_and_ends_no_session() {
    let scene = Scene::set().await;
    let client = scene.attach().await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writer = {
        let (client, acknowledged) = (client.clone(), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            for n in 1..=u64::MAX {
                let data = Bytes::from([n.to_le_bytes(); BLOCK / 8].concat());
                client.write(n % 1024 * BLOCK as u64, data).await.expect("a write succeeds");
                acknowledged.store(n, Ordering::SeqCst);
            }
        })
    };
    let mut view = scene.whole().await;
    for _ in 0..3 {
        let from = view.primary.clone().expect("there is one");
        let to = view.isr.iter().find(|node| **node != from).expect("another one").clone();
        let before = acknowledged.load(Ordering::SeqCst);
        let moved = scene.sbkctl(&["volume", "move", "v", "--primary-to", &to]);
        assert_eq!(moved.status.code(), Some(0), "{moved:?}");
        let there = |view: &VolumeView| view.primary.as_ref() == Some(&to) && view.is_whole();
        view = scene.wait("it is there, and whole", there).await;
        assert_eq!(view.loss_generation, 0, "{view:?}");
        wait::until("writes at the new one", LIMIT, async || {
            let now = acknowledged.load(Ordering::SeqCst);
            Ok(if now > before { Look::Done(()) } else { Look::NotYet(format!("{now} writes")) })
        })
        .await
        .expect("they go on");
    }
    writer.abort();
    // The last one may have been under way.
    assert!(writer.await.expect_err("it was ended").is_cancelled());
    let last = acknowledged.load(Ordering::SeqCst);
    for block in 0..1024.min(last + 1) {
        let read = client.read(block * BLOCK as u64, BLOCK as u32).await.expect("the same session");
        let found = u64::from_le_bytes(read[..8].try_into().expect("eight bytes"));
        let newest = last - (last + 1024 - block) % 1024;
        assert!(found == newest || found == last + 1, "block {block}: {found}, not {newest}");
    }
    client.disconnect().await;
    scene.cluster.stop().await.expect("stops");
}
