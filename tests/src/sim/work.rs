//! The store's work beside the node's other business: batches of the WAL, steps of the checkpoint.
//! Each begins and ends at a time of its own, so a node dies before, within and after it.

use sbk_engine::replication::io::Input;
use sbk_engine::types::Lsn;
use sbk_store::StoreError;

use super::event::Event;
use super::marks::Mark;
use super::node::{Batch, Work};
use super::world::World;

/// The durable end is recorded at least this often while it moves, as the runtime has it.
const RECORD_EVERY_MS: u64 = 1000;

impl World {
    /// Hands out what waits.
    pub(crate) fn start_work(&mut self, index: usize) {
        let delay = 1 + self.rng.below(3);
        let node = &mut self.nodes[index];
        let run = node.run;
        let Some(replica) = &node.replica else { return };
        let (generation, sync) = (replica.generation(), !replica.acks_written());
        let begin = self.now.max(node.stalled_until) + delay;
        if node.batch.is_none()
            && let Some(batch) = node.disk.store().take_batch()
        {
            node.batch = Some((generation, Work::Planned(Batch { batch, sync })));
            self.at(begin, Event::BatchRuns { node: index, run });
        }
        let node = &mut self.nodes[index];
        if node.sync.is_none()
            && let Some(sync) = node.disk.store().take_sync()
        {
            node.sync = Some((generation, Work::Planned(sync)));
            let slow = [4, 4, 30, 400][self.rng.below(4) as usize];
            let begin = begin.max(node.syncs_from) + self.rng.below(slow);
            self.at(begin, Event::SyncRuns { node: index, run });
        }
        if self.nodes[index].checkpoint.is_none() {
            self.pass_time(index);
        }
        let node = &mut self.nodes[index];
        if node.checkpoint.is_none()
            && let Some(budget) = node.disk.checkpoint_budget()
            && let Some(plan) = node.disk.store().plan_checkpoint(budget)
        {
            node.checkpoint = Some((generation, Work::Planned(plan)));
            self.at(begin, Event::CheckpointRuns { node: index, run });
        }
    }

    pub(crate) fn batch_runs(&mut self, index: usize, run: u64) {
        let delay = self.rng.below(4);
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        match node.batch.take() {
            Some((generation, Work::Planned(batch))) => {
                let result = batch.run();
                let failed = result.failed();
                node.batch = Some((generation, Work::Done(result)));
                self.after(delay, Event::BatchDone { node: index, run });
                if failed {
                    self.failed_at_once(index);
                }
            }
            // The one that was to run was waited for, and this is the next one.
            other => node.batch = other,
        }
    }

    pub(crate) fn sync_runs(&mut self, index: usize, run: u64) {
        let delay = self.rng.below(4);
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        match node.sync.take() {
            Some((generation, Work::Planned(sync))) => {
                let result = sync.run();
                let failed = result.failed();
                node.sync = Some((generation, Work::Done(result)));
                self.after(delay, Event::SyncDone { node: index, run });
                if failed {
                    self.failed_at_once(index);
                }
            }
            other => node.sync = other,
        }
    }

    /// The thread that found the failure gives the replica another tail before anybody hears of it: the
    /// process may end next.
    fn failed_at_once(&mut self, index: usize) {
        if !self.nodes[index].disk.memory.crashed() {
            self.tail_lost(index);
        }
    }

    pub(crate) fn sync_finished(&mut self, index: usize, run: u64) {
        let node = &mut self.nodes[index];
        if node.run != run || !matches!(node.sync, Some((_, Work::Done(_)))) {
            return;
        }
        let done = self.sync_done(index);
        self.settle_work(index, done);
    }

    pub(crate) fn checkpoint_runs(&mut self, index: usize, run: u64) {
        let delay = self.rng.below(4);
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        match node.checkpoint.take() {
            Some((generation, Work::Planned(plan))) => {
                node.checkpoint = Some((generation, Work::Done(plan.run())));
                self.after(delay, Event::CheckpointDone { node: index, run });
            }
            other => node.checkpoint = other,
        }
    }

