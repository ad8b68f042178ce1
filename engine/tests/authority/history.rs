//! How a volume came to its configuration, as the masters keep it.

use sbk_engine::authority::history::{History, MAX_EPOCHS, MAX_REASON, Note};
use sbk_engine::authority::{Command, State};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{Epoch, ReplicaRef};

use crate::cases::{cluster, replica, run, volume};

fn step(state: &mut State, history: &mut History, command: &Command, reason: &str) {
    let before = state.revision();
    state.apply(command).expect("is applied");
    history.note(state, before, &Note { at_ms: 5, reason: reason.to_owned() });
}

fn epoch(state: &State) -> Epoch {
    state.config(volume()).expect("a configuration").epoch
}

fn burn(state: &State, primary: ReplicaRef) -> Command {
    let (volume, expect_epoch) = (volume(), epoch(state));
    Command::ProposeIsr { volume, expect_epoch, primary, change: IsrChange::Burn }
}

fn failover(state: &State, primary: ReplicaRef) -> Command {
    let isr = state.config(volume()).expect("a configuration").isr;
    Command::Failover { volume: volume(), expect_epoch: epoch(state), primary, isr, stood: None }
}

#[test]
fn the_reasons_of_the_newest_epochs_and_of_the_last_failover_are_kept() {
    let (mut state, mut history) = (cluster(), History::default());
    let first = state.config(volume()).expect("a configuration").primary;
    let second = if first.id == replica(1) { run(2, 1) } else { run(1, 1) };
    for _ in 0..3 * MAX_EPOCHS {
        let command = burn(&state, first);
        step(&mut state, &mut history, &command, "");
    }
    assert_eq!(history.of(volume()).len(), MAX_EPOCHS);
    assert_eq!(history.of(volume()).last().map(|minted| minted.epoch), Some(epoch(&state)));
    let command = failover(&state, second);
    step(&mut state, &mut history, &command, "it was not heard");
    let failed_over = epoch(&state);
    for _ in 0..3 * MAX_EPOCHS {
        let command = burn(&state, second);
        step(&mut state, &mut history, &command, "");
    }
    let kept = history.of(volume());
    assert_eq!(kept.len(), MAX_EPOCHS);
    // The epoch that the failover ended, and its own, outlive later ones.
    assert_eq!((kept[0].primary, kept[0].epoch), (first, Epoch(failed_over.0 - 1)));
    assert_eq!((kept[1].primary, kept[1].epoch), (second, failed_over));
    let note = Note { at_ms: 5, reason: "it was not heard".to_owned() };
    assert_eq!(kept[1].note, note);
    assert_eq!(kept.last().map(|minted| minted.epoch), Some(epoch(&state)));
}

#[test]
fn what_mints_nothing_is_no_epoch_and_a_deleted_volume_has_none() {
    let (mut state, mut history) = (cluster(), History::default());
    let first = state.config(volume()).expect("a configuration").primary;
    let command = burn(&state, first);
    step(&mut state, &mut history, &command, &"ö".repeat(MAX_REASON));
    assert_eq!(history.of(volume())[0].note.reason.len(), MAX_REASON);
    // Refused, and said again: neither is an epoch.
    let before = state.revision();
    state.apply(&command).expect_err("an old epoch");
    history.note(&state, before, &Note::default());
    history.note(&state, 0, &Note::default());
    assert_eq!(history.of(volume()).len(), 1);
    step(&mut state, &mut history, &Command::DeleteVolume { volume: volume() }, "");
    assert_eq!(history, History::default());
}
