//! Datanodes with two disks each, on real processes: replicas on both, one that is added, one that is not
//! mounted at a start or any more, and one with the newest count of starts that is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::dev::cluster::{DevCluster, Options, data_dir};
use sbk_cli::view::{MemberView, NodeView, VolumeView, id_text};
use sbk_cli::wait::{Look, answered, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{
    self, LIMIT, all_equal, ended, in_sync, node, restart, stop, volume, volume_of,
};

const VOLUME: u64 = 64 << 20;

fn options(dir: &Path, replace_after: u64) -> Options {
    Options {
        capacity: Some(1 << 40),
        wal_retain: Some(4 << 20),
        replace_after: Some(Duration::from_secs(replace_after)),
        ..clusters::options(env!("CARGO_BIN_EXE_sbk-tests-ctl"), dir, 3)
    }
}

async fn create(cluster: &DevCluster, name: &str) {
    clusters::create(cluster, volume_of(name, VOLUME)).await;
}

/// The replicas in a data directory, as their directories are named.
fn replicas(dir: &Path) -> BTreeSet<String> {
    let listed = fs::read_dir(dir.join("replicas")).expect("lists");
    listed.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

/// A data directory out of its place, as when its disk is not mounted.
struct Unmounted(PathBuf, PathBuf);

impl Unmounted {
    fn take(dir: &Path) -> Self {
        let aside = dir.with_extension("aside");
        fs::rename(dir, &aside).expect("renames");
        fs::create_dir(dir).expect("an empty mount point");
        Self(dir.to_owned(), aside)
    }

    fn mount(self) {
        fs::remove_dir(&self.0).expect("nothing was made in it");
        fs::rename(&self.1, &self.0).expect("renames");
    }
}

async fn write(client: &NbdClient, byte: u8) {
    for at in (0..VOLUME).step_by(8 << 20) {
        client.write(at, Bytes::from(vec![byte; 64 << 10])).await.expect("writes");
    }
}

async fn read(client: &NbdClient, byte: u8) {
    for at in (0..VOLUME).step_by(8 << 20) {
        let read = client.read(at, 64 << 10).await.expect("reads");
        assert!(read.iter().all(|b| *b == byte), "at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_disk_that_fails_are_made_anew_on_the_others() {
    let dir = tempfile::tempdir().expect("dir");
    // A node of one directory gets another one.
    let mut cluster = DevCluster::start(options(dir.path(), 600)).await.expect("starts");
    create(&cluster, "first").await;
    in_sync(&cluster, "first").await;
    cluster.stop().await.expect("stops");
    let two = Options { disks: 2, ..options(dir.path(), 10) };
    cluster = DevCluster::start(two).await.expect("starts");
    for name in ["second", "third", "fourth"] {
        create(&cluster, name).await;
    }
    let names = ["first", "second", "third", "fourth"];
    let mut primaries = BTreeMap::new();
    for name in names {
        let whole = in_sync(&cluster, name).await;
        primaries.insert(whole.id.clone(), (name, whole.primary.expect("there is one")));
    }
    let nodes = cluster.file().datanodes.clone();
    for number in 1..=3 {
        let on = |disk| replicas(&data_dir(dir.path(), number, disk));
        assert_eq!((on(1).len(), on(2).len()), (2, 2), "they are spread over both");
    }

    // One goes that has a primary; a client of it, by way of another node, sees a pause at most.
    let (number, lost, failed) = (1..=3)
        .find_map(|number| {
            let here = replicas(&data_dir(dir.path(), number, 2));
            let id = &nodes[number as usize - 1].id;
            let ids = here.iter().map(|name| name.split_once('.').expect("two ids").0);
            let mut primary = ids.filter(|volume| primaries[*volume].1 == *id);
            let first = primary.next().map(str::to_owned);
            first.map(|volume| (number, here.clone(), volume))
        })
        .unwrap_or_else(|| {
            let here = replicas(&data_dir(dir.path(), 1, 2));
            let id = here.iter().next().expect("there is one").split_once('.').expect("two").0;
            (1, here.clone(), id.to_owned())
        });
    let (name, id) = (primaries[&failed].0, nodes[number as usize - 1].id.clone());
    let via = nodes.iter().find(|node| node.id != id).expect("three nodes");
    let client = NbdClient::connect(&via.nbd, name).await.expect("connects");
    write(&client, 1).await;
    let whole_node = node(&cluster, &id, "its disks", |view| view.disks.len() == 2).await;
    let second = data_dir(dir.path(), number, 2);
    let unmounted = Unmounted::take(&second);
    let told = node(&cluster, &id, "a failed disk", |view| !view.disks[1].fault.is_empty()).await;
    assert!(told.alive && told.disks[0].fault.is_empty(), "{told:?}");
    assert!(told.disks[1].fault.contains("not mounted"), "{told:?}");
    assert_eq!(told.capacity_bytes * 2, whole_node.capacity_bytes);
    write(&client, 2).await;
    for name in names {
        let masters = cluster.client();
        until(format!("{name} to be whole on other disks"), LIMIT, async || {
            answered(masters.get_volume(name).await, |info| {
                let here = |replica| format!("{}.{}", id_text(&info.id), id_text(replica));
                let mut members = info.members.iter();
                let anew = members.all(|member| !lost.contains(&here(&member.replica)));
                match anew && info.members.len() == 3 && VolumeView::of(&info).is_whole() {
                    true => Look::Done(()),
                    false => Look::NotYet(format!("{info:?}")),
                }
            })
        })
        .await
        .expect("comes about");
    }
    assert_eq!(replicas(&data_dir(dir.path(), number, 1)).len(), 4, "all of them are on the other");
    assert_eq!(
        fs::read_dir(&second).expect("lists").count(),
        0,
        "nothing is made in the mount point"
    );
    let after = node(&cluster, &id, "the node", |_| true).await;
    assert_eq!(after.incarnation, whole_node.incarnation, "the process is the same");
    read(&client, 2).await;

    // It is back: what was replaced meanwhile is removed, and it is used again.
    unmounted.mount();
    node(&cluster, &id, "the disk", |view| view.disks.iter().all(|d| d.fault.is_empty())).await;
    until("what was replaced to be removed", LIMIT, async || {
        let left = replicas(&second);
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(format!("{left:?}")) })
    })
    .await
    .expect("goes");
    create(&cluster, "fifth").await;
    in_sync(&cluster, "fifth").await;
    assert_eq!(replicas(&second).len(), 1, "the emptier one");
    read(&client, 2).await;
    client.disconnect().await;
    for name in names {
        all_equal(&cluster, name).await;
    }
    cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_missing_at_a_start_is_neither_lost_nor_taken_for_a_new_one() {
    let dir = tempfile::tempdir().expect("dir");
    let two = Options { disks: 2, ..options(dir.path(), 600) };
    let mut cluster = DevCluster::start(two).await.expect("starts");
    for name in ["first", "second"] {
        create(&cluster, name).await;
    }
    for name in ["first", "second"] {
        in_sync(&cluster, name).await;
    }
    let id = cluster.file().datanodes[0].id.clone();
    let which = cluster.which(&id).expect("a node");
    let [first, second] = [1, 2].map(|disk| data_dir(dir.path(), 1, disk));
    let held = replicas(&second);
    stop(&mut cluster, which).await;
    let unmounted = Unmounted::take(&second);
    cluster.start_again(which).expect("starts");
    let told = node(&cluster, &id, "its new process", |view| {
        view.incarnation == 2 && view.disks.len() == 2 && !view.disks[1].fault.is_empty()
    });
    assert!(told.await.disks[1].fault.contains("--lost-dir"));
    let (volume_id, _) = held.first().expect("one").split_once('.').expect("two ids");
    let mut away = None;
    for name in ["first", "second"] {
        let view = volume(&cluster, name, "service", |view| view.serving).await;
        if view.id == volume_id {
            away = Some(name);
        } else {
            in_sync(&cluster, name).await;
        }
    }
    let away = away.expect("one of the two");
    volume(&cluster, away, "the reason", |view| {
        let told = |member: &MemberView| member.reason.contains("can't use the disk");
        view.isr.len() == 2 && view.members.iter().any(told)
    })
    .await;
    // Once more; the count goes on in the one that is there.
    restart(&mut cluster, &id).await;
    node(&cluster, &id, "its new process", |view| view.incarnation == 3 && view.alive).await;

    // Mounted while it runs: it is back, and in sync again, as it was.
    unmounted.mount();
    in_sync(&cluster, away).await;
    assert_eq!(replicas(&second), held);

    // Now the other way round, and further: the masters know a start that the directory that is left does
    // not. The process ends, and the next one counts on from there.
    stop(&mut cluster, which).await;
    let unmounted = Unmounted::take(&second);
    for incarnation in [4, 5] {
        cluster.start_again(which).expect("starts");
        let known = |view: &NodeView| view.incarnation == incarnation && view.alive;
        node(&cluster, &id, "its new process", known).await;
        stop(&mut cluster, which).await;
    }
    unmounted.mount();
    let unmounted = Unmounted::take(&first);
    cluster.start_again(which).expect("starts");
    let (status, log) = ended(&mut cluster, which).await;
    assert!(!status.success() && log.contains("the masters know process 5"), "{log}");
    cluster.start_again(which).expect("starts");
    node(&cluster, &id, "its new process", |view| view.incarnation == 6 && view.alive).await;
    unmounted.mount();
    for name in ["first", "second"] {
        in_sync(&cluster, name).await;
    }
    cluster.stop().await.expect("stops");
}
