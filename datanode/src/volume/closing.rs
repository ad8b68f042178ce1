//! The end of an opening: the engine's last word, and the wait for the disk's.

use std::sync::Arc;

use sbk_engine::replication::io::{Input, StreamEnd};
use tokio::task::JoinHandle;

use super::disk::Disk;
use super::runner::Inlets;
use super::task::{Exit, Running, joined};
use crate::link::LinkEvent;

impl<D: Disk> Running<D> {
    /// The engine's last word after the store failed. Its outputs tell frontends and peers.
    pub(super) async fn stop_engine(&mut self, cause: String) {
        tracing::error!(volume = %self.volume, replica = %self.me.id, %cause, "the store failed");
        self.inbox.clear();
        if let Err(error) = self.step(Input::StoreFailed { cause }).await {
            tracing::debug!(%error, "the store failed again while it was stopped");
        }
    }

    /// Waits until nothing touches the files any more: for ever, if the disk never answers. Gives
    /// back the queues, for the next opening, how far lanes were numbered, and whether the volume was
    /// deleted.
    pub(super) async fn close(mut self, exit: &Exit) -> (Inlets, u64, bool) {
        self.end_links();
        let keeping = match exit {
            Exit::Failed(failure) => Some(self.keep_recording(&failure.reason)),
            Exit::Shutdown | Exit::Deleted => None,
        };
        self.settle(keeping).await;
        let lanes = self.outgoing.lanes();
        if let Exit::Shutdown = exit
            && let Err(error) = tokio::task::block_in_place(|| self.disk.close())
        {
            tracing::warn!(volume = %self.volume, %error, "the store was not closed in order");
        }
        (self.inlets, lanes, self.deleted)
    }

    /// Lets work under way end, whatever comes of it, so that nothing touches the files after. Nobody is
    /// kept waiting meanwhile.
    async fn settle(&mut self, mut keeping: Option<JoinHandle<()>>) {
        loop {
            let Self { batch, sync, checkpoint, reads, inlets, shared, .. } = self;
            let idle = batch.is_none() && sync.is_none() && checkpoint.is_none();
            if idle && reads.is_empty() && keeping.is_none() {
                return;
            }
            let failed = tokio::select! {
                (_, outcome) = joined(batch) => {
                    self.batch = None;
                    self.disk.batch_done(outcome).err()
                }
                (_, outcome) = joined(sync) => {
                    self.sync = None;
                    self.disk.sync_done(outcome).err()
                }
                (_, outcome) = joined(checkpoint) => {
                    self.checkpoint = None;
                    self.disk.checkpoint_done(outcome).err()
                }
                Some(_) = reads.join_next() => None,
                () = joined(&mut keeping) => {
                    keeping = None;
                    None
                }
                deleted = inlets.refuse(shared) => {
                    self.deleted |= deleted;
                    None
                }
            };
            if let Some(error) = failed {
                tracing::warn!(volume = %self.volume, %error, "the last work of the store failed");
            }
        }
    }

    /// Keeps what led to the failure. It goes to a disk too, which may be the one that fails.
    fn keep_recording(&self, cause: &str) -> JoinHandle<()> {
        let (recorder, why) =
            (Arc::clone(&self.shared.recorder), format!("the store failed: {cause}"));
        self.home.threads().spawn_blocking(move || match recorder.save(&why) {
            Ok(Some(path)) => tracing::info!(path = %path.display(), "what led to it was kept"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "what led to it could not be kept"),
        })
    }

    fn end_links(&mut self) {
        let config = self.replica.config().cloned();
        for stream in self.clients.all() {
            let reason = StreamEnd::NotPrimary;
            self.clients.end(stream, LinkEvent::Ended { reason, config: config.clone() });
        }
    }
}
