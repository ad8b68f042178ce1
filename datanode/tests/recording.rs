//! What volume tasks record of their engines, and leave behind when they fail.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sbk_datanode::volume::keep_at_panic;
use sbk_engine::recording::file::{self, About};
use sbk_engine::recording::{Recording, replay, tenures};
use sbk_engine::replication::io::{Input, Output};
use sbk_engine::types::ReplicaId;
use support::{Cluster, replica};

fn recorded(cluster: &Cluster, id: ReplicaId) -> (About, Recording) {
    let text = cluster.nodes.lock().unwrap()[&id].handle.recorder.text("a test");
    let mut read = file::read(&text.expect("it is open")).expect("reads");
    assert_eq!(read.len(), 1);
    read.remove(0)
}

/// The words of the decisions in a recording.
fn decisions(recording: &Recording) -> Vec<String> {
    let outcomes = recording.steps.iter().filter_map(|step| step.outcome.as_ref());
    let outputs = outcomes.flat_map(|outcome| &outcome.outputs);
    let words = outputs.filter_map(|output| match output {
        Output::Trace(event) => Some(event.what.clone()),
        _ => None,
    });
    words.collect()
}

#[test]
fn a_failover_is_taken_again() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    (0..50).for_each(|block| client.write(block, 1));
    let old = recorded(&cluster, replica(1)).1;
    assert_eq!(replay(&old), Ok(old.steps.len()));
    cluster.kill(replica(1));
    let next = cluster.fail_over(replica(2), replica(1));
    (0..50).for_each(|block| client.write(block, 2));
    cluster.boot(replica(1));
    cluster.wait_in_sync(3);
    for n in 1..=3 {
        let (about, recording) = recorded(&cluster, replica(n));
        assert_eq!((about.replica.id, about.why.as_str()), (replica(n), "a test"));
        assert_eq!(replay(&recording), Ok(recording.steps.len()), "replica {n}");
    }
    let new = recorded(&cluster, next).1;
    assert!(decisions(&new).contains(&"promoted".to_owned()), "{:?}", decisions(&new));
    let told = tenures(&new);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].state, None, "its tenure began within the recording");
}

/// Two replicas in sync, with a directory for their recordings.
fn keeping(dir: &Path) -> Cluster {
    let cluster = Cluster::keeping(2, 1, dir);
    cluster.wait_in_sync(2);
    cluster.client().write(0, 1);
    cluster
}

/// The oldest recording in the directory.
fn kept(dir: &Path) -> (About, Recording) {
    let files = std::fs::read_dir(dir).expect("reads").map(|entry| entry.expect("a file").path());
    let oldest = files.min().expect("a recording");
    let text = std::fs::read_to_string(oldest).expect("reads");
    file::read(&text).expect("a recording").remove(0)
}

#[test]
fn a_store_that_fails_leaves_a_recording() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = keeping(dir.path());
    cluster.stores[&replica(2)].disk().failing = true;
    cluster.client().write(1, 1);
    cluster.wait(replica(2), "another opening", |status| {
        status.open_as().is_some_and(|open| open.replica.incarnation.open > 1)
    });
    let (about, recording) = kept(dir.path());
    assert!(about.why.starts_with("the store failed"), "{}", about.why);
    assert_eq!(about.replica.id, replica(2));
    let last = recording.steps.last().expect("steps");
    assert!(matches!(last.input, Input::StoreFailed { .. }), "{last:?}");
    assert_eq!(replay(&recording), Ok(recording.steps.len()));
}

#[test]
fn a_broken_invariant_leaves_a_recording_that_breaks_it_again() {
    keep_at_panic();
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = keeping(dir.path());
    cluster.stores[&replica(2)].disk().overclaiming = true;
    let mut status = cluster.nodes.lock().unwrap()[&replica(2)].handle.status.clone();
    cluster.client().write(1, 1);
    // The task's end is the end of what it publishes.
    let ended = cluster.runtime().block_on(status.wait_for(|_| false)).is_err();
    assert!(ended);
    let (about, recording) = kept(dir.path());
    assert!(about.why.contains("I5: durable"), "{}", about.why);
    let last = recording.steps.last().expect("steps");
    assert_eq!(last.outcome, None, "{last:?}");
    let again = catch_unwind(AssertUnwindSafe(|| replay(&recording)));
    let said = again.expect_err("it is broken again");
    assert!(said.downcast_ref::<String>().expect("words").contains("I5: durable"));
}
