//! `sbkctl volume recover` on real processes: what it refuses, what it does, and that no client goes on
//! as if nothing had happened.

use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::NbdClient;
use sbk_proto::v1::CreateVolumeRequest;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;

struct Scene {
    cluster: DevCluster,
    masters: String,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().to_owned()).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        let cluster = DevCluster::start(options).await.expect("starts");
        let masters = cluster.file().master_addrs().join(",");
        let request = CreateVolumeRequest {
            id: Uuid::new_v4().as_bytes().to_vec().into(),
            name: "v".to_owned(),
            size_bytes: 16 << 20,
            replicas: 3,
            min_in_sync: 1,
            ..CreateVolumeRequest::default()
        };
        cluster.client().create_volume(request).await.expect("creates");
        let scene = Self { cluster, masters, dir };
        scene.wait("all in sync", |view| view.is_whole()).await;
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

    fn sbkctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(["--masters", &self.masters])
            .args(args)
            .env("XDG_STATE_HOME", self.dir.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("runs")
    }

    /// What a recovery of these nodes answers: its code and its words.
    fn recover(&self, off: &[&str], yes: bool) -> (i32, String) {
        let mut args = vec!["volume", "recover", "v", "--accept-data-loss"];
        off.iter().for_each(|node| args.extend(["--node-off", node]));
        if yes {
            args.push("--yes");
        }
        let output = self.sbkctl(&args);
        let words = [output.stdout, output.stderr].concat();
        (output.status.code().expect("a code"), String::from_utf8(words).expect("utf-8"))
    }

    fn nbd(&self, node: &str) -> String {
        let all = &self.cluster.file().datanodes;
        all.iter().find(|d| d.id == node).expect("a datanode").nbd.clone()
    }
}

fn filled(byte: u8) -> Bytes {
    Bytes::from(vec![byte; BLOCK])
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_given_up_on_an_operators_word_and_no_client_goes_on_in_silence() {
    let mut scene = Scene::set().await;
    let view = scene.wait("a primary", |view| view.primary.is_some()).await;
    let primary = view.primary.clone().expect("there is one");
    let others: Vec<_> = view.isr.iter().filter(|node| **node != primary).cloned().collect();
    let [stale, member] = &others[..] else { panic!("three replicas: {view:?}") };
    // A client on a node that outlives its members.
    let client = NbdClient::connect(&scene.nbd(&primary), "v").await.expect("connects");
    client.write(0, filled(1)).await.expect("writes");
    scene.cluster.kill_datanode(stale).expect("kills");
    scene.wait("one left", |view| view.isr.len() == 2 && view.serving).await;
    client.write(0, filled(2)).await.expect("writes");
    client.disconnect().await;
    scene.cluster.kill_datanode(&primary).expect("kills");
    scene.cluster.kill_datanode(member).expect("kills");
    scene.cluster.start_datanode(stale).expect("starts");
    // Whether the second was killed as a member or as the primary that it had just become.
    let waits = scene.wait("the volume to wait", |view| view.reason.contains("waits for")).await;
    assert!(waits.isr.iter().all(|node| waits.reason.contains(node)), "{waits:?}");
    assert!(!waits.serving && waits.isr.contains(member), "{waits:?}");

    let (code, words) = scene.recover(&[&primary], true);
    assert_eq!(code, 1, "an in-sync replica is not named: {words}");
    assert!(words.contains(member), "{words}");
    let (code, words) = scene.recover(&[&primary, member, stale], true);
    assert_eq!(code, 1, "one of them lives: {words}");
    // The masters have to miss the nodes that are off, and to hear what the one that is left holds.
    // Then there is only the question left, and no terminal to ask it.
    let asks = wait::until("the question", LIMIT, async || {
        let (code, words) = scene.recover(&[&primary, member], false);
        Ok(if code == 2 { Look::Done(words) } else { Look::NotYet(words) })
    });
    let words = asks.await.expect("is asked");
    assert!(words.contains("--yes"), "{words}");
    assert!(!scene.wait("still", |_| true).await.serving, "nothing was done");
    let (code, words) = scene.recover(&[&primary, member], true);
    assert_eq!(code, 0, "{words}");
    assert!(words.contains(stale) && words.contains("loss 1"), "{words}");
    let after = scene.wait("it serves", |view| view.serving).await;
    assert_eq!((after.loss_generation, &after.isr), (1, &vec![stale.clone()]));
    let client = NbdClient::connect(&scene.nbd(stale), "v").await.expect("attaches anew");
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(1), "what it held");
    client.write(BLOCK as u64, filled(3)).await.expect("writes");
    scene.cluster.start_datanode(&primary).expect("starts");
    scene.cluster.start_datanode(member).expect("starts");
    scene.wait("all in sync again", |view| view.is_whole()).await;
    let verified = scene.sbkctl(&["volume", "verify", "v"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let (code, words) = scene.recover(&[], true);
    assert_eq!(code, 1, "nothing is lost: {words}");
    client.disconnect().await;
    scene.cluster.stop().await.expect("stops");
}

/// A client attached through the node that stays sees errors, and serves again once it connects
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_before_a_loss_gets_errors_until_it_connects_again() {
    let mut scene = Scene::set().await;
    let view = scene.wait("a primary", |view| view.primary.is_some()).await;
    let primary = view.primary.clone().expect("there is one");
    let others: Vec<_> = view.isr.iter().filter(|node| **node != primary).cloned().collect();
    let [stays, member] = &others[..] else { panic!("three replicas: {view:?}") };
    let client = NbdClient::connect(&scene.nbd(stays), "v").await.expect("connects");
    client.write(0, filled(1)).await.expect("writes");
    // Frozen, the replica that stays leaves the set; its frontend keeps its client.
    let pid = |node: &str| {
        let all = &scene.cluster.file().datanodes;
        let pid = all.iter().find(|d| d.id == node).expect("a datanode").pid;
        rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid")
    };
    let stays_pid = pid(stays);
    let signal = |signal| rustix::process::kill_process(stays_pid, signal).expect("signals");
    signal(rustix::process::Signal::STOP);
    scene.wait("it left", |view| !view.isr.contains(stays)).await;
    scene.cluster.kill_datanode(&primary).expect("kills");
    scene.cluster.kill_datanode(member).expect("kills");
    signal(rustix::process::Signal::CONT);
    let done = wait::until("the recovery", LIMIT, async || {
        let (code, words) = scene.recover(&[&primary, member], true);
        Ok(if code == 0 { Look::Done(()) } else { Look::NotYet(words) })
    });
    done.await.expect("recovers");
    scene.wait("it serves", |view| view.serving).await;
    assert!(client.read(0, BLOCK as u32).await.is_err(), "a read of what may have been lost");
    assert!(client.write(0, filled(2)).await.is_err(), "a write over it");
    assert!(client.flush().await.is_err(), "a flush of it");
    let again = NbdClient::connect(&scene.nbd(stays), "v").await.expect("connects");
    again.read(0, BLOCK as u32).await.expect("reads");
    again.flush().await.expect("flushes");
    again.disconnect().await;
    client.disconnect().await;
    scene.cluster.stop().await.expect("stops");
}
