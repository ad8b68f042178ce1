//! Orders of scrubs: who waits for which blocks.

use std::collections::BTreeSet;

use sbk_engine::replication::io::{Fate, Input};
use sbk_engine::replication::view::RoleView;
use sbk_engine::types::Lba;
use tonic::Status;

use super::clock;
use super::disk::Disk;
use super::events::{ScrubWaiter, Scrubbed};
use super::task::Running;

/// An order that is not settled yet.
#[derive(Debug)]
struct Scrub {
    open: BTreeSet<Lba>,
    settled: Scrubbed,
    waiter: ScrubWaiter,
}

/// The orders that are not settled yet; dropping one tells its caller that the replica has stopped.
#[derive(Debug, Default)]
pub(super) struct Scrubs(Vec<Scrub>);

impl Scrubs {
    fn add(&mut self, blocks: &[Lba], waiter: ScrubWaiter) {
        self.0.retain(|scrub| !scrub.waiter.done.is_closed());
        let open = blocks.iter().copied().collect();
        self.0.push(Scrub { open, settled: Scrubbed::new(), waiter });
    }

    /// Blocks are settled, for whoever waits for them.
    pub(super) fn settle(&mut self, blocks: &[Lba], fate: &Fate) {
        for scrub in &mut self.0 {
            for lba in blocks.iter().filter(|lba| scrub.open.remove(lba)) {
                scrub.settled.insert(*lba, fate.clone());
            }
        }
        for scrub in self.0.extract_if(.., |scrub| scrub.open.is_empty()) {
            // The caller may have gone.
            let _gone = scrub.waiter.done.send(Ok(scrub.settled));
        }
    }
}

impl<D: Disk> Running<D> {
    pub(super) fn scrub(&mut self, blocks: Vec<Lba>, waiter: ScrubWaiter) {
        // Of what it has to do before, nothing makes it primary or ends that: orders of the masters and
        // messages are inputs as soon as they are taken.
        if self.replica.view(clock::now()).role != RoleView::Primary {
            let status = Status::failed_precondition("this replica is not the volume's primary");
            let _gone = waiter.done.send(Err(status));
            return;
        }
        self.scrubs.add(&blocks, waiter);
        self.inbox.push_back(Input::Scrub { blocks });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    #[tokio::test]
    async fn an_order_is_answered_once_all_its_blocks_are_settled() {
        let places = Arc::new(Semaphore::new(3));
        let wait = || {
            let (done, told) = oneshot::channel();
            let place = Arc::clone(&places).try_acquire_owned().expect("is free");
            (ScrubWaiter { done, place }, told)
        };
        let mut scrubs = Scrubs::default();
        let (first, mut told_first) = wait();
        let (second, told_second) = wait();
        scrubs.add(&[Lba(1), Lba(2)], first);
        scrubs.add(&[Lba(2)], second);
        scrubs.settle(&[Lba(2), Lba(7)], &Fate::Logged);
        let told = told_second.await.expect("is told").expect("is settled");
        assert_eq!(told, Scrubbed::from([(Lba(2), Fate::Logged)]));
        assert!(told_first.try_recv().is_err(), "block 1 is open");
        scrubs.settle(&[Lba(1), Lba(2)], &Fate::Overtaken);
        let told = told_first.await.expect("is told").expect("is settled");
        assert_eq!(told, Scrubbed::from([(Lba(1), Fate::Overtaken), (Lba(2), Fate::Logged)]));
        assert_eq!(places.available_permits(), 3);

        // Whoever left gives the place back when the next one comes.
        let (left, told_left) = wait();
        scrubs.add(&[Lba(5)], left);
        drop(told_left);
        let (next, _told) = wait();
        scrubs.add(&[Lba(6)], next);
        assert_eq!(places.available_permits(), 2);
    }
}
