//! What several tests do to processes.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sbk_cli::wait::{self, Look};

const LIMIT: Duration = Duration::from_secs(120);

/// Stops a process, and returns when none of its threads runs any more: until then one may still do
/// something, and rightly.
pub(crate) async fn freeze(pid: u32) -> Pid {
    let process = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(process, Signal::STOP).expect("stops");
    wait::until("all threads to stand still", LIMIT, async || {
        let mut running = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // One that has ended since it was listed does nothing any more.
            let stat = std::fs::read_to_string(thread?.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            running += u32::from(state.is_some_and(|state| state != 'T'));
        }
        Ok(if running == 0 { Look::Done(()) } else { Look::NotYet(format!("{running} run")) })
    })
    .await
    .expect("stops");
    process
}
