//! The store's work beside the node's other business: batches of the WAL, steps of the checkpoint.
//! Each begins and ends at a time of its own, so a node dies before, within and after it.

use sbk_engine::replication::Replica;
use sbk_engine::replication::io::Input;
use sbk_store::StoreError;

use super::event::Event;
use super::node::Work;
use super::world::World;

/// The durable end is recorded at least this often while it moves, as the runtime has it.
const RECORD_EVERY_MS: u64 = 1000;

impl World {
    /// Hands out what waits.
    pub(crate) fn start_work(&mut self, index: usize) {
        let delay = 1 + self.rng.below(3);
        let node = &mut self.nodes[index];
        let run = node.run;
        let Some(generation) = node.replica.as_ref().map(Replica::generation) else { return };
        let begin = self.now.max(node.stalled_until) + delay;
        if node.batch.is_none()
            && let Some(batch) = node.disk.store().take_batch()
        {
            node.batch = Some((generation, Work::Planned(batch)));
            self.at(begin, Event::BatchRuns { node: index, run });
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
                node.batch = Some((generation, Work::Done(batch.run())));
                self.after(delay, Event::BatchDone { node: index, run });
            }
            // The one that was to run was waited for, and this is the next one.
            other => node.batch = other,
        }
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
        match done.and_then(|()| self.record_durable(index)) {
            // Work whose failure the store can do without does not say that the machine stopped.
            Ok(()) if self.nodes[index].disk.memory.crashed() => self.stops(index),
            Ok(()) => self.turns(index),
            Err(error) => self.store_failed(index, &error.to_string()),
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
        let (checkpoint, retained) = node.disk.store().checkpoint_done(done)?;
        self.summary.checkpoints += 1;
        node.inbox
            .push_back((Input::Checkpointed { generation, checkpoint, retained }, Vec::new()));
        Ok(())
    }

    /// Waits for what is under way: what is about to change the log or the image can't run beside
    /// it.
    pub(crate) fn quiesce(&mut self, index: usize) -> Result<(), StoreError> {
        self.batch_done(index)?;
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
