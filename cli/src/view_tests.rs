use super::*;

fn member(node: u8, primary: bool, in_sync: bool) -> v1::MemberInfo {
    v1::MemberInfo {
        node: vec![node; 16].into(),
        confirmed: true,
        node_alive: true,
        primary,
        in_sync,
        durable_lsn: 7,
        mode: "healthy".into(),
        ..Default::default()
    }
}

fn volume() -> v1::VolumeInfo {
    v1::VolumeInfo {
        id: vec![9; 16].into(),
        name: "v".into(),
        size_bytes: 1 << 30,
        replicas: 2,
        durability: v1::Durability::SyncAll.into(),
        write_ack: v1::WriteAck::Durable.into(),
        min_in_sync: 1,
        config: Some(v1::Config { epoch: 3, ..Default::default() }),
        serving: true,
        members: vec![member(1, true, true), member(2, false, true)],
        ..Default::default()
    }
}

#[test]
fn a_volume_has_the_documented_fields() {
    let view = VolumeView::of(&volume());
    let node = |n: u8| id_text(&[n; 16]);
    let member = |n: u8| {
        serde_json::json!({
            "node": node(n), "mode": "healthy", "decision": null, "session": null,
            "r": 7, "s": null, "h": null, "lag_bytes": null, "reason": "", "scrub": null,
        })
    };
    assert_eq!(
        serde_json::to_value(&view).expect("json"),
        serde_json::json!({
            "name": "v", "id": id_text(&[9; 16]), "size_bytes": 1u64 << 30, "replicas": 2,
            "encrypted": false, "wished_size_bytes": null, "size_refused": null,
            "durability": "sync_all", "write_ack": "durable", "iops": null, "bandwidth": null,
            "burst_seconds": 1, "epoch": 3, "primary": node(1),
            "loss_generation": 0, "isr": [node(1), node(2)], "serving": true, "reason": "",
            "may_hold_unflushed": [], "members": [member(1), member(2)],
        })
    );
}

#[test]
fn a_volume_is_whole_only_with_all_in_sync() {
    let whole = volume();
    assert!(VolumeView::of(&whole).is_whole());
    let mut out = volume();
    out.members[1].in_sync = false;
    assert!(!VolumeView::of(&out).is_whole());
    let stopped = v1::VolumeInfo { serving: false, ..volume() };
    assert!(!VolumeView::of(&stopped).is_whole());
    let missing = v1::VolumeInfo { replicas: 3, ..volume() };
    assert!(!VolumeView::of(&missing).is_whole());
}

#[test]
fn people_are_told_why() {
    let mut info = volume();
    info.serving = false;
    info.reason = "waits for b".into();
    info.members[1].node_alive = false;
    let view = VolumeView::of(&info);
    assert!(volume_table(std::slice::from_ref(&view)).contains("no: waits for b"));
    assert!(view.detail().contains("its node is not heard from"), "{}", view.detail());
    let unborn = v1::VolumeInfo { config: None, serving: false, ..volume() };
    assert_eq!(VolumeView::of(&unborn).reason, "waits for its replicas to be created");
    assert!(volume_table(&[]).contains("sbkctl volume create"));
    assert!(node_table(&[]).contains("sbk-datanode"));
}

#[test]
fn a_size_that_is_to_be_or_could_not_be_is_told() {
    assert!(VolumeView::of(&volume()).detail().contains("size:       1 GiB\n"));
    let grows = VolumeView::of(&v1::VolumeInfo { wished_size_bytes: 3 << 30, ..volume() });
    assert!(grows.detail().contains("size:       1 GiB, is to have 3 GiB\n"), "{}", grows.detail());
    assert!(volume_table(&[grows]).contains("1 GiB -> 3 GiB"));
    let size_refused = Some(v1::SizeRefused { size_bytes: 512 << 20, offset: 4096 });
    let kept = VolumeView::of(&v1::VolumeInfo { size_refused, ..volume() }).detail();
    assert!(kept.contains("it could not have 512 MiB, for there is data at byte 4096\n"), "{kept}");
}

#[test]
fn limits_are_told() {
    let told = |iops, bandwidth, burst_seconds| {
        let limits = Some(v1::Limits { iops, bandwidth, burst_seconds });
        VolumeView::of(&v1::VolumeInfo { limits, ..volume() })
    };
    assert!(VolumeView::of(&volume()).detail().contains("limits:     none"));
    let both = told(500, 3 << 20, 1);
    assert!(both.detail().contains("limits:     500 requests/s, 3 MiB/s\n"), "{}", both.detail());
    assert_eq!((both.iops, both.bandwidth, both.burst_seconds), (Some(500), Some(3 << 20), 1));
    let burst = told(0, 3 << 20, 30);
    assert!(burst.detail().contains("limits:     3 MiB/s, bursts of 30 s\n"));
    assert_eq!(burst.iops, None);
}

#[test]
fn acknowledgements_before_the_sync_and_who_was_not_waited_for_are_told() {
    let mut info = v1::VolumeInfo { write_ack: v1::WriteAck::Written.into(), ..volume() };
    info.members[1].may_hold_unflushed = true;
    let view = VolumeView::of(&info);
    assert!(volume_table(std::slice::from_ref(&view)).contains("sync_all, written"));
    assert!(view.detail().contains("acknowledged when written"), "{}", view.detail());
    let json = serde_json::to_value(&view).expect("json");
    assert_eq!(json["write_ack"], "written");
    assert_eq!(json["may_hold_unflushed"], serde_json::json!([id_text(&[2; 16])]));
    let durable = VolumeView::of(&volume());
    assert!(!volume_table(std::slice::from_ref(&durable)).contains("written"));
}

#[test]
fn a_quorum_without_a_leader_says_so() {
    let view = ClusterView::of(&v1::ClusterStatusResponse::default());
    assert_eq!(view.leader, None);
    assert!(view.detail().contains("what serves goes on"));
}
