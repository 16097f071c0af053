//! Jobs as the journal tells them: facts of many at once, their folds, and the rows kept of these.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::{JobRow, Store, hash, raw_log};
use crate::market::event::Event;
use crate::market::job::{Conflict, Fact, Job, State, Work};
use crate::market::types::{B256, BlockRef, JobId};

/// Rows of one statement. Each statement passes between threads once, which costs more than a row.
const ROWS_PER_STATEMENT: usize = 256;
/// From so many rows on the number of those in one statement is a multiple of it: of few lengths each is prepared once, and not at
/// nearly every block.
const ROWS_OF_ANY_NUMBER: usize = 32;

/// Cuts rows into as many as go into one statement each.
pub(super) fn statements<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let many = match rows.len() {
            few if few < ROWS_OF_ANY_NUMBER => few,
            many => ROWS_PER_STATEMENT.min(many - many % ROWS_OF_ANY_NUMBER),
        };
        let (now, later) = rows.split_at(many);
        rows = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Facts by job, each job's in order.
pub(super) type Facts = BTreeMap<JobId, Vec<Fact>>;

/// Jobs whose folds are kept from one extension to the next, some 1 500 bytes each; with more than these, all are read again.
const KEPT_MAX: usize = 5000;

impl Store {
    /// Returns what the canonical logs say of each of the jobs, in chain order; what is only noted of it says nothing.
    pub(super) async fn chain_facts(&self, connection: &mut SqliteConnection, jobs: &[JobId]) -> Result<Facts> {
        self.chain_facts_until(connection, jobs, i64::MAX as u64).await
    }

    /// As [`Store::chain_facts`], of the blocks up to `last`.
    pub(super) async fn chain_facts_until(
        &self,
        connection: &mut SqliteConnection,
        jobs: &[JobId],
        last: u64,
    ) -> Result<Facts> {
        let rows = sqlx::query(
            "SELECT number, hash, log_index, tx_hash, address, topics, data, job FROM log
             JOIN block ON block.seq = log.block
             WHERE job IN (SELECT value FROM json_each(?)) AND canonical = 1 AND number <= ?
                 AND kind IN (SELECT value FROM json_each(?))
             ORDER BY job, number, log_index",
        )
        .bind(serde_json::to_string(jobs)?)
        .bind(last as i64)
        .bind(serde_json::to_string(&Event::OF_JOBS)?)
        .fetch_all(connection)
        .await?;
        let mut facts = Facts::new();
        for row in &rows {
            let log = raw_log(row)?;
            let Ok(event) = (self.decode)(&log) else { continue };
            let told = facts.entry(JobId(row.get::<i64, _>(7) as u64)).or_default();
            told.push(Fact::Chain { event, block: log.block });
        }
        Ok(facts)
    }

    /// Folds each of the jobs from its canonical logs, the beacon its commitment waits for, our own work, and what is in doubt. A job that the
    /// chain has not posted is left out.
    pub(super) async fn fold(&self, connection: &mut SqliteConnection, jobs: &[JobId]) -> Result<Vec<Job>> {
        let mut facts = self.chain_facts(connection, jobs).await?;
        let wanted: Vec<u64> = facts.values().flatten().filter_map(Fact::drawn_by).collect();
        let beacons = canonical_hashes(connection, &wanted).await?;
        for told in facts.values_mut() {
            for place in (0..told.len()).rev() {
                let after = told[place].drawn_by().and_then(|number| Some((number, *beacons.get(&number)?)));
                if let Some((number, hash)) = after {
                    told.insert(place + 1, Fact::Beacon(BlockRef { number, hash }));
                }
            }
        }
        let rows =
            sqlx::query("SELECT job, body FROM work WHERE job IN (SELECT value FROM json_each(?)) ORDER BY job, seq")
                .bind(serde_json::to_string(jobs)?)
                .fetch_all(&mut *connection)
                .await?;
        for row in &rows {
            let job = JobId(row.get::<i64, _>(0) as u64);
            let work: Work = serde_json::from_str(row.get(1)).with_context(|| format!("work of job {job}"))?;
            facts.entry(job).or_default().push(Fact::Work(work));
        }
        let doubts = sqlx::query("SELECT job, what FROM doubt WHERE job IN (SELECT value FROM json_each(?))")
            .bind(serde_json::to_string(jobs)?)
            .fetch_all(connection)
            .await?;
        for row in &doubts {
            facts.entry(JobId(row.get::<i64, _>(0) as u64)).or_default().push(Fact::Doubted(row.get(1)));
        }
        let fold = |(id, told): (&JobId, &Vec<Fact>)| Job::fold(*id, told).transpose();
        facts.iter().filter_map(fold).collect::<Result<_, Conflict>>().map_err(anyhow::Error::new)
    }

