//! `sbkctl volume verify`: are the replicas' committed images the same?
//!
//! Each in-sync replica tells, region by region (1 MiB), the last LSN that wrote the region and a
//! checksum over its committed image. Two replicas with the same last LSN must have the same
//! bytes; with different ones they can't be compared yet, because one has not applied what the
//! other has: such a region is looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use crc_fast::{CrcAlgorithm, Digest};
use sbk_engine::types::REGION_SIZE;
use sbk_proto::v1::replication_client::ReplicationClient;
use sbk_proto::v1::{
    MemberInfo, ScrubRequest, ScrubbedBlock, VerifyRegion, VerifyRequest, VolumeInfo,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::Context;
use crate::progress::Progress;
use crate::size::show_size;
use crate::view::id_text;
use crate::wait::TimedOut;

/// Regions asked for at a time; bounds what is kept in memory.
const CHUNK: u64 = 1024;
const AGAIN: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(5);
/// A primary settles what it is told to repair within seconds, one way or the other.
const ANSWER: Duration = Duration::from_secs(30);

/// What a comparison found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// The nodes whose replicas were compared.
    pub compared: Vec<String>,
    /// The nodes whose replicas were not, because they are not in sync.
    pub skipped: Vec<String>,
    /// Regions compared.
    pub regions: u64,
    /// Bytes of the image that was compared.
    pub bytes: u64,
    /// Looks at regions that were too busy at first.
    pub retried: u64,
    /// CRC-32C over the checksums of all regions, in order: the same for the same content, if the volume
    /// was not written to. Of no meaning where regions differ.
    pub content: String,
    /// Blocks that fail their checksum, over all replicas.
    pub damaged: u64,
    /// Regions that differ.
    pub mismatches: Vec<Mismatch>,
}

/// A region that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Mismatch {
    /// Its number, in units of 1 MiB.
    pub region: u64,
    /// The last LSN that wrote it, the same on all.
    pub region_lsn: u64,
    /// Node to checksum.
    pub digests: BTreeMap<String, String>,
}

impl Report {
    /// Whether all that was compared is the same and undamaged.
    pub fn is_clean(&self) -> bool {
        self.mismatches.is_empty() && self.damaged == 0
    }

    fn words(&self) -> String {
        let mut text = format!(
            "Volume {}: {} regions ({}) compared across {} replicas; {} differ, {} damaged blocks.\n",
            self.volume,
            self.regions,
            show_size(self.bytes),
            self.compared.len(),
            self.mismatches.len(),
            self.damaged
        );
        if !self.skipped.is_empty() {
            let skipped = self.skipped.join(", ");
            text += &format!("Not compared, because not in sync: {skipped}.\n");
        }
        for m in &self.mismatches {
            text += &format!("Region {} at LSN {}:", m.region, m.region_lsn);
            for (node, digest) in &m.digests {
                text += &format!(" {node} {digest}");
            }
            text.push('\n');
        }
        text
    }
}

/// Runs the command.
pub async fn run(context: &Context, volume: &str, limit: Duration) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    let report = compare(&info, limit).await?;
    context.output.show(&report, Report::words)?;
    if report.is_clean() {
        return Ok(());
    }
    bail!(
        "the replicas of volume '{}' differ or are damaged; keep the data directories and the \
         logs of its nodes, and see `sbkctl volume explain {}`",
        info.name,
        info.name
    )
}

/// Compares the in-sync replicas of a volume.
///
/// # Errors
/// If a replica can't be asked, or [`TimedOut`] if a region can't be compared within `limit`.
pub async fn compare(info: &VolumeInfo, limit: Duration) -> anyhow::Result<Report> {
    let (members, out): (Vec<_>, Vec<_>) = info.members.iter().partition(|m| m.in_sync);
    let node = |m: &&MemberInfo| id_text(&m.node);
    let mut report = Report {
        volume: info.name.clone(),
        compared: members.iter().map(node).collect(),
        skipped: out.iter().map(node).collect(),
        ..Report::default()
    };
    if members.is_empty() {
        bail!("volume '{}' has no in-sync replica yet; see `sbkctl volume show`", info.name);
    }
    let mut replicas = Vec::new();
    for member in members {
        replicas.push(Replica::connect(info, member).await?);
    }
    let total = info.size_bytes.div_ceil(REGION_SIZE);
    let mut content = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut progress = Progress::new();
    for first in (0..total).step_by(CHUNK as usize) {
        let count = CHUNK.min(total - first);
        let regions = compare_chunk(&replicas, first, count, limit, &mut report).await?;
        regions.values().for_each(|digest| content.update(&digest.to_be_bytes()));
        report.regions += count;
        report.bytes = (report.regions * REGION_SIZE).min(info.size_bytes);
        progress.of("comparing", report.bytes, info.size_bytes, show_size);
    }
    report.content = format!("{:08x}", content.finalize());
    Ok(report)
}

