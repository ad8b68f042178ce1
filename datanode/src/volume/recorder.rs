//! Keeps what each replica's engine was told and did, so that its run can be taken again.
//!
//! The newest part is in memory, to be asked for. It is written to the data directory by itself
//! when the store fails, and when the process is about to end because an invariant was broken:
//! by then nothing else knows what led to it.

use std::fs;
use std::future::Future;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::time::{SystemTime, UNIX_EPOCH};

use sbk_engine::recording::Ring;
use sbk_engine::recording::file::{self, About};
use sbk_engine::replication::io::{Input, Output};
use sbk_engine::replication::{Replica, Verdict};
use sbk_engine::types::{Millis, NodeId, ReplicaRef, VolumeId};

/// Recordings that a data directory keeps; the oldest go first.
pub const MAX_FILES: usize = 16;
const ENDING: &str = ".recording";
/// What the name of one that is being written ends with.
const UNFINISHED: &str = ".unfinished";

/// Whose recordings these are, and where they go.
#[derive(Clone, Debug)]
pub struct Recordings {
    /// The node.
    pub node: NodeId,
    /// The directory; it is not made, for it is there while its disk is. `None` keeps nothing on disk.
    pub dir: Option<PathBuf>,
}

/// One run of one replica.
#[derive(Debug)]
struct Run {
    volume: VolumeId,
    replica: ReplicaRef,
    ring: Ring,
}

/// The recording of one volume task, through all its openings: always of the newest.
#[derive(Debug)]
pub struct Recorder {
    recordings: Recordings,
    run: Mutex<Option<Run>>,
}

tokio::task_local! {
    /// The recorder of the volume task that runs on this thread, for the panic hook.
    static CURRENT: Arc<Recorder>;
}

impl Recorder {
    /// A recorder of a task that has opened nothing yet.
    pub(super) fn new(recordings: Recordings) -> Self {
        Self { recordings, run: Mutex::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Run>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store was opened: a new run begins.
    pub(super) fn opened(&self, volume: VolumeId, me: ReplicaRef, replica: &Replica) {
        *self.lock() = Some(Run { volume, replica: me, ring: Ring::new(replica) });
    }

    /// `replica` is about to take an input.
    pub(super) fn begin(&self, replica: &Replica, at: Millis, input: &Input) {
        if let Some(run) = self.lock().as_mut() {
            run.ring.begin(replica, at, input);
        }
    }

    /// It took it.
    pub(super) fn end(&self, verdict: Verdict, outputs: &[Output]) {
        if let Some(run) = self.lock().as_mut() {
            run.ring.end(verdict, outputs);
        }
    }

    /// The recording as a file holds it; `None` before the first opening.
    pub fn text(&self, why: &str) -> Option<String> {
        // Only the copy is made under the lock, which the volume task waits for.
        let (about, mut recording) = {
            let run = self.lock();
            let run = run.as_ref()?;
            (self.about(run, why), run.ring.recording())
        };
        // The task may be at work on its newest input. Without an outcome that would be told as one which
        // the engine did not survive.
        recording.steps.pop_if(|step| step.outcome.is_none());
        Some(file::write(&about, &recording))
    }

    fn about(&self, run: &Run, why: &str) -> About {
        let (node, why) = (self.recordings.node, why.to_owned());
        About { volume: run.volume, replica: run.replica, node, why }
    }

    /// Writes the recording to the data directory. Blocks. Returns the file; `None` if there is no
    /// run or no directory.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn save(&self, why: &str) -> io::Result<Option<PathBuf>> {
        let Some(dir) = &self.recordings.dir else { return Ok(None) };
        let (about, recording) = match self.run.try_lock() {
            Ok(run) => match run.as_ref() {
                Some(run) => (self.about(run, why), run.ring.recording()),
                None => return Ok(None),
            },
            Err(TryLockError::Poisoned(poisoned)) => match poisoned.into_inner().as_ref() {
                Some(run) => (self.about(run, why), run.ring.recording()),
                None => return Ok(None),
            },
            // The panic came out of the recorder itself.
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        let name = format!("{:013}-{}{ENDING}", unix_ms(), about.volume);
        write(dir, &name, &file::write(&about, &recording)).map(Some)
    }

    /// Runs a volume task so that the panic hook knows whose it is.
    pub(super) fn watch<F: Future>(
        self: Arc<Self>,
        task: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self, task)
    }
}

fn unix_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

/// Writes a file whole or not at all, and makes room for it. Other volumes' may be written meanwhile: a
/// node's stores fail together when its disk does.
fn write(dir: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let mut kept: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            // A process that ended in the middle leaves its unfinished one.
            [ENDING, UNFINISHED].iter().any(|ending| path.to_string_lossy().ends_with(ending))
        })
        .collect();
    kept.sort();
    for old in kept.iter().take((kept.len() + 1).saturating_sub(MAX_FILES)) {
        match fs::remove_file(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // Another may have removed or finished it.
            Ok(()) | Err(_) => {}
        }
    }
    let (path, unfinished) = (dir.join(name), dir.join(format!("{name}{UNFINISHED}")));
    let written = fs::File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&unfinished, &path));
    if placed.is_err() {
        let _gone_or_not = fs::remove_file(&unfinished);
    }
    placed.map(|()| path)
}

/// Has a volume task that panics leave its recording in the data directory. Release builds abort
/// at a panic, and the hook is what still runs before that.
pub fn keep_at_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            save_current(panic);
        }));
    });
}

/// Says something on standard error, if that can be written.
fn say(what: std::fmt::Arguments<'_>) {
    let _lost = writeln!(std::io::stderr(), "{what}");
}

/// Saves the recording of the task that panics on this thread, if it is a volume task.
fn save_current(panic: &PanicHookInfo<'_>) {
    let said = panic.payload_as_str().unwrap_or("a panic without words");
    let at = panic.location().map_or(String::new(), |at| format!(" ({}:{})", at.file(), at.line()));
    let why = format!("{said}{at}");
    let saved = CURRENT.try_with(|recorder| recorder.save(&why));
    match saved {
        Ok(Ok(Some(path))) => say(format_args!(
            "what led to it is in {}; see it with: sbkctl replay {}",
            path.display(),
            path.display()
        )),
        Ok(Err(error)) => say(format_args!("what led to it could not be kept: {error}")),
        // Not a volume task.
        Ok(Ok(None)) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_several_volumes_are_written_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        for _ in 0..10 {
            std::thread::scope(|scope| {
                for n in 0..8 {
                    scope.spawn(move || {
                        let text = n.to_string().repeat(1 << 20);
                        let path = write(dir, &format!("1-{n}{ENDING}"), &text).expect("writes");
                        assert!(fs::read_to_string(path).expect("reads") == text, "of volume {n}");
                    });
                }
            });
        }
        assert_eq!(fs::read_dir(dir).expect("reads").count(), 8, "nothing is left unfinished");
    }

    #[test]
    fn the_oldest_files_make_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        for n in 0..MAX_FILES + 3 {
            let path = write(dir, &format!("{n:013}{ENDING}"), "text").expect("writes");
            assert_eq!(fs::read_to_string(path).expect("reads"), "text");
        }
        let mut left: Vec<_> = fs::read_dir(dir)
            .expect("reads")
            .map(|entry| entry.expect("reads").file_name().into_string().expect("a name"))
            .collect();
        left.sort();
        assert_eq!(left.len(), MAX_FILES);
        assert_eq!(left[0], format!("{:013}{ENDING}", 3));
    }
}
