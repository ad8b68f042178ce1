//! What every drill works with: a cluster, a volume of its own, a verified load.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sbk_master_client::MasterClient;
use sbk_proto::v1::VolumeInfo;
use serde::Serialize;
use uuid::Uuid;

use super::target::Target;
use crate::commands::explain::{self, Decision};
use crate::commands::volume::{create_request, wait_for, wait_until_serving};
use crate::commands::{projection, verify};
use crate::progress::Progress;
use crate::size::show_size;
use crate::view::{VolumeView, id_text};
use crate::wait::{self, Look};
use crate::workload::history::{History, Violation};
use crate::workload::load::{Load, LoadOptions, LoadStats, read_back};
use crate::workload::nbd::NbdClient;
use crate::workload::stamp::BLOCK;

/// The size of the drill's volume.
pub(super) const VOLUME: u64 = 256 << 20;
/// The part of it that the load uses.
pub(super) const USED_BLOCKS: u64 = (64 << 20) / BLOCK as u64;
/// How long the volume may take to serve, and to be whole.
pub(super) const WHOLE: Duration = Duration::from_secs(180);
/// How long a request may take before the drill gives up on it.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// Bytes that are made empty at a time.
const BLANK: u32 = 1 << 20;
/// Violations that a report lists; their number is always told.
const LISTED: usize = 20;

/// A cluster, a volume, and the record of what was done to it.
#[derive(Debug)]
pub struct Bench {
    /// The cluster.
    pub target: Target,
    /// Its masters.
    pub masters: MasterClient,
    id: String,
    name: String,
    history: Arc<History>,
    depth: u32,
    loads: u64,
}

/// Whether the data is right.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Blocks read back and checked against the record.
    pub blocks: u64,
    /// Write requests acknowledged in the whole drill so far, in blocks.
    pub acknowledged_blocks: u64,
    /// How many violations were found.
    pub violations: usize,
    /// The first of them.
    pub first_violations: Vec<Violation>,
    /// The comparison of the replicas.
    pub replicas: verify::Report,
}

impl Verified {
    /// What is wrong, in words, if anything is.
    pub fn fault(&self) -> Option<String> {
        if let Some(first) = self.first_violations.first() {
            return Some(format!("{} violations, the first: {first}", self.violations));
        }
        if !self.replicas.is_clean() {
            let (differ, damaged) = (self.replicas.mismatches.len(), self.replicas.damaged);
            return Some(format!("{differ} regions differ, {damaged} blocks are damaged"));
        }
        if !self.replicas.skipped.is_empty() {
            return Some(format!("{} replicas were not in sync", self.replicas.skipped.len()));
        }
        None
    }
}

impl Bench {
    /// Makes the volume on `target` and waits until it is whole.
    pub async fn open(target: Target, depth: u32) -> anyhow::Result<Self> {
        let masters = target.masters()?;
        let run = Uuid::new_v4();
        let name = format!("drill-{}", &run.simple().to_string()[..8]);
        let created = masters.create_volume(create_request(&name, VOLUME, 3)).await?;
        let info = wait_until_serving(&masters, &created, WHOLE).await?;
        let bench = Self::of(target, masters, &info, run, depth);
        bench.whole().await?;
        Ok(bench)
    }

    /// A volume that is there, and whole.
    pub async fn on(masters: MasterClient, volume: &str, depth: u32) -> anyhow::Result<Self> {
        let info = masters.get_volume(volume).await?;
        let target = Target::Foreign { masters: masters.clone() };
        let bench = Self::of(target, masters, &info, Uuid::new_v4(), depth);
        bench.whole().await?;
        Ok(bench)
    }

    fn of(target: Target, masters: MasterClient, info: &VolumeInfo, run: Uuid, depth: u32) -> Self {
        let (id, name, history) = (id_text(&info.id), info.name.clone(), History::new(run));
        Self { target, masters, id, name, history: Arc::new(history), depth, loads: 0 }
    }

    /// Makes the part of the volume that the load uses read as zeros, which is what the record
    /// begins with.
    pub async fn blank(&self, client: &NbdClient) -> anyhow::Result<()> {
        let used = USED_BLOCKS * BLOCK as u64;
        if client.size() < used {
            bail!("volume '{}' is smaller than the {} of the load", self.name, show_size(used));
        }
        for at in (0..used).step_by(BLANK as usize) {
            client.write_zeroes(at, BLANK).await.context("making the load's part empty")?;
        }
        Ok(())
    }

    /// What the masters tell of the volume now.
    pub async fn info(&self) -> anyhow::Result<VolumeInfo> {
        Ok(self.masters.get_volume(&self.id).await?)
    }

    /// What masters and datanodes tell of the volume now.
    pub async fn view(&self) -> anyhow::Result<VolumeView> {
        Ok(projection::detailed(&self.info().await?).await)
    }

