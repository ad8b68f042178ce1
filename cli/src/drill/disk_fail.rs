//! `sbkctl drill disk-fail`: the disk of a volume's primary fails, under load; its node stays.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sbk_proto::v1::{MovePrimaryRequest, VolumeInfo};
use serde::Serialize;
use tokio::task::block_in_place;

use super::bench::{ANSWER, Bench, Verified, WHOLE};
use super::loop_disk::LoopDisks;
use super::runs::{self, Run as _, ms, short, since};
use crate::args::{DrillArgs, Global};
use crate::commands::volume::{create_request, wait_for, wait_until_serving};
use crate::dev::cluster::Options;
use crate::output::table;
use crate::view::{NodeView, VolumeView, id_text};
use crate::wait::{self, Look};
use crate::workload::load::LoadStats;
use crate::workload::nbd::NbdClient;

const DATANODES: u64 = 3;
const DISKS: usize = 2;
const DISK: u64 = 3 << 30;
/// The other volume's size.
const OTHER: u64 = 256 << 20;
/// After so long the masters replace what was on the disk.
const REPLACE: Duration = Duration::from_secs(10);

/// One time.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// The node whose disk failed: the primary's.
    pub node: String,
    /// The data directory on it.
    pub data_dir: String,
    /// What the node said of it.
    pub told: String,
    /// When it said so, in milliseconds after the failure.
    pub told_ms: u64,
    /// When all replicas were in sync again, one of them anew, in milliseconds after the failure.
    pub replaced_ms: u64,
    /// What the load on the volume did before the failure.
    pub before: LoadStats,
    /// What it did from the failure until all replicas were in sync again.
    pub load: LoadStats,
    /// The same of a volume whose primary was on the node's other disk, with its client at that node.
    pub other_before: LoadStats,
    /// And from the failure on.
    pub other: LoadStats,
    /// Whether the volume's data is right.
    pub verified: Verified,
    /// Whether the other's is.
    pub other_verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
}

