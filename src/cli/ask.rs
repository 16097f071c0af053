//! `fabstir post`, `refund`, `cancel`, `dispute` and `rate`: a renter's side; and `withdraw`, of a host's as well.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::events::unit;
use super::stake::{Account, MINED_WITHIN};
use super::{Fault, Global, configuration, print_json, run};
use crate::chain::call::Order;
use crate::chain::{Signer, key};
use crate::market::event::Event;
use crate::market::job::{Job, State};
use crate::market::types::{Address, B256, JobId, ModelId, U256};
use crate::p2p::{self, Keypair};
use crate::renter::{Answer, Offer, Renter, is_final, regions};

/// The longest name of a region: with `text; region=` before it, it is as long as the contract takes.
const REGION_BYTES_MAX: usize = 128 - 13;

/// The renter's key.
#[derive(Debug, clap::Args)]
struct RenterKey {
    /// The renter's encrypted key.
    #[arg(long, env = "RENTER_KEYSTORE", value_name = "FILE")]
    keystore: std::path::PathBuf,
    /// A file only you may read with its password on the first line.
    #[arg(long, env = "RENTER_PASSWORD_FILE", value_name = "FILE")]
    password_file: std::path::PathBuf,
}

impl RenterKey {
    fn open(&self) -> Result<Signer> {
        key::open(&self.keystore, &self.password_file).map_err(|error| Fault::Usage.of(error))
    }
}

#[derive(Debug, clap::Args)]
pub struct PostArguments {
    #[command(flatten)]
    key: RenterKey,
    /// The model: `sha256:` and the digest of its GGUF file.
    #[arg(long)]
    model: ModelId,
    /// What to ask.
    prompt: String,
    /// The most output tokens to pay for.
    #[arg(long, default_value_t = 128)]
    max_tokens: u32,
    /// Sampling temperature in thousandths; 0 always picks the likeliest token.
    #[arg(long, default_value_t = 0)]
    temperature_milli: u32,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Payment token: `eth` or a contract's address.
    #[arg(long, default_value = "eth", value_parser = token)]
    token: Address,
    /// The most to pay, in the token's smallest unit; the quoted price is what is locked.
    #[arg(long, value_name = "AMOUNT")]
    pay_max: Option<U256>,
    /// Only hosts of that region are asked and may take the job, as `eu-west`: a name as hosts publish it.
    #[arg(long, value_name = "NAME", value_parser = region)]
    region: Option<String>,
    /// Seconds until the job expires and the money can be taken back.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Seconds to look for hosts.
    #[arg(long, default_value_t = 20)]
    search_seconds: u64,
}

#[derive(Debug, clap::Args)]
pub struct RefundArguments {
    #[command(flatten)]
    key: RenterKey,
    /// The job's number.
    job: u64,
}

#[derive(Debug, clap::Args)]
pub struct WithdrawArguments {
    /// The renter's encrypted key; left out: the configured host's account.
    #[arg(long, env = "RENTER_KEYSTORE", value_name = "FILE", requires = "password_file")]
    keystore: Option<std::path::PathBuf>,
    /// A file only you may read with its password on the first line.
    #[arg(long, env = "RENTER_PASSWORD_FILE", value_name = "FILE", requires = "keystore")]
    password_file: Option<std::path::PathBuf>,
    /// What is owed: `eth` or a token's address.
    #[arg(long, default_value = "eth", value_parser = token)]
    token: Address,
    /// Who is to have it; left out: the account itself.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<Address>,
}

