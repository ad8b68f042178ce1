//! The table of the bugs that are put back names every bug there is.

use std::collections::BTreeSet;

use sbk_engine::bugs::Bug;
use sbk_tests::bites::table;

#[test]
fn every_known_bug_is_in_the_documentation_and_most_are_found() {
    let page = std::fs::read_to_string(table::page()).expect("the page is there");
    let (_, text, _) = table::split(&page).expect("the marks are there");
    let found: BTreeSet<String> = table::read(text).expect("rows").into_keys().collect();
    let gaps: BTreeSet<String> = table::gaps(text).into_iter().collect();
    let known: BTreeSet<String> = Bug::ALL.iter().map(|bug| bug.name().to_owned()).collect();
    assert_eq!(&found | &gaps, known, "run `bites -- --write`");
    assert!(found.is_disjoint(&gaps));
    assert!(found.len() >= 25, "only {} known bugs are found", found.len());
}
