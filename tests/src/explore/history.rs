//! What clients asked for and were told, and whether one order of it explains all (Wing and Gong,
//! Testing and Verifying Concurrent Objects, 1993). Histories are so short that every order is
//! tried.

use serde::Serialize;

use super::world::BLOCKS;

/// A client's request.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) client: usize,
    pub(crate) block: u64,
    /// The value that is written; `None` reads.
    pub(crate) write: Option<u64>,
    /// Set when it was first sent: which others had been answered by then, as bits. All of real
    /// time that linearizability asks for.
    pub(crate) after: Option<u32>,
    /// Its answer; 0 for a write.
    pub(crate) answer: Option<u64>,
}

/// Every request of a world, in an order fixed for the world.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct History {
    /// What the blocks held before.
    pub(crate) begin: [u64; BLOCKS as usize],
    pub(crate) ops: Vec<Asked>,
}

impl History {
    fn answered(&self) -> u32 {
        self.ops.iter().enumerate().filter(|(_, op)| op.answer.is_some()).map(|(i, _)| 1 << i).sum()
    }

    pub(crate) fn invoke(&mut self, op: usize) {
        let answered = self.answered();
        self.ops[op].after.get_or_insert(answered);
    }

    pub(crate) fn answer(&mut self, op: usize, value: u64) {
        assert!(self.ops[op].answer.is_none(), "F1: request {op} is answered twice");
        self.ops[op].answer = Some(value);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.ops.iter().all(|op| op.answer.is_some())
    }

    /// Whether one order explains every answer, and then what the blocks hold if `last` is given.
    pub(crate) fn is_linearizable(&self, last: Option<&[u64]>) -> bool {
        let mut blocks = self.begin;
        self.explains(0, &mut blocks, last)
    }

    fn explains(
        &self,
        placed: u32,
        blocks: &mut [u64; BLOCKS as usize],
        last: Option<&[u64]>,
    ) -> bool {
        if placed & self.answered() == self.answered() && last.is_none_or(|last| last == blocks) {
            return true;
        }
        self.ops.iter().enumerate().any(|(i, op)| {
            let Some(after) = op.after else { return false };
            // What was answered before this was asked comes first.
            if placed & (1 << i) != 0 || after & !placed != 0 {
                return false;
            }
            let block = op.block as usize;
            match (op.write, op.answer) {
                (None, Some(value)) if value != blocks[block] => false,
                (None, _) => self.explains(placed | 1 << i, blocks, last),
                (Some(value), _) => {
                    let before = std::mem::replace(&mut blocks[block], value);
                    let found = self.explains(placed | 1 << i, blocks, last);
                    blocks[block] = before;
                    found
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(write: Option<u64>, after: Option<u32>, answer: Option<u64>) -> Asked {
        Asked { client: 0, block: 0, write, after, answer }
    }

    fn of(ops: Vec<Asked>) -> History {
        History { begin: [0, 0], ops }
    }

    #[test]
    fn a_write_that_was_answered_is_seen_by_every_later_read() {
        let write = op(Some(1), Some(0), Some(0));
        let stale = of(vec![write.clone(), op(None, Some(1), Some(0))]);
        assert!(!stale.is_linearizable(None));
        let fresh = of(vec![write.clone(), op(None, Some(1), Some(1))]);
        assert!(fresh.is_linearizable(None));
        let beside = of(vec![write, op(None, Some(0), Some(0))]);
        assert!(beside.is_linearizable(None));
    }

    #[test]
    fn a_write_without_an_answer_may_have_happened_or_not_but_not_come_and_go() {
        let write = op(Some(1), Some(0), None);
        for seen in [0, 1] {
            let history = of(vec![write.clone(), op(None, Some(0), Some(seen))]);
            assert!(history.is_linearizable(None));
            assert!(history.is_linearizable(Some(&[1, 0])));
            assert_eq!(history.is_linearizable(Some(&[0, 0])), seen == 0);
        }
        let gone = vec![write, op(None, Some(0), Some(1)), op(None, Some(2), Some(0))];
        assert!(!of(gone).is_linearizable(None));
    }
}
