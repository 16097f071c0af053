//! Looks whether what has work moves on: blocks get stored, transactions get mined, leases come back. Says so where not.
//!
//! Mends nothing. That a single pass hangs is seen elsewhere ([`super::drive`]); here every pass may end well and nothing come of it.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{LEASE_SECONDS, Pass, Task};
use crate::http::{Health, Metrics};
use crate::market::job::Duty;
use crate::market::types::Address;
use crate::store::{Store, clock};

/// The name under which it is told what does not move on.
pub const PART: &str = "progress";
/// Between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The head of the chain moves and what is stored does not.
const STORED_STILL_MAX: Duration = Duration::from_secs(120);
/// Blocks come and the oldest signed transaction is in none of them: that many, and for so long.
const MINED_STILL_MAX: Duration = Duration::from_secs(600);
const MINED_BLOCKS: u64 = 10;

/// The task's edges and what it saw.
pub struct Watchdog {
    store: Store,
    health: Health,
    metrics: Metrics,
    us: Option<Address>,
    stored: Still,
    mined: Still,
}

impl Task for Watchdog {
    const NAME: &'static str = "watchdog";

    /// Looks once.
    ///
    /// # Errors
    /// If the store fails.
    async fn pass(&mut self) -> Result<Pass> {
        let (now, mut told) = (Instant::now(), Vec::new());
        let stored = self.store.cursor().await?.map_or(0, |cursor| cursor.number);
        let head = self.metrics.head_block.get() as u64;
        if let Some((still, blocks)) = self.stored.look((head > stored).then_some(stored), head, now)
            && still >= STORED_STILL_MAX
            && blocks > 0
        {
            told.push(format!("block {stored} is the newest stored for {} s while {blocks} came", still.as_secs()));
        }
        if let Some(us) = self.us {
            let signed = self.store.signed_intents(us).await?;
            let oldest = signed.first();
            if let Some((still, blocks)) = self.mined.look(oldest.and_then(|intent| intent.nonce), stored, now)
                && still >= MINED_STILL_MAX
                && blocks >= MINED_BLOCKS
                && let Some((kind, nonce)) =
                    oldest.map(|intent| (intent.kind.clone(), intent.nonce.unwrap_or_default()))
            {
                told.push(format!(
                    "{} transactions are signed and the oldest ({kind}, nonce {nonce}) was in none of {blocks} blocks in {} s: see \
                     `fabstir tx list`",
                    signed.len(),
                    still.as_secs()
                ));
            }
            told.extend(self.oldest_lease().await?);
        }
        match told.is_empty() {
            true => self.health.well(PART),
            false => self.health.ill(PART, told.join("; ")),
        }
        Ok(Pass::Idle)
    }
}

impl Watchdog {
    /// Returns the task, which has not begun; `us` is the host, if this node is one.
    pub fn new(store: Store, health: Health, metrics: Metrics, us: Option<Address>) -> Self {
        Self { store, health, metrics, us, stored: Still::default(), mined: Still::default() }
    }

    /// Measures the oldest inference or proof under way. Returns what is wrong where its lease ran out.
    async fn oldest_lease(&self) -> Result<Option<String>> {
        let oldest = self.store.oldest_lease([Duty::Infer, Duty::Prove]).await?;
        let age = |until: u64| (clock().0 + LEASE_SECONDS).saturating_sub(until);
        self.metrics.oldest_lease_seconds.set(oldest.as_ref().map_or(0, |(_, _, until)| age(until.0) as i64));
        let late = oldest.filter(|(_, _, until)| age(until.0) > LEASE_SECONDS);
        Ok(late.map(|(job, duty, until)| format!("job {job} has been at `{duty}` for {} s", age(until.0))))
    }
}

/// Something that ought to change while a chain grows.
#[derive(Debug, Default)]
struct Still {
    /// What it was, and when and at which block it became so.
    since: Option<(u64, u64, Instant)>,
}

