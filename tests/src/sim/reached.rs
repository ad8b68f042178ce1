//! Which interesting states a step reached, told from what the engine and the store say anyway.

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Opened, Output, StreamEnd};
use sbk_engine::replication::message::{Incomplete, ToPrimary};
use sbk_engine::replication::trace::TraceEvent;
use sbk_engine::replication::view::RoleView;
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::Lsn;

use super::marks::{Injected, Mark};
use super::world::World;

impl World {
    /// A decision of a node's engine.
    pub(crate) fn traced(&mut self, index: usize, event: &TraceEvent) {
        self.note(index, || format!("[{}] {}: {}", event.epoch, event.what, event.why));
        let doubtful = self.nodes[index].handover_unknown;
        if matches!(event.what.as_str(), "continued" | "handed-over" | "stepped-down") {
            self.nodes[index].handover_unknown = false;
        }
        if event.what == "elected" {
            self.eight_elected(index);
        }
        if event.what == "session-failed" {
            self.mark_stall(&event.why);
        }
        let mark = match event.what.as_str() {
            "apart" => Mark::StoodForNothing,
            "crowded" => Mark::Crowded,
            "growth-waits" => Mark::GrowthWaited,
            "growth-goes-on" => Mark::GrowthWentOn,
            "mend-overtaken" => Mark::MendOvertaken,
            "not-mended" => Mark::NotMended,
            "rotten" if event.why.contains("its primary asked") => Mark::AskedRotten,
            "handover-given-up" => Mark::HandoverGivenUp,
            "handover-unknown" => {
                self.nodes[index].handover_unknown = true;
                return;
            }
            "continued" if doubtful => Mark::HandoverBurned,
            "handed-over" if doubtful => Mark::HandoverLate,
            "promoted" if !event.why.contains("waits 0 ms") => Mark::LeaseWait,
            "stepped-down" => Mark::SteppedDown,
            "stood" => Mark::Stood,
            "tail-lost" => Mark::TailRefused,
            "leave-waits" => Mark::LeaveSynced,
            "unanswered" => Mark::ProposalUnknown,
            "session-failed" if event.why.ends_with(&FailureKind::Unsettled.to_string()) => {
                self.mark(Mark::SessionFailed);
                Mark::DeltaGivenUp
            }
            "session-failed" => Mark::SessionFailed,
            "rebuilt" => Mark::Rebuilt,
            "delta-taken" => Mark::Delta,
            "trusted" => Mark::DoubtEnded,
            "recovery" if event.why.contains("catch-up of") => Mark::CatchUp,
            _ => return,
        };
        self.mark(mark);
    }

    /// A session failed: that of a member, because it did not come on?
    fn mark_stall(&mut self, why: &str) {
        let stalled = why.ends_with(&FailureKind::Stalled.to_string());
        let isr = &self.masters.config.isr;
        if stalled && isr.iter().any(|id| why.starts_with(&id.to_string())) {
            self.mark(Mark::MemberStalled);
        }
    }

    pub(crate) fn mark_verdict(&mut self, verdict: Verdict) {
        let Verdict::Ignored(reason) = verdict else { return };
        let mark = match reason {
            IgnoredReason::LateCopy => Mark::LateCopy,
            IgnoredReason::StaleEpoch => Mark::OldEpoch,
            IgnoredReason::StaleIncarnation => Mark::OldIncarnation,
            IgnoredReason::OldGeneration => Mark::OldGeneration,
            IgnoredReason::Stood => Mark::FencedOff,
            _ => return,
        };
        self.mark(mark);
    }

    pub(crate) fn mark_output(&mut self, index: usize, output: &Output) {
        let mark = match output {
            Output::Cut { end, .. } => {
                let cut = self.nodes[index].disk.shadow.end().0.saturating_sub(end.0);
                if cut > 1 { Mark::CutOfMany } else { Mark::CutOfOne }
            }
            Output::ToPrimary { message: ToPrimary::Facts { .. }, lineage } => {
                let asker = lineage.to.id;
                if let Some(node) = self.nodes.iter().position(|node| node.id == asker) {
                    self.hurt(node, true);
                }
                return;
            }
            Output::ToPrimary { message: ToPrimary::Gap { .. }, .. } => Mark::Gap,
            Output::StreamEnded { reason: StreamEnd::Replaced, .. } => Mark::StreamReplaced,
            Output::StreamEnded { reason: StreamEnd::NotPrimary, .. } => Mark::StaleStream,
            Output::Read { merge: true, .. } => Mark::Merged,
            _ => return,
        };
        self.mark(mark);
    }

