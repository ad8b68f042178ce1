//! Random operations on a simulated disk that loses power at random points: whatever was told
//! durable is there afterwards, and what was under way happened as a whole, in part from its
//! front, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, EntryPayload};
use sbk_engine::authority::{ClusterId, Command};
use sbk_wal::{LogOptions, Memory};
use uuid::Uuid;

use super::LogStore;
use crate::raft::{Entry, LogId, Vote};
use crate::state_machine::Proposal;

/// Small, so that segments come and go.
const OPTIONS: LogOptions =
    LogOptions { segment_bytes: 8 << 10, first_segment_bytes: 8 << 10, batch_bytes: 4 << 10 };

/// What the log must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, LogId>,
}

impl Model {
    fn next(&self) -> u64 {
        let purged = self.purged.map_or(0, |id| id.index + 1);
        self.entries.last_key_value().map_or(purged, |(index, _)| index + 1)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Vote(Vote),
    Append(Vec<Entry>),
    Truncate(LogId),
    Purge(LogId),
}

/// xorshift64*: enough for choosing.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

fn entry(term: u64, index: u64) -> Entry {
    let cluster = ClusterId(Uuid::from_u128(u128::from(index)));
    Entry {
        log_id: LogId::new(CommittedLeaderId::new(term, 1), index),
        payload: EntryPayload::Normal(Proposal::Authority(Command::BootstrapCluster { cluster })),
    }
}

fn choose(random: &mut Random, model: &Model, term: &mut u64) -> Op {
    let some_entry = |random: &mut Random| {
        let count = model.entries.len() as u64;
        (count > 0).then(|| random.below(count) as usize)
    };
    match random.below(10) {
        0 => {
            *term += 1;
            Op::Vote(Vote::new(*term, random.below(3)))
        }
        1 if let Some(at) = some_entry(random) => {
            *term += 1;
            let tail = model.entries.len() - 1 - at / 4;
            Op::Truncate(*model.entries.values().nth(tail).expect("within"))
        }
        2 if let Some(at) = some_entry(random) => {
            Op::Purge(*model.entries.values().nth(at).expect("within"))
        }
        _ => {
            let first = model.next();
            let count = 1 + random.below(12);
            Op::Append((first..first + count).map(|index| entry(*term, index)).collect())
        }
    }
}

/// The model after the operation; of an append, after its first `part` entries.
fn after(model: &Model, op: &Op, part: usize) -> Model {
    let mut model = model.clone();
    match op {
        Op::Vote(vote) => model.vote = Some(*vote),
        Op::Append(entries) => {
            model.entries.extend(entries.iter().take(part).map(|e| (e.log_id.index, e.log_id)));
        }
        Op::Truncate(since) => drop(model.entries.split_off(&since.index)),
        Op::Purge(upto) => {
            model.entries = model.entries.split_off(&(upto.index + 1));
            model.purged = Some(*upto);
        }
    }
    model
}

async fn execute(log: &mut LogStore, op: &Op) -> bool {
    match op {
        Op::Vote(vote) => log.save_vote(vote).await.is_ok(),
        Op::Append(entries) => log.blocking_append(entries.clone()).await.is_ok(),
        Op::Truncate(since) => log.truncate(*since).await.is_ok(),
        Op::Purge(upto) => log.purge(*upto).await.is_ok(),
    }
}

async fn observe(log: &mut LogStore) -> Model {
    let entries = log.try_get_log_entries(..).await.expect("reads");
    let state = log.get_log_state().await.expect("reads");
    Model {
        vote: log.read_vote().await.expect("reads"),
        purged: state.last_purged_log_id,
        entries: entries.into_iter().map(|e| (e.log_id.index, e.log_id)).collect(),
    }
}

/// Several lives of one log. Returns how many of them ended in a crash.
async fn lives(seed: u64) -> u32 {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let disk = Memory::new(seed);
    let mut may_be: Vec<Model> = vec![Model::default()];
    let (mut fresh, mut term, mut crashes) = (true, 1, 0);
    for life in 0..8 {
        disk.crash_after(random.below(160));
        let opened = LogStore::open_in(Arc::new(disk.clone()), OPTIONS, fresh);
        if let Ok(mut log) = opened {
            fresh = false;
            log.covered().advance(Some(LogId::new(CommittedLeaderId::new(u64::MAX, 0), u64::MAX)));
            let mut model = observe(&mut log).await;
            assert!(may_be.contains(&model), "seed {seed}, life {life}: {model:?}\n{may_be:?}");
            may_be = vec![model.clone()];
            for _ in 0..40 {
                let op = choose(&mut random, &model, &mut term);
                if execute(&mut log, &op).await {
                    model = after(&model, &op, usize::MAX);
                    may_be = vec![model.clone()];
                    assert_eq!(observe(&mut log).await, model, "seed {seed}, life {life}");
                } else {
                    let parts = if let Op::Append(entries) = &op { entries.len() } else { 1 };
                    may_be = (0..=parts).map(|part| after(&model, &op, part)).collect();
                    may_be.push(model.clone());
                    break;
                }
            }
        } else {
            assert!(disk.crashed(), "seed {seed}, life {life}: {:?}", opened.err());
        }
        crashes += u32::from(disk.crashed());
        if random.below(4) == 0 { disk.process_killed() } else { disk.power_loss() }
    }
    crashes
}

#[test]
fn what_was_told_durable_outlives_every_crash() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let crashes: u32 = (0..150).map(|seed| runtime.block_on(lives(seed))).sum();
    assert!(crashes > 150, "the disk hardly ever crashed: {crashes}");
}
