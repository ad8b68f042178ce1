//! The crash tests of `sbk-store` as a finder of bugs: a machine that stops at one I/O after the other.
//!
//! They are the store's own, in its `tests` directory, for they need nothing of a cluster.

#![allow(dead_code, reason = "the store's own tests use the rest")]

#[path = "../../../datanode/store/tests/store/backend.rs"]
mod backend;
#[path = "../../../datanode/store/tests/store/content.rs"]
mod content;
#[path = "../../../datanode/store/tests/store/driver.rs"]
mod driver;
#[path = "../../../datanode/store/tests/store/events.rs"]
mod events;
#[path = "../../../datanode/store/tests/store/model.rs"]
mod model;
#[path = "../../../datanode/store/tests/store/past.rs"]
mod past;
#[path = "../../../datanode/store/tests/store/stops.rs"]
mod stops;

use self::backend::Backend;
use self::stops::{Crash, Found};

/// Steps of a workload.
const STEPS: u64 = 50;

/// What was found to be wrong, and after which operation of the disk, if there is a store finder of
/// that name.
pub(super) fn run(finder: &str, seed: u64) -> Option<Result<(), (u64, String)>> {
    let (backend, crash) = match finder {
        "store-power" => (Backend::Files, Crash::PowerLoss),
        "store-kill" => (Backend::Files, Crash::Kill),
        "encrypted-kill" => (Backend::Sealed, Crash::Kill),
        "put-back" => {
            // What is put back is not an operation of the disk.
            let found = past::put_back(seed..seed + 1);
            return Some(found.map(drop).map_err(|(_, what)| (0, what)));
        }
        _ => return None,
    };
    let found = stops::every_io(backend, crash, seed..seed + 1, 0, STEPS);
    Some(found.map(drop).map_err(|Found { at, what, .. }| (at, what)))
}
