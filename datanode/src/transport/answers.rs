//! What a replica says to the primary on one stream, waiting to be sent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use sbk_engine::replication::message::{Lineage, ToPrimary};
use tokio::sync::Notify;

use super::convert::Recover;

/// Answers that may wait on one stream. Acknowledgements merge, so that only a peer that stopped
/// reading can get here; its stream is ended.
const MAX_WAITING: usize = 1024;

/// A queue of answers whose acknowledgements merge: where the reader is slower than the log,
/// only the newest frontier travels.
#[derive(Debug, Default)]
pub struct Answers {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(Lineage, Recover)>,
    closed: bool,
}

impl Answers {
    /// Puts an answer at the end. Returns whether the stream is still there to take it.
    pub fn push(&self, lineage: Lineage, message: Recover) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return false;
        }
        if let Some((last, waiting)) = state.queue.back_mut()
            && *last == lineage
            && merge(waiting, &message)
        {
            return true;
        }
        if state.queue.len() >= MAX_WAITING {
            state.closed = true;
            state.queue.clear();
        } else {
            state.queue.push_back((lineage, message));
        }
        let open = !state.closed;
        drop(state);
        self.changed.notify_one();
        open
    }

    /// Ends the stream after what is queued.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    /// The next answer; `None` once the queue is closed and empty.
    async fn next(&self) -> Option<(Lineage, Recover)> {
        loop {
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(answer) = state.queue.pop_front() {
                    return Some(answer);
                }
                if state.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// The answers as a stream. Dropping it closes the queue. Only one may be taken.
    pub fn stream(self: &Arc<Self>) -> impl Stream<Item = (Lineage, Recover)> + use<> {
        let reader = CloseOnDrop(Arc::clone(self));
        futures::stream::unfold(reader, async |reader| {
            let answer = reader.0.next().await?;
            Some((answer, reader))
        })
    }
}

struct CloseOnDrop(Arc<Answers>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Folds an acknowledgement into one that still waits: the newest frontier, and the newest stamp.
fn merge(waiting: &mut Recover, newer: &Recover) -> bool {
    match (waiting, newer) {
        (
            Recover::ToPrimary(ToPrimary::Ack { durable, written, recorded, promised, space }),
            Recover::ToPrimary(ToPrimary::Ack {
                durable: d,
                written: w,
                recorded: r,
                promised: p,
                space: s,
            }),
        ) => {
            *space = *s;
            (*durable, *written) = (*d, *w);
            *recorded = *r;
            *promised = p.or(*promised);
            true
        }
        (Recover::Taken(bytes), Recover::Taken(newer)) => {
            *bytes = *newer;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use sbk_engine::replication::room::SpaceTold;
    use sbk_engine::types::{Epoch, Incarnation, Lsn, Millis, ReplicaId, ReplicaRef, VolumeId};
    use uuid::Uuid;

    use super::*;

    fn lineage(epoch: u64) -> Lineage {
        let replica = |n| ReplicaRef {
            id: ReplicaId(Uuid::from_u128(n)),
            incarnation: Incarnation { process: 1, open: 1 },
        };
        let volume = VolumeId(Uuid::from_u128(9));
        Lineage { volume, epoch: Epoch(epoch), from: replica(1), to: replica(2) }
    }

    fn ack(durable: u64, promised: Option<u64>) -> Recover {
        Recover::ToPrimary(ToPrimary::Ack {
            durable: Lsn(durable),
            recorded: Some(Epoch(1)),
            promised: promised.map(Millis),
            written: Lsn(durable),
            space: SpaceTold { change: durable, ..SpaceTold::default() },
        })
    }

    #[tokio::test]
    async fn acks_of_one_epoch_merge_and_keep_the_newest_promise() {
        let answers = Arc::new(Answers::default());
        assert!(answers.push(lineage(1), ack(1, Some(7))));
        assert!(answers.push(lineage(1), ack(2, None)));
        assert!(answers.push(lineage(2), ack(3, None)));
        let gap = Recover::ToPrimary(ToPrimary::Gap { end: Lsn(3) });
        assert!(answers.push(lineage(2), gap.clone()));
        assert!(answers.push(lineage(2), ack(4, None)));
        answers.close();
        let sent: Vec<_> = answers.stream().collect().await;
        let expected = vec![
            (lineage(1), ack(2, Some(7))),
            (lineage(2), ack(3, None)),
            (lineage(2), gap),
            (lineage(2), ack(4, None)),
        ];
        assert_eq!(sent, expected);
    }

    #[tokio::test]
    async fn a_stream_that_is_gone_takes_nothing() {
        let answers = Arc::new(Answers::default());
        drop(answers.stream());
        assert!(!answers.push(lineage(1), ack(1, None)));
    }

    #[test]
    fn a_reader_that_stopped_is_cut_off_at_the_limit() {
        let answers = Answers::default();
        let gap = Recover::ToPrimary(ToPrimary::Gap { end: Lsn(3) });
        for _ in 0..MAX_WAITING {
            assert!(answers.push(lineage(1), gap.clone()));
        }
        assert!(!answers.push(lineage(1), gap));
    }
}
