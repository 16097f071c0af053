//! What the service manager is told: ready, alive, stopping, and how things stand. Silent where none listens.
//!
//! Source: `sd_notify(3)`, <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>: datagrams of `NAME=value` lines to
//! the socket that `NOTIFY_SOCKET` names; a leading `@` means an abstract one.

use std::ffi::OsStr;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The service manager that started this process, if one did.
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// It ends a process that is not heard of for so long.
    watchdog: Option<Duration>,
    alive_at: Option<Instant>,
    ready: bool,
    status: String,
}

impl Notify {
    /// Reads the environment that the service manager gave.
    ///
    /// # Errors
    /// If it names a socket that none can be.
    pub fn from_environment() -> Result<Self> {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|limit| ours && *limit > 0).map(Duration::from_micros);
        Self::to(socket.as_deref(), watchdog)
    }

    fn to(socket: Option<&OsStr>, watchdog: Option<Duration>) -> Result<Self> {
        let reach = |name: &OsStr| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => abstract_address(name)?,
                None => SocketAddr::from_pathname(name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok((socket, address))
        };
        let told = |name: &OsStr| reach(name).with_context(|| format!("NOTIFY_SOCKET={} is no socket", name.display()));
        let manager = socket.map(told).transpose()?;
        Ok(Self { manager, watchdog, alive_at: None, ready: false, status: String::new() })
    }

    /// Returns how often [`Notify::beat`] must be called at least: at half of the manager's limit.
    pub fn beat_every(&self) -> Duration {
        self.watchdog.map_or(Duration::MAX, |limit| limit / 2).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    /// Tells how things stand: `status` where it changed, that the node has started when it first has (`ready`), and that it is alive unless `hangs`.
    pub fn beat(&mut self, status: String, ready: bool, hangs: bool) {
        let mut lines = Vec::new();
        if ready && !self.ready {
            self.ready = true;
            lines.push("READY=1".to_owned());
        }
        if status != self.status {
            lines.push(format!("STATUS={}", status.replace('\n', " ")));
            self.status = status;
        }
        let due = |limit| self.alive_at.is_none_or(|at: Instant| at.elapsed() + self.beat_every() >= limit / 2);
        if !hangs && self.watchdog.is_some_and(due) {
            self.alive_at = Some(Instant::now());
            lines.push("WATCHDOG=1".to_owned());
        }
        self.say(&lines);
    }

    /// Tells that the node stops and needs at most `within` for it. It is never ready after that.
    pub fn stopping(&mut self, within: Duration) {
        self.ready = true;
        self.say(&["STOPPING=1".to_owned(), format!("EXTEND_TIMEOUT_USEC={}", within.as_micros())]);
    }

    fn say(&self, lines: &[String]) {
        let Some((socket, manager)) = self.manager.as_ref().filter(|_| !lines.is_empty()) else { return };
        // A manager that does not listen is no reason to work less.
        if let Err(error) = socket.send_to_addr(lines.join("\n").as_bytes(), manager) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> std::io::Result<SocketAddr> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        socket.set_nonblocking(true).expect("set");
        let length = socket.recv(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_what_is_new_and_nothing_of_a_node_that_hangs() {
        let name = format!("fabstir-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("bound");
        let socket = format!("@{name}");
        let mut notify = Notify::to(Some(OsStr::new(&socket)), Some(Duration::from_millis(1))).expect("a socket");
        notify.beat("block 1".into(), false, false);
        assert_eq!(heard(&manager), "STATUS=block 1\nWATCHDOG=1");
        notify.beat("block 1".into(), true, true);
        assert_eq!(heard(&manager), "READY=1", "it hangs, and the status is no news");
        notify.beat("block\n2".into(), true, false);
        assert_eq!(heard(&manager), "STATUS=block 2\nWATCHDOG=1", "ready once");
        notify.stopping(Duration::from_secs(2));
        assert_eq!(heard(&manager), "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000");
        drop(manager);
        notify.beat("block 3".into(), true, false);
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        let mut notify = Notify::to(None, None).expect("none");
        assert_eq!(notify.beat_every(), Duration::from_secs(1));
        notify.beat("block 1".into(), true, false);
        assert!(Notify::to(Some(OsStr::new(&"x".repeat(200))), None).is_err(), "longer than a socket's name");
    }
}
