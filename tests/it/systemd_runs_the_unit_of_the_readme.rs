//! The unit that the README gives, under systemd itself: it starts, works within its restrictions, is started again after it died and
//! after it hung, and stops in order.
//!
//! Needs root, and systemd's program on this machine, which runs as the first process of namespaces of its own and manages nothing but
//! the unit. Where either is missing, or it does not start, the test says that it is skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use tokio::process::Child;

use crate::world::{WAIT_MAX, World, root, until};

/// What a unit orders itself by.
const TARGETS: [&str; 5] =
    ["basic.target", "sysinit.target", "shutdown.target", "network-online.target", "multi-user.target"];

/// Where distributions put it.
const PROGRAMS: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// systemd as the first process of its own namespaces; it ends, with all that it started, when this is dropped.
struct Systemd {
    _unshare: Child,
    pid: u32,
}

impl Systemd {
    /// Starts it with these units and with `state` in the place of `/var/lib`.
    async fn start(program: &Path, units: &Path, state: &Path) -> Result<Self> {
        let start = format!(
            "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount --bind {} /var/lib && \
             exec env container=other SYSTEMD_UNIT_PATH={} {} --system",
            state.display(),
            units.display(),
            program.display()
        );
        let namespaces =
            ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--ipc", "--uts", "--cgroup", "sh", "-c"];
        let mut unshare = tokio::process::Command::new("unshare");
        unshare.args(namespaces).arg(start).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let unshare = unshare.kill_on_drop(true).spawn().context("start unshare")?;
        let parent = unshare.id().context("it runs")?;
        let children = format!("/proc/{parent}/task/{parent}/children");
        until("unshare has a child", || async { Ok(!fs::read_to_string(&children)?.trim().is_empty()) }).await?;
        let pid = fs::read_to_string(&children)?.trim().parse()?;
        let systemd = Self { _unshare: unshare, pid };
        until("systemd answers", || async {
            Ok(systemd.ctl(&["show", "--property", "Version"]).await?.status.success())
        })
        .await?;
        Ok(systemd)
    }

    async fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-p", "-m", "systemctl"]).args(arguments).stdin(Stdio::null());
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// Does what changes something.
    async fn does(&self, arguments: &[&str]) -> Result<()> {
        let output = self.ctl(arguments).await?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn shows(&self, property: &str) -> Result<String> {
        let output = self.ctl(&["show", "fabstir", "--value", "--property", property]).await?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// Returns systemd's program, or says why there is none to be used.
fn program() -> Option<PathBuf> {
    let found = PROGRAMS.iter().map(PathBuf::from).find(|program| program.exists());
    let may = Command::new("unshare").args(["--pid", "--fork", "--mount", "--mount-proc", "--cgroup", "true"]).output();
    match found {
        Some(program) if may.is_ok_and(|output| output.status.success()) => Some(program),
        found => {
            let why = found.map_or("no systemd is installed", |_| "no namespaces may be made: root may");
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Returns the README's unit with this machine's places in it.
fn unit(world: &World) -> Result<String> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let (_, rest) =
        readme.split_once("```ini\n# /etc/systemd/system/fabstir.service\n").context("the README's unit")?;
    let mut unit = rest.split_once("```").context("its end")?.0.to_owned();
    let (folder, prover) = (world.folder.path().display(), root().join(".fabstir/prover"));
    let (prover, checkout) = (prover.display(), root().display());
    let binaries = Path::new(env!("CARGO_BIN_EXE_fabstir")).parent().context("a folder")?;
    for (said, here) in [
        (
            "ExecStart=/usr/local/bin/fabstir --config /etc/fabstir/fabstir.toml run",
            format!("ExecStart={} --config {folder}/host.toml run", env!("CARGO_BIN_EXE_fabstir")),
        ),
        // No such user is here.
        ("User=fabstir\n", String::new()),
        ("WatchdogSec=60", "WatchdogSec=10".to_owned()),
        // What `PrivateTmp` hides, this checkout perhaps, and the keys of the circuit, which all tests share.
        (
            "PrivateTmp=yes",
            format!(
                "PrivateTmp=yes\nBindReadOnlyPaths={folder} {checkout} {}\nBindPaths={prover}\n\
                 StandardError=append:{folder}/host.log",
                binaries.display()
            ),
        ),
    ] {
        ensure!(unit.contains(said), "the README's unit has no {said:?} any more");
        unit = unit.replace(said, &here);
    }
    Ok(unit)
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_runs_the_unit_of_the_readme() -> Result<()> {
    let Some(program) = program() else { return Ok(()) };
    let world = World::new().await?;
    let signer = world.account("host").await?;
    world.register(&signer).await?;
    world.config("host", true, &world.devnet.rpc_url, &[])?;
    let config = world.folder.path().join("host.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replacen("data_dir = \"host\"", "data_dir = \"/var/lib/fabstir\"", 1))?;
    let units = world.folder.path().join("units");
    fs::create_dir(&units)?;
    for target in TARGETS {
        fs::write(units.join(target), "[Unit]\n")?;
    }
    std::os::unix::fs::symlink("basic.target", units.join("default.target"))?;
    fs::write(units.join("fabstir.service"), unit(&world)?)?;
    let state = world.folder.path().join("state");
    let data_dir = state.join("fabstir");
    fs::create_dir_all(&data_dir)?;
    let systemd = match Systemd::start(&program, &units, &state).await {
        Ok(systemd) => systemd,
        // Where no control groups may be made, for one.
        Err(error) => {
            eprintln!("skipped: systemd does not start here: {error:#}");
            return Ok(());
        }
    };

    // It has started when it says so, and says how it does.
    let started = tokio::time::timeout(WAIT_MAX, systemd.does(&["start", "fabstir"])).await?;
    started.with_context(|| fs::read_to_string(world.folder.path().join("host.log")).unwrap_or_default())?;
    let is_up = async || anyhow::Ok(systemd.shows("SubState").await? == "running");
    assert!(is_up().await?, "{}", systemd.shows("SubState").await?);
    until("it tells its state", async || Ok(systemd.shows("StatusText").await?.starts_with("block "))).await?;
    assert_eq!(systemd.shows("NRestarts").await?, "0");

    // It does a job: inference, proof and database need no more than the unit allows.
    let job = world.post_beside(&data_dir).await?;
    world.until_paid(&data_dir, job).await?;

    // It died, and was stopped dead so that its watchdog is silent: each time another is started.
    for (signal, restarts) in [("KILL", "1"), ("STOP", "2")] {
        let before = systemd.shows("MainPID").await?;
        systemd.does(&["kill", "--kill-who=main", "--signal", signal, "fabstir"]).await?;
        let again = async || {
            let (pid, up) = (systemd.shows("MainPID").await?, is_up().await?);
            Ok(up && pid != before && systemd.shows("NRestarts").await? == restarts)
        };
        until(&format!("another is started after {signal}"), again).await?;
    }

    systemd.does(&["stop", "fabstir"]).await?;
    let ended = ["ActiveState", "Result", "ExecMainStatus"].map(|property| systemd.shows(property));
    assert_eq!(futures::future::try_join_all(ended).await?, ["inactive", "success", "0"]);
    Ok(())
}
