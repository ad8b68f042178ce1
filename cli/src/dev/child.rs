//! One process of a development cluster.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

/// Names the parent to a child, which dies with it.
const PARENT: &str = "SBKCTL_PARENT";
/// Bytes of a log that are quoted when a process failed.
const TAIL: u64 = 2048;

/// How to start a process again and again.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// For people, as in `datanode 2`.
    pub name: String,
    /// A command that runs another one, such as `nsenter --net=FILE --`; empty for none. It must
    /// not leave a process of its own between.
    pub through: Vec<String>,
    /// This binary.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A process that was started, and is waited for when it ended.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) recipe: Recipe,
    child: std::process::Child,
    ended: Option<ExitStatus>,
    started: Instant,
    /// Bytes that its log had then, of runs before.
    log_before: u64,
}

/// To be called first thing in every process: a child of a development cluster dies with the
/// command that started it, whatever way that goes.
pub(crate) fn die_with_parent() -> anyhow::Result<()> {
    let Ok(parent) = std::env::var(PARENT) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL)).context("binding to the parent process")?;
    // It may have died before the line above.
    let is_there = getppid().is_some_and(|pid| pid.as_raw_nonzero().to_string() == parent);
    if !is_there {
        bail!("the process that started this one is gone");
    }
    Ok(())
}

impl Recipe {
    /// Starts it. The calling thread must live as long as the process is to: the kernel ties a
    /// child to the thread that made it.
    pub(super) fn start(&self) -> anyhow::Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        let errors = log.try_clone().with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = match self.through.split_first() {
            None => Command::new(&self.exe),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.exe);
                command
            }
        };
        command.args(&self.args).stdin(Stdio::null()).stdout(log).stderr(errors);
        // What is meant for this command is not meant for the parts of its cluster.
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("SBK"))
        {
            command.env_remove(name);
        }
        command.env(PARENT, std::process::id().to_string());
        // A group of its own: Ctrl-C at the terminal reaches only the parent, which stops the
        // processes in order.
        command.process_group(0);
        let log_before = self.log_length();
        let child = command
            .spawn()
            .with_context(|| format!("starting {} ({})", self.name, self.exe.display()))?;
        Ok(Process {
            recipe: self.clone(),
            child,
            ended: None,
            started: Instant::now(),
            log_before,
        })
    }

    fn log_length(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// The end of its log.
    pub(super) fn log_tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut tail = Vec::new();
            file.read_to_end(&mut tail)?;
            std::io::Result::Ok(String::from_utf8_lossy(&tail).trim().to_owned())
        };
        read().unwrap_or_else(|e| format!("(its log can't be read: {e})"))
    }
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has said nothing yet: it has hardly begun.
    pub(super) fn is_silent(&self) -> bool {
        self.recipe.log_length() <= self.log_before
    }

    /// For how long it has been there, or how long ago it was started if it has ended.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// How it ended, if it did. The same every time it is asked.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error here means that there is no such child, which can't be: it is not reaped
            // anywhere else.
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Sends a signal, unless it has ended. Its pid can't be another's, as it was not reaped.
    pub(super) fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Some(pid) = Pid::from_raw(self.child.id() as i32)
            && let Err(e) = kill_process(pid, signal)
        {
            tracing::warn!(process = self.recipe.name, error = %e, "no signal could be sent");
        }
    }

    /// Ends it at once, and waits for that.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends `signal` to a process of another command's development cluster, after a look that the
/// process is what it is believed to be: pids are used again.
pub(crate) fn signal_foreign(pid: u32, data_dir: &Path, signal: Signal) -> anyhow::Result<()> {
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline"))
        .with_context(|| format!("process {pid} is not there any more"))?;
    let wanted = data_dir.as_os_str().as_encoded_bytes();
    if !command_line.split(|b| *b == 0).any(|arg| arg == wanted) {
        bail!("process {pid} does not serve {}; it is left alone", data_dir.display());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("it is no pid")?;
    kill_process(pid, signal).with_context(|| format!("signalling process {pid:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{self, Look};

    fn recipe(dir: &Path, script: &str) -> Recipe {
        Recipe {
            name: "a shell".into(),
            through: Vec::new(),
            exe: "/bin/sh".into(),
            args: vec!["-c".into(), script.into(), dir.to_str().expect("utf-8").into()],
            log: dir.join("log"),
        }
    }

    #[test]
    fn output_is_kept_and_the_end_is_seen() {
        let dir = tempfile::tempdir().expect("dir");
        let recipe = recipe(dir.path(), "echo said; echo failed >&2; exit 3");
        let mut process = recipe.start().expect("starts");
        let status = process.child.wait().expect("ends");
        assert_eq!(status.code(), Some(3));
        assert_eq!(recipe.log_tail(), "said\nfailed");
    }

    #[test]
    fn a_process_may_be_started_through_another_command() {
        let dir = tempfile::tempdir().expect("dir");
        let through = ["/usr/bin/env".to_owned(), "GREETING=hello".to_owned()].into();
        let recipe = Recipe { through, ..recipe(dir.path(), "echo $GREETING") };
        let mut process = recipe.start().expect("starts");
        assert!(process.child.wait().expect("ends").success());
        assert_eq!(recipe.log_tail(), "hello");
    }

    #[test]
    fn dropping_a_process_ends_it() {
        let dir = tempfile::tempdir().expect("dir");
        let process = recipe(dir.path(), "exec sleep 1000").start().expect("starts");
        let stat = format!("/proc/{}/stat", process.pid());
        assert!(Path::new(&stat).exists());
        drop(process);
        assert!(!Path::new(&stat).exists());
    }

    #[tokio::test]
    async fn only_the_right_process_is_signalled() {
        let dir = tempfile::tempdir().expect("dir");
        let mut process = recipe(dir.path(), "kill -STOP $$").start().expect("starts");
        // Before it runs its script, the kernel may not show its arguments yet.
        let stat = format!("/proc/{}/stat", process.pid());
        wait::until("the shell to stop itself", Duration::from_secs(60), async || {
            let stat = std::fs::read_to_string(&stat)?;
            Ok(if stat.contains(") T ") { Look::Done(()) } else { Look::NotYet(stat) })
        })
        .await
        .expect("stops");
        let error = signal_foreign(process.pid(), Path::new("/other"), Signal::KILL);
        assert!(error.expect_err("not it").to_string().contains("left alone"));
        assert!(process.ended().is_none());
        signal_foreign(process.pid(), dir.path(), Signal::KILL).expect("is it");
        assert!(!process.child.wait().expect("ends").success());
    }
}
