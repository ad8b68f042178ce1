//! Faults after which something is gone for good: a disk, or what a block held. They begin when everything is whole and nothing
//! else is wrong, for only then another replica is sure to have it; what comes after them meets a cluster that is
//! still busy with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use sbk_proto::v1::{Durability, VolumeInfo};

use super::schedule::{Class, Fault};
use super::stage::{Effect, Stage};
use super::volumes::{KINDS, Kind};
use super::{Run, USED_BLOCKS};
use crate::commands::scrub::scrub_and_repair;
use crate::commands::volume::wait_for;
use crate::dev::cluster::{Which, data_dir};
use crate::drill::bit_rot;
use crate::view::{NodeView, VolumeView, id_text};
use crate::wait::{self, Look};

/// How long it may take until a node says that its disk failed, until the masters count no lost replica as in sync, and until what rotted
/// is repaired.
const SEEN: Duration = Duration::from_secs(60);
/// Blocks in each of which a bit flips. All of them may be under repair at a time.
const ROTTEN: usize = 16;

/// A replica, by the names that its directory has.
struct Held {
    volume: String,
    replica: String,
}

impl Held {
    fn name(&self) -> String {
        format!("{}.{}", self.volume, self.replica)
    }
}

impl Run<'_> {
    /// Begins a fault that something is gone after. What is wrong, if anything is.
    pub(super) async fn begin_quiet(&mut self, fault: &Fault) -> anyhow::Result<Vec<String>> {
        let done = match fault.class {
            Class::FailDisk => self.fail_disk(fault).await,
            _ => self.rot(fault).await,
        };
        Ok(match done {
            Ok(()) => Vec::new(),
            Err(e) if e.is::<wait::TimedOut>() => {
                let mut wrong = self.wrong_meanwhile();
                wrong.push(format!("#{}: {e:#}", fault.number));
                wrong
            }
            Err(e) => return Err(e),
        })
    }

    async fn all_whole(&self) -> anyhow::Result<()> {
        for kind in KINDS {
            let what = format!("volume {} to be whole before something is lost", kind.name);
            let whole = |info: &_| VolumeView::of(info).is_whole();
            wait_for(&self.stage.masters(), kind.name, &what, SEEN, whole).await?;
        }
        Ok(())
    }

    async fn fail_disk(&mut self, fault: &Fault) -> anyhow::Result<()> {
        if self.stage.has_failed_disk() {
            self.log.record(&format!("#{} is left out: another disk has failed", fault.number));
            return Ok(());
        }
        self.all_whole().await?;
        let masters = self.stage.masters();
        let mut volumes = Vec::new();
        for kind in KINDS {
            volumes.push((kind, masters.get_volume(kind.name).await?));
        }
        let candidates: Vec<usize> = self.stage.failing.keys().copied().collect();
        let from = fault.measure as usize;
        let order = (0..candidates.len()).map(|i| candidates[(from + i) % candidates.len()]);
        for at in order {
            let lost: Vec<_> = volumes
                .iter()
                .flat_map(|(kind, info)| self.stage.held_there(at, info).map(|held| (*kind, held)))
                .collect();
            // The only copy of something is never lost; nor one that may not leave, for its volume waits until somebody
            // asks for fewer copies.
            let stays = |kind: &Kind| kind.replicas == kind.min_in_sync.unwrap_or(1);
            if lost.is_empty() || lost.iter().any(|(kind, _)| stays(kind)) {
                continue;
            }
            return self.fail_disk_of(fault, at, &lost).await;
        }
        self.log.record(&format!(
            "#{} is left out: each disk has something that must stay",
            fault.number
        ));
        Ok(())
    }

    async fn fail_disk_of(
        &mut self,
        fault: &Fault,
        at: usize,
        lost: &[(&Kind, Held)],
    ) -> anyhow::Result<()> {
        let disk = &self.stage.failing[&at];
        let (path, raw) = (disk.at().to_owned(), disk.is_raw());
        let text = format!("{fault} -> {}, with {} replicas", path.display(), lost.len());
        disk.fail()?;
        self.log.tell(&text);
        *self.log.faults.entry(fault.class).or_default() += 1;
        *(if raw { &mut self.counts.devices_failed } else { &mut self.counts.disks_failed }) += 1;
        let node = self.stage.cluster.file().datanodes[at].id.clone();
        let masters = self.stage.masters();
        let id = wait::until("a node to say that its disk failed", SEEN, async || {
            let nodes = masters.list_nodes().await;
            Ok(match nodes {
                Err(e) => Look::NotYet(e.to_string()),
                Ok(nodes) => {
                    let views: Vec<_> = nodes.nodes.iter().map(NodeView::of).collect();
                    let disks = views.iter().filter(|v| v.id == node).flat_map(|v| &v.disks);
                    let failed = disks.filter(|d| !d.fault.is_empty()).map(|d| d.id.clone()).next();
                    failed.map_or_else(|| Look::NotYet("it says nothing".into()), Look::Done)
                }
            })
        })
        .await?;
        // It is gone for good, so from here on the harm must be known before anything else is harmed.
        for (kind, held) in lost.iter().filter(|(k, _)| k.durability != Durability::SyncQuorum) {
            let what = format!("replica {} of {} to be out of sync", held.replica, kind.name);
            let out = |info: &VolumeInfo| {
                let mut members = info.members.iter();
                members.all(|m| id_text(&m.replica) != held.replica || !m.in_sync)
            };
            wait_for(&masters, kind.name, &what, SEEN, out).await?;
        }
        self.stage.push(fault, Effect::DiskFailed { at, id });
        Ok(())
    }

    async fn rot(&mut self, fault: &Fault) -> anyhow::Result<()> {
        if self.stage.has_failed_disk() {
            self.log.record(&format!("#{} is left out: a disk has failed", fault.number));
            return Ok(());
        }
        self.all_whole().await?;
        let masters = self.stage.masters();
        let from = fault.measure as usize;
        // What a best_effort primary acknowledged last nobody else need have.
        let kinds = KINDS.iter().filter(|kind| kind.replicas > 1 && !kind.may_lose());
        let kinds: Vec<_> = kinds.collect();
        let mut found = None;
        for i in 0..kinds.len() {
            let info = masters.get_volume(kinds[(from + i) % kinds.len()].name).await?;
            let dirs = self.stage.directories_of(&info);
            if !dirs.is_empty() {
                found = Some((info, dirs[from % dirs.len()].clone()));
                break;
            }
        }
        let (info, dir) = found.context("no replica is in a directory")?;
        let extents = dir.join("extents");
        let Ok(flipped) = bit_rot::flip(&extents, fault.number, USED_BLOCKS, ROTTEN) else {
            self.log.record(&format!("#{} is left out: nothing is in there yet", fault.number));
            return Ok(());
        };
        let position = |node: &bytes::Bytes| {
            let files = self.stage.cluster.file();
            files.datanodes.iter().position(|d| d.id == id_text(node))
        };
        let primary = info
            .members
            .iter()
            .find(|m| m.primary)
            .filter(|m| extents.to_string_lossy().contains(&id_text(&m.replica)));
        let primary = primary.and_then(|m| position(&m.node));
        let whose = if primary.is_some() { "the primary" } else { "a follower" };
        self.log.tell(&format!("{fault} -> {flipped} blocks of {whose} of {}", info.name));
        *self.log.faults.entry(fault.class).or_default() += 1;
        self.counts.bits_flipped += flipped as u64;
        let name = info.name.clone();
        let mut repaired = 0;
        wait::until(format!("what rotted of {name} to be repaired"), SEEN, async || {
            let info = match masters.get_volume(&name).await {
                Ok(info) => info,
                Err(e) => return Ok(Look::NotYet(e.to_string())),
            };
            let report = match scrub_and_repair(&masters, &info, 0).await {
                Ok(report) => report,
                Err(e) => return Ok(Look::NotYet(format!("{e:#}"))),
            };
            repaired += report.repair.as_ref().map_or(0, |repair| repair.logged.len() as u64);
            let clean = report.is_clean() && report.skipped.is_empty();
            Ok(if clean { Look::Done(()) } else { Look::NotYet(format!("{report:?}")) })
        })
        .await?;
        self.counts.scrub_repairs += repaired;
        self.log.record(&format!("#{}: {repaired} blocks were repaired for scrubs", fault.number));
        if let Some(at) = primary {
            // It says from then on that its disk returns wrong data, until it is started again.
            self.stage.stop(fault, Which::Datanode(at));
        }
        Ok(())
    }
}

