//! `sbkctl drill bit-rot`: bits flip in the primary's files of blocks, under load.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::task::block_in_place;

use super::bench::{ANSWER, Bench, USED_BLOCKS, Verified};
use super::runs::{self, Run as _, ms, short};
use super::target::Target;
use crate::args::{DrillArgs, Global};
use crate::cluster_file::DatanodeEntry;
use crate::http::get_text;
use crate::output::{Output, table};
use crate::view::id_text;
use crate::workload::load::LoadStats;
use crate::workload::stamp::{BLOCK, Noise};

/// Blocks that rot in a run. All of them may be under repair at a time.
const ROTTEN: usize = 64;
/// Where block 0 lies in the file of extents.
const EXTENTS_HEADER: u64 = 4096;

/// Blocks that a primary found rotten, in its process so far, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Found not to match their checksums.
    pub rotten: u64,
    /// Logged again as another replica held them.
    pub mended: u64,
    /// Nobody had them.
    pub not_mended: u64,
}

/// One time.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// The node whose blocks rotted: the primary's.
    pub node: String,
    /// Blocks in each of which a bit was flipped.
    pub flipped: usize,
    /// What its primary counted of them. A block that was written anew before anybody read it is in none.
    pub counts: Counts,
    /// What the load did, before and after.
    pub load: LoadStats,
    /// Whether the data is right.
    pub verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
}

impl runs::Run for Run {
    fn told(&self) -> String {
        let Counts { rotten, mended, .. } = self.counts;
        format!("{rotten} of {} found, {mended} mended", self.flipped)
    }

    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether all that was read was right, and no request failed.
    pub ok: bool,
    /// Each of them.
    pub runs: Vec<Run>,
}

impl Report {
    fn words(&self) -> String {
        let rows = self.runs.iter().map(|r| {
            vec![
                r.run.to_string(),
                short(&r.node),
                r.flipped.to_string(),
                r.counts.rotten.to_string(),
                r.counts.mended.to_string(),
                ms(r.load.longest_request_ms),
                r.load.writes.to_string(),
                r.data(),
            ]
        });
        table(&["run", "node", "flipped", "found", "mended", "stall", "writes", "data"], rows)
    }
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    runs::only_its_own(global, "damages files")?;
    let output = Output::new(global.output);
    let mut bench = Bench::open(Target::open(None, None).await?, args.depth).await?;
    let (runs, result) =
        runs::all(args.runs, async |number| once(&mut bench, number, &args).await).await;
    let ok = result.is_ok() && runs::are_right(&runs);
    let report = Report { ok, runs };
    output.show(&report, Report::words)?;
    bench.close(args.keep || !ok).await?;
    runs::end(result, ok)?;
    output.note(
        "Every rotten block that was read was repaired; no request failed, all replicas are equal.",
    )
}

async fn once(bench: &mut Bench, number: u32, args: &DrillArgs) -> anyhow::Result<Run> {
    let view = bench.whole().await?;
    let node = view.primary.context("the volume has no primary")?;
    let nodes = bench.target.file()?.datanodes;
    let entry = nodes.into_iter().find(|entry| entry.id == node);
    let entry = entry.context("the primary's node is not of this cluster")?;
    let (volume, replica) = (id_text(&bench.info().await?.id), bench.replica_on(&node).await?);
    let directory = format!("{volume}.{replica}");
    let extents = entry.data_dir.join("replicas").join(directory).join("extents");
    let client = bench.connect(&node).await?;
    let counted = counts(&entry).await?;
    let load = bench.start_load(&client, None).await?;
    bench.load_goes_on(&load, args.seconds).await?;
    let flipped = block_in_place(|| flip(&extents, u64::from(number), USED_BLOCKS, ROTTEN))?;
    // Not for long: what is written anew is not read from the file any more.
    bench.load_goes_on(&load, std::time::Duration::ZERO).await?;
    let load = load.stop(ANSWER).await?;
    let verified = bench.verify(&client).await?;
    client.disconnect().await;
    let now = counts(&entry).await?;
    let counts = Counts {
        rotten: now.rotten - counted.rotten,
        mended: now.mended - counted.mended,
        not_mended: now.not_mended - counted.not_mended,
    };
    let fault = runs::fault_of(&[&load], &[&verified]).or_else(|| counts.fault());
    Ok(Run { run: number, node, flipped, counts, load, verified, fault })
}

