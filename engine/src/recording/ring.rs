//! The newest inputs of a replica, with the state that they began at.

use super::{Outcome, Recording, Step};
use crate::replication::io::{Input, Output};
use crate::replication::log::{EntryHeader, LogState};
use crate::replication::message::ToReplica;
use crate::replication::{Replica, Verdict};
use crate::types::{Lsn, Millis};

/// Inputs that a ring keeps at most.
pub const MAX_STEPS: usize = 4096;
/// Bytes that a ring's inputs and outputs take at most, as [`Ring`] estimates them; an input that
/// takes more by itself is kept alone. The two states come on top.
pub const MAX_BYTES: usize = 4 << 20;

/// A state and the steps after it.
#[derive(Clone, Debug)]
struct Part {
    state: Replica,
    steps: Vec<Step>,
    bytes: usize,
}

impl Part {
    fn of(state: &Replica) -> Self {
        Self { state: state.clone(), steps: Vec::new(), bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.steps.len() >= MAX_STEPS / 2 || self.bytes >= MAX_BYTES / 2
    }
}

/// The newest part of a run.
///
/// It is kept in two halves. When the newer one is full the older one goes, and a new half begins
/// with the state of that time: so what is kept always begins with a state, there is always at
/// least half of what fits, and a step costs no more than the copy of its input and outputs.
#[derive(Clone, Debug)]
pub struct Ring {
    older: Option<Part>,
    newer: Part,
    steps: u64,
}

impl Ring {
    /// A ring that begins at `state`.
    pub fn new(state: &Replica) -> Self {
        Self { older: None, newer: Part::of(state), steps: 0 }
    }

    /// Notes an input that `replica` is about to take at `at`. To be called before the step: an
    /// input that the engine does not survive is the one that matters most.
    pub fn begin(&mut self, replica: &Replica, at: Millis, input: &Input) {
        if self.newer.is_full() {
            self.older = Some(std::mem::replace(&mut self.newer, Part::of(replica)));
        }
        self.steps += 1;
        self.newer.bytes += size_of::<Step>() + input_bytes(input);
        let step = Step { number: self.steps, at, input: input.clone(), outcome: None };
        self.newer.steps.push(step);
    }

    /// Notes what the input of the last [`begin`](Self::begin) gave.
    pub fn end(&mut self, verdict: Verdict, outputs: &[Output]) {
        let Some(step) = self.newer.steps.last_mut() else { return };
        self.newer.bytes += outputs.iter().map(output_bytes).sum::<usize>();
        step.outcome = Some(Outcome { verdict, outputs: outputs.to_vec() });
    }

    /// All that is kept.
    pub fn recording(&self) -> Recording {
        let newer = self.newer.steps.iter().cloned();
        match &self.older {
            Some(older) => Recording {
                state: older.state.clone(),
                steps: older.steps.iter().cloned().chain(newer).collect(),
            },
            None => Recording { state: self.newer.state.clone(), steps: newer.collect() },
        }
    }

    /// Inputs kept.
    pub fn len(&self) -> usize {
        self.newer.steps.len() + self.older.as_ref().map_or(0, |older| older.steps.len())
    }

    /// Whether no input was noted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the inputs and outputs take, by estimate.
    pub fn bytes(&self) -> usize {
        self.newer.bytes + self.older.as_ref().map_or(0, |older| older.bytes)
    }
}

/// What is on the heap of an input or output of the common kinds: addresses, a configuration.
const SMALL: usize = 64;

fn input_bytes(input: &Input) -> usize {
    if let Input::FromPrimary { message, .. } = input {
        message_bytes(message)
    } else if let Input::Assignment(_) | Input::Answered { .. } | Input::FromReplica { .. } = input
    {
        SMALL * 8
    } else if let Input::StoreFailed { cause }
    | Input::ReadDone { error: Some(cause), .. }
    | Input::DataFound { error: Some(cause), .. } = input
    {
        cause.len()
    } else if let Input::Rotten { blocks, why, .. } = input {
        why.len() + size_of_val(&blocks[..])
    } else if let Input::Scrub { blocks } = input {
        size_of_val(&blocks[..])
    } else {
        0
    }
}

fn output_bytes(output: &Output) -> usize {
    let heap = if let Output::Append { headers, .. } = output {
        size_of_val(&headers[..])
    } else if let Output::ToReplica { message, .. } = output {
        message_bytes(message)
    } else if let Output::Wipe { state, .. } = output {
        state_bytes(state)
    } else if let Output::Trace(event) = output {
        event.what.len() + event.why.len()
    } else {
        SMALL
    };
    size_of::<Output>() + heap
}

fn message_bytes(message: &ToReplica) -> usize {
    if let ToReplica::Append(append) = message {
        SMALL + append.entries.len() * size_of::<EntryHeader>()
    } else if let ToReplica::BeginRebuild { state, .. } = message {
        SMALL + state_bytes(state)
    } else {
        SMALL * 8
    }
}

fn state_bytes(state: &LogState) -> usize {
    let logged: usize = state.sessions.values().map(|session| session.logged.len()).sum();
    logged * size_of::<(u64, Lsn)>() + state.sessions.len() * SMALL
}
