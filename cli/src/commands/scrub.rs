//! `sbkctl volume scrub`: which blocks are damaged, on which node?
//!
//! Each in-sync replica reads what was ever written of its committed image, region by region (1 MiB), and
//! checks every block against its checksum. Replicas are read at the same time and each by itself: what one
//! holds is not compared with the others', which `volume verify` does. What is damaged is repaired by the
//! primary, if that is asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sbk_engine::types::{BLOCK_SIZE, REGION_SIZE};
use sbk_master_client::MasterClient;
use sbk_proto::v1::{MemberInfo, VerifyRegion, VolumeInfo};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::Context;
use super::scrub_repair::{Repair, repair};
use super::verify::Replica;
use crate::progress::Progress;
use crate::size::show_size;
use crate::view::id_text;

/// Most regions asked for at a time, and so for how long a checkpoint may be held back.
const MOST: u64 = 1024;
/// How often in a row a replica may tell nothing before it counts as one that can't be read.
pub(super) const ATTEMPTS: usize = 30;
pub(super) const AGAIN: Duration = Duration::from_millis(200);

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// What was found on each in-sync replica.
    pub replicas: Vec<Scrubbed>,
    /// The nodes whose replicas were not read, because they are not in sync.
    pub skipped: Vec<String>,
    /// What was done about it, if that was asked for and there was anything.
    pub repair: Option<Repair>,
}

/// What was found on one replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scrubbed {
    /// Its node.
    pub node: String,
    /// Bytes of the regions that were read: those that were ever written.
    pub bytes: u64,
    /// For how long.
    pub seconds: f64,
    /// The damaged blocks (4 KiB), ascending.
    pub damaged: Vec<u64>,
    /// Damaged blocks whose numbers the node could not tell, because it runs an older version.
    pub unnamed: u64,
    /// Why it was not read to the end.
    pub error: Option<String>,
}

impl Scrubbed {
    fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.unnamed == 0 && self.error.is_none()
    }

    fn note(&mut self, region: &VerifyRegion, blocks: u64) {
        // A region that nothing wrote is not read.
        if region.region_lsn > 0 {
            self.bytes += blocks * BLOCK_SIZE;
        }
        self.damaged.extend(&region.damaged_blocks);
        self.unnamed +=
            u64::from(region.damaged).saturating_sub(region.damaged_blocks.len() as u64);
    }

    fn words(&self) -> String {
        let Self { node, bytes, seconds, damaged, unnamed, error } = self;
        let mut text = format!("Node {node}: {} read in {seconds:.1} s; ", show_size(*bytes));
        text += &match damaged.len() as u64 + unnamed {
            0 => "nothing is damaged.\n".to_owned(),
            1 => "1 block is damaged.\n".to_owned(),
            n => format!("{n} blocks are damaged.\n"),
        };
        if !damaged.is_empty() {
            text += &format!("  Blocks {}\n", ranges(damaged));
        }
        if *unnamed > 0 {
            text +=
                &format!("  {unnamed} blocks whose numbers this version of the node can't tell\n");
        }
        if let Some(error) = error {
            text += &format!("  Not read to the end: {error}\n");
        }
        text
    }
}

/// Ascending numbers with neighbors put together: `3, 7-9`.
pub(super) fn ranges(blocks: &[u64]) -> String {
    let runs = blocks.chunk_by(|a, b| a + 1 == *b);
    let words = runs.map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    words.collect::<Vec<_>>().join(", ")
}

impl Report {
    /// Whether all in-sync replicas were read to the end, and nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.replicas.iter().all(Scrubbed::is_clean)
    }

    /// Whether nothing is left to be done: all replicas were read, and what was damaged is repaired.
    fn is_well(&self) -> bool {
        let repaired = self.repair.as_ref().is_some_and(|repair| repair.not_mended.is_empty());
        let known = |s: &Scrubbed| s.unnamed == 0 && s.error.is_none();
        self.is_clean() || (repaired && self.replicas.iter().all(known))
    }

    /// The damaged blocks of all replicas, ascending.
    fn damaged(&self) -> BTreeSet<u64> {
        self.replicas.iter().flat_map(|replica| &replica.damaged).copied().collect()
    }

    fn words(&self) -> String {
        let mut text: String = self.replicas.iter().map(Scrubbed::words).collect();
        if !self.skipped.is_empty() {
            let skipped = self.skipped.join(", ");
            text += &format!("Not read, because not in sync: {skipped}.\n");
        }
        text += &self.repair.as_ref().map(Repair::words).unwrap_or_default();
        text
    }
}

