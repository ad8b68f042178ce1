//! Clusters of real processes as tests want them: how they are started, what is waited for until a cluster shows it, and
//! what has to hold in the end.
#![allow(clippy::missing_panics_doc)] // A test that can't go on ends.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use sbk_cli::commands::verify::compare;
use sbk_cli::dev::cluster::{DevCluster, Options, Which};
use sbk_cli::dev::plan::Wanted;
use sbk_cli::http::get_json;
use sbk_cli::view::{NodeView, VolumeView};
use sbk_cli::wait::{Look, answered, until};
use sbk_proto::v1::CreateVolumeRequest;
use serde_json::Value;
use uuid::Uuid;

/// How long any one thing may take on a machine that has other work.
pub const LIMIT: Duration = Duration::from_secs(120);

/// One master and so many datanodes in `dir`, with no volume. `ctl` is the binary that they run from.
pub fn options(ctl: &str, dir: &Path, datanodes: u64) -> Options {
    let mut options = Options::new(dir.to_owned()).expect("options");
    options.exe = ctl.into();
    options.limit = LIMIT;
    options.wanted = Wanted { masters: Some(1), datanodes: Some(datanodes), base_port: None };
    options
}

/// What asks for a volume of three replicas.
pub fn volume_of(name: &str, size_bytes: u64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        id: Uuid::new_v4().as_bytes().to_vec().into(),
        name: name.to_owned(),
        size_bytes,
        replicas: 3,
        ..CreateVolumeRequest::default()
    }
}

/// Creates a volume.
pub async fn create(cluster: &DevCluster, request: CreateVolumeRequest) {
    cluster.client().create_volume(request).await.expect("creates");
}

/// Waits until a volume is as it is to be; as it is then.
pub async fn volume(
    cluster: &DevCluster,
    name: &str,
    what: &str,
    right: impl Fn(&VolumeView) -> bool,
) -> VolumeView {
    let masters = cluster.client();
    until(what, LIMIT, async || {
        answered(masters.get_volume(name).await, |info| {
            let view = VolumeView::of(&info);
            if right(&view) { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
        })
    })
    .await
    .expect("comes about")
}

/// Waits until all replicas of a volume are in sync.
pub async fn in_sync(cluster: &DevCluster, name: &str) -> VolumeView {
    volume(cluster, name, "all in sync", VolumeView::is_whole).await
}

/// All replicas come to be in sync, and are equal.
pub async fn all_equal(cluster: &DevCluster, name: &str) {
    in_sync(cluster, name).await;
    let info = cluster.client().get_volume(name).await.expect("answers");
    let report = compare(&info, LIMIT).await.expect("compares");
    assert!(report.is_clean() && report.skipped.is_empty(), "{report:?}");
}

/// Waits until all nodes together are as they are to be, as the masters know them.
pub async fn nodes(
    cluster: &DevCluster,
    what: &str,
    right: impl Fn(&[NodeView]) -> bool,
) -> Vec<NodeView> {
    let masters = cluster.client();
    until(what, LIMIT, async || {
        answered(masters.list_nodes().await, |answer| {
            let views: Vec<_> = answer.nodes.iter().map(NodeView::of).collect();
            if right(&views) { Look::Done(views) } else { Look::NotYet(format!("{views:?}")) }
        })
    })
    .await
    .expect("comes about")
}

/// Waits until a node is as it is to be; as it is then.
pub async fn node(
    cluster: &DevCluster,
    id: &str,
    what: &str,
    right: impl Fn(&NodeView) -> bool,
) -> NodeView {
    let is = |view: &&NodeView| view.id == id;
    let of = |views: &[NodeView]| right(views.iter().find(is).expect("is known"));
    nodes(cluster, what, of).await.into_iter().find(|view| is(&view)).expect("is known")
}

/// Waits until a process's page is as it is to be. One that does not answer has just been started, or will be.
pub async fn page(http: &str, path: &str, what: &str, right: impl Fn(&Value) -> bool) -> Value {
    until(what, LIMIT, async || {
        let page: Value = match get_json(http, path).await {
            Ok(page) => page,
            Err(e) => return Ok(Look::NotYet(e.to_string())),
        };
        Ok(if right(&page) { Look::Done(page) } else { Look::NotYet(page.to_string()) })
    })
    .await
    .expect("comes about")
}

/// Waits until a process has ended: how, and the end of its log.
pub async fn ended(cluster: &mut DevCluster, which: Which) -> (ExitStatus, String) {
    until(format!("the end of {which}"), LIMIT, async || {
        let ended = cluster.how_ended(which);
        Ok(ended.map_or_else(|| Look::NotYet("it runs".into()), Look::Done))
    })
    .await
    .expect("ends")
}

/// Tells a process to end, and waits until it has, without an error.
pub async fn stop(cluster: &mut DevCluster, which: Which) {
    cluster.signal(which, Signal::TERM);
    let (status, log) = ended(cluster, which).await;
    assert!(status.success(), "{log}");
}

/// Ends a datanode and starts it again. The masters have heard the new process when this returns.
pub async fn restart(cluster: &mut DevCluster, id: &str) {
    let before = node(cluster, id, "the node", |_| true).await.incarnation;
    let which = cluster.which(id).expect("a node");
    stop(cluster, which).await;
    cluster.start_again(which).expect("starts");
    node(cluster, id, "its new process", |view| view.incarnation > before).await;
}

/// All that the datanodes of a cluster in `dir` have logged, in their order.
pub fn logs(cluster: &DevCluster) -> Vec<String> {
    let path = |n| cluster.dir().join(format!("logs/datanode-{n}.log"));
    let read = |n| std::fs::read_to_string(path(n)).expect("a log");
    (1..=cluster.file().datanodes.len()).map(read).collect()
}
