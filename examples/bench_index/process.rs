//! The program under measurement: a child process, its CPU time and its peak memory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Serialize;
use serde_json::Value;

/// How often the peak is read; the kernel keeps it.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The unit of the CPU times in `/proc` (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// The program and how it is started.
#[derive(Clone)]
pub struct Program {
    pub path: PathBuf,
    /// What comes before it on the command line, such as a profiler.
    pub prefix: Vec<String>,
    /// Where its logs go.
    pub logs: PathBuf,
}

/// What one run of it took.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// User and system time of the whole process, start-up included, in steps of 10 ms.
    pub cpu_s: f64,
    pub wall_s: f64,
    /// Resident.
    pub peak_mb: f64,
}

impl Program {
    /// Returns the same without what comes before it.
    pub fn bare(&self) -> Self {
        Self { prefix: Vec::new(), ..self.clone() }
    }

    /// Starts `fabstir` with a configuration and without an environment.
    pub fn start(&self, config: &Path, arguments: &[&str]) -> Result<Child> {
        let mut words = self.prefix.iter().map(Into::into).chain([self.path.clone().into_os_string()]);
        let mut command = Command::new(words.next().context("a program")?);
        let name = arguments.first().copied().unwrap_or_default();
        let log = std::fs::File::create(self.logs.join(format!("{name}.log")))?;
        command.args(words).arg("--config").arg(config).args(arguments);
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        command.spawn().with_context(|| format!("start {}", self.path.display()))
    }

    /// Runs it to its end and returns what it took and what it printed, which must be JSON.
    pub fn measure(&self, config: &Path, arguments: &[&str]) -> Result<(Cost, Value)> {
        let began = Instant::now();
        let mut child = self.start(config, arguments)?;
        let pid = Pid::from_child(&child);
        let mut peak = 0.0f64;
        // Looked at without being reaped: what a process has used is in `/proc` until its parent takes note of its end.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), ended)?.is_none() {
            peak = peak.max(peak_mb(child.id()).unwrap_or(0.0));
            std::thread::sleep(LOOK_EVERY);
        }
        let wall_s = rounded(began.elapsed().as_secs_f64(), 3);
        let cost = Cost { cpu_s: cpu_s(child.id())?, wall_s, peak_mb: rounded(peak, 1) };
        let mut printed = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().context("its output")?, &mut printed)?;
        let status = child.wait()?;
        ensure!(status.success(), "fabstir {}: {status}; see {}", arguments.join(" "), self.logs.display());
        Ok((cost, serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))?))
    }
}

/// Returns the user and system time of a process so far, all its threads and the children that it waited for.
pub fn cpu_s(pid: u32) -> Result<f64> {
    stat(pid).map(|(_, cpu_s)| cpu_s)
}

/// Returns the same of all processes of a group together.
pub fn group_cpu_s(group: u32) -> Result<f64> {
    let pids = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Those that end meanwhile are counted with who waits for them.
    Ok(pids.filter_map(|pid| stat(pid).ok()).filter(|(of, _)| *of == group).map(|(_, cpu_s)| cpu_s).sum())
}

/// Returns a process's group and CPU time.
fn stat(pid: u32) -> Result<(u32, f64)> {
    let file = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    // After the name, which may have spaces: state is the third field, the group the fifth, the four times the 14th to 17th.
    let (_, fields) = text.rsplit_once(')').context("a process without a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let [_, _, group, ..] = fields[..] else { bail!("{file}: {text}") };
    let ticks = fields.iter().skip(11).take(4).map(|ticks| ticks.parse::<f64>()).sum::<Result<f64, _>>()?;
    Ok((group.parse()?, ticks / TICKS_PER_S))
}

/// Returns the highest resident memory of a process so far.
pub fn peak_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Returns a figure with so many decimals.
pub fn rounded(figure: f64, decimals: i32) -> f64 {
    (figure * 10f64.powi(decimals)).round() / 10f64.powi(decimals)
}
