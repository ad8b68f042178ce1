//! `sbkctl calibrate`: does the system do what it says it does? Five families of scenarios,
//! expected against observed.

use anyhow::bail;
use serde::Serialize;

use super::engine_families::{only_the_close_is_success, order_of_facts_does_not_matter};
use super::replica_return::take_all;
use super::routes::{Route, Taken};
use crate::args::{DrillArgs, Global};
use crate::output::{Output, table};

/// One family.
#[derive(Clone, Debug, Serialize)]
pub struct Family {
    /// `C1` to `C5`.
    pub family: &'static str,
    /// What it claims.
    pub claim: &'static str,
    /// Where it ran.
    pub ran_on: &'static str,
    /// What had to be seen.
    pub expected: &'static str,
    /// What was seen.
    pub observed: String,
    /// Whether they agree.
    pub ok: bool,
}

const ON_PROCESSES: &str = "processes";
const ON_ENGINE: &str = "engine";

/// The first three, on real processes.
const ROUTES: [(Route, &str, &str, &str); 3] = [
    (Route::Healthy, "C1", "healthy stays healthy", "no session, the same epoch"),
    (Route::CatchUp, "C2", "a short gap catches up", "catch-up only"),
    (Route::Delta, "C3", "a long gap gets what changed", "delta"),
];

fn of_routes(runs: &[Taken], error: Option<&anyhow::Error>) -> Vec<Family> {
    let family = |&(route, family, claim, expected): &(Route, &'static str, _, _)| {
        let of_it: Vec<&Taken> = runs.iter().filter(|t| t.expected == route).collect();
        let fault = of_it.iter().find_map(|t| t.fault.clone());
        let ok = fault.is_none() && !of_it.is_empty();
        let observed = match (fault, of_it.is_empty()) {
            (Some(fault), _) => fault,
            (None, true) => match error {
                Some(error) => format!("not run: {error:#}"),
                None => "not run: an earlier one failed".into(),
            },
            (None, false) => {
                let writes: u64 = of_it.iter().map(|t| t.load.writes).sum();
                format!("{} times as expected, {writes} verified writes", of_it.len())
            }
        };
        Family { family, claim, ran_on: ON_PROCESSES, expected, observed, ok }
    };
    ROUTES.iter().map(family).collect()
}

fn of_engine(
    family: &'static str,
    claim: &'static str,
    expected: &'static str,
    result: Result<String, String>,
) -> Family {
    let ok = result.is_ok();
    let observed = result.unwrap_or_else(|fault| fault);
    Family { family, claim, ran_on: ON_ENGINE, expected, observed, ok }
}

/// For people.
fn words(families: &[Family]) -> String {
    let rows = families.iter().map(|f| {
        vec![
            f.family.to_owned(),
            f.claim.to_owned(),
            f.ran_on.to_owned(),
            f.expected.to_owned(),
            f.observed.clone(),
            if f.ok { "as expected".into() } else { "WRONG".to_owned() },
        ]
    });
    table(&["family", "claim", "on", "expected", "observed", "result"], rows)
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let routes = ROUTES.map(|(route, ..)| route);
    let (runs, result) = take_all(global, &args, &routes, |_, taken| {
        eprintln!("{} done", taken.expected.word());
        Ok(())
    })
    .await;
    let mut families = of_routes(&runs, result.as_ref().err());
    families.push(of_engine(
        "C4",
        "only a terminal close is success",
        "progress never makes healthy; close and fence do",
        only_the_close_is_success(),
    ));
    families.push(of_engine(
        "C5",
        "the order of facts changes nothing",
        "one outcome for all orders",
        order_of_facts_does_not_matter(),
    ));
    output.show(&families, |families| words(families))?;
    result?;
    if families.iter().any(|f| !f.ok) {
        bail!("a family was not as expected");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_did_not_run_is_not_as_expected() {
        let families = of_routes(&[], Some(&anyhow::anyhow!("no ports")));
        assert_eq!(families.len(), 3);
        assert!(families.iter().all(|f| !f.ok && f.observed.contains("no ports")));
        assert!(words(&families).contains("WRONG"));
    }

    #[test]
    fn an_engine_fault_is_told() {
        let family = of_engine("C4", "", "", Err("healthy by progress".into()));
        assert!(!family.ok);
        assert_eq!(family.observed, "healthy by progress");
    }
}