    /// Waits until the volume serves with all replicas in sync.
    pub async fn whole(&self) -> anyhow::Result<VolumeView> {
        self.wait_for("all replicas to be in sync", |view| view.is_whole()).await
    }

    /// Waits until what the masters tell is `right`.
    pub async fn wait_for(
        &self,
        what: &str,
        right: impl Fn(&VolumeView) -> bool,
    ) -> anyhow::Result<VolumeView> {
        let right = |info: &VolumeInfo| right(&VolumeView::of(info));
        let info = wait_for(&self.masters, &self.id, what, WHOLE, right).await?;
        Ok(VolumeView::of(&info))
    }

    /// The record of what the loads did.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects to the volume over a datanode other than `avoid`.
    pub async fn connect(&self, avoid: &str) -> anyhow::Result<NbdClient> {
        let nodes = self.target.file()?.datanodes;
        let node = nodes.iter().find(|d| d.id != avoid);
        let node = node.context("a drill needs at least two datanodes")?;
        let export = &self.name;
        // A datanode that has just been started learns of its volumes in a moment.
        wait::until(format!("export '{export}' at {}", node.nbd), ANSWER, async || {
            Ok(match NbdClient::connect(&node.nbd, export).await {
                Ok(client) => Look::Done(client),
                Err(e) => Look::NotYet(e.to_string()),
            })
        })
        .await
    }

    /// Starts the load and waits until it runs well: a failure in the first moment would prove
    /// nothing.
    pub async fn start_load(
        &mut self,
        client: &NbdClient,
        pace: Option<u64>,
    ) -> anyhow::Result<Load> {
        self.loads += 1;
        let options = LoadOptions {
            blocks: USED_BLOCKS,
            depth: self.depth,
            seed: self.loads,
            pace,
            ..LoadOptions::default()
        };
        let load = Load::start(client.clone(), Arc::clone(&self.history), options)?;
        self.load_goes_on(&load, Duration::ZERO).await?;
        Ok(load)
    }

    /// Lets the load run for `at_least`, and until it got at least 200 more writes acknowledged.
    /// Ends at once when a request failed.
    pub async fn load_goes_on(&self, load: &Load, at_least: Duration) -> anyhow::Result<()> {
        let before = load.stats().writes;
        let started = std::time::Instant::now();
        let mut progress = Progress::new();
        wait::until("200 acknowledged writes", at_least + ANSWER, async || {
            let LoadStats { writes, errors, .. } = load.stats();
            let ran = started.elapsed();
            progress.show(|| format!("load: {writes} writes acknowledged"));
            Ok(if errors > 0 || (ran >= at_least && writes >= before + 200) {
                Look::Done(())
            } else {
                Look::NotYet(format!("{} acknowledged", writes - before))
            })
        })
        .await
    }

    /// Reads everything back, checks it against the record, and compares the replicas. Nothing may
    /// be in flight.
    pub async fn verify(&self, client: &NbdClient) -> anyhow::Result<Verified> {
        let mut progress = Progress::new();
        let total = USED_BLOCKS * BLOCK as u64;
        read_back(client, &self.history, USED_BLOCKS, |blocks| {
            progress.of("reading back", blocks * BLOCK as u64, total, show_size);
        })
        .await?;
        progress.clear();
        let violations = self.history.check();
        if violations.is_empty() {
            self.history.settle();
        }
        Ok(Verified {
            blocks: USED_BLOCKS,
            acknowledged_blocks: self.history.acknowledged(),
            violations: violations.len(),
            first_violations: violations.into_iter().take(LISTED).collect(),
            replicas: verify::compare(&self.info().await?, ANSWER).await?,
        })
    }

    /// The decisions of all replicas so far.
    pub async fn decisions(&self) -> anyhow::Result<Vec<Decision>> {
        let mut decisions = explain::story(&self.info().await?).await?.decisions;
        decisions.retain(|decision| decision.node != explain::MASTERS);
        Ok(decisions)
    }

    /// The UUID of the replica on `node`.
    pub async fn replica_on(&self, node: &str) -> anyhow::Result<String> {
        let info = self.info().await?;
        let member = info.members.iter().find(|m| id_text(&m.node) == node);
        Ok(id_text(&member.with_context(|| format!("no replica is on {node}"))?.replica))
    }

    /// Ends the drill. With `keep`, the volume and the cluster's directory stay for a look at
    /// them; where they are is told on standard error.
    pub async fn close(self, keep: bool) -> anyhow::Result<()> {
        if !keep && matches!(self.target, Target::Running { .. }) {
            self.masters.delete_volume(&self.id).await?;
        }
        let running = matches!(self.target, Target::Running { .. });
        match self.target.close(keep).await? {
            Some(dir) => eprintln!("Logs and data are kept in {}", dir.display()),
            None if keep && running => eprintln!("Volume {} is kept", self.name),
            None => {}
        }
        Ok(())
    }
}