impl Stage {
    fn directories(&self, at: usize) -> Vec<PathBuf> {
        let dirs = (1..=super::DISKS).map(|d| data_dir(self.cluster.dir(), at as u64 + 1, d));
        dirs.collect()
    }

    fn held(&self, at: usize, info: &VolumeInfo) -> Option<Held> {
        let node = &self.cluster.file().datanodes[at].id;
        let member = info.members.iter().find(|member| id_text(&member.node) == *node)?;
        Some(Held { volume: id_text(&info.id), replica: id_text(&member.replica) })
    }

    /// The volume's replica on the disk of this datanode that can fail, if it is there.
    fn held_there(&self, at: usize, info: &VolumeInfo) -> Option<Held> {
        let held = self.held(at, info)?;
        let failing = self.failing[&at].at();
        let elsewhere = self.directories(at).into_iter().filter(|dir| dir != failing);
        let is_in = |dir: &Path| dir.join("replicas").join(held.name()).is_dir();
        let mut elsewhere = elsewhere.map(|dir| is_in(&dir));
        (!elsewhere.any(|is| is)).then_some(held)
    }

    /// Where the volume's replicas are, but for those on raw devices.
    fn directories_of(&self, info: &VolumeInfo) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for at in 0..self.cluster.file().datanodes.len() {
            let Some(held) = self.held(at, info) else { continue };
            let dirs = self.directories(at).into_iter();
            let dirs = dirs.map(|dir| dir.join("replicas").join(held.name()));
            found.extend(dirs.filter(|dir| dir.is_dir()));
        }
        found
    }

    /// Ends the failure of a disk: as the manual has it, another one is put in its place, and the node is
    /// started with the word that the old one is lost.
    pub(super) fn replace_disk(&mut self, at: usize, id: &str) -> anyhow::Result<()> {
        let which = Which::Datanode(at);
        self.note_end(which);
        self.cluster.kill(which);
        let disk = self.failing.get_mut(&at).context("a disk that can fail")?;
        disk.replace()?;
        self.replaced += 1;
        self.cluster.add_options(which, &["--lost-dir", id]);
        self.cluster.start_again(which)
    }
}
