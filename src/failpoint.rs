//! Where a process may be made to die, panic, stand still or fail, so that tests see what the next one makes of what was left.
//!
//! A point lies beside each boundary at which something becomes durable or irreversible. `FABSTIR_FAILPOINTS` arms some, for example
//! `after-sign-commit=abort,before-send=stall(3)@2`: the name of a point, what happens there, and the how manieth time it is reached
//! (the first, unless told). Actions: `abort` ends the process as `kill -9` does; `panic`; `stall`, for 30 seconds or those in
//! brackets; `error`. Each fires once. With `FABSTIR_FAILPOINTS_USED`, a file, that holds across restarts: what fired is written there
//! before it happens, and what is written there does not fire again.
//!
//! Only a build with debug assertions has any of this: in every other, [`hit`] does nothing and no variable is read.

/// A place in the program where it may be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A migration of the database is done, the next one is not.
    BetweenMigrations,
    /// Blocks, logs and jobs are written, not committed.
    MidExtend,
    /// Blocks are taken back, not committed.
    MidRewind,
    /// Jobs are chosen: fact, slot and claim intent are committed.
    AfterChoose,
    /// A job that the chain says is ours has its slot.
    AfterAdopt,
    /// What jobs owe is queued.
    AfterQueue,
    /// Signed bytes are written, not committed.
    BeforeSignCommit,
    /// Signed bytes are committed, not sent.
    AfterSignCommit,
    /// Bytes are about to be sent.
    BeforeSend,
    /// A node took the bytes; no row says so.
    AfterSend,
    /// Receipts are read, not stored.
    BeforeSettle,
    /// What became of transactions is committed.
    AfterSettle,
    /// The model ran and its output is on disk; no row says so.
    AfterInference,
    /// The row that says that the model ran is committed.
    AfterInferred,
    /// A proof is made and on disk; no row says so.
    AfterProof,
    /// A receipt is published; no row says so.
    AfterAnnounce,
}

/// Does what is armed for `point`, if anything is.
///
/// # Errors
/// If that is an error. It stands for any failure there.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn hit(_point: Point) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use armed::hit;

#[cfg(debug_assertions)]
mod armed {
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::{LazyLock, Mutex};
    use std::time::Duration;

    use anyhow::{Context, Result, bail, ensure};

    use super::Point;

    const STALL: Duration = Duration::from_secs(30);

    impl Point {
        /// Every point.
        pub const ALL: [Point; 16] = [
            Point::BetweenMigrations,
            Point::MidExtend,
            Point::MidRewind,
            Point::AfterChoose,
            Point::AfterAdopt,
            Point::AfterQueue,
            Point::BeforeSignCommit,
            Point::AfterSignCommit,
            Point::BeforeSend,
            Point::AfterSend,
            Point::BeforeSettle,
            Point::AfterSettle,
            Point::AfterInference,
            Point::AfterInferred,
            Point::AfterProof,
            Point::AfterAnnounce,
        ];

        /// Returns the point's name in `FABSTIR_FAILPOINTS`.
        pub fn name(self) -> &'static str {
            match self {
                Point::BetweenMigrations => "between-migrations",
                Point::MidExtend => "mid-extend",
                Point::MidRewind => "mid-rewind",
                Point::AfterChoose => "after-choose",
                Point::AfterAdopt => "after-adopt",
                Point::AfterQueue => "after-queue",
                Point::BeforeSignCommit => "before-sign-commit",
                Point::AfterSignCommit => "after-sign-commit",
                Point::BeforeSend => "before-send",
                Point::AfterSend => "after-send",
                Point::BeforeSettle => "before-settle",
                Point::AfterSettle => "after-settle",
                Point::AfterInference => "after-inference",
                Point::AfterInferred => "after-inferred",
                Point::AfterProof => "after-proof",
                Point::AfterAnnounce => "after-announce",
            }
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Abort,
        Panic,
        Stall(Duration),
        Error,
    }

