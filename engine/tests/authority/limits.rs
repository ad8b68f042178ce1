//! What a volume's clients may do: set, changed, read back from before there was such a thing.

use proptest::prelude::*;
use sbk_engine::authority::limits::{MAX_BURST_SECONDS, MAX_RATE, MIN_BANDWIDTH, MIN_IOPS};
use sbk_engine::authority::placement::check_request;
use sbk_engine::authority::{Accepted, Command, Limits, LimitsChange, State, VolumeRequest};

use super::cases::{cluster, request, volume};

fn set(state: &mut State, change: LimitsChange) -> Result<Accepted, &'static str> {
    let command = Command::SetLimits { volume: volume(), change };
    state.apply(&command).map_err(|refusal| refusal.word())
}

fn limits(state: &State) -> Limits {
    state.volumes()[&volume()].limits
}

#[test]
fn what_a_change_does_not_name_stays_and_watchers_hear_of_it_once() {
    let mut state = cluster();
    assert_eq!(limits(&state), Limits { iops: None, bandwidth: None, burst_seconds: 1 });
    let epoch = state.config(volume()).expect("serves").epoch;
    let before = state.revision();
    let iops = LimitsChange { iops: Some(500), ..LimitsChange::default() };
    // Sent again, for its answer was lost.
    for _ in 0..2 {
        assert_eq!(set(&mut state, iops), Ok(Accepted::Done));
        let told: Vec<_> = state.catalogue_since(before).iter().map(|v| v.limits).collect();
        assert_eq!(told, [Limits { iops: Some(500), ..Limits::default() }]);
        assert_eq!(state.revision(), before + 1);
    }
    let more = LimitsChange { iops: None, bandwidth: Some(MIN_BANDWIDTH), burst_seconds: Some(30) };
    assert_eq!(set(&mut state, more), Ok(Accepted::Done));
    let both = Limits { iops: Some(500), bandwidth: Some(MIN_BANDWIDTH), burst_seconds: 30 };
    assert_eq!(limits(&state), both);
    let off = LimitsChange { iops: Some(0), ..LimitsChange::default() };
    assert_eq!(set(&mut state, off), Ok(Accepted::Done));
    assert_eq!(limits(&state), Limits { iops: None, ..both });
    assert_eq!(state.config(volume()).expect("serves").epoch, epoch, "no epoch began for it");
}

#[test]
fn what_is_out_of_range_is_refused_and_changes_nothing() {
    let mut state = cluster();
    let change = |iops, bandwidth, burst_seconds| LimitsChange { iops, bandwidth, burst_seconds };
    for bad in [
        change(Some(MIN_IOPS - 1), None, None),
        change(Some(MAX_RATE + 1), None, None),
        change(Some(MIN_IOPS), Some(MIN_BANDWIDTH - 1), None),
        change(None, Some(u64::MAX), None),
        change(None, None, Some(0)),
        change(None, None, Some(MAX_BURST_SECONDS + 1)),
    ] {
        let before = state.clone();
        assert_eq!(set(&mut state, bad), Err("bad-limit"), "{bad:?}");
        assert_eq!(state, before);
    }
    let low = Limits { iops: Some(1), ..Limits::default() };
    let refusal = check_request(&VolumeRequest { limits: low, ..request("vol") });
    let text = refusal.expect_err("is refused").to_string();
    assert!(text.contains("iops") && text.contains("10"), "{text}");
}

#[test]
fn a_state_and_a_log_of_before_there_were_limits_are_read() {
    let state = cluster();
    let mut json = serde_json::to_value(&state).expect("is written");
    let old = json["volumes"][volume().to_string()].as_object_mut().expect("a volume");
    assert!(old.remove("limits").is_some());
    assert_eq!(serde_json::from_value::<State>(json).expect("is read"), state);
    let wanted = request("vol");
    let mut json = serde_json::to_value(&wanted).expect("is written");
    assert!(json.as_object_mut().expect("a request").remove("limits").is_some());
    assert_eq!(serde_json::from_value::<VolumeRequest>(json).expect("is read"), wanted);
}

proptest! {
    #[test]
    fn a_change_survives_the_log(iops: Option<u64>, bandwidth: Option<u64>, burst: Option<u32>) {
        let change = LimitsChange { iops, bandwidth, burst_seconds: burst };
        let json = serde_json::to_string(&change).expect("is written");
        prop_assert_eq!(serde_json::from_str::<LimitsChange>(&json).expect("is read"), change);
    }
}