impl runs::Run for Run {
    fn told(&self) -> String {
        format!("a stall of {} ms", self.load.longest_request_ms)
    }

    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

fn words(runs: &[Run]) -> String {
    let rows = runs.iter().map(|r| {
        vec![
            r.run.to_string(),
            short(&r.node),
            ms(r.before.longest_request_ms),
            ms(r.load.longest_request_ms),
            ms(r.other_before.longest_request_ms),
            ms(r.other.longest_request_ms),
            ms(r.told_ms),
            ms(r.replaced_ms),
            (r.before.writes + r.load.writes).to_string(),
            r.data(),
        ]
    });
    let columns = [
        "run",
        "node",
        "longest",
        "stall",
        "other",
        "other after",
        "told",
        "replaced",
        "writes",
        "data",
    ];
    table(&columns, rows)
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    runs::only_its_own(global, "makes disks fail")?;
    let right = "The disk's replicas were replaced; no request failed, all replicas are equal.";
    runs::report(global, args.runs, async |number| once(number, &args).await, words, right).await
}

async fn once(number: u32, args: &DrillArgs) -> anyhow::Result<Run> {
    let dir = runs::own_dir()?;
    let disks = block_in_place(|| LoopDisks::mount(dir.path(), DATANODES, DISKS, DISK))?;
    let mut options = Options::new(dir.path().to_owned())?;
    (options.disks, options.replace_after) = (DISKS, Some(REPLACE));
    options.wal_retain = Some(64 << 20);
    runs::on_its_own(dir, options, args, async |bench| fail_one(bench, &disks, number, args).await)
        .await
}

async fn fail_one(
    bench: &mut Bench,
    disks: &LoopDisks,
    number: u32,
    args: &DrillArgs,
) -> anyhow::Result<Run> {
    let masters = bench.masters.clone();
    let created = masters.create_volume(create_request("other", OTHER, 3)).await?;
    let other = wait_until_serving(&masters, &created, WHOLE).await?;
    let mut beside = Bench::on(masters.clone(), &other.name, args.depth).await?;
    let view = bench.whole().await?;
    let node = view.primary.context("the volume has no primary")?;
    let file = bench.target.file()?;
    let at = file.datanodes.iter().position(|entry| entry.id == node);
    let at = at.context("the primary's node is not of this cluster")?;
    let entry = file.datanodes[at].clone();
    let (volume, replica) = (id_text(&bench.info().await?.id), bench.replica_on(&node).await?);
    let name = format!("replicas/{volume}.{replica}");
    let disk = disks.of(at as u64 + 1).find(|disk| disk.path().join(&name).exists());
    let disk = disk.context("the primary's replica is on none of its node's disks")?;
    have_primary(bench, &other, &node).await?;

    let client = bench.connect(&node).await?;
    let client_beside = NbdClient::connect(&entry.nbd, &other.name).await?;
    let incarnation = node_view(bench, &node).await?.incarnation;
    let (load, load_beside) =
        (bench.start_load(&client, None).await?, beside.start_load(&client_beside, None).await?);
    bench.load_goes_on(&load, args.seconds).await?;
    let before = load.stop(ANSWER).await?;
    let other_before = load_beside.stop(ANSWER).await?;

    let (load, load_beside) =
        (bench.start_load(&client, None).await?, beside.start_load(&client_beside, None).await?);
    block_in_place(|| disk.fail())?;
    let failed = Instant::now();
    let told = wait::until("the node to say that its disk failed", WHOLE, async || {
        let view = node_view(bench, &node).await?;
        let fault = view.disks.into_iter().find(|disk| !disk.fault.is_empty());
        Ok(fault.map_or_else(|| Look::NotYet("it says nothing".into()), Look::Done))
    });
    let told = told.await?;
    let told_ms = since(failed);
    let anew = |info: &VolumeInfo| {
        let stays = |member: &sbk_proto::v1::MemberInfo| id_text(&member.replica) != replica;
        VolumeView::of(info).is_whole() && info.members.iter().all(stays)
    };
    wait_for(&masters, &volume, "the replica to be replaced", WHOLE, anew).await?;
    let replaced_ms = since(failed);
    bench.load_goes_on(&load, args.seconds).await?;
    let load = load.stop(ANSWER).await?;
    let other_load = load_beside.stop(ANSWER).await?;
    let verified = bench.verify(&client).await?;
    let other_verified = beside.verify(&client_beside).await?;
    client.disconnect().await;
    client_beside.disconnect().await;
    let after = node_view(bench, &node).await?;
    let restarted = || {
        (after.incarnation != incarnation || !after.alive)
            .then(|| "the node did not stay".to_owned())
    };
    let loads = [&before, &load, &other_before, &other_load];
    let fault = runs::fault_of(&loads, &[&verified, &other_verified]).or_else(restarted);
    Ok(Run {
        run: number,
        node,
        data_dir: told.path,
        told: told.fault,
        told_ms,
        replaced_ms,
        before,
        load,
        other_before,
        other: other_load,
        verified,
        other_verified,
        fault,
    })
}

pub(super) async fn node_view(bench: &Bench, node: &str) -> anyhow::Result<NodeView> {
    let nodes = bench.masters.list_nodes().await?.nodes;
    let view = nodes.iter().map(NodeView::of).find(|view| view.id == node);
    view.with_context(|| format!("the masters don't know node {node}"))
}

/// Has a volume's primary be on a node.
async fn have_primary(bench: &Bench, volume: &VolumeInfo, node: &str) -> anyhow::Result<()> {
    let name = id_text(&volume.id);
    let masters = &bench.masters;
    wait::until(format!("the other volume's primary on {node}"), WHOLE, async || {
        let info = masters.get_volume(&name).await?;
        let member = info.members.iter().find(|member| id_text(&member.node) == node);
        let member = member.with_context(|| format!("no replica is on {node}"))?;
        if member.primary && VolumeView::of(&info).is_whole() {
            return Ok(Look::Done(()));
        }
        let (name_or_id, replica) = (name.clone(), member.replica.clone());
        let asked = masters.move_primary(MovePrimaryRequest { name_or_id, replica }).await;
        Ok(Look::NotYet(format!("{:?}", asked.map(|info| info.wished_primary))))
    })
    .await
}
