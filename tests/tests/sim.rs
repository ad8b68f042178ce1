//! A few seeds of each family of faults. `cargo run --release -p sbk-tests --bin sim` runs more.

use sbk_tests::sim::{REGRESSIONS, Summary, family, run};

fn sweep(name: &str, seeds: std::ops::Range<u64>) {
    let faults = family(name).expect("a family").faults;
    let mut total = Summary::default();
    // Without optimization a run takes ten times as long.
    let last = if cfg!(debug_assertions) { seeds.end / 20 } else { seeds.end };
    for seed in seeds.start..last {
        println!("{name}: seed {seed}");
        total.add(&run(seed, faults(seed)));
    }
    println!("{name}: {total:?}");
    assert!(total.acknowledged > 0, "no write was ever acknowledged");
    assert!(total.reads > 0, "no read was ever answered");
}

#[test]
fn a_quiet_cluster_serves() {
    sweep("quiet", 0..20);
}

#[test]
fn a_lossy_network_loses_no_write() {
    sweep("lossy", 0..60);
}

#[test]
fn crashes_lose_no_acknowledged_write() {
    sweep("crashes", 0..100);
}

#[test]
fn partitions_and_pauses_lose_no_acknowledged_write() {
    sweep("partitions", 0..100);
}

#[test]
fn a_primary_that_was_replaced_serves_no_stale_read() {
    sweep("coups", 0..100);
}

#[test]
fn late_and_repeated_messages_change_nothing() {
    sweep("echoes", 0..100);
}

#[test]
fn disks_that_fail_lose_no_acknowledged_write() {
    sweep("disks", 0..60);
}

#[test]
fn disks_that_fail_for_good_lose_no_acknowledged_write() {
    sweep("failed-disks", 0..120);
}

#[test]
fn replicas_that_prove_what_they_wrote_lose_no_acknowledged_write() {
    sweep("proving", 0..120);
}

#[test]
fn bits_that_flip_at_rest_cost_one_copy_at_most() {
    sweep("flips", 0..120);
}

#[test]
fn replicas_that_fall_behind_get_what_changed() {
    sweep("deltas", 0..120);
}

#[test]
fn log_is_let_go_for_its_age_and_not_from_under_a_session() {
    sweep("ages", 0..120);
}

#[test]
fn blocks_that_rot_are_read_from_another_replica() {
    sweep("rotten", 0..120);
}

#[test]
fn masters_that_change_lose_no_acknowledged_write() {
    sweep("masters", 0..60);
}

#[test]
fn handovers_lose_no_write_and_serve_no_stale_read() {
    sweep("handovers", 0..120);
}

#[test]
fn no_ghost_overwrites_what_its_successor_wrote() {
    sweep("attachments", 0..200);
}

#[test]
fn a_swarm_of_faults_loses_no_acknowledged_write() {
    sweep("swarm", 0..200);
}

#[test]
fn what_was_found_once_stays_mended() {
    for (name, seed) in REGRESSIONS {
        run(*seed, (family(name).expect("a family").faults)(*seed));
    }
}

#[test]
fn a_seed_runs_the_same_every_time() {
    let once = || format!("{:?}", run(3, (family("swarm").expect("a family").faults)(3)));
    assert_eq!(once(), once());
}

#[test]
fn everything_at_once_loses_no_acknowledged_write() {
    sweep("everything", 0..200);
}

#[test]
fn a_loss_takes_what_the_chosen_log_lacks_and_no_client_goes_on_in_silence() {
    sweep("disasters", 0..60);
}

#[test]
fn best_effort_loses_only_what_it_counts() {
    sweep("best-effort", 0..100);
}

#[test]
fn elections_lose_no_acknowledged_write() {
    sweep("quorum", 0..100);
    sweep("elections", 0..60);
}

#[test]
fn resizes_lose_nothing_and_publish_what_is_committed() {
    sweep("sizes", 0..100);
}

#[test]
fn disks_that_run_short_of_room_lose_nothing_and_take_no_growth() {
    sweep("space", 0..120);
}

#[test]
fn replicas_that_move_lose_no_acknowledged_write() {
    sweep("moves", 0..60);
    sweep("replacements", 0..60);
}
