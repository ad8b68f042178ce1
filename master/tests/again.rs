//! What is asked of a master again.

mod support;

use sbk_master_client::{MasterClient, MasterError};
use sbk_proto::v1::ConfirmDeleteRequest;
use support::{PATIENCE, register_nodes, spawn, volume};

/// The outcome of a create is unknown to its client, which asks again; meanwhile another deletes the volume.
/// Under the id of one that ended there must never be another: a frontend that missed the end would read
/// zeros from it.
#[tokio::test]
async fn a_create_that_comes_again_never_brings_a_deleted_volume_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = sbk_ports::kept(2);
    let cluster = format!("1=127.0.0.1:{}", ports[0]);
    let _member = spawn(&dir.path().join("m"), 1, ports[0], ports[1], &cluster, &[]);
    let client = MasterClient::new(vec![format!("127.0.0.1:{}", ports[0])]).with_deadline(PATIENCE);
    register_nodes(&client).await;
    let request = volume("v");
    let first = client.create_volume(request.clone()).await.expect("creates");
    let again = client.create_volume(request.clone()).await.expect("it is there");
    assert_eq!(again.id, first.id, "the same create");
    client.delete_volume("v").await.expect("deletes");
    for member in &first.members {
        let error = client.create_volume(request.clone()).await.expect_err("it is being removed");
        assert!(
            matches!(&error, MasterError::Refused { word, .. } if word == "volume-deleted"),
            "{error:?}"
        );
        let gone = ConfirmDeleteRequest {
            node: member.node.clone(),
            incarnation: 1,
            volume: first.id.clone(),
            replica: member.replica.clone(),
        };
        client.confirm_delete(gone).await.expect("confirms");
    }
    let later = client.create_volume(request).await.expect("creates");
    assert_ne!(later.id, first.id, "an id names one volume");
    let id = uuid::Uuid::from_slice(&first.id).expect("an id").to_string();
    let error = client.get_volume(&id).await.expect_err("it has ended");
    assert!(
        matches!(&error, MasterError::Refused { word, .. } if word == "no-such-volume"),
        "{error:?}"
    );
}
