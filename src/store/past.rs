//! What our own past and present tell a policy: claims won and lost, work on hand, and how jobs of the past went.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use sqlx::Row;

use super::{GROUNDS, SqliteRow, Store, amount, ground};
use crate::market::event::Event;
use crate::market::gate::Ground;
use crate::market::policy::backtest::PastJob;
use crate::market::policy::{Load, Races};
use crate::market::types::{Address, JobId, U256, UnixSeconds};

/// What the decisions of one host look at: what the contracts told of it since some block, what the host has taken on, and what is known
/// of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// The newest block in which they told of what they keep of the host, or of what holds for all hosts: what was read of it before
    /// may be otherwise now.
    pub changed: Option<u64>,
    /// The host's reputation, where it became another.
    pub score: Option<u64>,
    /// The hosts that are registered now.
    pub hosts: Vec<Address>,
    /// What the host has taken on, by the text of each model that was asked for.
    pub loads: HashMap<String, Load>,
    /// What is known of each block that was asked for, by number.
    pub grounds: HashMap<u64, Ground>,
}

/// Jobs folded at once.
const JOBS_PER_PAGE: u32 = 500;
const HOUR: i64 = 3600;

/// What the contracts told since block `?2` of what decisions of the host of topic `?3` look at, and of all hosts: one row.
const NEWS: &str = "SELECT number, hash, log_index, tx_hash, address, topics, data,
         (SELECT max(number) FROM block CROSS JOIN log ON log.block = block.seq
          WHERE canonical = 1 AND number > ?2 AND job IS NULL AND (
              kind IN ('EmergencyPause', 'EmergencyUnpause', 'CircuitBreakerTriggered', 'FeeChanged')
              OR kind IN ('NodeRegistered', 'NodeUnregistered', 'StakeAdded', 'NodeSlashed', 'StakeMoved',
                          'UnbondingStarted', 'UnbondingCancelled')
              AND substr(topics, 33, 32) = ?3)),
         (SELECT json_group_array(json_array(hex(substr(topics, 45, 20)), kind) ORDER BY number, log_index)
          FROM log JOIN block ON block.seq = log.block
          WHERE kind IN ('NodeRegistered', 'NodeUnregistered') AND canonical = 1)
     FROM (SELECT 1) LEFT JOIN (
         SELECT number, hash, log_index, tx_hash, address, topics, data FROM block CROSS JOIN log ON log.block = block.seq
         WHERE canonical = 1 AND number > ?2 AND job IS NULL AND kind = 'ReputationUpdated'
             AND substr(topics, 33, 32) = ?3 ORDER BY number DESC, +log_index DESC LIMIT 1)";

/// What host `?6` has taken on, of each model of `?4` a row; jobs count as chosen lately that were so after `?5`.
const LOADS: &str = "SELECT count(*) FILTER (WHERE model = asked.value),
         coalesce(sum(max_tokens) FILTER (WHERE model = asked.value AND NOT EXISTS
             (SELECT 1 FROM work WHERE work.job = reservation.job AND did = 'Inferred')), 0),
         (SELECT count(*) FROM job WHERE host = ?6 AND state IN ('claimed', 'committed', 'completed', 'disputed')),
         count(*) FILTER (WHERE state = 'posted'),
         (SELECT count(*) FROM work WHERE did = 'Chosen' AND at > ?5)
     FROM json_each(?4) AS asked LEFT JOIN (reservation CROSS JOIN job ON job.id = reservation.job)
     GROUP BY asked.key ORDER BY asked.key";

