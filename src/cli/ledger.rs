//! `fabstir ledger`: what the account earned, what gas it paid and for what, and whether that adds up on chain.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::control::account;
use super::history::{existing, open};
use super::run::connect;
use super::{Fault, Global, configuration, decimal, plain, print_json, say};
use crate::books::{self, Checked, CheckedToken, Unexplained};
use crate::market::ledger::{By, Fate, Gas, Ledger, Line, Reconciled, Why};
use crate::market::types::{Address, U256};

/// Transfers of one token for other reasons than a job that are printed; JSON has all.
const OTHERS_SHOWN: usize = 20;

#[derive(Debug, clap::Args)]
pub struct LedgerArguments {
    /// Show a line for each of these.
    #[arg(long, value_enum, default_value_t = Group::Model)]
    by: Group,
    /// Compare with the chain: what the account has, of ETH and of each token of its jobs, must follow to the smallest unit from what
    /// came and went. Exit code 4 where it does not.
    #[arg(long)]
    check: bool,
    /// Compare from the end of this block on, instead of from the account's first transaction, or its first payment in a token.
    #[arg(long, value_name = "BLOCK", requires = "check")]
    from: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Group {
    Model,
    Renter,
    Job,
}

/// Runs `fabstir ledger`.
pub async fn ledger(global: &Global, arguments: &LedgerArguments) -> Result<()> {
    let config = configuration(global)?;
    existing(&config)?;
    let us = account(global, &config).await?;
    let store = open(&config).await?;
    let by = match arguments.by {
        Group::Model => By::Model,
        Group::Renter => By::Renter,
        Group::Job => By::Job,
    };
    let (jobs, spent) = (store.accounts(us).await?, store.spent(us).await?);
    let ledger = Ledger::of(us, store.time().await?, &jobs, &spent, by);
    let checked = match arguments.check {
        false => None,
        true => {
            let newest = store.cursor().await?.map_or(0, |cursor| cursor.number);
            if let Some(from) = arguments.from.filter(|from| *from > newest) {
                return Err(Fault::Usage.of(anyhow!("--from {from}: the newest block stored is {newest}")));
            }
            let chain = connect(&config).await?;
            let checked = books::check(&store, &chain, us, arguments.from).await;
            Some(checked.map_err(|error| Fault::Endpoint.of(error))?)
        }
    };
    store.close().await;
    if global.json {
        let groups: serde_json::Map<_, _> =
            ledger.groups.iter().map(|(name, line)| (name.trim().to_owned(), of_line(line))).collect();
        print_json(&json!({
            "host": us, "total": of_line(&ledger.total), "groups": groups, "kinds": ledger.kinds,
            "check": checked.as_ref().map(of_check),
        }))?;
    } else {
        print(us, &ledger)?;
        checked.as_ref().map_or(Ok(()), |checked| print_check(us, checked))?;
    }
    match checked {
        Some(checked) if !checked.is_right() => Err(Fault::Divergence
            .of(anyhow!("the books and the chain differ in {}: see above", wrong(&checked).join(", ")))),
        _ => Ok(()),
    }
}

fn of_line(line: &Line) -> Value {
    json!({
        "income": line.income, "gas": line.gas, "gas_wei": line.gas_wei().to_string(),
        "regret_wei": line.regret_wei().to_string(), "net_wei": line.net_wei().to_string(),
    })
}

fn of_check(checked: &Checked) -> Value {
    let unexplained = checked.unexplained.iter();
    let unexplained: Vec<Value> =
        unexplained.map(|it| json!({ "block": it.block, "wei": it.amount.to_string() })).collect();
    json!({
        "right": checked.is_right(), "books": checked.books, "others": checked.others,
        "unexplained": unexplained, "mismatched": checked.mismatched,
        "credited_not_withdrawn": checked.credited.to_string(),
        "tokens": checked.tokens.iter().map(of_token).collect::<Vec<_>>(),
    })
}

fn of_token(checked: &CheckedToken) -> Value {
    let CheckedToken { token, books, others, unexplained, credited, mismatched } = checked;
    let of = |why| books.of_why(why).to_string();
    let blocks = unexplained.iter().map(|it| json!({ "block": it.block, "amount": it.amount.to_string() }));
    json!({
        "token": token, "from": books.from, "to": books.to, "opening": books.opening.to_string(),
        "income": of(Why::Income), "refunds": of(Why::Refund), "other_in": of(Why::Received),
        "posted": of(Why::Posted), "other_out": of(Why::Sent), "closing": books.closing.to_string(),
        "credited": of(Why::Credited), "withdrawn": of(Why::Withdrawn), "credited_not_withdrawn": credited.to_string(),
        "unexplained": books.unexplained.to_string(), "unexplained_in": blocks.collect::<Vec<_>>(),
        "others": others, "mismatched": mismatched,
    })
}

/// Returns in what the books and the chain differ.
fn wrong(checked: &Checked) -> Vec<String> {
    let in_eth = (!checked.books.unexplained.is_zero()).then(|| "ETH".to_owned());
    let settled = (!checked.mismatched.is_empty()).then(|| "what settled jobs paid".to_owned());
    let tokens = checked.tokens.iter().filter(|token| !token.is_right()).map(|token| format!("token {}", token.token));
    in_eth.into_iter().chain(settled).chain(tokens).collect()
}

fn print(us: Address, ledger: &Ledger) -> Result<()> {
    say(format!("host {us}"))?;
    for (token, income) in &ledger.total.income {
        let (jobs, net, fee) = (income.jobs, income.net, income.fee);
        match token.is_zero() {
            true => say(format!("income  {} ETH net of {jobs} jobs ({net} wei), fee {fee} wei", decimal(net, 18)))?,
            false => say(format!("income  {net} of token {token} net of {jobs} jobs, fee {fee}"))?,
        }
    }
    let total = &ledger.total;
    let share = |part: &Line| {
        format!("{} ETH, {} ETH of it for nothing", decimal(part.gas_wei(), 18), decimal(part.regret_wei(), 18))
    };
    say(format!("gas     {}", share(total)))?;
    say(format!("net     {} wei of ETH", total.net_wei()))?;
    say(format!("\n{:<16}  {:<13}  {:>6}  {:>26}", "TRANSACTION", "FATE", "COUNT", "WEI"))?;
    for (kind, fates) in &ledger.kinds {
        print_fates(kind, fates)?;
    }
    say(format!("\n{:<42}  {:>26}  {:>26}  {:>26}", "OF", "ETH INCOME (WEI)", "GAS (WEI)", "FOR NOTHING (WEI)"))?;
    for (name, line) in &ledger.groups {
        let name: String = plain(name.trim()).chars().take(42).collect();
        let income = line.income.get(&Address::ZERO).map_or("0".into(), |income| income.net.to_string());
        say(format!("{name:<42}  {income:>26}  {:>26}  {:>26}", line.gas_wei(), line.regret_wei()))?;
    }
    Ok(())
}

fn print_fates(kind: &str, fates: &BTreeMap<Fate, Gas>) -> Result<()> {
    fates.iter().try_for_each(|(fate, gas)| {
        say(format!("{kind:<16}  {:<13}  {:>6}  {:>26}", fate.name(), gas.transactions, gas.wei))
    })
}

fn print_check(us: Address, checked: &Checked) -> Result<()> {
    let books = &checked.books;
    say(format!("\nthe account's ETH from the end of block {} to the end of block {}, in wei", books.from, books.to))?;
    print_books(books)?;
    for other in &checked.others {
        say(format!("  not of the node: nonce {} in block {}, {}", other.nonce, other.block, other.hash))?;
    }
    print_credited(checked.credited)?;
    print_rest(books, "wei", &checked.unexplained, "no transaction of the account")?;
    checked.mismatched.iter().try_for_each(|what| say(format!("  WRONG: {what}")))?;
    for CheckedToken { token, books, others, unexplained, credited, mismatched } in &checked.tokens {
        let (from, to) = (books.from, books.to);
        say(format!(
            "\nthe account's token {token} from the end of block {from} to the end of block {to}, in its smallest unit"
        ))?;
        print_books(books)?;
        for other in others.iter().take(OTHERS_SHOWN) {
            let way = if other.to == us { ("from", other.from) } else { ("to", other.to) };
            say(format!(
                "  not of a job: {} {} {} in block {}, {}",
                other.amount, way.0, way.1, other.block, other.tx
            ))?;
        }
        if others.len() > OTHERS_SHOWN {
            say(format!("  not of a job: {} more, --json has them", others.len() - OTHERS_SHOWN))?;
        }
        print_credited(*credited)?;
        print_rest(books, "units", unexplained, "no transfer that the token tells of")?;
        mismatched.iter().try_for_each(|what| say(format!("  WRONG: {what}")))?;
    }
    Ok(())
}

fn print_books(books: &Reconciled) -> Result<()> {
    say(format!("  {:<34}  {:>30}", "had", books.opening))?;
    for (why, amount) in books.moved.iter().filter(|(_, amount)| !amount.is_zero()) {
        let (sign, what) = match why {
            Why::Income => ("+", "paid for jobs"),
            Why::Refund => ("+", "refunded of jobs it had posted"),
            Why::Withdrawn => ("+", "withdrawn of what was credited"),
            Why::Received => ("+", "received by other transfers"),
            Why::Credited => ("-", "credited by the escrow, not paid"),
            Why::Gas => ("-", "gas of the node's transactions"),
            Why::OtherGas => ("-", "gas of other transactions of its key"),
            Why::Posted => ("-", "paid for jobs it posted"),
            Why::Sent => ("-", "sent otherwise"),
        };
        say(format!("{sign} {what:<34}  {amount:>30}"))?;
    }
    say(format!("  {:<34}  {:>30}", "has", books.closing))
}

fn print_credited(credited: U256) -> Result<()> {
    match credited.is_zero() {
        true => Ok(()),
        false => say(format!("  credited, not withdrawn: {credited} (`fabstir withdraw`)")),
    }
}

fn print_rest(books: &Reconciled, unit: &str, unexplained: &[Unexplained], why: &str) -> Result<()> {
    match books.unexplained.is_zero() {
        true => say("  it adds up")?,
        false => say(format!("  UNEXPLAINED: {} {unit}", books.unexplained))?,
    }
    unexplained
        .iter()
        .try_for_each(|it| say(format!("  UNEXPLAINED: {} {unit} in block {}: {why}", it.amount, it.block)))
}