#[derive(Debug, clap::Args)]
pub struct DisputeArguments {
    #[command(flatten)]
    key: RenterKey,
    /// The job's number.
    job: u64,
    /// What the arbiter will be shown; its SHA-256 goes on chain, the file stays here.
    #[arg(long, value_name = "FILE")]
    evidence: std::path::PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct RateArguments {
    #[command(flatten)]
    key: RenterKey,
    /// The job's number.
    job: u64,
    /// 1 (worst) to 5.
    #[arg(value_parser = clap::value_parser!(u8).range(1..=5))]
    rating: u8,
    /// A few words, on chain for ever: at most 256 bytes.
    #[arg(long, default_value = "")]
    feedback: String,
}

fn token(text: &str) -> Result<Address, String> {
    if text.eq_ignore_ascii_case("eth") {
        return Ok(Address::ZERO);
    }
    text.parse().map_err(|_| format!("{text:?} is neither \"eth\" nor an address"))
}

/// It becomes a part of the result's format, which ends at a `;`, and of which the contract takes 128 bytes.
fn region(text: &str) -> Result<String, String> {
    let odd = text.chars().find(|c| matches!(c, ';' | '=') || c.is_whitespace() || c.is_control());
    match odd {
        Some(odd) => Err(format!("a region's name has no {odd:?}: `eu-west`, say")),
        None if text.is_empty() => Err("a region has a name: `eu-west`, say".into()),
        None if text.len() > REGION_BYTES_MAX => {
            Err(format!("{} bytes, and a region's name has at most {REGION_BYTES_MAX}", text.len()))
        }
        None => Ok(text.into()),
    }
}

async fn renter(global: &Global, files: &RenterKey) -> Result<Renter> {
    let config = configuration(global)?;
    let signer = files.open()?;
    let chain = run::connect(&config).await?;
    // A renter needs no lasting identity among peers: its account is what hosts check.
    let listen = vec!["/ip4/0.0.0.0/tcp/0".parse()?, "/ip4/0.0.0.0/udp/0/quic-v1".parse()?];
    let peer = p2p::Config {
        identity: Keypair::generate_ed25519(),
        listen,
        bootstrap: config.p2p.bootstrap.clone(),
        mdns: config.p2p.mdns,
    };
    let (p2p, _) = p2p::start(peer).await?;
    Ok(Renter::new(chain, p2p, signer))
}

/// Runs `fabstir post`.
pub async fn post(global: &Global, arguments: &PostArguments) -> Result<()> {
    let renter = renter(global, &arguments.key).await?;
    let search = Duration::from_secs(arguments.search_seconds);
    let say = |line: &str| eprintln!("{line}");
    say("looking for hosts ...");
    let PostArguments { model, prompt, max_tokens, token, region, .. } = arguments;
    let offers = renter.discover(*model, prompt, *max_tokens, *token, region.as_deref(), search).await?;
    let Some(offer) = offers.first() else {
        bail!("no active host serves {model} for token {token}: is p2p.bootstrap set?");
    };
    let price = offer.quote.price;
    if let Some(max) = arguments.pay_max {
        ensure!(price <= max, "the cheapest of {} offers costs {price}, more than --pay-max {max}", offers.len());
    }
    let host = &offer.capabilities;
    say(&format!("host {} asks {price} ({}; {} offers)", host.host, regions(host), offers.len()));
    let order = Order {
        model: arguments.model,
        input: renter.deliver(offer, &arguments.prompt).await?,
        max_tokens: arguments.max_tokens,
        temperature_milli: arguments.temperature_milli,
        seed: arguments.seed,
        requires_proof: offer.quote.proof,
        seconds: arguments.seconds,
        token: arguments.token,
        payment: price,
        region: arguments.region.clone(),
    };
    let (answer, job) = buy(&renter, offer, &order, global.json).await?;
    renter.p2p.shutdown().await;
    if global.json {
        return print_json(&json!({
            "job": job.id, "state": job.state.name(), "text": answer.text, "tokens": answer.tokens.len(),
            "paid": job.terms.payment.to_string(), "token": job.terms.token, "regions": host.regions,
            "receipt": answer.receipt,
        }));
    }
    println!();
    say(&format!("job {}: {}, receipt and chain agree", job.id, job.state.name()));
    Ok(())
}

/// Posts, streams to standard output (unless `quiet`), verifies, and waits for the job's end.
async fn buy(renter: &Renter, offer: &Offer, order: &Order, quiet: bool) -> Result<(Answer, Job)> {
    let posted = renter.post(order).await?;
    eprintln!("posted job {} in block {}", posted.job, posted.mined.block.number);
    let patience = Duration::from_secs(order.seconds);
    let show = |text: &str| {
        if !quiet {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
    };
    let answer = renter.stream(offer, posted.job, patience, show).await.with_context(|| {
        format!(
            "job {}: the money can be taken back after the deadline with `fabstir refund {}`",
            posted.job, posted.job
        )
    })?;
    let job = renter.until(posted.job, posted.mined.block.number, patience, is_final).await?;
    if let State::Refunded { amount, .. } = job.state {
        bail!("job {} missed its deadline: {amount} was refunded", job.id);
    }
    renter.verify(&answer, &job)?;
    Ok((answer, job))
}

/// Runs `fabstir refund`.
pub async fn refund(global: &Global, arguments: &RefundArguments) -> Result<()> {
    let amount = renter(global, &arguments.key).await?.refund(JobId(arguments.job)).await?;
    refunded(global, arguments.job, amount)
}

/// Runs `fabstir cancel`.
pub async fn cancel(global: &Global, arguments: &RefundArguments) -> Result<()> {
    let amount = renter(global, &arguments.key).await?.cancel(JobId(arguments.job)).await?;
    refunded(global, arguments.job, amount)
}

fn refunded(global: &Global, job: u64, amount: U256) -> Result<()> {
    if global.json {
        return print_json(&json!({ "job": job, "refunded": amount.to_string() }));
    }
    println!("job {job}: {amount} refunded");
    Ok(())
}

/// Runs `fabstir withdraw`.
pub async fn withdraw(global: &Global, arguments: &WithdrawArguments) -> Result<()> {
    let WithdrawArguments { keystore, password_file, token, to } = arguments;
    let (chain, signer, _alone) = match keystore.clone().zip(password_file.clone()) {
        Some((keystore, password_file)) => {
            let signer = RenterKey { keystore, password_file }.open()?;
            (run::connect(&configuration(global)?).await?, signer, None)
        }
        None => {
            let Account { chain, signer, lock, .. } = Account::open(global).await?;
            (chain, signer, Some(lock))
        }
    };
    let to = to.unwrap_or(signer.address());
    let mined = chain.transact(&signer, &chain.contracts().withdraw(*token, to), MINED_WITHIN).await?;
    let decode = chain.decoder();
    let withdrawn = mined.logs.iter().find_map(|log| match decode(log) {
        Ok(Event::CreditWithdrawn { amount, .. }) => Some(amount),
        _ => None,
    });
    let amount = withdrawn.with_context(|| format!("transaction {} withdrew nothing", mined.hash))?;
    if global.json {
        return print_json(&json!({ "withdrawn": amount.to_string(), "token": token, "to": to, "tx": mined.hash }));
    }
    println!("{amount} of {} withdrawn to {to}", unit(*token));
    Ok(())
}

/// Runs `fabstir dispute`.
pub async fn dispute(global: &Global, arguments: &DisputeArguments) -> Result<()> {
    use sha2::Digest;
    let file = &arguments.evidence;
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()));
    let evidence = B256::from_slice(&sha2::Sha256::digest(bytes.map_err(|error| Fault::Usage.of(error))?));
    let mined = renter(global, &arguments.key).await?.dispute(JobId(arguments.job), evidence).await?;
    if global.json {
        return print_json(&json!({ "job": arguments.job, "evidence_sha256": evidence, "tx": mined.hash }));
    }
    println!(
        "job {} waits for the arbiter; keep {}: its SHA-256 {evidence} is on chain",
        arguments.job,
        file.display()
    );
    Ok(())
}