impl Store {
    /// Returns how the last `claims` claims of `host` went, of those that were decided: one that was mined was won, one that
    /// reverted, or that was dropped because another host has the job, was lost.
    pub async fn races(&self, host: Address, claims: u32) -> Result<Races> {
        let (won, lost): (i64, i64) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE c.state = 'mined'),
                    count(*) FILTER (WHERE c.state = 'reverted' OR (c.state IN ('dropped', 'cancelled') AND job.host IS NOT ?1))
             FROM (SELECT state, job FROM tx_intent WHERE kind = 'claim' AND signer = ?1 AND state NOT IN ('queued', 'signed')
                   ORDER BY id DESC LIMIT ?2) c
             LEFT JOIN job ON job.id = c.job WHERE c.state NOT IN ('dropped', 'cancelled') OR job.host IS NOT NULL",
        )
        .bind(host.as_slice())
        .bind(i64::from(claims))
        .fetch_one(&self.readers)
        .await?;
        Ok(Races { won: won as u32, lost: lost as u32 })
    }

    /// Returns what the contracts told since block `since` of what decisions of `host`, this node's, look at, which hosts there are now,
    /// and of each of `models` and `blocks` what decisions at block time `now` must know.
    pub async fn scene(
        &self,
        host: Address,
        since: u64,
        now: UnixSeconds,
        models: impl IntoIterator<Item = &str>,
        blocks: impl IntoIterator<Item = u64>,
    ) -> Result<Scene> {
        let models: Vec<&str> = models.into_iter().collect();
        let blocks: Vec<u64> = blocks.into_iter().collect();
        // At once: a thread that has to be woken takes longer than what it is asked.
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(format!("{NEWS}; {LOADS}; {GROUNDS}")))
            .bind(serde_json::to_string(&blocks)?)
            .bind(i64::try_from(since).unwrap_or(i64::MAX))
            .bind(host.into_word().to_vec())
            .bind(serde_json::to_string(&models)?)
            .bind(i64::try_from(now.0).unwrap_or(i64::MAX) - HOUR)
            .bind(host.as_slice())
            .fetch_all(&self.readers)
            .await?
            .into_iter();
        let mut scene = self.news(&rows.next().context("one row")?)?;
        for (model, row) in models.into_iter().zip(rows.by_ref()) {
            scene.loads.insert(model.to_owned(), load(&row));
        }
        for (number, row) in blocks.into_iter().zip(rows.by_ref()) {
            scene.grounds.insert(number, ground(number, &row)?);
        }
        Ok(scene)
    }

    /// Reads [`NEWS`]: a scene without loads and grounds.
    fn news(&self, row: &SqliteRow) -> Result<Scene> {
        let ranked: Option<i64> = row.get(0);
        let score = match ranked.map(|_| (self.decode)(&super::raw_log(row)?)).transpose()? {
            Some(Event::ReputationUpdated { score, .. }) => Some(score),
            _ => None,
        };
        let mut hosts = BTreeSet::new();
        for (host, kind) in serde_json::from_str::<Vec<(Address, String)>>(row.get(8)).context("a stored host")? {
            match &*kind {
                "NodeRegistered" => hosts.insert(host),
                _ => hosts.remove(&host),
            };
        }
        Ok(Scene {
            changed: row.get::<Option<i64>, _>(7).map(|number| number as u64),
            score,
            hosts: hosts.into_iter().collect(),
            loads: HashMap::new(),
            grounds: HashMap::new(),
        })
    }

    /// Returns the mean price of gas that our transactions paid, in wei, of the newest 200; `None` before the first.
    pub async fn gas_price_paid(&self) -> Result<Option<U256>> {
        let rows = sqlx::query("SELECT gas_price FROM tx_receipt ORDER BY block_number DESC LIMIT 200")
            .fetch_all(&self.readers)
            .await?;
        let mut sum = U256::ZERO;
        for row in &rows {
            sum = sum.saturating_add(amount(row, 0)?);
        }
        Ok(sum.checked_div(U256::from(rows.len())))
    }

    /// Returns the jobs that were posted in blocks `from..=to` and whose logs agree, in the order of their posting.
    pub async fn past_jobs(&self, from: u64, to: u64) -> Result<Vec<PastJob>> {
        let bound = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut reader = self.readers.begin().await?;
        let (mut past, mut after) = (Vec::new(), 0);
        loop {
            let ids: Vec<i64> = sqlx::query_scalar(
                "SELECT id FROM job WHERE id > ? AND posted_block BETWEEN ? AND ? ORDER BY id LIMIT ?",
            )
            .bind(after)
            .bind(bound(from))
            .bind(bound(to))
            .bind(JOBS_PER_PAGE)
            .fetch_all(&mut *reader)
            .await?;
            let Some(last) = ids.last() else { return Ok(past) };
            after = *last;
            let times: BTreeMap<JobId, (UnixSeconds, bool)> = sqlx::query_as::<_, (i64, i64, bool)>(
                "SELECT job, min(time), max(kind = 'JobClaimed') FROM log JOIN block ON block.seq = log.block
                 WHERE job IN (SELECT value FROM json_each(?)) AND canonical = 1 AND kind IN ('JobTerms', 'JobClaimed')
                 GROUP BY job",
            )
            .bind(serde_json::to_string(&ids)?)
            .fetch_all(&mut *reader)
            .await?
            .into_iter()
            .map(|(job, posted, claimed)| (JobId(job as u64), (UnixSeconds(posted as u64), claimed)))
            .collect();
            let ids: Vec<JobId> = ids.into_iter().map(|id| JobId(id as u64)).collect();
            for job in self.fold(&mut reader, &ids).await? {
                let Some(&(posted_at, claimed)) = times.get(&job.id) else { continue };
                past.push(PastJob { job, posted_at, claimed });
            }
        }
    }
}

/// What a host has taken on; slots and tokens of one model.
fn load(row: &SqliteRow) -> Load {
    let [slots, tokens, held, pending, chosen] = [0, 1, 2, 3, 4].map(|column| row.get::<i64, _>(column));
    Load {
        slots_taken: slots as u32,
        queued_tokens: tokens as u64,
        held: held as u32,
        pending_claims: pending as u32,
        chosen_last_hour: chosen as u32,
    }
}