/// Runs the command.
pub async fn run(context: &Context, volume: &str, rate: u64, mend: bool) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    let report = match mend {
        true => scrub_and_repair(&context.masters, &info, rate).await?,
        false => scrub(&info, rate).await?,
    };
    context.output.show(&report, Report::words)?;
    if report.is_well() {
        return Ok(());
    }
    bail!("volume '{}' has damaged blocks, or could not be read on all in-sync replicas", info.name)
}

/// The same as [`scrub`], and has the primary repair what is damaged.
///
/// # Errors
/// As there. What could not be repaired is told in the report.
pub async fn scrub_and_repair(
    masters: &MasterClient,
    info: &VolumeInfo,
    rate: u64,
) -> anyhow::Result<Report> {
    let mut report = scrub(info, rate).await?;
    let damaged = report.damaged();
    if !damaged.is_empty() {
        report.repair = Some(repair(masters, info, damaged).await);
    }
    Ok(report)
}

/// Reads the in-sync replicas of a volume, each at most at `rate` bytes a second (0: no limit).
///
/// # Errors
/// If the volume has no in-sync replica. That one can't be read is told in the report.
pub async fn scrub(info: &VolumeInfo, rate: u64) -> anyhow::Result<Report> {
    let (members, out): (Vec<_>, Vec<_>) = info.members.iter().partition(|m| m.in_sync);
    if members.is_empty() {
        bail!("volume '{}' has no in-sync replica yet; see `sbkctl volume show`", info.name);
    }
    let (told, mut done) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let all = info.size_bytes.div_ceil(REGION_SIZE) * members.len() as u64;
    for member in members {
        tasks.spawn(read(info.clone(), member.clone(), rate, told.clone()));
    }
    drop(told);
    let (mut progress, mut regions) = (Progress::new(), 0);
    while let Some(more) = done.recv().await {
        regions += more;
        progress.of("reading", regions * REGION_SIZE, all * REGION_SIZE, show_size);
    }
    let mut replicas = Vec::new();
    while let Some(read) = tasks.join_next().await {
        replicas.push(read.context("reading a replica failed")?);
    }
    replicas.sort_by(|a, b| a.node.cmp(&b.node));
    let skipped = out.iter().map(|m| id_text(&m.node)).collect();
    Ok(Report { volume: info.name.clone(), replicas, skipped, repair: None })
}

/// Reads one replica. Tells `regions` of each one that was done.
async fn read(
    info: VolumeInfo,
    member: MemberInfo,
    rate: u64,
    regions: mpsc::UnboundedSender<u64>,
) -> Scrubbed {
    let mut scrubbed = Scrubbed { node: id_text(&member.node), ..Scrubbed::default() };
    let started = Instant::now();
    let result = read_all(&info, &member, rate, &mut scrubbed, &regions).await;
    scrubbed.seconds = started.elapsed().as_secs_f64();
    scrubbed.error = result.err().map(|error| format!("{error:#}"));
    scrubbed
}