/// Runs `fabstir rate`.
pub async fn rate(global: &Global, arguments: &RateArguments) -> Result<()> {
    let RateArguments { job, rating, feedback, .. } = arguments;
    let mined = renter(global, &arguments.key).await?.rate(JobId(*job), *rating, feedback.clone()).await?;
    if global.json {
        return print_json(&json!({ "job": job, "rating": rating, "tx": mined.hash }));
    }
    println!("job {job}: rated {rating}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_a_name_that_a_result_format_can_hold() {
        let longest = "x".repeat(REGION_BYTES_MAX);
        for name in ["eu-west", "EU", "日本", &longest] {
            assert_eq!(region(name).as_deref(), Ok(name));
        }
        for (name, why) in [
            ("", "has a name"),
            ("eu;json", "has no ';'"),
            ("region=eu", "has no '='"),
            ("eu west", "has no ' '"),
            ("eu\u{a0}", "has no '\\u{a0}'"),
            ("eu\n", "has no '\\n'"),
            ("eu\u{7f}", "has no '\\u{7f}'"),
            (&format!("{longest}x"), "116 bytes, and a region's name has at most 115"),
        ] {
            let refusal = region(name).expect_err(name);
            assert!(refusal.contains(why), "{name:?}: {refusal}");
        }
    }
}
