//! How large a volume is and is to be: what is wished, published, taken back.

use sbk_engine::authority::state::MAX_VOLUME_BYTES;
use sbk_engine::authority::{Accepted, Command, SizeRefused, State};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{BLOCK_SIZE, Lba};

use super::cases::{cluster, config, node, propose, registration, volume};

const GIB: u64 = 1 << 30;
const BLOCKS: u64 = GIB / BLOCK_SIZE;

fn wish(state: &mut State, size_bytes: u64, shrink: bool) -> Result<Accepted, &'static str> {
    let command =
        Command::WishSize { volume: volume(), size_bytes, shrink, overcommit_percent: 100 };
    state.apply(&command).map_err(|refusal| refusal.word())
}

fn resized(state: &mut State, blocks: u64) -> Result<Accepted, String> {
    let epoch = config(state).epoch;
    propose(state, epoch, IsrChange::Resized { blocks })
}

/// What is published, what is wished.
fn sizes(state: &State) -> (u64, Option<u64>) {
    let config = config(state);
    (config.blocks, config.wished_blocks)
}

#[test]
fn a_wish_is_published_when_the_primary_says_that_it_is_committed() {
    let mut state = cluster();
    let (before, revision) = (config(&state), state.revision());
    // Sent again, for its answer was lost.
    for _ in 0..2 {
        assert!(wish(&mut state, 3 * GIB, false).is_ok());
        assert_eq!(sizes(&state), (BLOCKS, Some(3 * BLOCKS)));
        assert_eq!(config(&state).epoch, before.epoch.next(), "each wish has an epoch, once");
    }
    let told = state.catalogue_since(revision);
    assert_eq!(
        told.iter().map(|v| (v.blocks, v.spec.blocks)).collect::<Vec<_>>(),
        [(BLOCKS, BLOCKS)]
    );
    let revision = state.revision();
    assert!(resized(&mut state, 3 * BLOCKS).is_ok());
    assert_eq!(sizes(&state), (3 * BLOCKS, None));
    let after = config(&state);
    assert_eq!(
        (after.primary, after.since, &after.isr),
        (before.primary, before.since, &before.isr)
    );
    // A replica that is made later begins with an empty log, and that implies the first size.
    let told = state.catalogue_since(revision);
    assert_eq!(
        told.iter().map(|v| (v.blocks, v.spec.blocks)).collect::<Vec<_>>(),
        [(3 * BLOCKS, BLOCKS)]
    );
    assert_eq!(resized(&mut state, 3 * BLOCKS), Err("bad-isr".to_owned()), "it is no change");
    assert_eq!(resized(&mut state, 0), Err("bad-isr".to_owned()));
    // The create that made it is the same create still.
    assert_eq!(state.volumes()[&volume()].spec.blocks, BLOCKS);
}

#[test]
fn what_speaks_against_a_wish_is_told_and_changes_nothing() {
    let mut state = cluster();
    let refused = |state: &mut State, size, shrink| {
        let before = state.clone();
        let word = wish(state, size, shrink).expect_err("is refused");
        assert_eq!(*state, before);
        word
    };
    for size in [0, 4095, GIB + 512, MAX_VOLUME_BYTES + BLOCK_SIZE, u64::MAX] {
        assert_eq!(refused(&mut state, size, true), "bad-size", "{size}");
    }
    assert_eq!(refused(&mut state, GIB - BLOCK_SIZE, false), "shrinks");
    assert_eq!(refused(&mut state, 101 * GIB, false), "no-room");
    assert!(wish(&mut state, 2 * GIB, false).is_ok());
    assert_eq!(refused(&mut state, 3 * GIB, false), "resize-under-way");
    state.apply(&Command::DeleteVolume { volume: volume() }).expect("deletes");
    assert_eq!(refused(&mut state, 2 * GIB, false), "volume-deleted");
}

#[test]
fn a_wish_claims_its_room_before_it_is_done() {
    let mut state = cluster();
    assert_eq!(state.committed_bytes(node(1)), GIB);
    wish(&mut state, 60 * GIB, false).expect("there is room");
    assert_eq!(state.committed_bytes(node(1)), 60 * GIB);
    // Taken back, it claims nothing.
    wish(&mut state, GIB, false).expect("is taken back");
    assert_eq!((state.committed_bytes(node(1)), sizes(&state)), (GIB, (BLOCKS, None)));
    wish(&mut state, 60 * GIB, false).expect("there is room");
    resized(&mut state, 60 * BLOCKS).expect("is published");
    wish(&mut state, GIB, true).expect("may shrink");
    assert_eq!(state.committed_bytes(node(1)), 60 * GIB, "until it has shrunk");
    // What waits for its removal takes what it had.
    state.apply(&Command::DeleteVolume { volume: volume() }).expect("deletes");
    assert_eq!(state.committed_bytes(node(1)), 60 * GIB);
}

#[test]
fn a_shrink_is_taken_back_for_data_beyond_it_once() {
    let mut state = cluster();
    wish(&mut state, GIB / 2, true).expect("may shrink");
    let (wished, lba) = (BLOCKS / 2, Lba(BLOCKS - 1));
    let epoch = config(&state).epoch;
    let other = IsrChange::KeepSize { wished: wished + 1, lba };
    assert_eq!(propose(&mut state, epoch, other), Err("bad-isr".to_owned()));
    let wild = IsrChange::KeepSize { wished, lba: Lba(u64::MAX) };
    assert_eq!(propose(&mut state, epoch, wild), Err("bad-isr".to_owned()));
    let keep = IsrChange::KeepSize { wished, lba };
    propose(&mut state, epoch, keep.clone()).expect("is taken back");
    assert_eq!(sizes(&state), (BLOCKS, None));
    let refused = |state: &State| state.volumes()[&volume()].size_refused;
    assert_eq!(refused(&state), Some(SizeRefused { blocks: wished, lba }));
    // A copy of it is void, also when the same is wished anew.
    wish(&mut state, GIB / 2, true).expect("may shrink");
    assert_eq!(refused(&state), None);
    assert_eq!(propose(&mut state, epoch, keep), Err("stale-epoch".to_owned()));
    assert_eq!(sizes(&state).1, Some(wished));
}

/// It was logged before the operator changed his mind, or a loss took the entry of what is published.
#[test]
fn what_is_committed_is_published_whatever_is_wished() {
    let mut state = cluster();
    wish(&mut state, 2 * GIB, false).expect("there is room");
    wish(&mut state, GIB, false).expect("is taken back");
    resized(&mut state, 2 * BLOCKS).expect("is published");
    assert_eq!(sizes(&state), (2 * BLOCKS, None));
    wish(&mut state, 3 * GIB, false).expect("there is room");
    resized(&mut state, BLOCKS).expect("is published");
    assert_eq!(sizes(&state), (BLOCKS, Some(3 * BLOCKS)), "that is still wished");
}

#[test]
fn a_state_of_before_there_were_resizes_is_read() {
    let mut state = cluster();
    state.apply(&Command::RegisterNode(registration(4, 1, 1, false))).expect("registers");
    let mut json = serde_json::to_value(&state).expect("is written");
    let old = json["volumes"][volume().to_string()].as_object_mut().expect("a volume");
    assert!(old.remove("size_refused").is_some());
    let assignment = old["assignment"].as_object_mut().expect("an epoch");
    assert!(assignment.remove("blocks").is_some());
    assert!(assignment.remove("wished_blocks").is_some());
    assert_eq!(serde_json::from_value::<State>(json).expect("is read"), state);
}
