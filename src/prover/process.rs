//! One short-lived child process: fed, read, watched, and never left behind.
//!
//! Knows nothing of EZKL but its two ways to go wrong: it can wait for ever without using the processor, and it can
//! abort. Never retries.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group, setpriority_process};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::{Instant, interval},
};

/// What the scheduler of the operating system is told of a proof, as of a model: work with a block's deadline goes first.
const NICE: i32 = 10;
/// Bytes kept of what a process prints: an answer is about 10 kB.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After this long, whatever it does.
    pub wall: Duration,
    /// After this long without using the processor.
    pub stall: Duration,
}

/// Why there is no output.
#[derive(Debug)]
pub enum Stopped {
    /// The program could not be started.
    NotStarted(std::io::Error),
    /// It was killed here, for the reason given.
    Killed(String),
}

/// What a process left.
#[derive(Debug)]
pub struct Output {
    pub status: std::process::ExitStatus,
    /// At most 1 MiB each.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs `command` in a process group of its own, gives it `input`, and returns what it printed when it ends by itself.
///
/// The whole group is killed when a limit passes, and when the future is dropped.
pub async fn run(mut command: Command, input: Vec<u8>, limits: Limits) -> Result<Output, Stopped> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(Stopped::NotStarted)?;
    // Declared after the child, so dropped before it: the group's number is not reused before its leader is reaped.
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    if let Some(leader) = group.0 {
        // Proving has time, as computing has. Before it has threads, which inherit it.
        setpriority_process(Some(leader), NICE).ok();
    }
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // A process that ends without reading has its own story to tell.
            stdin.write_all(&input).await.ok();
        }
        drop(stdin);
    };
    let leader = group.0;
    tokio::select! {
        ((), stdout, stderr, status) = async { tokio::join!(feed, read(stdout), read(stderr), child.wait()) } => {
            group.0 = None;
            let status = status.map_err(|error| Stopped::Killed(format!("its end was not seen: {error}")))?;
            Ok(Output { status, stdout, stderr })
        }
        reason = watch(leader, limits) => Err(Stopped::Killed(reason)),
    }
}

/// Kills the group when dropped, unless its leader was reaped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended by itself just now.
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await.ok();
        // Keep the pipe empty, or a talkative process would wait for us.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
    }
    bytes
}

/// Returns when a limit passes, with the reason.
async fn watch(leader: Option<Pid>, limits: Limits) -> String {
    let started = Instant::now();
    let mut progress = (None, started);
    let mut turns = interval((limits.stall / 30).max(Duration::from_millis(10)));
    loop {
        turns.tick().await;
        let used = leader.and_then(processor_ticks);
        if used.is_none() || used != progress.0 {
            progress = (used, Instant::now());
        }
        if progress.1.elapsed() >= limits.stall {
            return format!("it used no processor time for {:?}", limits.stall);
        }
        if started.elapsed() >= limits.wall {
            return format!("it was not done after {:?}", limits.wall);
        }
    }
}

/// Returns the clock ticks a process and its threads have used, where the system tells.
///
/// Source: `proc_pid_stat(5)`, fields 14 (utime) and 15 (stime); the name in field 2 may hold anything, `)` included.
fn processor_ticks(process: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENT: Limits = Limits { wall: Duration::from_secs(60), stall: Duration::from_secs(60) };

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn input_goes_in_and_output_comes_back() {
        let output = run(shell("cat; echo no >&2; exit 3"), vec![7; 300_000], PATIENT).await.unwrap();
        assert_eq!((output.stdout, output.stderr, output.status.code()), (vec![7; 300_000], b"no\n".to_vec(), Some(3)));
    }

    #[tokio::test]
    async fn a_talkative_process_is_cut_short_but_not_blocked() {
        let output = run(shell("head -c 3000000 /dev/zero"), vec![], PATIENT).await.unwrap();
        assert_eq!((output.stdout.len(), output.status.code()), (1 << 20, Some(0)));
    }

    #[tokio::test]
    async fn an_idle_process_is_killed_and_a_busy_one_only_at_the_limit() {
        let limits = Limits { wall: Duration::from_secs(5), stall: Duration::from_secs(2) };
        for (script, reason) in [("sleep 1000", "no processor time"), ("while :; do :; done", "not done after 5s")] {
            let Err(Stopped::Killed(found)) = run(shell(script), vec![], limits).await else {
                panic!("{script} ended")
            };
            assert!(found.contains(reason), "{script}: {found}");
        }
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let mut command = shell(r#"sleep 1000 & echo $$ $! > "$0.new"; mv "$0.new" "$0"; wait"#);
        command.arg(&file);
        let mut turns = interval(Duration::from_millis(10));
        let written = async {
            while !file.exists() {
                turns.tick().await;
            }
        };
        tokio::select! {
            _ = run(command, vec![], PATIENT) => panic!("it ended"),
            () = written => {}
        }
        for pid in std::fs::read_to_string(file).unwrap().split_whitespace() {
            // Gone, or a zombie that nobody has reaped yet.
            let alive = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => !stat.rsplit_once(')').unwrap().1.starts_with(" Z"),
                Err(_) => false,
            };
            while alive() {
                turns.tick().await;
            }
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_not_started() {
        let found = run(Command::new("/nowhere/python"), vec![], PATIENT).await;
        assert!(matches!(found, Err(Stopped::NotStarted(error)) if error.kind() == std::io::ErrorKind::NotFound));
    }
}
