//! What clients saw, and whether one copy of each block could have shown it.

use std::collections::BTreeMap;

/// A write, from its first sending to its answer.
#[derive(Clone, Copy, Debug)]
struct Write {
    block: u64,
    invoked: u64,
    answered: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    value: u64,
    invoked: u64,
    answered: u64,
}

/// Times are event numbers: every event has another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    clock: u64,
    writes: BTreeMap<u64, Write>,
    reads: BTreeMap<u64, Vec<Read>>,
}

impl History {
    pub(crate) fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of the unique `value`. Each value goes to one block.
    pub(crate) fn write(&mut self, value: u64, block: u64) {
        let invoked = self.now();
        self.writes.insert(value, Write { block, invoked, answered: None });
    }

    pub(crate) fn written(&mut self, value: u64) {
        let now = self.now();
        if let Some(write) = self.writes.get_mut(&value) {
            write.answered = Some(now);
        }
    }

    pub(crate) fn read(&mut self, block: u64, value: u64, invoked: u64) {
        let answered = self.now();
        self.reads.entry(block).or_default().push(Read { value, invoked, answered });
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.writes.values().filter(|write| write.answered.is_some()).count()
    }

    pub(crate) fn answered_reads(&self) -> usize {
        self.reads.values().map(Vec::len).sum()
    }

    /// Per-block linearizability of a register with unique writes (Gibbons and Korach, SIAM J.
    /// Comput. 1997): no read from the future, none of an overwritten value, no two reads that see
    /// two writes in the wrong order.
    pub(crate) fn check(&self) {
        for (block, reads) in &self.reads {
            for read in reads {
                self.check_read(*block, read);
            }
            for earlier in reads {
                for later in reads.iter().filter(|later| earlier.answered < later.invoked) {
                    assert!(
                        !self.precedes(later.value, earlier.value),
                        "block {block}: {} was read after {}, which came later",
                        later.value,
                        earlier.value
                    );
                }
            }
        }
    }

    fn check_read(&self, block: u64, read: &Read) {
        let (source_answered, source_invoked) = match self.writes.get(&read.value) {
            Some(write) => {
                assert_eq!(write.block, block, "value {} read from another block", read.value);
                (write.answered, write.invoked)
            }
            None => {
                assert_eq!(read.value, 0, "block {block}: nobody wrote {}", read.value);
                (Some(0), 0)
            }
        };
        assert!(source_invoked < read.answered, "block {block}: a read from the future");
        for (value, other) in self.writes.iter().filter(|(_, other)| other.block == block) {
            let after = source_answered.is_some_and(|answered| answered < other.invoked);
            let before_read = other.answered.is_some_and(|answered| answered < read.invoked);
            assert!(
                !(after && before_read),
                "block {block}: read {} although {value} had been acknowledged over it",
                read.value
            );
        }
    }

    /// Whether the write of `first` was over before that of `second` began.
    fn precedes(&self, first: u64, second: u64) -> bool {
        if first == 0 && second != 0 {
            return true;
        }
        match (self.writes.get(&first), self.writes.get(&second)) {
            (Some(a), Some(b)) => a.answered.is_some_and(|answered| answered < b.invoked),
            (None, _) | (_, None) => false,
        }
    }
}