/// The checksum of each region.
async fn compare_chunk(
    replicas: &[Replica],
    first: u64,
    count: u64,
    limit: Duration,
    report: &mut Report,
) -> anyhow::Result<BTreeMap<u64, u32>> {
    let started = Instant::now();
    let mut open: BTreeSet<u64> = (first..first + count).collect();
    let mut digests = BTreeMap::new();
    let mut spans = vec![(first, count)];
    loop {
        for (first, count) in std::mem::take(&mut spans) {
            let told = ask_all(replicas, first, count).await?;
            for region in first..first + count {
                if open.contains(&region)
                    && let Some(digest) = judge(region, &told, report)?
                {
                    open.remove(&region);
                    digests.insert(region, digest);
                }
            }
        }
        let (Some(low), Some(high)) = (open.first(), open.last()) else { return Ok(digests) };
        let waited = started.elapsed();
        if waited >= limit {
            let what = format!("region {low} to have the same age on all replicas");
            let seen = format!("{} regions up to {high} are too busy to compare", open.len());
            return Err(TimedOut { what, seen, waited }.into());
        }
        report.retried += open.len() as u64;
        spans = open.iter().map(|region| (*region, 1)).collect();
        tokio::time::sleep(AGAIN).await;
    }
}

/// What each replica told of some regions, by node.
type Told = BTreeMap<String, BTreeMap<u64, VerifyRegion>>;

async fn ask_all(replicas: &[Replica], first: u64, count: u64) -> anyhow::Result<Told> {
    let mut tasks = JoinSet::new();
    for replica in replicas {
        let replica = replica.clone();
        tasks.spawn(async move {
            let told = replica.ask(first, count).await;
            told.map(|told| (replica.node, told))
        });
    }
    let mut told = Told::new();
    while let Some(answer) = tasks.join_next().await {
        told.extend([answer.context("asking a replica failed")??]);
    }
    Ok(told)
}

/// The region's checksum, one of them if there are several; `None` if it could not be compared. What was
/// found is in the report.
fn judge(region: u64, told: &Told, report: &mut Report) -> anyhow::Result<Option<u32>> {
    let mut views = Vec::new();
    for (node, regions) in told {
        // One that is left out is beyond the end, as that replica has it now.
        let Some(view) = regions.get(&region) else { return Ok(None) };
        views.push((node, view));
    }
    // A resize is no write to a region, and changes how much of the last one is compared.
    let sizes: BTreeSet<u64> = views.iter().map(|(_, v)| v.blocks).collect();
    if sizes.len() > 1 {
        return Ok(None);
    }
    let ages: BTreeSet<u64> = views.iter().map(|(_, v)| v.region_lsn).collect();
    let Some(region_lsn) = ages.first().copied().filter(|_| ages.len() == 1) else {
        return Ok(None);
    };
    report.damaged += views.iter().map(|(_, v)| u64::from(v.damaged)).sum::<u64>();
    let digests: BTreeSet<u32> = views.iter().map(|(_, v)| v.digest).collect();
    if digests.len() > 1 {
        let named =
            views.iter().map(|(node, v)| ((*node).clone(), format!("{:08x}", v.digest))).collect();
        report.mismatches.push(Mismatch { region, region_lsn, digests: named });
    }
    Ok(digests.first().copied())
}

/// A replica that can be asked.
#[derive(Clone)]
pub(super) struct Replica {
    pub(super) node: String,
    client: ReplicationClient<Channel>,
    volume: Vec<u8>,
    replica: Vec<u8>,
}

impl Replica {
    pub(super) async fn connect(info: &VolumeInfo, member: &MemberInfo) -> anyhow::Result<Self> {
        let node = id_text(&member.node);
        let endpoint = Endpoint::from_shared(format!("http://{}", member.addr));
        let channel = endpoint
            .with_context(|| format!("node {node} has a bad address '{}'", member.addr))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .connect()
            .await
            .with_context(|| {
                format!(
                    "node {node} at {} can't be reached; all in-sync replicas are needed",
                    member.addr
                )
            })?;
        let client = ReplicationClient::new(channel);
        let (volume, replica) = (info.id.to_vec(), member.replica.to_vec());
        Ok(Self { node, client, volume, replica })
    }

