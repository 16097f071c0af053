//! Told to stop, a node takes nothing further, finishes what is under way and leaves the rest to the next start; and its service
//! manager hears how it does from first to last.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use fabstir::market::job::State;
use fabstir::market::types::Address;
use fabstir::node::{Left, Node};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::world::{WAIT_MAX, World, done_once, inferences, python, transactions, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_to_stop_finishes_what_it_has_and_takes_no_more() -> Result<()> {
    let world = World::new().await?;
    let (host, config) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let (offer, first) = world.ask(&renter, Address::ZERO, 3600).await?;
    until("it is computed", || async { Ok(host.left().await?.leases > 0 || inferences(&host, first.job).await? > 0) })
        .await?;
    tokio::time::timeout(WAIT_MAX, host.finish()).await.context("it never finished")??;
    assert_eq!(host.left().await?, Left::default());
    let committed = transactions(&host, first.job, "commit").await?;
    ensure!(
        matches!(&committed[..], [tx] if !tx.hashes.is_empty()),
        "what was computed is on the wire: {committed:#?}"
    );
    assert_eq!(inferences(&host, first.job).await?, 1);

    let second = renter.post(&world.order(Address::ZERO, offer.quote.price, 3600)).await?;
    until_job(&host, second.job, "posted", |job| job.state == State::Posted).await?;
    let from = host.store.cursor().await?.context("a cursor")?.number;
    until("blocks pass", || async { Ok(host.store.cursor().await?.is_some_and(|at| at.number >= from + 12)) }).await?;
    assert_eq!(transactions(&host, second.job, "claim").await?, [], "nothing further is taken");
    host.stop().await;

    let host = Node::start(&config).await?;
    for job in [first.job, second.job] {
        until_job(&host, job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
        done_once(&host, job).await?;
    }
    host.stop().await;
    Ok(())
}

/// What a service manager hears.
struct Manager {
    socket: tokio::net::UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    /// Hears on until a line says so; returns it.
    async fn until(&mut self, says: &str) -> Result<String> {
        let hear = async {
            loop {
                let mut bytes = [0; 8192];
                let length = self.socket.recv(&mut bytes).await?;
                let lines = std::str::from_utf8(&bytes[..length])?.lines().map(str::to_owned).collect::<Vec<_>>();
                self.heard.extend(lines.iter().cloned());
                if let Some(line) = lines.into_iter().find(|line| line.starts_with(says)) {
                    return anyhow::Ok(line);
                }
            }
        };
        let told = tokio::time::timeout(WAIT_MAX, hear).await;
        told.with_context(|| format!("never heard {says}; but {:?}", self.heard))?
    }
}

fn started(world: &World, socket: &std::path::Path) -> Result<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    command.arg("--config").arg(world.folder.path().join("node.toml")).arg("run").env("FABSTIR_PYTHON", python());
    command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "1000000").env_remove("WATCHDOG_PID");
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().context("start fabstir run")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_hears_that_a_node_is_ready_alive_and_stopping() -> Result<()> {
    let world = World::new().await?;
    world.config("node", false, &world.devnet.rpc_url, &[])?;
    let path = world.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let mut manager = Manager { socket: tokio::net::UnixDatagram::from_std(socket)?, heard: Vec::new() };
    let mut node = started(&world, &path)?;
    manager.until("READY=1").await?;
    let status = manager.until("STATUS=block ").await?;
    assert!(status.contains(", 0 jobs"), "{status}");
    manager.until("WATCHDOG=1").await?;
    let pid = node.id().and_then(|pid| Pid::from_raw(pid as i32)).context("it runs")?;
    kill_process(pid, Signal::TERM)?;
    manager.until("STOPPING=1").await?;
    manager.until("EXTEND_TIMEOUT_USEC=").await?;
    let ended = tokio::time::timeout(WAIT_MAX, node.wait()).await.context("it never ended")??;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}
