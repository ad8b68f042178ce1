//! Three real master processes: creates go on while any of them is killed, nothing that was
//! acknowledged is lost, a member that was away gets what it missed, and without a majority
//! changes stop with a clear error.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sbk_master_client::MasterError;
use sbk_proto::v1::{RegisterRequest, WatchAssignmentsRequest};
use support::{
    PATIENCE, Quorum, create, eventually, heartbeat, names, node, register_nodes, volume,
};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

/// So often something is tried that a machine which stands still for seconds disturbs.
const TRIES: u32 = 10;
/// Much less than a datanode may be silent.
const PROMPT: Duration = Duration::from_secs(1);
/// For so long it is waited for what a leader makes of a stream that broke.
const LOOKS: Duration = Duration::from_secs(10);
/// What it logs then: that the process is gone, or something else.
const GONE: &str = "its process is gone";
const VERDICTS: [&str; 2] = [GONE, "its stream closed"];

/// Creates run all the time; members are killed in the middle of them and come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_member_in_the_middle_of_creates_loses_nothing() {
    let mut quorum = Quorum::start(&[]);
    register_nodes(&quorum.client()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (progress, mut made) = watch::channel(0);
    let creator = {
        let (client, stop) = (quorum.client(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let request = volume(&format!("v{}", acknowledged.len()));
                create(&client, &request).await;
                acknowledged.push(request.name);
                progress.send_replace(acknowledged.len());
            }
            acknowledged
        })
    };
    for round in 0..8 {
        let seen = *made.borrow_and_update();
        made.wait_for(|count| *count >= seen + 2).await.expect("creates go on");
        // The leader every other time, else a follower; no pause in the creates before it.
        let leader = quorum.leader().await;
        let victim = if round % 2 == 0 { leader } else { (leader + 1 + round / 2 % 2) % 3 };
        quorum.kill(victim);
        let seen = *made.borrow_and_update();
        made.wait_for(|count| *count >= seen + 2).await.expect("creates go on without it");
        quorum.launch(victim);
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = creator.await.expect("ends");
    acknowledged.sort();
    assert_eq!(names(&quorum.client()).await, acknowledged);
    // And it is on the disks: all of them go down at once.
    for index in 0..3 {
        quorum.kill(index);
    }
    for index in 0..3 {
        quorum.launch(index);
    }
    assert_eq!(names(&quorum.client()).await, acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_gets_a_snapshot_and_can_lead_with_it() {
    let mut quorum = Quorum::start(&["--snapshot-after", "20"]);
    let client = quorum.client();
    register_nodes(&client).await;
    create(&client, &volume("before")).await;
    let leader = quorum.leader().await;
    let away = (leader + 1) % 3;
    quorum.kill(away);
    create(&client, &volume("while-away")).await;
    for revision in 2..80 {
        client.register(node(1, revision)).await.expect("registers");
    }
    let reached = eventually("a snapshot", || async {
        let status = client.cluster_status().await.ok()?;
        let leads = status.has_quorum && status.leader == status.id;
        (leads && status.snapshot_index > 0).then_some(status)
    });
    let reached = reached.await;
    quorum.launch(away);
    let addr = quorum.addr(away);
    eventually("the member that was away to catch up by a snapshot", || async {
        let status = client.cluster_status_of(&addr).await.ok()?;
        let caught_up = status.applied_index >= reached.applied_index;
        (caught_up && status.snapshot_index > 0).then_some(())
    })
    .await;
    // Without the old leader the other two need each other, so what it got counts.
    quorum.kill(leader);
    let mut expected = vec!["before", "while-away"];
    assert_eq!(names(&client).await, expected);
    create(&client, &volume("after")).await;
    expected.insert(0, "after");
    assert_eq!(names(&client).await, expected);
    // What was installed is on its disk.
    quorum.kill(away);
    quorum.launch(away);
    assert_eq!(names(&client).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_changes_fail_with_exit_code_3_and_come_back_with_it() {
    let mut quorum = Quorum::start(&[]);
    let client = quorum.client();
    register_nodes(&client).await;
    create(&client, &volume("before")).await;
    let leader = quorum.leader().await;
    let request =
        WatchAssignmentsRequest { node: node(1, 1).node, incarnation: 1, ..Default::default() };
    let mut watched = client.watch_assignments(request).await.expect("opens");
    let first = watched.message().await.expect("reads").expect("a snapshot");
    assert!(first.snapshot);

    quorum.kill((leader + 1) % 3);
    quorum.kill((leader + 2) % 3);
    // A leader that lost its majority gives up its watchers: another one may have been elected.
    tokio::time::timeout(PATIENCE, async { while let Ok(Some(_)) = watched.message().await {} })
        .await
        .expect("the watch ends");
    let hasty = client.with_deadline(Duration::from_secs(15));
    let error = hasty.create_volume(volume("during")).await.expect_err("there is no quorum");
    assert!(matches!(error, MasterError::NoQuorum { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 3);
    let status = client.cluster_status().await.expect("the member that is left answers");
    assert!(!status.has_quorum);

    quorum.kill(leader);
    let error = hasty.list_volumes().await.expect_err("nobody is there");
    assert!(matches!(error, MasterError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 3);
    for index in 0..3 {
        quorum.launch(index);
    }
    assert!(names(&client).await.contains(&"before".to_owned()));
}

/// A new leader suspects nobody at first. What it places then must not land on a node that died
/// with the leader before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_places_on_nodes_that_it_has_heard() {
    let mut quorum = Quorum::start(&[]);
    let client = quorum.client();
    for n in 1..=4 {
        client.register(node(n, 1)).await.expect("registers");
    }
    for attempt in 0..TRIES {
        let leader = quorum.leader().await;
        quorum.kill(leader);
        // The first of them would be chosen if it were taken for alive.
        client.heartbeat(heartbeat(2)).await.expect("beats");
        let elected = Instant::now();
        for n in 3..=4 {
            client.heartbeat(heartbeat(n)).await.expect("beats");
        }
        let made = client.create_volume(volume(&format!("v{attempt}"))).await;
        if elected.elapsed() < PROMPT {
            let info = made.expect("creates");
            let silent = node(1, 1).node;
            assert!(info.members.iter().all(|member| member.node != silent), "{info:?}");
            assert_eq!(info.members.len(), 3);
            return;
        }
        // They were silent for so long themselves, or the next leader has heard nobody.
        quorum.launch(leader);
    }
    panic!("each time it took longer than {PROMPT:?}");
}

/// The kernel closes the sockets of a killed process one after the other: its streams may be gone
/// while its listener still takes connections. That is not to cost a wait for heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_listener_goes_last_is_seen_gone() {
    let mut quorum = Quorum::start(&[]);
    let client = quorum.client();
    let mut seen = Vec::new();
    for n in 1..=u128::from(TRIES) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("an address").to_string();
        client.register(RegisterRequest { addr, ..node(n, 1) }).await.expect("registers");
        let request =
            WatchAssignmentsRequest { node: node(n, 1).node, incarnation: 1, ..Default::default() };
        let stream = client.watch_assignments(request).await.expect("watches");
        drop(stream);
        // Nobody looks if the leader has just gone.
        let Ok(looks) = timeout(LOOKS, listener.accept()).await else { continue };
        let (connection, _) = looks.expect("accepts");
        drop(listener);
        drop(connection);
        // What the leader makes of it. It gives up on a machine that is silent for too long, which one that
        // stands still for a while is.
        let (id, began) = (Uuid::from_u128(n).to_string(), Instant::now());
        let verdict = loop {
            let logged = (0..3).map(|index| quorum.member(index).logged()).collect::<String>();
            let mut lines = logged.lines();
            let told =
                |line: &&str| line.contains(&id) && VERDICTS.iter().any(|v| line.contains(v));
            if let Some(line) = lines.find(told) {
                break Some(line.to_owned());
            }
            if began.elapsed() > LOOKS {
                break None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        if verdict.as_ref().is_some_and(|line| line.contains(GONE)) {
            return;
        }
        seen.push(verdict);
    }
    panic!("it was never seen gone: {seen:?}");
}
