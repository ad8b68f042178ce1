//! The crash and fault tests of `sbk-device` as finders of bugs.
//!
//! They are its own, in its `tests` directory, for they need nothing of a cluster.

#![allow(dead_code, reason = "its own tests use the rest")]

#[path = "../../../datanode/device/tests/device/stops.rs"]
mod stops;
#[path = "../../../datanode/device/tests/device/work.rs"]
mod work;

use sbk_wal::{Fault, OpKind};

use self::stops::{Crash, every_fault, every_io};

/// Steps of a workload.
const STEPS: u64 = 60;

/// What was found to be wrong, and after which operation of the device, if there is a finder of that name.
pub(super) fn run(finder: &str, seed: u64) -> Option<Result<(), (u64, String)>> {
    let seeds = seed..seed + 1;
    let found = match finder {
        "device-power" => every_io(Crash::PowerLoss, seeds, STEPS),
        "device-faults" => every_fault(OpKind::Sync, Fault::Io, seeds, STEPS),
        _ => return None,
    };
    Some(found.map(drop).map_err(|(_, at, what)| (at, what)))
}
