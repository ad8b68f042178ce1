//! The table of what was found, in `docs/testing.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sbk_engine::bugs::Bug;

use super::{Finding, Place};

const BEGIN: &str = "<!-- bites: begin -->";
const END: &str = "<!-- bites: end -->";

/// The page with the table.
pub fn page() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/testing.md"))
}

/// The text before the table, the table, the text after it.
///
/// # Errors
/// If the page has not the two marks.
pub fn split(page: &str) -> Result<(&str, &str, &str), String> {
    let missing = |mark| format!("docs/testing.md: the mark {mark} is missing");
    let (before, rest) = page.split_once(BEGIN).ok_or_else(|| missing(BEGIN))?;
    let (table, after) = rest.split_once(END).ok_or_else(|| missing(END))?;
    Ok((before, table, after))
}

/// The page with another table.
///
/// # Errors
/// If the page has not the two marks.
pub fn replace(page: &str, table: &str) -> Result<String, String> {
    let (before, _, after) = split(page)?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// Where each bug was found.
///
/// # Errors
/// If a row can't be read.
pub fn read(table: &str) -> Result<BTreeMap<String, Place>, String> {
    let mut places = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let bad = || format!("docs/testing.md: not a row of the table of bugs: {line}");
        let [name, _, place, _, _] = cells.as_slice() else { return Err(bad()) };
        let (family, seed) = place.split_once(' ').ok_or_else(bad)?;
        let seed = seed.parse().map_err(|_| bad())?;
        let place = Place { family: family.to_owned(), seed };
        if places.insert(name.trim_matches('`').to_owned(), place).is_some() {
            return Err(bad());
        }
    }
    Ok(places)
}

const GAPS: &str = "Not noticed by the seeds that were searched: ";

/// The bugs that no seed found.
pub fn gaps(table: &str) -> Vec<String> {
    let line = table.lines().find_map(|line| line.strip_prefix(GAPS)).unwrap_or_default();
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table and the list of the bugs that no seed found.
pub fn render_all(found: &BTreeMap<Bug, (String, Finding)>) -> String {
    let missing = Bug::ALL.iter().filter(|bug| !found.contains_key(bug));
    let missing: Vec<_> = missing.map(|bug| format!("`{}`", bug.name())).collect();
    let table = render(found);
    if missing.is_empty() { table } else { format!("{table}\n{GAPS}{}.\n", missing.join(", ")) }
}

/// The table. A bug without a finding has no row.
fn render(found: &BTreeMap<Bug, (String, Finding)>) -> String {
    let mut out = String::from(
        "| bug | the rule that is taken out [what goes wrong] | family, seed | after | found by |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for (bug, (family, Finding { seed, violation })) in found {
        let (name, text) = (bug.name(), bug.text());
        let seconds = violation.time as f64 / 1000.0;
        let by = match violation.checker == violation.file {
            true => format!("`{}`", violation.file),
            false => format!("{}, `{}`", violation.checker, violation.file),
        };
        out.push_str(&format!("| `{name}` | {text} | {family} {seed} | {seconds:.1} s | {by} |\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Violation;

    #[test]
    fn what_is_written_is_read_again() {
        let violation = Violation {
            checker: "I2".to_owned(),
            file: "truth.rs".to_owned(),
            time: 1_234,
            text: "I2: lost".to_owned(),
        };
        let finding = Finding { seed: 7, violation };
        let found = BTreeMap::from([(Bug::SkipCut, ("coups".to_owned(), finding))]);
        let page = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let page = replace(&page, &render(&found)).expect("the marks are there");
        assert!(page.starts_with("above\n") && page.ends_with("\nbelow\n"), "{page}");
        let (_, table, _) = split(&page).expect("the marks are there");
        assert!(table.contains("| 1.2 s | I2, `truth.rs` |"), "{table}");
        let place = Place { family: "coups".to_owned(), seed: 7 };
        assert_eq!(read(table), Ok(BTreeMap::from([("SkipCut".to_owned(), place)])));
        let gaps = gaps(&render_all(&found));
        assert!(gaps.len() + 1 == Bug::ALL.len() && gaps[0] == "AckBeforeMember", "{gaps:?}");
        assert!(split("no marks").is_err());
        assert!(read("| `SkipCut` | text | coups | 1 s | I2 |").is_err());
    }
}
