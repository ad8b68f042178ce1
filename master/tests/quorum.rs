//! Three real master processes: creates go on while any of them is killed, nothing that was
//! acknowledged is lost, a member that was away gets what it missed, and without a majority
//! changes stop with a clear error.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sbk_master_client::MasterError;
use sbk_proto::v1::{RegisterRequest, WatchAssignmentsRequest};
use support::{
    PATIENCE, Quorum, create, eventually, heartbeat, names, node, register_nodes, volume,
};
use tokio::sync::watch;

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
    let reached = client.cluster_status().await.expect("a status");
    assert!(reached.snapshot_index > 0, "no snapshot was made: {reached:?}");
    quorum.launch(away);
    let addr = quorum.addr(away);
    let caught_up = eventually("the member that was away to catch up", || async {
        let status = client.cluster_status_of(&addr).await.ok()?;
        (status.applied_index >= reached.applied_index).then_some(status)
    });
    assert!(caught_up.await.snapshot_index > 0);
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
    let hasty = client.with_deadline(Duration::from_secs(5));
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
    quorum.kill(quorum.leader().await);
    // The first of them would be chosen if it were taken for alive.
    for n in 2..=4 {
        client.heartbeat(heartbeat(n)).await.expect("beats");
    }
    let info = client.create_volume(volume("v")).await.expect("creates");
    let silent = node(1, 1).node;
    assert!(info.members.iter().all(|member| member.node != silent), "{info:?}");
    assert_eq!(info.members.len(), 3);
}

/// The kernel closes the sockets of a killed process one after the other: its streams may be gone
/// while its listener still takes connections. That is not to cost a wait for heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_listener_goes_last_is_seen_gone() {
    let mut quorum = Quorum::start(&[]);
    let client = quorum.client();
    let leader = quorum.leader().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("an address").to_string();
    client.register(RegisterRequest { addr, ..node(1, 1) }).await.expect("registers");
    let request =
        WatchAssignmentsRequest { node: node(1, 1).node, incarnation: 1, ..Default::default() };
    let stream = client.watch_assignments(request).await.expect("watches");
    drop(stream);
    let (connection, _) = listener.accept().await.expect("the leader looks");
    drop(listener);
    drop(connection);
    let leader = &*quorum.member(leader);
    eventually("the leader to see it gone", || async {
        leader.logged().contains("its process is gone").then_some(())
    })
    .await;
}