    /// Has it tell of `count` regions from `first` on, in order.
    ///
    /// # Errors
    /// As the node's, among them that it tells others already.
    pub(super) async fn regions(
        &self,
        first: u64,
        count: u64,
    ) -> Result<Streaming<VerifyRegion>, Status> {
        let request = VerifyRequest {
            volume: self.volume.clone().into(),
            replica: self.replica.clone().into(),
            first_region: first,
            regions: count,
        };
        Ok(self.client.clone().verify(request).await?.into_inner())
    }

    /// Has the primary repair blocks, ascending, at most [`SCRUB_BLOCKS`](sbk_engine::replication::scrub::SCRUB_BLOCKS).
    ///
    /// # Errors
    /// As the node's, among them that the replica is not primary.
    pub(super) async fn repair(&self, blocks: Vec<u64>) -> Result<Vec<ScrubbedBlock>, Status> {
        let (volume, replica) = (self.volume.clone().into(), self.replica.clone().into());
        let mut request = Request::new(ScrubRequest { volume, replica, blocks });
        request.set_timeout(ANSWER);
        Ok(self.client.clone().scrub(request).await?.into_inner().blocks)
    }

    async fn ask(&self, first: u64, count: u64) -> anyhow::Result<BTreeMap<u64, VerifyRegion>> {
        let failed = || format!("node {} failed to verify", self.node);
        let mut stream = self.regions(first, count).await.with_context(failed)?;
        let mut regions = BTreeMap::new();
        while let Some(region) = stream.message().await.with_context(failed)? {
            if !(first..first + count).contains(&region.region) {
                bail!("node {} told of region {}, unasked", self.node, region.region);
            }
            regions.insert(region.region, region);
        }
        Ok(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(views: &[(&str, u64, u32, u32)]) -> Told {
        let one = |&(node, region_lsn, digest, damaged): &(&str, u64, u32, u32)| {
            let damaged_blocks = (0..u64::from(damaged)).map(|n| 768 + n).collect();
            let view = VerifyRegion {
                region: 3,
                region_lsn,
                digest,
                committed: 50,
                damaged,
                blocks: 256,
                damaged_blocks,
            };
            (node.to_owned(), BTreeMap::from([(3, view)]))
        };
        views.iter().map(one).collect()
    }

    #[test]
    fn equal_replicas_are_clean() {
        let mut report = Report::default();
        let judged = judge(3, &told(&[("a", 7, 1, 0), ("b", 7, 1, 0)]), &mut report);
        assert_eq!(judged.expect("judges"), Some(1));
        assert!(report.is_clean());
    }

    #[test]
    fn different_bytes_at_the_same_lsn_are_a_mismatch() {
        let mut report = Report::default();
        let judged = judge(3, &told(&[("a", 7, 1, 0), ("b", 7, 2, 0)]), &mut report);
        assert!(judged.expect("judges").is_some());
        assert!(!report.is_clean());
        assert_eq!(report.mismatches[0].digests["b"], "00000002");
        assert!(report.words().contains("Region 3 at LSN 7"), "{}", report.words());
    }

    #[test]
    fn different_ages_are_looked_at_again() {
        let mut report = Report::default();
        let judged = judge(3, &told(&[("a", 7, 1, 0), ("b", 8, 2, 0)]), &mut report);
        assert_eq!(judged.expect("judges"), None);
        assert!(report.is_clean());
    }

    #[test]
    fn damage_is_not_clean() {
        let mut report = Report::default();
        let judged = judge(3, &told(&[("a", 7, 1, 0), ("b", 7, 1, 2)]), &mut report);
        assert!(judged.expect("judges").is_some());
        assert_eq!(report.damaged, 2);
        assert!(!report.is_clean());
    }

    #[test]
    fn a_region_that_a_replica_does_not_have_yet_is_looked_at_again() {
        let mut report = Report::default();
        assert_eq!(judge(4, &told(&[("a", 7, 1, 0)]), &mut report).expect("judges"), None);
    }

    #[test]
    fn replicas_of_different_sizes_are_not_compared() {
        let mut report = Report::default();
        // By chance with the same checksum, of zeros.
        let mut views = told(&[("a", 7, 1, 0), ("b", 7, 1, 0)]);
        views.get_mut("b").and_then(|regions| regions.get_mut(&3)).expect("told").blocks = 4;
        assert_eq!(judge(3, &views, &mut report).expect("judges"), None);
        assert!(report.is_clean());
    }
}
