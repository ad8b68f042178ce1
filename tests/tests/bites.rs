//! The table of the bugs that are put back names every bug there is.

use std::collections::BTreeSet;

use sbk_engine::bugs::Bug;
use sbk_tests::bites::table;

#[test]
fn every_known_bug_is_in_the_documentation_and_is_found() {
    let page = std::fs::read_to_string(table::page()).expect("the page is there");
    let (_, text, _) = table::split(&page).expect("the marks are there");
    let found: BTreeSet<String> = table::read(text).expect("rows").into_keys().collect();
    let known: BTreeSet<String> = Bug::ALL.iter().map(|bug| bug.name().to_owned()).collect();
    assert_eq!(found, known, "run `bites -- --write`");
    assert_eq!(table::gaps(text), [""; 0], "a bug that nothing finds shows nothing");
}
