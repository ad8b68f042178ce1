//! A whole cluster of real processes, through the same doors that `sbkctl dev` and the drills use.

use std::sync::Arc;
use std::time::Duration;

use sbk_cli::args::{DrillArgs, VolumeSpec};
use sbk_cli::cluster_file::{ClusterFile, is_running};
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::drill::bench::Bench;
use sbk_cli::drill::failover::{self, Fault};
use sbk_cli::drill::routes::{self, Route, SMALL_WAL};
use sbk_cli::drill::target::Target;
use sbk_cli::workload::history::History;
use sbk_cli::workload::load::{Load, LoadOptions, read_back};
use sbk_cli::workload::nbd::NbdClient;
use tempfile::TempDir;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);

fn options(dir: &TempDir) -> Options {
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = LIMIT;
    options
}

async fn bench(wal_retain: Option<u64>) -> Bench {
    let dir = tempfile::tempdir().expect("dir");
    let options = Options { wal_retain, ..options(&dir) };
    let cluster = DevCluster::start(options).await.expect("the cluster starts");
    Bench::open(Target::Own { cluster: Box::new(cluster), dir, network: None }, 8)
        .await
        .expect("a volume")
}

/// So often something is tried that a process which stands still for seconds disturbs.
const TRIES: u32 = 3;

async fn epoch(bench: &Bench) -> Option<u64> {
    bench.whole().await.expect("is whole").epoch
}

/// How often the volume got another primary after `epoch`.
async fn failovers(bench: &Bench, epoch: u64) -> usize {
    let history = bench.info().await.expect("is told").history;
    let changes = history.windows(2).filter(|two| two[0].primary != two[1].primary);
    changes.filter(|two| two[1].epoch > epoch).count()
}

#[tokio::test]
async fn the_same_directory_finds_everything_again() {
    let dir = tempfile::tempdir().expect("dir");
    let mut first = options(&dir);
    first.volumes.push(VolumeSpec { name: "v".into(), size: 64 << 20 });
    let cluster = DevCluster::start(first.clone()).await.expect("starts");
    let file = ClusterFile::read(dir.path()).expect("is written");
    assert_eq!((file.masters.len(), file.datanodes.len()), (3, 3));
    assert!(is_running(dir.path()));
    let primary = cluster.primary_of("v").await.expect("answers").expect("there is one");
    let uri = &file.volumes[0].nbd_uri;
    assert!(!uri.contains(&format!("{}/", primary.nbd)), "a kill of the primary would cut {uri}");
    let second = DevCluster::start(first.clone()).await.expect_err("is in use");
    assert!(second.to_string().contains("runs in"), "{second:#}");

    let history = Arc::new(History::new(Uuid::new_v4()));
    let client = NbdClient::connect(&file.datanodes[0].nbd, "v").await.expect("connects");
    let options = LoadOptions { blocks: 512, depth: 8, ..LoadOptions::default() };
    let load = Load::start(client.clone(), Arc::clone(&history), options).expect("a load");
    sbk_cli::wait::until("writes", LIMIT, async || {
        let stats = load.stats();
        assert_eq!(stats.first_error, None);
        Ok(if stats.writes > 200 {
            sbk_cli::wait::Look::Done(())
        } else {
            sbk_cli::wait::Look::NotYet(format!("{stats:?}"))
        })
    })
    .await
    .expect("writes");
    load.stop(LIMIT).await.expect("stops");
    client.disconnect().await;
    cluster.stop().await.expect("stops");
    assert!(ClusterFile::read(dir.path()).is_err(), "nothing serves any more");
    assert!(!is_running(dir.path()));

    let cluster = DevCluster::start(first).await.expect("starts again");
    let again = cluster.file().clone();
    let places = |file: &ClusterFile| {
        let place = |d: &sbk_cli::cluster_file::DatanodeEntry| (d.id.clone(), d.listen.clone());
        file.datanodes.iter().map(place).collect::<Vec<_>>()
    };
    assert_eq!(places(&again), places(&file));
    let client = NbdClient::connect(&again.datanodes[1].nbd, "v").await.expect("connects");
    read_back(&client, &history, 512, |_| ()).await.expect("reads");
    assert_eq!(history.check(), []);
    cluster.stop().await.expect("stops");
}

#[tokio::test]
async fn a_lost_primary_costs_a_pause_and_nothing_else() {
    let mut bench = bench(None).await;
    let args = DrillArgs { runs: 1, seconds: Duration::from_secs(1), depth: 8, keep: false };
    for fault in [Fault::Kill, Fault::Freeze] {
        let mut tries = 1;
        let run = loop {
            let run = failover::once(&mut bench, 1, &args, fault).await.expect("runs");
            // A second failover may have undone the first. That excuses no wrong data and no failed request.
            let excused = run.fault.as_deref().is_none_or(|fault| fault == "nothing failed over");
            if tries == TRIES || !excused || failovers(&bench, run.epoch_before).await == 1 {
                break run;
            }
            tries += 1;
        };
        assert_eq!(run.fault, None, "{run:?}");
        assert_ne!(run.lost, run.primary);
        assert!(run.parts.is_some(), "the traces tell of it: {run:?}");
    }
    bench.close(false).await.expect("closes");
}

#[tokio::test]
async fn each_route_is_taken() {
    let mut bench = bench(Some(SMALL_WAL)).await;
    for route in [Route::Healthy, Route::CatchUp, Route::Delta] {
        let mut tries = 1;
        let taken = loop {
            let (before, seconds) = (epoch(&bench).await, Duration::from_secs(1));
            let taken = routes::take(&mut bench, route, seconds).await.expect("runs");
            // Who stood still for so long that it left, or was replaced, was not healthy.
            let excused = taken.fault.as_ref().is_some_and(|fault| fault.starts_with("expected"));
            let disturbed = route == Route::Healthy && epoch(&bench).await != before;
            if tries == TRIES || !(excused && disturbed) {
                break taken;
            }
            tries += 1;
        };
        assert_eq!(taken.fault, None, "{taken:?}");
    }
    bench.close(false).await.expect("closes");
}
