//! The smallest worlds, explored to the end. `cargo run --release -p sbk-tests --bin explore` does the
//! larger ones.

use sbk_tests::explore::{Search, WORLDS};

#[test]
fn the_smallest_worlds_have_the_documented_states_and_keep_every_rule() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/testing.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let quick: Vec<_> = WORLDS.iter().filter(|spec| spec.quick).collect();
    assert!(quick.len() > 1, "some worlds are explored at every run");
    for spec in quick {
        let counts = Search::new(spec, 2, 1_000_000).run().expect("no rule is broken");
        let row = counts.row(spec.name);
        assert!(page.lines().any(|line| line.starts_with(&row)), "docs/testing.md lacks {row}");
    }
}

#[test]
fn every_world_is_documented() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/testing.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    for spec in WORLDS {
        assert!(page.contains(&format!("| `{}` | {} |", spec.name, spec.about)), "{}", spec.name);
    }
}

/// Each rule that is taken out is missed by some world, in a run of few steps.
#[cfg(feature = "bugs")]
#[test]
fn a_rule_that_is_taken_out_is_missed() {
    use sbk_engine::bugs::Bug;
    use sbk_tests::explore::world;

    let found = [
        (Bug::AckBeforeMember, "healthy", "I2"),
        (Bug::SkipCut, "primary-crash", "I2"),
        (Bug::SkipLeaseWait, "partitioned-primary", "I1"),
        (Bug::ReadWithoutLease, "partitioned-primary", "I1"),
        (Bug::CountJoinerLate, "join-raced-by-failover", "I2"),
        (Bug::LogResentTwice, "primary-crash", "I3"),
        (Bug::ForgetPromises, "promise-and-restart", "I1"),
    ];
    for (bug, name, rule) in found {
        let spec = world(name).expect("a world");
        let found = Search::new(spec, 2, 3_000_000).with_bug(bug).run();
        let violation = found.expect_err(bug.name());
        println!("{bug:?} in {name}, {} steps: {}", violation.run.len(), violation.what);
        violation.run.iter().for_each(|line| println!("  {line}"));
        assert!(violation.what.contains(rule), "{bug:?}: {}", violation.what);
    }
}
