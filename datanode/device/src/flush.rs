//! Syncs of a device, shared by all who wait for one.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use sbk_wal::RawFile;

/// One sync at a time. [The system tells of lost data once, to whoever syncs first: another one that was under
/// way beside it was told that all is well.] Those who come while one is under way share the next.
#[derive(Debug)]
pub(crate) struct Flush {
    bottom: Arc<dyn RawFile>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    done: u64,
    running: bool,
    failed: bool,
}

/// What all ends with after a sync that failed.
pub(crate) fn failed() -> io::Error {
    // EIO says it to those who look at the number, and the message above it which file it was.
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

impl Flush {
    pub(crate) fn new(bottom: Arc<dyn RawFile>) -> Self {
        Self { bottom, state: Mutex::default(), changed: Condvar::new() }
    }

    /// From now on every sync fails.
    pub(crate) fn fail(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        self.changed.notify_all();
    }

    /// Makes durable what was written before the call.
    pub(crate) fn run(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is under way may have passed by what was written before this call.
        let wanted = state.begun + 1;
        loop {
            if state.failed {
                return Err(failed());
            }
            if state.done >= wanted {
                return Ok(());
            }
            if state.running {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            state.running = true;
            let begun = state.begun;
            drop(state);
            let synced = self.bottom.sync();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            match synced {
                Ok(()) => state.done = begun,
                Err(_) => state.failed = !bug!(FailedSyncOfOne),
            }
            self.changed.notify_all();
            synced?;
        }
    }
}
