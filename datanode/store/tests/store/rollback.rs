//! What is put back on an encrypted replica's disk as it was before is found out.

use super::past;

#[test]
fn what_is_put_back_as_it_was_is_found_out_or_changes_nothing() {
    let seeds = super::crash::seeds(0..2);
    let (refused, nothing) =
        past::put_back(seeds).unwrap_or_else(|(seed, what)| panic!("seed {seed}: {what}"));
    println!("{refused} were refused, {nothing} changed nothing");
    assert!(refused > 200 && nothing > 10, "{refused} were refused, {nothing} changed nothing");
}