    /// A delta begins at a node whose disk is as it was before.
    pub(crate) fn mark_delta(&mut self, index: usize, mark: &Incomplete, blocks: u64) {
        let sender = self.sender(mark);
        let node = &mut self.nodes[index];
        let before = std::mem::replace(&mut node.sent_by, sender);
        let resized = node.disk.store().blocks() != blocks;
        if node.disk.shadow.kept.incomplete.is_some_and(|torn| torn.from > Lsn(0)) {
            self.mark(Mark::DeltaTakenUp);
            if before.is_some() && sender.is_some() && before != sender {
                self.mark(Mark::DeltaTakenOver);
            }
        } else if resized {
            self.mark(Mark::DeltaResized);
        }
    }

    /// A frontend's stream has ended.
    pub(crate) fn mark_end(&mut self, reason: &StreamEnd) {
        let mark = match reason {
            StreamEnd::AttachLost => Mark::AttachLost,
            StreamEnd::SessionLost => Mark::SessionLost,
            StreamEnd::Held(_) => Mark::Held,
            _ => return,
        };
        self.mark(mark);
    }

    pub(crate) fn mark_feed_failure(&mut self, cause: FailureKind) {
        if cause == FailureKind::PinLost {
            self.mark(Mark::PinLost);
        }
    }

    /// A store was opened; the shadow is still what it was before.
    pub(crate) fn mark_opened(&mut self, index: usize, opened: &Opened) {
        if let Some(mark) = opened.kept.incomplete {
            return self.mark(match mark.from {
                Lsn(0) => Mark::RebuildInterrupted,
                _ => Mark::DeltaInterrupted,
            });
        }
        let shadow = &self.nodes[index].disk.shadow;
        if opened.kept.doubtful {
            let rotten = opened.durable < shadow.durable;
            self.mark(if rotten { Mark::EndRotten } else { Mark::Doubtful });
        }
        let shadow = &self.nodes[index].disk.shadow;
        let (lost, kept) = (opened.durable < shadow.end(), opened.durable > shadow.durable);
        if lost {
            self.mark(Mark::TailLost);
        }
        if kept && shadow_is_whole(self, index) {
            self.mark(Mark::TailKept);
        }
    }

    /// The machine stopped within a blocking operation.
    pub(crate) fn mark_stop(&mut self, output: &'static str) {
        self.mark(match output {
            "cut" => Mark::CutInterrupted,
            "wipe" => Mark::WipeInterrupted,
            _ => Mark::PersistInterrupted,
        });
    }

    pub(crate) fn mark_failure(&mut self, index: usize, cause: &str) {
        self.inject_failure(index);
        if cause.contains("cannot sync") {
            self.mark(Mark::SyncFailed);
        }
        if cause.contains("os error 28") {
            self.mark(Mark::DiskFull);
        }
    }

    fn inject_failure(&mut self, index: usize) {
        if self.nodes[index].disk.memory.ran_full() {
            self.inject(Injected::Full);
        }
    }

    pub(crate) fn mark_death(&mut self, index: usize, power: bool) {
        let node = &self.nodes[index];
        let (batch, checkpoint) = (node.batch.is_some(), node.checkpoint.is_some());
        let stopped = node.disk.memory.crashed();
        self.inject(if power { Injected::PowerLoss } else { Injected::Crash });
        if stopped {
            self.inject(Injected::StopInIo);
        }
        if batch {
            self.mark(Mark::BatchInterrupted);
        }
        if checkpoint {
            self.mark(Mark::CheckpointInterrupted);
        }
    }

    /// A paused node goes on: as the primary that it is no more?
    pub(crate) fn mark_zombie(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(view) = node.replica.as_ref().map(|r| r.view(node.clock(self.now))) else {
            return;
        };
        let newer = self.masters.config.primary != view.me;
        if node.paused && view.role == RoleView::Primary && newer {
            self.mark(Mark::Zombie);
        }
    }
}

fn shadow_is_whole(world: &World, index: usize) -> bool {
    world.nodes[index].disk.shadow.durable > Lsn(0)
}