impl Still {
    /// Returns for how long and for how many blocks `mark` is what it is, or `None` where there is nothing that ought to change.
    fn look(&mut self, mark: Option<u64>, block: u64, now: Instant) -> Option<(Duration, u64)> {
        let Some(mark) = mark else {
            self.since = None;
            return None;
        };
        match self.since {
            Some((was, from, at)) if was == mark => Some((now - at, block.saturating_sub(from))),
            _ => {
                self.since = Some((mark, block, now));
                Some((Duration::ZERO, 0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::market::coverage::Coverage;
    use crate::market::event::{Header, Level, Range};
    use crate::market::types::{B256, BlockRef, Bytes, JobId, U256, UnixSeconds};
    use crate::store::{Attempt, Intent, Owed, Signed};

    #[test]
    fn what_stands_still_is_measured_in_time_and_blocks() {
        let (mut still, start) = (Still::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(still.look(None, 7, at(0)), None);
        assert_eq!(still.look(Some(3), 7, at(1)), Some((Duration::ZERO, 0)));
        assert_eq!(still.look(Some(3), 9, at(5)), Some((Duration::from_secs(4), 2)));
        assert_eq!(still.look(Some(4), 9, at(6)), Some((Duration::ZERO, 0)), "it moved");
        assert_eq!(still.look(None, 9, at(7)), None);
        assert_eq!(still.look(Some(4), 9, at(8)), Some((Duration::ZERO, 0)), "as if it were new");
        assert_eq!(still.look(Some(4), 8, at(9)), Some((Duration::from_secs(1), 0)), "a reorg takes blocks away");
    }

    fn owed(job: u64, duty: Duty) -> Owed {
        Owed { job: JobId(job), deal: B256::ZERO, duty }
    }

    #[tokio::test]
    async fn what_does_not_move_on_is_told_by_name_until_it_does() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let read = |_: &crate::market::event::RawLog| anyhow::bail!("no log is read here");
        let store = Store::open(&folder.path().join("node.sqlite"), 1, Address::ZERO, Arc::new(read)).await?;
        let (health, metrics) = (Health::default(), Metrics::new());
        health.expect(PART, LOOK_EVERY * 100);
        let mut watchdog = Watchdog::new(store.clone(), health.clone(), metrics.clone(), Some(Address::ZERO));
        metrics.head_block.set(10);
        watchdog.pass().await?;
        assert_eq!(health.problems(), [], "it may be about to store them");
        metrics.head_block.set(14);
        watchdog.stored.since = Some((0, 10, Instant::now() - STORED_STILL_MAX));
        store.lease(owed(7, Duty::Prove), 60).await?;
        watchdog.pass().await?;
        let told = health.problems();
        assert_eq!(told[0].part, "progress");
        assert!(told[0].reason.contains("block 0 is the newest stored for 120 s while 4 came"), "{told:?}");
        assert!(!told[0].reason.contains("job"), "its lease lasts: {told:?}");
        metrics.head_block.set(0);
        watchdog.pass().await?;
        assert_eq!(health.problems(), []);
        Ok(())
    }

    /// Stores blocks `from..=to` in which nothing happens.
    async fn let_blocks_come(store: &Store, from: u64, to: u64) -> Result<()> {
        let hash = |number: u64| B256::from(U256::from(number));
        let header = |number| Header {
            block: BlockRef { number, hash: hash(number) },
            parent: hash(number - 1),
            time: UnixSeconds(number),
        };
        let coverage = vec![Coverage::of(from, to, Level::Claimed, None)];
        store.extend(&Range { headers: (from..=to).map(header).collect(), coverage, logs: Vec::new() }).await?;
        Ok(())
    }

    #[tokio::test]
    async fn a_transaction_that_is_never_mined_and_a_lease_that_ran_out_are_told() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let read = |_: &crate::market::event::RawLog| anyhow::bail!("no log is read here");
        let store = Store::open(&folder.path().join("node.sqlite"), 1, Address::ZERO, Arc::new(read)).await?;
        let (health, us) = (Health::default(), Address::repeat_byte(1));
        health.expect(PART, LOOK_EVERY * 100);
        let mut watchdog = Watchdog::new(store.clone(), health.clone(), Metrics::new(), Some(us));
        let told = || health.problems().iter().map(|problem| problem.reason.clone()).collect::<Vec<_>>().join("; ");
        let call = Intent {
            key: "commit:7".into(),
            job: Some(JobId(7)),
            kind: "commit",
            target: Address::ZERO,
            data: Bytes::new(),
            signer: us,
            gas: Some(1),
            cost_max: None,
        };
        store.queue(&[call]).await?;
        let bytes = Attempt {
            hash: B256::repeat_byte(1),
            raw: Bytes::from_static(b"signed"),
            fee_cap: 1,
            tip_cap: 1,
            signed_at: 1,
            sent: true,
            cancels: false,
        };
        store.sign(&[Signed { intent: 1, nonce: 4, gas: 1, attempt: bytes }]).await?;
        let_blocks_come(&store, 100, 100).await?;
        watchdog.pass().await?;
        assert_eq!(told(), "", "it was seen just now");
        watchdog.mined.since = Some((4, 100, Instant::now() - MINED_STILL_MAX));
        let_blocks_come(&store, 101, 109).await?;
        watchdog.pass().await?;
        assert_eq!(told(), "", "few blocks came");
        let_blocks_come(&store, 110, 110).await?;
        watchdog.pass().await?;
        assert!(
            told().starts_with("1 transactions are signed and the oldest (commit, nonce 4) was in none of 10 blocks")
        );
        watchdog.mined.since = Some((4, 100, Instant::now()));
        // Leases that ended two seconds ago, the second of a duty that nobody works at for long.
        let ended = 0_u64.wrapping_sub(2);
        store.lease(owed(7, Duty::Prove), ended).await?;
        store.lease(owed(8, Duty::Release), ended).await?;
        watchdog.pass().await?;
        assert!(told().starts_with("job 7 has been at `prove` for 36"), "{}", told());
        store.release(owed(7, Duty::Prove), None).await?;
        watchdog.pass().await?;
        assert_eq!(told(), "", "it came back");
        Ok(())
    }
}
