//! `sbkctl dev --device`: a development cluster on block devices, which its directory knows again. On loop devices; where
//! none can be made this is skipped.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use sbk_cli::cluster_file::ClusterFile;
use sbk_cli::view::NodeView;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_master_client::MasterClient;
use sbk_process_tests::clusters::LIMIT;
use sbk_process_tests::devices;

const DEVICE: u64 = 256 << 20;

fn dev(dir: &Path, devices: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sbk-tests-ctl"));
    command.args(["dev", "--datanodes", "3", "--volume", "v:16MiB", "--dir"]).arg(dir);
    for device in devices {
        command.arg("--device").arg(device);
    }
    command.env_remove("SBK_MASTERS").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The command; killed when dropped, and its children with it.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Dev {
    async fn start(dir: &Path, devices: &[&Path]) -> (Self, ClusterFile) {
        let mut dev = Self(dev(dir, devices).spawn().expect("starts"));
        let file = until("the cluster to serve", LIMIT, async || {
            assert_eq!(dev.0.try_wait().expect("is a child"), None, "it ended");
            Ok(ClusterFile::read(dir).map_or_else(|e| Look::NotYet(e.to_string()), Look::Done))
        });
        let file = file.await.expect("serves");
        (dev, file)
    }

    async fn stop(mut self) -> ExitStatus {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("is told");
        until("the command to end", LIMIT, async || {
            let ended = self.0.try_wait()?;
            Ok(ended.map_or_else(|| Look::NotYet("it runs".into()), Look::Done))
        })
        .await
        .expect("ends")
    }
}

#[tokio::test]
async fn a_development_cluster_is_made_on_devices_and_found_there_again() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(made) = devices::make(dir.path(), 3, DEVICE) else { return };
    let cluster = dir.path().join("cluster");
    let paths: Vec<&Path> = made.iter().map(|device| device.path()).collect();
    let content = Bytes::from(vec![0x5b; 1 << 20]);

    let (first, file) = Dev::start(&cluster, &paths).await;
    let views = MasterClient::new(file.master_addrs()).list_nodes().await.expect("answers").nodes;
    let views: Vec<_> = views.iter().map(NodeView::of).collect();
    for (entry, device) in file.datanodes.iter().zip(&paths) {
        let view = views.iter().find(|view| view.id == entry.id).expect("is known");
        let on: Vec<_> = view.disks.iter().map(|disk| Path::new(&disk.path)).collect();
        assert_eq!(on, [*device], "its device, and no directory");
    }
    let client = NbdClient::connect(&file.datanodes[0].nbd, "v").await.expect("connects");
    client.write(0, content.clone()).await.expect("writes");
    client.disconnect().await;
    assert!(first.stop().await.success());

    // Its directory knows them.
    let (again, found) = Dev::start(&cluster, &[]).await;
    let ids = |file: &ClusterFile| {
        file.datanodes.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&found), ids(&file));
    let client = NbdClient::connect(&found.datanodes[1].nbd, "v").await.expect("connects");
    assert_eq!(client.read(0, 1 << 20).await.expect("reads"), content);
    client.disconnect().await;
    assert!(again.stop().await.success());

    // No datanode gets what is another's.
    let [one, two, three] = paths[..] else { panic!("three devices") };
    let refused = dev(&cluster, &[two, one, three]).output().expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("has its disks already"), "{said}");
}
