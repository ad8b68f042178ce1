//! What a master refuses to start with, and how it stops.

mod support;

use std::path::Path;

use sbk_master_client::MasterClient;
use support::{Member, PATIENCE, Quorum, create, names, register_nodes, spawn, volume};

fn one(dir: &Path, ports: &[u16]) -> Member {
    spawn(dir, 1, ports[0], ports[1], &format!("1=127.0.0.1:{}", ports[0]), &[])
}

fn client(ports: &[u16]) -> MasterClient {
    MasterClient::new(vec![format!("127.0.0.1:{}", ports[0])]).with_deadline(PATIENCE)
}

async fn refused(mut member: Member, why: &str) {
    let status = member.ended().await;
    let logged = member.logged();
    assert_eq!(status.code(), Some(1), "{logged}");
    assert!(logged.contains(why), "'{why}' is not in:\n{logged}");
}

#[tokio::test]
async fn a_directory_of_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = dir.path().join("m");
    std::fs::create_dir(&own).expect("makes it");
    std::fs::write(own.join("something"), b"of somebody else").expect("writes");
    refused(one(&own, &sbk_ports::kept(2)), "no data directory of a master").await;
    assert_eq!(std::fs::read_dir(&own).expect("lists").count(), 1, "nothing is added");
}

#[tokio::test]
async fn a_fresh_file_system_is_not_something_else() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("lost+found")).expect("makes it");
    let ports = sbk_ports::kept(2);
    let _member = one(dir.path(), &ports);
    let client = client(&ports);
    client.list_volumes().await.expect("it serves");
}

#[tokio::test]
async fn another_members_directory_is_refused() {
    let mut quorum = Quorum::start(&[]);
    register_nodes(&quorum.client()).await;
    quorum.kill(0);
    quorum.kill(1);
    let ports = sbk_ports::kept(2);
    let (dir, cluster) = (quorum.data_dir(0), quorum.cluster());
    let other = spawn(&dir, 2, ports[0], ports[1], &cluster, &[]);
    refused(other, "belongs to master 1, not 2").await;
    let other = spawn(&dir, 1, ports[0], ports[1], &format!("1=127.0.0.1:{}", ports[0]), &[]);
    refused(other, "belongs to the cluster").await;
}

#[tokio::test]
async fn two_processes_never_share_a_directory_or_a_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = dir.path().join("m");
    let ports = sbk_ports::kept(4);
    let first = one(&own, &ports);
    let client = client(&ports);
    client.list_volumes().await.expect("the first one serves");
    let cluster = format!("1=127.0.0.1:{}", ports[0]);
    refused(spawn(&own, 1, ports[2], ports[3], &cluster, &[]), "in use by another process").await;
    let elsewhere = dir.path().join("n");
    refused(one(&elsewhere, &[ports[0], ports[3]]), "--listen").await;
    refused(one(&elsewhere, &[ports[2], ports[1]]), "--http").await;
    client.list_volumes().await.expect("the first one still serves");
    drop(first);
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_0() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = sbk_ports::kept(2);
    let mut member = one(&dir.path().join("m"), &ports);
    let client = client(&ports);
    client.list_volumes().await.expect("it serves");
    member.terminate();
    let status = member.ended().await;
    assert_eq!(status.code(), Some(0), "{}", member.logged());
}

/// A member whose directory is lost has forgotten its votes; under its old id it must not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_directory_does_not_come_back_under_its_id() {
    let mut quorum = Quorum::start(&[]);
    let client = quorum.client();
    register_nodes(&client).await;
    create(&client, &volume("before")).await;
    let leader = quorum.leader().await;
    let lost = (leader + 1) % 3;
    // Every member's directory is recorded soon after it is heard; a restart shows that this one's
    // is, for a leader without it could not be told from a new member.
    support::eventually("all members to be known", || async {
        let status = client.cluster_status().await.ok()?;
        status.members.iter().all(|m| m.known).then_some(())
    })
    .await;
    quorum.kill(lost);
    std::fs::remove_dir_all(quorum.data_dir(lost)).expect("removes");
    quorum.launch(lost);
    let member = quorum.member(lost);
    let status = member.ended().await;
    let logged = member.logged();
    assert_eq!(status.code(), Some(1), "{logged}");
    assert!(logged.contains("its vote and log are lost"), "{logged}");
    assert_eq!(names(&client).await, ["before"], "the other two go on");
}