    /// One entry of the variable.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Armed {
        text: String,
        point: Point,
        action: Action,
        /// How often the point is still to be reached before this fires.
        left: u32,
    }

    static ARMED: LazyLock<Mutex<Vec<Armed>>> = LazyLock::new(|| {
        let text = std::env::var("FABSTIR_FAILPOINTS").unwrap_or_default();
        let used = used_file().map(|file| std::fs::read_to_string(file).unwrap_or_default()).unwrap_or_default();
        // Only a test sets it, and one that arms what does not exist must not pass.
        Mutex::new(read(&text, &used).unwrap_or_else(|error| panic!("FABSTIR_FAILPOINTS: {error:#}")))
    });

    /// Does what is armed for `point`, if anything is.
    ///
    /// # Errors
    /// If that is an error. It stands for any failure there.
    pub async fn hit(point: Point) -> Result<()> {
        let Some(armed) = reach(&mut ARMED.lock().expect("no holder of this lock panics"), point) else {
            return Ok(());
        };
        if let Some(file) = used_file() {
            let written = std::fs::File::options()
                .create(true)
                .append(true)
                .open(&file)
                .and_then(|mut file| writeln!(file, "{}", armed.text));
            written.with_context(|| format!("note in {} that {} fired", file.display(), armed.text))?;
        }
        match armed.action {
            Action::Abort => std::process::abort(),
            Action::Panic => panic!("failpoint {}", point.name()),
            Action::Stall(time) => tokio::time::sleep(time).await,
            Action::Error => bail!("failpoint {}", point.name()),
        }
        Ok(())
    }

    /// Counts that `point` is reached and takes out what fires now.
    fn reach(armed: &mut Vec<Armed>, point: Point) -> Option<Armed> {
        armed
            .iter_mut()
            .filter(|armed| armed.point == point)
            .for_each(|armed| armed.left = armed.left.saturating_sub(1));
        let fires = armed.iter().position(|armed| armed.left == 0)?;
        Some(armed.remove(fires))
    }

    fn used_file() -> Option<PathBuf> {
        std::env::var_os("FABSTIR_FAILPOINTS_USED").map(PathBuf::from)
    }

    /// Reads the variable, without those of its entries that are a line of `used`.
    fn read(text: &str, used: &str) -> Result<Vec<Armed>> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let mut armed = entries
            .map(|entry| read_one(entry).with_context(|| format!("{entry:?}")))
            .collect::<Result<Vec<Armed>>>()?;
        armed.retain(|armed| !used.lines().any(|line| line == armed.text));
        Ok(armed)
    }

    fn read_one(entry: &str) -> Result<Armed> {
        let (name, what) = entry.split_once('=').context("name=action is wanted, as in before-send=abort")?;
        let (what, left) = match what.split_once('@') {
            Some((what, nth)) => (what, nth.parse().context("a number is wanted after @")?),
            None => (what, 1),
        };
        ensure!(left > 0, "@1 is the first time");
        let names = || Point::ALL.map(Point::name).join(", ");
        let point = Point::ALL.into_iter().find(|point| point.name() == name);
        let point = point.with_context(|| format!("no such point: there are {}", names()))?;
        let action = match what {
            "abort" => Action::Abort,
            "panic" => Action::Panic,
            "stall" => Action::Stall(STALL),
            "error" => Action::Error,
            other => {
                let seconds = other.strip_prefix("stall(").and_then(|rest| rest.strip_suffix(')'));
                let seconds = seconds.and_then(|seconds| seconds.parse().ok());
                let seconds =
                    seconds.context("no such action: there are abort, panic, stall, stall(seconds), error")?;
                Action::Stall(Duration::from_secs(seconds))
            }
        };
        Ok(Armed { text: entry.to_owned(), point, action, left })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn each_entry_fires_once_the_time_it_names() {
            let mut armed = read("before-send=error@2, after-send=stall(3),before-send=abort@3", "").unwrap();
            let mut fired = |point| reach(&mut armed, point).map(|armed| armed.action);
            assert_eq!(fired(Point::AfterSignCommit), None);
            assert_eq!(fired(Point::BeforeSend), None);
            assert_eq!(fired(Point::BeforeSend), Some(Action::Error));
            assert_eq!(fired(Point::BeforeSend), Some(Action::Abort));
            assert_eq!(fired(Point::BeforeSend), None);
            assert_eq!(fired(Point::AfterSend), Some(Action::Stall(Duration::from_secs(3))));
            assert_eq!(fired(Point::AfterSend), None);
        }

        #[test]
        fn what_fired_in_an_earlier_process_does_not_fire_again() {
            let armed = read("before-send=abort,after-send=abort", "before-send=abort\n").unwrap();
            assert_eq!(armed.iter().map(|armed| armed.point).collect::<Vec<_>>(), [Point::AfterSend]);
        }

        #[test]
        fn what_is_armed_wrong_is_named() {
            for (text, says) in [
                ("before-send", "name=action is wanted"),
                ("before-lunch=abort", "there are between-migrations, mid-extend"),
                ("before-send=explode", "there are abort, panic, stall"),
                ("before-send=stall(soon)", "no such action"),
                ("before-send=abort@x", "a number is wanted after @"),
                ("before-send=abort@0", "@1 is the first time"),
            ] {
                let error = format!("{:#}", read(text, "").unwrap_err());
                assert!(error.contains(text) && error.contains(says), "{error}");
            }
        }

        #[test]
        fn the_variable_says_each_point_by_its_own_name() {
            for point in Point::ALL {
                let armed = read(&format!("{}=panic", point.name()), "").unwrap();
                assert_eq!((armed[0].point, armed[0].action, armed[0].left), (point, Action::Panic, 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    /// Debug assertions are off in a release unless its profile, or somebody's configuration of cargo, says otherwise.
    #[test]
    fn no_release_has_failpoints() {
        let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("a manifest is TOML");
        let release = &manifest["profile"]["release"];
        assert!(release.get("debug-assertions").is_none_or(|on| on.as_bool() == Some(false)), "{release}");
        assert!(release.get("inherits").is_none(), "{release}");
    }
}