    /// Gives the outcome of what ran back to the store.
    pub(crate) fn work_done(&mut self, index: usize, run: u64, batch: bool) {
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        let done = if batch {
            match node.batch {
                Some((_, Work::Done(_))) => self.batch_done(index),
                // It was waited for, and another one is out.
                Some((_, Work::Planned(_))) | None => return,
            }
        } else {
            match node.checkpoint {
                Some((_, Work::Done(_))) => self.checkpoint_done(index),
                Some((_, Work::Planned(_))) | None => return,
            }
        };
        self.settle_work(index, done);
    }

    fn settle_work(&mut self, index: usize, done: Result<(), StoreError>) {
        match done.and_then(|()| self.record_durable(index)) {
            // Work whose failure the store can do without does not say that the machine stopped.
            Ok(()) if self.nodes[index].disk.memory.crashed() => self.stops(index),
            Ok(()) => self.turns(index),
            Err(error) => self.store_failed(index, &error),
        }
    }

    fn batch_done(&mut self, index: usize) -> Result<(), StoreError> {
        let node = &mut self.nodes[index];
        let Some((generation, work)) = node.batch.take() else { return Ok(()) };
        let result = match work {
            Work::Planned(batch) => batch.run(),
            Work::Done(result) => result,
        };
        let lsn = node.disk.store().batch_done(result)?;
        let written = node.disk.store().written();
        node.disk.shadow.durable = lsn;
        node.disk.shadow.written = node.disk.shadow.written.max(written);
        if written > lsn {
            let wrote = Input::Written { generation, lsn: written };
            node.inbox.push_back((wrote, Vec::new()));
        }
        node.inbox.push_back((Input::Durable { generation, lsn }, Vec::new()));
        self.check_second_homes(index, lsn);
        Ok(())
    }

    fn sync_done(&mut self, index: usize) -> Result<(), StoreError> {
        let node = &mut self.nodes[index];
        let Some((generation, work)) = node.sync.take() else { return Ok(()) };
        let result = match work {
            Work::Planned(sync) => sync.run(),
            Work::Done(result) => result,
        };
        let lsn = node.disk.store().sync_done(result)?;
        node.disk.shadow.durable = lsn;
        node.inbox.push_back((Input::Durable { generation, lsn }, Vec::new()));
        Ok(())
    }

    fn checkpoint_done(&mut self, index: usize) -> Result<(), StoreError> {
        let node = &mut self.nodes[index];
        let Some((generation, work)) = node.checkpoint.take() else { return Ok(()) };
        let done = match work {
            Work::Planned(plan) => plan.run(),
            Work::Done(done) => done,
        };
        let before = node.disk.store().checkpoint();
        let kept = self.retained(index);
        let store = self.nodes[index].disk.store();
        let (checkpoint, retained) = store.checkpoint_done(done)?;
        self.check_released(index, kept);
        let store = self.nodes[index].disk.store();
        let kept = (before.0 + 1..=checkpoint.0).any(|lsn| store.refers(Lsn(lsn)));
        self.summary.checkpoints += 1;
        if kept {
            self.mark(Mark::ReferenceKept);
        }
        let node = &mut self.nodes[index];
        node.inbox
            .push_back((Input::Checkpointed { generation, checkpoint, retained }, Vec::new()));
        self.check_scrubbed(index, checkpoint);
        Ok(())
    }

    /// Waits for what is under way: what is about to change the log or the image can't run beside
    /// it.
    pub(crate) fn quiesce(&mut self, index: usize) -> Result<(), StoreError> {
        self.batch_done(index)?;
        self.sync_done(index)?;
        self.checkpoint_done(index)
    }

    fn record_durable(&mut self, index: usize) -> Result<(), StoreError> {
        let node = &mut self.nodes[index];
        let (recorded, at) = node.recorded;
        let durable = node.disk.shadow.durable;
        if durable != recorded && self.now - at >= RECORD_EVERY_MS {
            node.disk.store().record_durable()?;
            node.recorded = (durable, self.now);
        }
        Ok(())
    }
}