impl Counts {
    fn fault(self) -> Option<String> {
        if self.not_mended > 0 {
            return Some(format!("{} blocks were not repaired", self.not_mended));
        }
        // Everything was read back: most of them must have been met.
        (self.mended == 0).then(|| "no block was repaired".to_owned())
    }
}

/// Flips a bit in `most` of the first `used` blocks of the file that are not zeros, drawn from `seed`. How many.
///
/// # Errors
/// If there are none.
pub(super) fn flip(extents: &Path, seed: u64, used: u64, most: usize) -> anyhow::Result<usize> {
    let what = || format!("the blocks in {}", extents.display());
    let file = OpenOptions::new().read(true).write(true).open(extents).with_context(what)?;
    let blocks = file.metadata().with_context(what)?.len().saturating_sub(EXTENTS_HEADER);
    let blocks = (blocks / BLOCK as u64).min(used);
    let (mut noise, mut flipped) = (Noise::new(seed), BTreeSet::new());
    let mut content = [0; BLOCK];
    // A few times as many as it takes where half of the volume was written.
    for _ in 0..most * 16 {
        if flipped.len() == most || blocks == 0 {
            break;
        }
        let block = noise.below(blocks);
        let at = EXTENTS_HEADER + block * BLOCK as u64;
        file.read_exact_at(&mut content, at).with_context(what)?;
        if content.iter().any(|byte| *byte != 0) && flipped.insert(block) {
            let byte = noise.below(BLOCK as u64);
            let rotten = content[byte as usize] ^ (1 << noise.below(8));
            file.write_all_at(&[rotten], at + byte).with_context(what)?;
        }
    }
    if flipped.is_empty() {
        bail!("{} hold nothing yet: let the load go on for longer (--seconds)", what());
    }
    Ok(flipped.len())
}

/// What the node's process counted so far.
async fn counts(node: &DatanodeEntry) -> anyhow::Result<Counts> {
    let page = get_text(&node.http, "/metrics").await?;
    let of = |name: &str| {
        let name = format!("sbk_datanode_blocks_{name}_total");
        let line = page.lines().find(|line| line.starts_with(&name));
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        count.with_context(|| format!("{} does not tell {name}", node.http))
    };
    Ok(Counts { rotten: of("rotten")?, mended: of("mended")?, not_mended: of("not_mended")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_flips_in_each_of_some_blocks_that_hold_something() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("extents");
        let mut image = vec![0; EXTENTS_HEADER as usize + 300 * BLOCK];
        let used = EXTENTS_HEADER as usize..EXTENTS_HEADER as usize + 100 * BLOCK;
        image[used.clone()].fill(7);
        std::fs::write(&path, &image).expect("writes");
        let flipped = flip(&path, 3, USED_BLOCKS, ROTTEN).expect("flips");
        assert_eq!(flipped, ROTTEN);
        let rotten = std::fs::read(&path).expect("reads");
        let differ: Vec<usize> = (0..image.len()).filter(|at| image[*at] != rotten[*at]).collect();
        assert_eq!(differ.len(), flipped, "one byte of each block");
        assert!(differ.iter().all(|at| used.contains(at)));
        assert!(differ.iter().all(|at| (image[*at] ^ rotten[*at]).is_power_of_two()));
        std::fs::write(&path, vec![0; 3 * BLOCK]).expect("writes");
        let error = flip(&path, 3, USED_BLOCKS, ROTTEN).expect_err("there is nothing").to_string();
        assert!(error.contains("--seconds"), "{error}");
    }

    #[test]
    fn what_was_not_repaired_is_a_fault() {
        let right = Counts { rotten: 9, mended: 9, not_mended: 0 };
        assert_eq!(right.fault(), None);
        assert!(Counts { not_mended: 1, ..right }.fault().is_some());
        assert!(Counts { mended: 0, ..right }.fault().is_some());
    }
}