    /// Folds jobs anew and writes their rows, or removes the rows of those that are not posted or whose facts conflict. Returns how
    /// many have a row now, and which rows changed.
    pub(super) async fn project(&self, tx: &mut SqliteConnection, jobs: &[JobId]) -> Result<(usize, Vec<JobId>)> {
        let facts = self.chain_facts(tx, jobs).await?;
        let (folded, conflicts) = fold_each(&facts);
        Ok((folded.len(), write(tx, jobs, &folded, conflicts).await?))
    }

    /// Folds jobs on, from what was kept of them or from all their facts, with what the chain tells now, `told`, which is stored after
    /// that; writes what follows, and keeps the folds of those that have not ended. No log that is stored tells of a job past `greatest`.
    pub(super) async fn project_on(
        &self,
        tx: &mut SqliteConnection,
        told: &[(JobId, Fact)],
        kept: &mut HashMap<JobId, Job>,
        greatest: JobId,
    ) -> Result<()> {
        let mut news = Facts::new();
        told.iter().for_each(|(job, fact)| news.entry(*job).or_default().push(fact.clone()));
        let (mut followed, mut others) = (Vec::with_capacity(news.len()), Vec::new());
        for (id, news) in &news {
            let follows = |mut job: Job| job.follow(news).is_ok().then_some(job);
            match kept.remove(id).and_then(follows) {
                Some(job) => followed.push(job),
                None => others.push(*id),
            }
        }
        let known: Vec<JobId> = others.iter().copied().filter(|job| *job <= greatest).collect();
        let mut facts = if known.is_empty() { Facts::new() } else { self.chain_facts(tx, &known).await? };
        for job in &others {
            facts.entry(*job).or_default().extend(news.remove(job).unwrap_or_default());
        }
        let (folded, conflicts) = fold_each(&facts);
        write(tx, &others, &folded, conflicts).await?;
        update_jobs(tx, &followed).await?;
        let all = followed.into_iter().chain(folded);
        let open: Vec<Job> =
            all.filter(|job| !matches!(job.state, State::Released { .. } | State::Refunded { .. })).collect();
        if kept.len() + open.len() > KEPT_MAX {
            kept.clear();
        }
        kept.extend(open.into_iter().map(|job| (job.id, job)));
        Ok(())
    }
}

/// Folds each job from its facts; a job that is not posted is left out.
pub(super) fn fold_each(facts: &Facts) -> (Vec<Job>, Vec<Conflict>) {
    let (mut folded, mut conflicts) = (Vec::with_capacity(facts.len()), Vec::new());
    for (id, told) in facts {
        match Job::fold(*id, told) {
            Ok(job) => folded.extend(job),
            Err(conflict) => conflicts.push(conflict),
        }
    }
    (folded, conflicts)
}

/// Writes the rows of those of `jobs` that are `folded`, removes those of the others, and notes `conflicts`. Returns which rows changed.
pub(super) async fn write(
    tx: &mut SqliteConnection,
    jobs: &[JobId],
    folded: &[Job],
    conflicts: Vec<Conflict>,
) -> Result<Vec<JobId>> {
    let mut changed = write_jobs(tx, folded).await?;
    let posted: BTreeSet<JobId> = folded.iter().map(|job| job.id).collect();
    let without: Vec<JobId> = jobs.iter().copied().filter(|job| !posted.contains(job)).collect();
    changed.extend(remove_jobs(tx, &without).await?);
    changed.sort_unstable();
    for conflict in conflicts {
        tracing::error!(job = %conflict.job, %conflict, "what the chain tells of a job contradicts itself: it is left alone");
        sqlx::query("INSERT INTO conflict VALUES (?, ?)")
            .bind(conflict.job.0 as i64)
            .bind(conflict.to_string())
            .execute(&mut *tx)
            .await?;
    }
    Ok(changed)
}

async fn canonical_hashes(connection: &mut SqliteConnection, numbers: &[u64]) -> Result<BTreeMap<u64, B256>> {
    if numbers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query(
        "SELECT number, hash FROM block WHERE canonical = 1 AND number IN (SELECT value FROM json_each(?))",
    )
    .bind(serde_json::to_string(numbers)?)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.get::<i64, _>(0) as u64, hash(row, 1)?))).collect()
}

/// Where it was noted of jobs that their facts conflict, that is forgotten; a list of them and `))` follow.
const NO_CONFLICT: &str = "DELETE FROM conflict WHERE job IN (SELECT value FROM json_each(";

