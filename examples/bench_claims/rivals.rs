//! Three hosts that want the same jobs on one chain: who gets how many, and what the claims cost that come too late.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::mined::{self, Does};
use crate::node::Host;
use crate::place::Place;
use crate::process::rounded;

const HOSTS: usize = 3;

/// How one contest went.
#[derive(Debug)]
pub struct Contest {
    /// Jobs that were claimed more often than they were open.
    pub double_claims: usize,
    /// What was spent on nothing, of all the gas of the claims, 0 to 1.
    pub reverted_gas: f64,
    /// Jobs that each host claimed.
    pub claims: Vec<usize>,
}

/// Lets three hosts compete for jobs that are posted at a rate; each waits so many seconds for the one before it, or races with 0.
pub async fn compete(place: &Place, program: &Path, turn_seconds: u64, jobs: u64, rate: u64) -> Result<Contest> {
    // The breaker would open at what a race costs.
    let more = format!("[host.breaker]\ngas_wei_per_hour = 0\n[host.policy]\nturn_seconds = {turn_seconds}\n");
    let mut hosts = Vec::new();
    for number in 1..=HOSTS {
        let name = format!("rival-{number}");
        hosts.push(Host::start(place, program, &name, &place.devnet.rpc_url, &more).await?);
    }
    let accounts: Vec<_> = hosts.iter().map(|host| host.account).collect();
    let (first, from) = (place.jobs_posted().await? + 1, place.chain.head().await?.block.number + 1);
    let began = Instant::now();
    place.post_at(jobs, rate).await?;
    place.completed(first, jobs).await?;
    let took = began.elapsed().as_secs_f64();
    for host in &hosts {
        host.settled().await?;
    }

    let mut times = HashMap::<u64, usize>::new();
    let mut claims = vec![0; HOSTS];
    for (job, host) in place.told("JobClaimed(uint256,address)").await? {
        *times.entry(job).or_default() += 1;
        let host = accounts.iter().position(|account| Some(*account) == host);
        claims[host.with_context(|| format!("job {job} was claimed by none of the three"))?] += 1;
    }
    let mut open: HashMap<u64, usize> = (first..first + jobs).map(|job| (job, 1)).collect();
    for (job, _) in place.told("JobReopened(uint256,address)").await? {
        *open.entry(job).or_default() += 1;
    }
    let double_claims = times.iter().filter(|(job, times)| **times > open.get(job).copied().unwrap_or(0)).count();

    let blocks = mined::blocks(place, from, &accounts).await?;
    let (mut all, mut reverted, mut lost) = (0, 0, 0);
    for tx in blocks.iter().flat_map(|block| &block.transactions) {
        let in_vain = !tx.success || tx.does == Does::Nothing;
        all += if tx.does == Does::Claim || in_vain { tx.gas } else { 0 };
        reverted += if in_vain { tx.gas } else { 0 };
        lost += usize::from(in_vain);
    }
    ensure!(all > 0, "no claim of the three is on the chain");
    let reverted_gas = rounded(reverted as f64 / all as f64, 4);
    eprintln!(
        "  three hosts, turns of {turn_seconds} s: {jobs} jobs in {took:.1} s, claimed by {claims:?}, {lost} transactions in \
         vain, {:.1} % of the gas of claims",
        reverted_gas * 100.0
    );
    for host in hosts {
        host.stop().await?;
    }
    Ok(Contest { double_claims, reverted_gas, claims })
}
