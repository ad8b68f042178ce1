//! Everything is healed: does it become whole, and is everything right?

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::volumes::KINDS;
use super::{Run, keep};
use crate::commands::verify;
use crate::commands::volume::wait_for;
use crate::http;
use crate::view::VolumeView;
use crate::wait::{self, Look};
use crate::workload::stamp::Noise;

/// How long the requests in flight may take once all volumes serve.
const ANSWERED: Duration = Duration::from_secs(30);
/// How long the reading of all blocks of one volume may take, and the comparison of its replicas.
const READ: Duration = Duration::from_secs(60);
/// Violations of one volume that are told.
const LISTED: usize = 5;

impl Run<'_> {
    /// Heals, waits, checks; what is wrong.
    pub(super) async fn calm(&mut self) -> anyhow::Result<Vec<String>> {
        self.stage.heal(&mut self.log)?;
        let healed = Instant::now();
        if let Err(e) = self.become_whole(healed).await {
            let mut wrong = self.wrong_meanwhile();
            wrong.push(format!("{e:#}"));
            return Ok(wrong);
        }
        let took = healed.elapsed();
        self.longest_convergence = self.longest_convergence.max(took);
        let wrong = self.check().await?;
        if wrong.is_empty() {
            self.checks += 1;
            self.counts.old_keys_dropped += self.stage.drop_old_keys()?;
            self.counts.look(self.stage.cluster.dir());
            let sums = self.sums();
            self.log.tell(&format!(
                "healed, whole after {} ms, all is right; {} writes, {} reads",
                took.as_millis(),
                sums.writes,
                sums.reads
            ));
            // The traces of what went well need not be kept.
            let dir = keep::trace_dir(&self.stage.cluster);
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(wrong)
    }

    /// Waits until all masters are ready, all volumes are whole, and no datanode complains.
    async fn become_whole(&mut self, healed: Instant) -> anyhow::Result<()> {
        let bound = self.args.converge;
        let left = || bound.saturating_sub(healed.elapsed());
        let file = self.stage.cluster.file().clone();
        let stage = &mut self.stage;
        wait::until("all datanodes to be undrained", left(), async || {
            Ok(match stage.undrain().await {
                Ok(()) => Look::Done(()),
                Err(e) => Look::NotYet(format!("{e:#}")),
            })
        })
        .await?;
        for kind in KINDS {
            let what = format!("volume {} to be whole after all faults were healed", kind.name);
            let masters = self.stage.masters();
            let whole = |info: &_| VolumeView::of(info).is_whole();
            wait_for(&masters, kind.name, &what, left(), whole).await?;
        }
        for master in &file.masters {
            let what = format!("master {} to be ready after all faults were healed", master.id);
            wait::until(what, left(), async || {
                Ok(match http::get_bytes(&master.http, "/readyz", READ).await {
                    Ok(_) => Look::Done(()),
                    Err(e) => Look::NotYet(format!("{e:#}")),
                })
            })
            .await?;
        }
        for (number, datanode) in (1..).zip(&file.datanodes) {
            let what = format!("datanode {number} to have no complaint after all was healed");
            wait::until(what, left(), async || {
                Ok(match http::get_json::<Value>(&datanode.http, "/diagnose").await {
                    Ok(told) if told["well"] == true => Look::Done(()),
                    Ok(told) => Look::NotYet(told["complaints"].to_string()),
                    Err(e) => Look::NotYet(format!("{e:#}")),
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Lets the clients rest, and checks everything that can be checked.
    async fn check(&mut self) -> anyhow::Result<Vec<String>> {
        let mut resting = Vec::new();
        for load in self.loads.values() {
            resting.push(load.rest(ANSWERED).await?);
        }
        let mut wrong = self.wrong_meanwhile();
        let datanodes = self.stage.cluster.file().datanodes.len() as u64;
        let mut noise = Noise::new(self.checks);
        let masters = self.stage.cluster.client();
        for (volume, load) in &self.loads {
            let node = noise.below(datanodes) as usize;
            load.read_back(node, READ).await?;
            let info = masters.get_volume(volume).await?;
            let generation = VolumeView::of(&info).loss_generation;
            let kind = KINDS.iter().find(|kind| kind.name == *volume).expect("one of the kinds");
            let (lost, untrue) = self.losses.look(kind, generation, &load.told());
            wrong.extend(untrue);
            let violations = match lost {
                true => load.history().check_after_loss(),
                false => load.history().check(),
            };
            if violations.is_empty() {
                load.history().settle();
            } else {
                keep::histories(self.stage.cluster.dir(), volume, load, &violations)?;
                let told = violations.iter().take(LISTED).map(|v| format!("volume {volume}, {v}"));
                wrong.extend(told);
                wrong.push(format!("volume {volume}: {} violations", violations.len()));
            }
            let report = verify::compare(&info, READ).await?;
            if !report.is_clean() || !report.skipped.is_empty() {
                wrong.push(format!(
                    "volume {volume}: {} regions differ between the replicas, {} damaged blocks, \
                     {} replicas not in sync",
                    report.mismatches.len(),
                    report.damaged,
                    report.skipped.len()
                ));
                self.log.record(&format!("{report:?}"));
            }
        }
        drop(resting);
        Ok(wrong)
    }
}
