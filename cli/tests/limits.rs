//! What clients may do, on real processes: never more than the limit, through every node together, changed
//! while they wait, and kept by the next primary.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::http;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::NbdClient;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: u32 = 4096;

/// What one client got, counted as it is answered.
type Count = Arc<AtomicU64>;

/// `depth` requests at a time, half of them writes, until it is dropped.
fn load(client: &NbdClient, depth: u64, count: &Count) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for n in 0..depth {
        let (client, count) = (client.clone(), Arc::clone(count));
        all.spawn(async move {
            let offset = n * u64::from(BLOCK);
            loop {
                if n % 2 == 0 {
                    let data = Bytes::from(vec![7; BLOCK as usize]);
                    client.write(offset, data).await.expect("writes");
                } else {
                    client.read(offset, BLOCK).await.expect("reads");
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    all
}

async fn reaches(counts: &[&Count], least: u64) {
    let what = format!("{least} answers");
    wait::until(&what, LIMIT, async || {
        let sum: u64 = counts.iter().map(|count| count.load(Ordering::SeqCst)).sum();
        Ok(if sum >= least { Look::Done(()) } else { Look::NotYet(sum.to_string()) })
    })
    .await
    .expect("gets on");
}

fn sbkctl(dir: &Path, args: &[&str]) -> Result<serde_json::Value, String> {
    let output = tokio::task::block_in_place(|| {
        Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(args)
            .args(["-o", "json", "--dir"])
            .arg(dir)
            .env_remove("SBK_MASTERS")
            .stdin(Stdio::null())
            .output()
            .expect("runs")
    });
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// How many primaries `slow` had so far: each begins with a burst of its own.
async fn bursts(cluster: &DevCluster) -> f64 {
    let history = cluster.client().get_volume("slow").await.expect("is told").history;
    assert_eq!(history[0].epoch, 1, "all of it is on record");
    1.0 + history.windows(2).filter(|two| two[0].primary != two[1].primary).count() as f64
}

/// The sum of a series over all nodes.
async fn metric(cluster: &DevCluster, name: &str) -> f64 {
    let mut sum = 0.0;
    for node in &cluster.file().datanodes {
        let Ok(text) = http::get_text(&node.http, "/metrics").await else { continue };
        let values = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        sum += values
            .map(|l| l.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number"))
            .sum::<f64>();
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_all_nodes_together_get_what_the_limit_lets_through() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = LIMIT;
    options.volumes = vec![VolumeSpec { name: "free".into(), size: 16 << 20 }];
    let mut cluster = DevCluster::start(options).await.expect("the cluster starts");
    let path = dir.path().to_owned();
    let ctl = |args: &[&str]| sbkctl(&path, args);
    for bad in [["--iops", "9"], ["--bandwidth", "1MiB"], ["--burst", "0"]] {
        let error = ctl(&[&["volume", "create", "slow", "--size", "16MiB"], &bad[..]].concat());
        assert!(error.expect_err("is refused").contains(bad[1]), "{bad:?}");
    }
    let began = Instant::now();
    let made =
        ctl(&["volume", "create", "slow", "--size", "16MiB", "--iops", "200"]).expect("is made");
    assert_eq!((&made["iops"], &made["bandwidth"]), (&200.into(), &serde_json::Value::Null));

    // Two sessions: one at the primary, one elsewhere.
    let primary = cluster.primary_of("slow").await.expect("is known").expect("there is one");
    let others: Vec<_> = cluster.file().datanodes.iter().filter(|n| n.id != primary.id).collect();
    let others: Vec<_> = others.into_iter().cloned().collect();
    let near = NbdClient::connect(&primary.nbd, "slow").await.expect("connects");
    let far = NbdClient::connect(&others[0].nbd, "slow").await.expect("connects");
    let (one, two) = (Count::default(), Count::default());
    let (at_primary, elsewhere) = (load(&near, 64, &one), load(&far, 64, &two));
    reaches(&[&one, &two], 900).await;
    let (sum, passed) = (one.load(Ordering::SeqCst) + two.load(Ordering::SeqCst), began.elapsed());
    let had = bursts(&cluster).await;
    let most = 200.0 * (had + passed.as_secs_f64());
    assert!(sum as f64 <= most, "{sum} in {passed:?}, {had} bursts");
    let shares = [&one, &two].map(|count| count.load(Ordering::SeqCst));
    // On a machine that serves less than the limit lets through, how much each gets is not the limit's affair.
    assert!(shares.iter().all(|share| share * 10 >= sum), "{shares:?}");
    assert!(metric(&cluster, "sbk_datanode_throttled_requests_total").await > 0.0);
    assert!(metric(&cluster, "sbk_datanode_throttled_seconds_total").await > 0.0);
    wait::until("the limit to be told by three replicas", LIMIT, async || {
        let told = metric(&cluster, "sbk_datanode_limit_iops").await;
        Ok(if told == 600.0 { Look::Done(()) } else { Look::NotYet(told.to_string()) })
    })
    .await
    .expect("is told");

    // What waits here keeps nothing from those of another volume.
    let count = Count::default();
    let other = NbdClient::connect(&others[0].nbd, "free").await.expect("connects");
    let free = load(&other, 4, &count);
    reaches(&[&count], 300).await;
    drop(free);

    // The next primary goes by the limit too, and begins with a burst of its own.
    drop(at_primary);
    let before = two.load(Ordering::SeqCst);
    cluster.kill_datanode(&primary.id).expect("is killed");
    reaches(&[&two], before + 800).await;
    let (sum, passed) = (one.load(Ordering::SeqCst) + two.load(Ordering::SeqCst), began.elapsed());
    let had = bursts(&cluster).await;
    let most = 200.0 * (had + passed.as_secs_f64());
    assert!(sum as f64 <= most, "{sum} in {passed:?}, {had} bursts");

    // Changed while 64 requests wait for it.
    let shown =
        ctl(&["volume", "limit", "slow", "--iops", "none", "--bandwidth", "2MiB", "--burst", "2"]);
    let shown = shown.expect("is changed");
    assert_eq!(
        (&shown["iops"], &shown["bandwidth"]),
        (&serde_json::Value::Null, &(2 << 20).into())
    );
    let began = Instant::now();
    let before = two.load(Ordering::SeqCst);
    reaches(&[&two], before + 2048).await;
    let bytes = (two.load(Ordering::SeqCst) - before) * u64::from(BLOCK);
    // A burst of two seconds of each primary; and so much may have been answered before the change was heard of.
    let passed = began.elapsed().as_secs_f64();
    let primaries = 1.0 + bursts(&cluster).await - had;
    let most = (2 << 20) as f64 * (2.0 * primaries + passed) + 200.0 * f64::from(BLOCK);
    assert!(bytes as f64 <= most, "{bytes} bytes");
    ctl(&["volume", "limit", "slow", "--bandwidth", "none"]).expect("is changed");
    let before = two.load(Ordering::SeqCst);
    reaches(&[&two], before + 2000).await;
    drop(elsewhere);
    // All of it was served, none failed: a task of the load would have panicked. And it is flushed freely.
    far.flush().await.expect("flushes");
    cluster.stop().await.expect("stops");
}