/// Writes the rows of jobs, and returns the jobs whose row was another or missing.
async fn write_jobs(tx: &mut SqliteConnection, jobs: &[Job]) -> Result<Vec<JobId>> {
    let mut changed = Vec::new();
    for jobs in statements(jobs) {
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        let mut query = QueryBuilder::<Sqlite>::new(NO_CONFLICT);
        query.push_bind(serde_json::to_string(&ids)?);
        query.push(format!(")); INSERT INTO job ({}) ", JobRow::COLUMNS));
        query.push_values(jobs, |mut values, job| {
            let row = JobRow::of(job);
            values.push_bind(row.id.0 as i64).push_bind(row.state).push_bind(row.renter.to_vec());
            values.push_bind(row.host.map(|host| host.to_vec())).push_bind(row.model).push_bind(row.input);
            values.push_bind(i64::from(row.max_tokens)).push_bind(row.token.to_vec());
            values.push_bind(row.payment.to_string()).push_bind(row.deadline.0 as i64).push_bind(row.requires_proof);
            values.push_bind(row.posted_block as i64).push_bind(row.tokens.map(i64::from)).push_bind(row.output);
            values.push_bind(row.paid.map(|amount| amount.to_string()));
        });
        query.push(
            " ON CONFLICT (id) DO UPDATE SET (state, renter, host, model, input, max_tokens, token, payment, deadline,
                  requires_proof, posted_block, tokens, output, paid) = (excluded.state, excluded.renter, excluded.host,
                  excluded.model, excluded.input, excluded.max_tokens, excluded.token, excluded.payment, excluded.deadline,
                  excluded.requires_proof, excluded.posted_block, excluded.tokens, excluded.output, excluded.paid)
              WHERE (job.state, job.renter, job.host, job.model, job.input, job.max_tokens, job.token, job.payment,
                  job.deadline, job.requires_proof, job.posted_block, job.tokens, job.output, job.paid)
                  IS NOT (excluded.state, excluded.renter, excluded.host,
                  excluded.model, excluded.input, excluded.max_tokens, excluded.token, excluded.payment, excluded.deadline,
                  excluded.requires_proof, excluded.posted_block, excluded.tokens, excluded.output, excluded.paid)
              RETURNING id",
        );
        let written: Vec<i64> = query.build_query_scalar().fetch_all(&mut *tx).await.with_context(|| {
            let ids: Vec<String> = ids.iter().map(JobId::to_string).collect();
            format!("write jobs {}", ids.join(", "))
        })?;
        changed.extend(written.into_iter().map(|id| JobId(id as u64)));
    }
    Ok(changed)
}

/// Writes of jobs that have a row what may change of one: the terms stay.
async fn update_jobs(tx: &mut SqliteConnection, jobs: &[Job]) -> Result<()> {
    for jobs in statements(jobs) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "UPDATE job SET (state, host, tokens, output, paid) = (column2, column3, column4, column5, column6) FROM (",
        );
        query.push_values(jobs, |mut values, job| {
            let row = JobRow::of(job);
            values.push_bind(row.id.0 as i64).push_bind(row.state).push_bind(row.host.map(|host| host.to_vec()));
            values.push_bind(row.tokens.map(i64::from)).push_bind(row.output);
            values.push_bind(row.paid.map(|amount| amount.to_string()));
        });
        query.push(") WHERE id = column1");
        let updated = query.build().execute(&mut *tx).await?.rows_affected();
        ensure!(updated as usize == jobs.len(), "{} of {} jobs have no row", jobs.len() - updated as usize, jobs.len());
    }
    Ok(())
}

/// Removes the rows of those jobs, and returns which there were.
async fn remove_jobs(tx: &mut SqliteConnection, jobs: &[JobId]) -> Result<Vec<JobId>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "{NO_CONFLICT} ?1)); DELETE FROM job WHERE id IN (SELECT value FROM json_each(?1)) RETURNING id"
    )))
    .bind(serde_json::to_string(jobs)?)
    .fetch_all(tx)
    .await?;
    Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_goes_into_one_statement_and_few_lengths_are_prepared() {
        let mut lengths = BTreeSet::new();
        for rows in 0..1000 {
            let rows: Vec<usize> = (0..rows).collect();
            assert_eq!(statements(&rows).flatten().copied().collect::<Vec<_>>(), rows);
            lengths.extend(statements(&rows).map(<[_]>::len));
        }
        let many = (ROWS_OF_ANY_NUMBER..=ROWS_PER_STATEMENT).step_by(ROWS_OF_ANY_NUMBER);
        assert_eq!(lengths, (1..ROWS_OF_ANY_NUMBER).chain(many).collect());
    }
}
