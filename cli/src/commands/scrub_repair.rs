//! What `sbkctl volume scrub --repair` has done about damaged blocks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use sbk_engine::replication::scrub::SCRUB_ROOM;
use sbk_master_client::MasterClient;
use sbk_proto::v1::{ScrubFate, ScrubbedBlock, VolumeInfo};
use serde::Serialize;
use tokio::time::sleep;

use super::scrub::{AGAIN, ATTEMPTS, ranges};
use super::verify::Replica;
use crate::view::id_text;

/// What became of damaged blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// Blocks that the primary logged again.
    pub logged: Vec<u64>,
    /// Blocks that were written anew meanwhile.
    pub overtaken: Vec<u64>,
    /// Blocks that are as they were, by why.
    pub not_mended: BTreeMap<String, Vec<u64>>,
}

impl Repair {
    /// Notes what became of blocks. Returns those that are settled.
    fn note(&mut self, told: Vec<ScrubbedBlock>) -> Vec<u64> {
        let mut settled = Vec::new();
        for ScrubbedBlock { block, fate, reason } in told {
            match ScrubFate::try_from(fate).unwrap_or_default() {
                ScrubFate::Logged => self.logged.push(block),
                ScrubFate::Overtaken => self.overtaken.push(block),
                ScrubFate::NotMended => self.not_mended.entry(reason).or_default().push(block),
                ScrubFate::Busy | ScrubFate::Unspecified => continue,
            }
            settled.push(block);
        }
        settled
    }

    /// What was done, for people.
    pub fn words(&self) -> String {
        let Self { logged, overtaken, not_mended } = self;
        let mut text = String::new();
        if !logged.is_empty() {
            text += &format!(
                "Repaired: blocks {}. They are in the log; the replicas' extents follow with the next \
                 checkpoint. Another scrub tells.\n",
                ranges(logged)
            );
        }
        if !overtaken.is_empty() {
            text += &format!("Written anew meanwhile: blocks {}.\n", ranges(overtaken));
        }
        for (why, blocks) in not_mended {
            text += &format!("Not repaired: blocks {}: {why}.\n", ranges(blocks));
        }
        text
    }
}

/// Has the volume's primary, whoever that is meanwhile, repair blocks.
pub(super) async fn repair(
    masters: &MasterClient,
    info: &VolumeInfo,
    damaged: BTreeSet<u64>,
) -> Repair {
    let id = id_text(&info.id);
    let (mut open, mut repair, mut failed) = (damaged, Repair::default(), 0);
    while !open.is_empty() {
        let some = open.iter().copied().take(SCRUB_ROOM).collect();
        let told = order(masters, &id, some).await;
        let (settled, why) = match told {
            Ok(told) => (repair.note(told), "the primary has no room for more repairs".to_owned()),
            Err(error) => (Vec::new(), format!("{error:#}")),
        };
        settled.iter().for_each(|block| {
            open.remove(block);
        });
        failed = if settled.is_empty() { failed + 1 } else { 0 };
        if failed >= ATTEMPTS {
            repair.not_mended.entry(why).or_default().extend(std::mem::take(&mut open));
        } else if settled.is_empty() {
            sleep(AGAIN).await;
        }
    }
    repair
}

async fn order(
    masters: &MasterClient,
    volume: &str,
    blocks: Vec<u64>,
) -> anyhow::Result<Vec<ScrubbedBlock>> {
    let info = masters.get_volume(volume).await?;
    let primary = info.members.iter().find(|member| member.primary);
    let primary = primary.context("the volume has no primary")?;
    let replica = Replica::connect(&info, primary).await?;
    let failed = || format!("node {} failed to repair", replica.node);
    replica.repair(blocks).await.with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(block: u64, fate: ScrubFate) -> ScrubbedBlock {
        let reason = if fate == ScrubFate::NotMended { "gone" } else { "" }.to_owned();
        ScrubbedBlock { block, fate: fate.into(), reason }
    }

    #[test]
    fn what_is_busy_or_unknown_stays_to_be_asked_for_again() {
        let mut repair = Repair::default();
        let told = vec![
            block(1, ScrubFate::Logged),
            block(2, ScrubFate::Busy),
            block(3, ScrubFate::Overtaken),
            block(4, ScrubFate::NotMended),
            ScrubbedBlock { block: 5, fate: 77, reason: String::new() },
        ];
        assert_eq!(repair.note(told), [1, 3, 4]);
        assert_eq!((&repair.logged[..], &repair.overtaken[..]), (&[1][..], &[3][..]));
        let words = repair.words();
        assert!(words.contains("Repaired: blocks 1. They are in the log"), "{words}");
        assert!(words.contains("Written anew meanwhile: blocks 3."), "{words}");
        assert!(words.contains("Not repaired: blocks 4: gone."), "{words}");
    }
}