async fn read_all(
    info: &VolumeInfo,
    member: &MemberInfo,
    rate: u64,
    scrubbed: &mut Scrubbed,
    regions: &mpsc::UnboundedSender<u64>,
) -> anyhow::Result<()> {
    let replica = Replica::connect(info, member).await?;
    let all = info.size_bytes.div_ceil(REGION_SIZE);
    // About a second's worth: checkpoints go on in the pauses between.
    let chunk = if rate == 0 { MOST } else { (rate / REGION_SIZE).clamp(1, MOST) };
    let (mut next, mut failed) = (0, 0);
    while next < all {
        let (from, before, started) = (next, scrubbed.bytes, Instant::now());
        let count = chunk.min(all - next);
        let told = take(&replica, &mut next, count, |region| {
            let start = region.region * REGION_SIZE;
            scrubbed.note(region, REGION_SIZE.min(info.size_bytes - start) / BLOCK_SIZE);
        });
        let told = told.await;
        // Nobody may look on.
        let _unseen = regions.send(next - from);
        failed = if next > from { 0 } else { failed + 1 };
        match told {
            Ok(()) => {}
            // The image moved on, or all places are taken: it goes on where it was.
            Err(error) if failed >= ATTEMPTS => return Err(error),
            Err(_) => sleep(AGAIN).await,
        }
        if rate > 0 {
            let due = Duration::from_secs_f64((scrubbed.bytes - before) as f64 / rate as f64);
            sleep_until(started + due).await;
        }
    }
    Ok(())
}

/// Has the replica tell of `count` regions from `next` on, which is moved behind each that was told.
async fn take(
    replica: &Replica,
    next: &mut u64,
    count: u64,
    mut note: impl FnMut(&VerifyRegion),
) -> anyhow::Result<()> {
    let end = *next + count;
    let failed = || format!("node {} failed to read region {}", replica.node, *next);
    let mut stream = replica.regions(*next, count).await.with_context(failed)?;
    loop {
        let told = stream.message().await;
        let failed = || format!("node {} failed to read region {}", replica.node, *next);
        let Some(region) = told.with_context(failed)? else { break };
        if region.region != *next || *next >= end {
            bail!("node {} told of region {}, not {next}", replica.node, region.region);
        }
        note(&region);
        *next += 1;
    }
    if *next < end {
        bail!("node {} left out region {next}", replica.node);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(damaged: u32, damaged_blocks: Vec<u64>) -> VerifyRegion {
        VerifyRegion {
            region: 3,
            region_lsn: 7,
            damaged,
            damaged_blocks,
            ..VerifyRegion::default()
        }
    }

    fn report(scrubbed: Scrubbed) -> Report {
        Report { replicas: vec![Scrubbed::default(), scrubbed], ..Report::default() }
    }

    #[test]
    fn neighbors_are_told_as_ranges() {
        assert_eq!(ranges(&[3, 7, 8, 9, 11, 12]), "3, 7-9, 11-12");
        assert_eq!(ranges(&[0]), "0");
    }

    #[test]
    fn a_damaged_block_is_told_with_its_node_and_is_not_clean() {
        let mut scrubbed = Scrubbed { node: "b".to_owned(), ..Scrubbed::default() };
        scrubbed.note(&region(0, Vec::new()), 256);
        assert!(report(scrubbed.clone()).is_clean());
        scrubbed.note(&region(2, vec![768, 769]), 256);
        let report = report(scrubbed);
        assert!(!report.is_clean());
        let words = report.words();
        assert!(words.contains("Node b: 2 MiB read"), "{words}");
        assert!(words.contains("2 blocks are damaged.\n  Blocks 768-769\n"), "{words}");
    }

    #[test]
    fn what_was_never_written_is_not_counted_as_read() {
        let mut scrubbed = Scrubbed::default();
        scrubbed.note(&VerifyRegion { region_lsn: 0, ..region(0, Vec::new()) }, 256);
        assert_eq!(scrubbed.bytes, 0);
        scrubbed.note(&region(0, Vec::new()), 3);
        assert_eq!(scrubbed.bytes, 3 * BLOCK_SIZE);
    }

    #[test]
    fn damage_that_an_older_node_has_no_numbers_for_is_damage() {
        let mut scrubbed = Scrubbed::default();
        scrubbed.note(&region(2, Vec::new()), 256);
        let report = report(scrubbed);
        assert!(!report.is_clean());
        assert!(report.words().contains("2 blocks are damaged"), "{}", report.words());
    }

    #[test]
    fn a_replica_that_was_not_read_to_the_end_is_not_clean() {
        let error = Some("gone".to_owned());
        let report = report(Scrubbed { error, ..Scrubbed::default() });
        assert!(!report.is_clean());
        assert!(report.words().contains("Not read to the end: gone"), "{}", report.words());
    }
}
