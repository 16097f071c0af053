//! What the account earned, what it paid for gas, how much of that was for nothing, and whether it adds up.
//!
//! Gas is wei, income is in the smallest unit of each job's token: the two are never added where the token is not ETH.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use alloy::primitives::I256;
use serde::{Serialize, Serializer};

use super::event::Event;
use super::types::{Address, B256, JobId, U256, UnixSeconds, decimal};

/// What became of a transaction's gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It did what it was sent for, and nothing came to nothing by it yet.
    Useful,
    /// A claim that was refused because another host had the job, or it was gone; or somebody else had asked for our payment already.
    LostRace,
    /// Refused for another reason.
    Reverted,
    /// It did what it was sent for, for a job whose money went back to its renter, or will: nobody completed it in time, or the
    /// arbiter decided so.
    Expired,
    /// As that, for a job that this host gave back.
    GivenUp,
    /// It took the place of a transaction that was no longer wanted.
    Cancelled,
}

impl Fate {
    /// Returns the fate's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Useful => "useful",
            Fate::LostRace => "lost race",
            Fate::Reverted => "reverted",
            Fate::Expired => "expired claim",
            Fate::GivenUp => "given up",
            Fate::Cancelled => "cancelled",
        }
    }
}

/// A transaction of ours that was mined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    pub intent: i64,
    pub job: Option<JobId>,
    /// What it was to do, in one word.
    pub kind: String,
    pub nonce: u64,
    pub block: u64,
    pub success: bool,
    /// What was mined is not what it was to do, but nothing in its place.
    pub cancelled: bool,
    /// All it cost: gas, and what a rollup takes for the chain below.
    pub fee_wei: U256,
}

/// A job as the books need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: JobId,
    pub model: String,
    pub renter: Address,
    /// Who has or had it on chain.
    pub host: Option<Address>,
    /// In which blocks a claim of ours that was refused came too late: see [`taken`].
    pub taken: Vec<RangeInclusive<u64>>,
    pub refunded: bool,
    /// Whether it was completed in time, so that its deadline matters no more.
    pub completed: bool,
    pub deadline: UnixSeconds,
    pub token: Address,
    pub payment: U256,
    /// What its host was paid, and the fee, once the escrow paid out.
    pub released: Option<(U256, U256)>,
}

/// Income in one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Income {
    pub jobs: u64,
    #[serde(serialize_with = "decimal")]
    pub net: U256,
    #[serde(serialize_with = "decimal")]
    pub fee: U256,
}

/// How many transactions, and their gas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Gas {
    pub transactions: u64,
    #[serde(serialize_with = "decimal")]
    pub wei: U256,
}

impl Gas {
    fn add(&mut self, wei: U256) {
        self.transactions += 1;
        self.wei = self.wei.saturating_add(wei);
    }
}

/// One line of the books.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// By token; the zero address is ETH.
    pub income: BTreeMap<Address, Income>,
    pub gas: BTreeMap<Fate, Gas>,
}

impl Line {
    /// Returns all that was paid for gas.
    pub fn gas_wei(&self) -> U256 {
        self.gas.values().fold(U256::ZERO, |sum, gas| sum.saturating_add(gas.wei))
    }

    /// Returns what of that was for nothing.
    pub fn regret_wei(&self) -> U256 {
        self.gas_wei() - self.gas.get(&Fate::Useful).map_or(U256::ZERO, |gas| gas.wei)
    }

    /// Returns income less gas in wei, of the jobs paid in ETH and the gas of all.
    pub fn net_wei(&self) -> I256 {
        let income = self.income.get(&Address::ZERO).map_or(U256::ZERO, |income| income.net);
        I256::from_raw(income.wrapping_sub(self.gas_wei()))
    }
}

/// By what the lines of a [`Ledger`] are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Model,
    Renter,
    Job,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub total: Line,
    pub groups: BTreeMap<String, Line>,
    /// By kind of transaction.
    pub kinds: BTreeMap<String, BTreeMap<Fate, Gas>>,
}

impl Ledger {
    /// The group of transactions that concern no one job.
    pub const NO_JOB: &str = "-";

    /// Enters everything once. `now` is the time of the newest block known.
    pub fn of(us: Address, now: UnixSeconds, jobs: &[Account], spent: &[Spent], by: By) -> Self {
        let known: BTreeMap<JobId, &Account> = jobs.iter().map(|job| (job.id, job)).collect();
        let group = |job: Option<&Account>| match (job, by) {
            (None, _) => Ledger::NO_JOB.to_owned(),
            (Some(job), By::Model) => job.model.clone(),
            (Some(job), By::Renter) => job.renter.to_string(),
            // Numbers in order.
            (Some(job), By::Job) => format!("{:>20}", job.id),
        };
        let mut ledger = Ledger::default();
        for job in jobs.iter().filter(|job| job.host == Some(us)) {
            let Some((net, fee)) = job.released else { continue };
            for line in [&mut ledger.total, ledger.groups.entry(group(Some(job))).or_default()] {
                let income = line.income.entry(job.token).or_default();
                income.jobs += 1;
                income.net = income.net.saturating_add(net);
                income.fee = income.fee.saturating_add(fee);
            }
        }
        for tx in spent {
            let job = tx.job.and_then(|id| known.get(&id).copied());
            let fate = fate(us, now, tx, job);
            ledger.total.gas.entry(fate).or_default().add(tx.fee_wei);
            ledger.groups.entry(group(job)).or_default().gas.entry(fate).or_default().add(tx.fee_wei);
            ledger.kinds.entry(tx.kind.clone()).or_default().entry(fate).or_default().add(tx.fee_wei);
        }
        ledger
    }
}

/// Returns what became of a mined transaction's gas. `job` is the one it concerns, if any.
pub fn fate(us: Address, now: UnixSeconds, tx: &Spent, job: Option<&Account>) -> Fate {
    let ours = job.is_some_and(|job| job.host == Some(us));
    match job {
        _ if tx.cancelled => Fate::Cancelled,
        Some(job) if !tx.success && tx.kind == "claim" && job.taken.iter().any(|blocks| blocks.contains(&tx.block)) => {
            Fate::LostRace
        }
        Some(job) if !tx.success && tx.kind == "release" && job.released.is_some() => Fate::LostRace,
        _ if !tx.success => Fate::Reverted,
        None => Fate::Useful,
        Some(job) if ours && (job.refunded || (!job.completed && now >= job.deadline)) => Fate::Expired,
        Some(_) if ours => Fate::Useful,
        Some(_) => Fate::GivenUp,
    }
}

/// Returns in which blocks, both ends of each stretch included, another host than `us` had the job that these events tell of, in chain
/// order with the number of each one's block, or its money was back with its renter.
pub fn taken(us: Address, events: &[(u64, Event)]) -> Vec<RangeInclusive<u64>> {
    let (mut stretches, mut since, mut ours) = (Vec::new(), None, false);
    for (block, event) in events {
        match event {
            Event::JobClaimed { host, .. } if *host == us => ours = true,
            Event::JobClaimed { .. } => since = Some(*block),
            Event::JobReopened { .. } => {
                ours = false;
                stretches.extend(since.take().map(|since| since..=*block));
            }
            Event::PaymentRefunded { .. } if !ours => since = since.or(Some(*block)),
            _ => {}
        }
    }
    stretches.extend(since.map(|since| since..=u64::MAX));
    stretches
}

/// Returns of each settled job, whose money the escrow paid out, where net and fee are not the payment.
pub fn mismatched(jobs: &[Account]) -> Vec<String> {
    let wrong = |job: &&Account| job.released.is_some_and(|(net, fee)| net.checked_add(fee) != Some(job.payment));
    let told = |job: &Account| {
        let (net, fee) = job.released.unwrap_or_default();
        format!("job {}: the escrow paid {net} and a fee of {fee}, the payment was {}", job.id, job.payment)
    };
    jobs.iter().filter(wrong).map(told).collect()
}

/// Why the account's ETH, or what it has of a token, became more or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A job was paid to us.
    Income,
    /// A job that we had posted was refunded.
    Refund,
    /// What the escrow owed us came.
    Withdrawn,
    /// Any other transfer of a token to us.
    Received,
    /// The escrow could not pay a job or a refund to us, and owes it since.
    Credited,
    /// Gas of the node's transactions.
    Gas,
    /// Gas of transactions of the account that the node's file does not have: of commands, or of another wallet.
    OtherGas,
    /// We posted a job that is paid in a token.
    Posted,
    /// ETH that a transaction of the account sent along that the node's file does not have; any other transfer of a token from us.
    Sent,
}

impl Why {
    fn adds(self) -> bool {
        matches!(self, Why::Income | Why::Refund | Why::Withdrawn | Why::Received)
    }
}

/// ETH or a token that came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movement {
    pub block: u64,
    pub why: Why,
    /// In wei, or the token's smallest unit.
    pub amount: U256,
}

/// What the marketplace says that the escrow paid the account, or took for a job that the account posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    pub job: JobId,
    /// The zero address is ETH.
    pub token: Address,
    pub tx: B256,
    pub movement: Movement,
}

/// What the escrow says that it owes the account, as it could not pay it, or that the account then had sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// The zero address is ETH.
    pub token: Address,
    pub block: u64,
    pub tx: B256,
    pub amount: U256,
    /// Where it was sent; `None`: it is owed from here on.
    pub to: Option<Address>,
}

/// Payments in one token beside what the escrow credited of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credited {
    /// The payments that were made at once.
    pub paid: Vec<Payment>,
    /// What the other payments did not bring, and what was withdrawn.
    pub movements: Vec<Movement>,
}

impl Credited {
    /// Finds for each payment to `us` what was credited in its place: as much of its token in the same transaction.
    pub fn of(us: Address, payments: &[Payment], credits: &[Credit]) -> Self {
        let mut owed = BTreeMap::<(B256, Address, U256), u64>::new();
        let mut credited = Self::default();
        for &Credit { token, block, tx, amount, to } in credits {
            let Some(to) = to else {
                *owed.entry((tx, token, amount)).or_default() += 1;
                continue;
            };
            credited.movements.push(Movement { block, why: Why::Withdrawn, amount });
            credited.movements.extend((to != us).then_some(Movement { block, why: Why::Sent, amount }));
        }
        for payment in payments {
            let Payment { token, tx, movement: Movement { block, why, amount }, .. } = *payment;
            match owed.get_mut(&(tx, token, amount)).filter(|count| why.adds() && **count > 0) {
                Some(count) => {
                    *count -= 1;
                    credited.movements.push(Movement { block, why: Why::Credited, amount });
                }
                None => credited.paid.push(*payment),
            }
        }
        credited
    }
}

/// Returns what the escrow owes of what it credited.
pub fn owed(credits: &[Credit]) -> U256 {
    let sum = |sent: bool| {
        let some = credits.iter().filter(|credit| credit.to.is_some() == sent);
        some.fold(U256::ZERO, |sum, credit| sum.saturating_add(credit.amount))
    };
    sum(false).saturating_sub(sum(true))
}

/// What a token says that it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Transfer {
    pub block: u64,
    pub tx: B256,
    pub from: Address,
    pub to: Address,
    #[serde(serialize_with = "decimal")]
    pub amount: U256,
}

/// The payments in one token beside its transfers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched {
    /// The payments, what was credited and withdrawn, and the transfers that are neither.
    pub movements: Vec<Movement>,
    /// The transfers that are neither.
    pub others: Vec<Transfer>,
    /// Payments and withdrawals that the token moved otherwise, or not at all.
    pub mismatched: Vec<String>,
}

impl Matched {
    /// Finds for each payment that was not credited, and each credit that `us` withdrew to itself, the transfer between `us` and
    /// `escrow` in the same transaction that moved it: one of the same amount, or else another, which is told.
    pub fn of(us: Address, escrow: Address, payments: &[Payment], credits: &[Credit], transfers: &[Transfer]) -> Self {
        let mut places = BTreeMap::<(B256, Address, Address), BTreeSet<usize>>::new();
        for (place, transfer) in transfers.iter().enumerate() {
            places.entry((transfer.tx, transfer.from, transfer.to)).or_default().insert(place);
        }
        let mut take = |due: &Transfer, amount: Option<U256>| {
            let places = places.get_mut(&(due.tx, due.from, due.to))?;
            let place = places.iter().copied().find(|place| amount.is_none_or(|it| it == transfers[*place].amount))?;
            places.remove(&place).then_some(place)
        };
        let credited = Credited::of(us, payments, credits);
        let (mut taken, mut left) = (BTreeSet::new(), Vec::new());
        for (what, token, due) in due(us, escrow, &credited.paid, credits) {
            match take(&due, Some(due.amount)) {
                Some(place) => {
                    taken.insert(place);
                }
                None => left.push((what, token, due)),
            }
        }
        let mut matched = Self::default();
        for (what, token, due) in left {
            let place = take(&due, None);
            taken.extend(place);
            let moved = place.map_or("nothing".into(), |place| transfers[place].amount.to_string());
            let Transfer { block, tx, amount, .. } = due;
            matched
                .mismatched
                .push(format!("{what} was {amount} of token {token}, which moved {moved} in block {block}, {tx}"));
        }
        matched.movements.extend(payments.iter().map(|payment| payment.movement));
        matched.movements.extend(credited.movements);
        for (place, transfer) in transfers.iter().enumerate().filter(|(place, _)| !taken.contains(place)) {
            let Transfer { block, from, to, amount, .. } = *transfer;
            let ways = [(to, Why::Received), (from, Why::Sent)].into_iter().filter(|(end, _)| *end == us);
            matched.movements.extend(ways.map(|(_, why)| Movement { block, why, amount }));
            matched.others.push(transfers[place]);
        }
        matched
    }
}

/// Returns the transfers between `us` and `escrow` that these payments and withdrawals are, each with what it is and its token.
fn due(us: Address, escrow: Address, paid: &[Payment], credits: &[Credit]) -> Vec<(String, Address, Transfer)> {
    let payment = |payment: &Payment| {
        let Payment { job, token, tx, movement: Movement { block, why, amount } } = *payment;
        let (from, to) = if why.adds() { (escrow, us) } else { (us, escrow) };
        (format!("job {job}: the payment"), token, Transfer { block, tx, from, to, amount })
    };
    let withdrawal = |credit: &Credit| {
        let Credit { token, block, tx, amount, .. } = *credit;
        ("what was withdrawn".to_owned(), token, Transfer { block, tx, from: escrow, to: us, amount })
    };
    let withdrawn = credits.iter().filter(|credit| credit.to == Some(us));
    paid.iter().map(payment).chain(withdrawn.map(withdrawal)).collect()
}

/// The account's ETH, or what it has of a token, from the end of one block to the end of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    pub from: u64,
    pub to: u64,
    #[serde(serialize_with = "decimal")]
    pub opening: U256,
    #[serde(serialize_with = "decimals")]
    pub moved: BTreeMap<Why, U256>,
    #[serde(serialize_with = "decimal")]
    pub closing: U256,
    /// What it has more than all known movements explain; less, where it is negative.
    #[serde(serialize_with = "signed")]
    pub unexplained: I256,
}

impl Reconciled {
    /// Adds the movements in blocks `from + 1..=to` to what the account had at the end of `from`, and compares with `closing`.
    pub fn of(from: u64, to: u64, opening: U256, movements: &[Movement], closing: U256) -> Self {
        let mut moved: BTreeMap<Why, U256> = BTreeMap::new();
        // Modulo 2^256, as balances are far below: the difference comes out signed.
        let mut expected = opening;
        for movement in movements.iter().filter(|movement| (from + 1..=to).contains(&movement.block)) {
            let sum = moved.entry(movement.why).or_default();
            *sum = sum.saturating_add(movement.amount);
            expected = match movement.why.adds() {
                true => expected.wrapping_add(movement.amount),
                false => expected.wrapping_sub(movement.amount),
            };
        }
        let unexplained = I256::from_raw(closing.wrapping_sub(expected));
        Self { from, to, opening, moved, closing, unexplained }
    }

    /// Returns how much moved for that reason.
    pub fn of_why(&self, why: Why) -> U256 {
        self.moved.get(&why).copied().unwrap_or_default()
    }
}

fn signed<S: Serializer>(amount: &I256, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

fn decimals<S: Serializer>(moved: &BTreeMap<Why, U256>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(moved.iter().map(|(why, amount)| (why, amount.to_string())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Address = Address::repeat_byte(0xaa);
    const RIVAL: Address = Address::repeat_byte(0xbb);
    const ESCROW: Address = Address::repeat_byte(0xcc);
    const TOKEN: Address = Address::repeat_byte(0xdd);
    const NOW: UnixSeconds = UnixSeconds(1000);

    fn wei(amount: u64) -> U256 {
        U256::from(amount)
    }

    fn account(id: u64, host: Option<Address>) -> Account {
        Account {
            id: JobId(id),
            model: format!("model {}", id % 2),
            renter: Address::repeat_byte(id as u8),
            host,
            taken: host.filter(|host| *host != US).map(|_| 0..=u64::MAX).into_iter().collect(),
            refunded: false,
            completed: false,
            deadline: UnixSeconds(2000),
            token: Address::ZERO,
            payment: wei(100),
            released: None,
        }
    }

    fn settled(id: u64, host: Address) -> Account {
        Account { completed: true, released: Some((wei(97), wei(3))), ..account(id, Some(host)) }
    }

    fn tx(job: u64, kind: &str, success: bool, fee: u64) -> Spent {
        Spent {
            intent: 1,
            job: Some(JobId(job)),
            kind: kind.into(),
            nonce: 0,
            block: 5,
            success,
            cancelled: false,
            fee_wei: wei(fee),
        }
    }

    #[test]
    fn each_fate_is_told_from_the_others() {
        let of = |tx: &Spent, job: &Account| fate(US, NOW, tx, Some(job));
        let (claim, refused) = (tx(1, "claim", true, 1), tx(1, "claim", false, 1));
        assert_eq!(of(&claim, &settled(1, US)), Fate::Useful);
        assert_eq!(of(&claim, &account(1, Some(US))), Fate::Useful, "nothing came to nothing yet");
        assert_eq!(of(&refused, &account(1, Some(RIVAL))), Fate::LostRace);
        let cancelled_by_renter = Account { taken: vec![5..=u64::MAX], refunded: true, ..account(1, None) };
        assert_eq!(of(&refused, &cancelled_by_renter), Fate::LostRace, "it was gone");
        assert_eq!(of(&refused, &account(1, None)), Fate::Reverted, "nobody has it: the market refused");
        // Mined in block 5, whoever has the job today.
        assert_eq!(of(&refused, &Account { taken: vec![2..=5, 9..=9], ..account(1, None) }), Fate::LostRace);
        assert_eq!(of(&refused, &Account { taken: vec![4..=7], ..account(1, Some(US)) }), Fate::LostRace);
        assert_eq!(
            of(&refused, &Account { taken: vec![6..=9], ..account(1, Some(RIVAL)) }),
            Fate::Reverted,
            "too early"
        );
        assert_eq!(of(&tx(1, "release", false, 1), &settled(1, US)), Fate::LostRace, "somebody asked before");
        assert_eq!(of(&tx(1, "release", false, 1), &account(1, Some(US))), Fate::Reverted);
        assert_eq!(of(&tx(1, "commit", false, 1), &account(1, Some(US))), Fate::Reverted);
        assert_eq!(of(&claim, &Account { deadline: NOW, ..account(1, Some(US)) }), Fate::Expired);
        assert_eq!(of(&claim, &Account { deadline: NOW, ..settled(1, US) }), Fate::Useful);
        assert_eq!(of(&claim, &Account { refunded: true, ..account(1, Some(US)) }), Fate::Expired);
        assert_eq!(of(&claim, &account(1, Some(RIVAL))), Fate::GivenUp);
        assert_eq!(of(&Spent { cancelled: true, ..claim.clone() }, &settled(1, US)), Fate::Cancelled);
        assert_eq!(fate(US, NOW, &Spent { job: None, ..claim }, None), Fate::Useful);
    }

    #[test]
    fn a_job_is_taken_while_another_host_has_it_or_its_money_is_gone() {
        let job = JobId(1);
        let claimed = |host| Event::JobClaimed { job, host };
        let (reopened, refunded) = (
            Event::JobReopened { job, controller: RIVAL },
            Event::PaymentRefunded { job, renter: RIVAL, amount: wei(1) },
        );
        let of = |events: &[(u64, Event)]| taken(US, events);
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[(3, claimed(US)), (4, refunded.clone())]), [], "it was ours");
        assert_eq!(of(&[(3, claimed(RIVAL)), (4, refunded.clone())]), [3..=u64::MAX]);
        let ours_at_last = [(3, claimed(RIVAL)), (5, reopened.clone()), (5, claimed(US))];
        assert_eq!(of(&ours_at_last), [3..=5]);
        let given_back = [(3, claimed(US)), (5, reopened), (8, claimed(RIVAL))];
        assert_eq!(of(&given_back), [8..=u64::MAX]);
        assert_eq!(of(&[(7, refunded)]), [7..=u64::MAX], "its renter took it back");
    }

    #[test]
    fn income_and_regret_are_told_by_model() {
        let jobs =
            [settled(1, US), settled(2, RIVAL), settled(3, US), Account { refunded: true, ..account(4, Some(US)) }];
        let spent =
            [tx(1, "claim", true, 10), tx(2, "claim", false, 4), tx(4, "claim", true, 7), tx(9, "claim", true, 1)];
        let ledger = Ledger::of(US, NOW, &jobs, &spent, By::Model);
        assert_eq!(ledger.total.income[&Address::ZERO], Income { jobs: 2, net: wei(194), fee: wei(6) });
        assert_eq!((ledger.total.gas_wei(), ledger.total.regret_wei()), (wei(22), wei(11)));
        assert_eq!(ledger.total.net_wei(), I256::try_from(172).expect("small"));
        let even = &ledger.groups["model 0"];
        assert_eq!((even.net_wei(), even.income.len()), (I256::try_from(-11).expect("small"), 0));
        assert_eq!(even.gas[&Fate::LostRace], Gas { transactions: 1, wei: wei(4) });
        assert_eq!(ledger.groups[Ledger::NO_JOB].gas_wei(), wei(1));
        assert_eq!(ledger.kinds["claim"].len(), 3);
    }

    #[test]
    fn what_does_not_add_up_is_told_to_the_wei() {
        let move_of = |block, why, amount| Movement { block, why, amount: wei(amount) };
        let movements = [
            move_of(5, Why::Gas, 1_000_000),
            move_of(6, Why::Income, 97),
            move_of(6, Why::Gas, 30),
            move_of(7, Why::Sent, 5),
            move_of(8, Why::Refund, 11),
            move_of(9, Why::Income, 1_000_000),
        ];
        let of = |closing| Reconciled::of(5, 8, wei(1000), &movements, wei(closing));
        assert_eq!(of(1073).unexplained, I256::ZERO, "what was before or comes after is not counted");
        assert_eq!(of(1072).unexplained, I256::MINUS_ONE);
        assert_eq!(of(1080).unexplained, I256::try_from(7).expect("small"));
        assert_eq!(of(1080).moved[&Why::Gas], wei(30));
        let json = serde_json::to_value(of(1072)).expect("JSON");
        assert_eq!((&json["unexplained"], &json["moved"]["gas"]), (&"-1".into(), &"30".into()));
    }

    #[test]
    fn a_job_whose_payment_is_not_net_and_fee_is_found() {
        let wrong = Account { released: Some((wei(97), wei(4))), ..settled(2, US) };
        assert_eq!(
            mismatched(&[settled(1, US), wrong, account(3, None)]),
            ["job 2: the escrow paid 97 and a fee of 4, the payment was 100"]
        );
    }

    fn jobs() -> impl Strategy<Value = Vec<Account>> {
        let job = (0..4u8, any::<bool>(), any::<bool>(), 0..2000u64, 0..2u8, any::<u32>());
        prop::collection::vec(job, 0..12).prop_map(|jobs| {
            let account =
                |(id, (host, refunded, paid, deadline, token, net)): (usize, (u8, bool, bool, u64, u8, u32))| Account {
                    refunded,
                    deadline: UnixSeconds(deadline),
                    token: Address::repeat_byte(token),
                    released: if paid { Some((wei(net.into()), wei(1))) } else { None },
                    ..account(id as u64, [None, Some(US), Some(RIVAL), Some(US)][usize::from(host)])
                };
            jobs.into_iter().enumerate().map(account).collect()
        })
    }

    fn spent() -> impl Strategy<Value = Vec<Spent>> {
        let kind = prop::sample::select(vec!["claim", "commit", "complete", "release"]);
        let one = (0..16u64, kind, any::<bool>(), any::<bool>(), any::<u32>());
        let one = one
            .prop_map(|(job, kind, success, cancelled, fee)| Spent { cancelled, ..tx(job, kind, success, fee.into()) });
        prop::collection::vec(one, 0..24)
    }

    fn movements() -> impl Strategy<Value = Vec<Movement>> {
        let whys = [
            Why::Income,
            Why::Refund,
            Why::Withdrawn,
            Why::Received,
            Why::Credited,
            Why::Gas,
            Why::OtherGas,
            Why::Posted,
            Why::Sent,
        ]
        .to_vec();
        let one = (0..20u64, prop::sample::select(whys), any::<u32>());
        let one = one.prop_map(|(block, why, amount)| Movement { block, why, amount: wei(amount.into()) });
        prop::collection::vec(one, 0..20)
    }

    fn paid(why: Why, tx: u8, amount: u64) -> Payment {
        let movement = Movement { block: 5, why, amount: wei(amount) };
        Payment { job: JobId(tx.into()), token: TOKEN, tx: B256::repeat_byte(tx), movement }
    }

    fn moved(from: Address, to: Address, tx: u8, amount: u64) -> Transfer {
        Transfer { block: 5, tx: B256::repeat_byte(tx), from, to, amount: wei(amount) }
    }

    /// The transfer that is right for a payment.
    fn moved_by(payment: &Payment) -> Transfer {
        let (from, to) = if payment.movement.why.adds() { (ESCROW, US) } else { (US, ESCROW) };
        Transfer { from, to, ..moved(US, US, payment.tx[0], payment.movement.amount.to()) }
    }

    #[test]
    fn a_payment_is_the_transfer_of_its_transaction_between_us_and_the_escrow() {
        let of = |payments: &[Payment], transfers: &[Transfer]| Matched::of(US, ESCROW, payments, &[], transfers);
        let income = paid(Why::Income, 1, 97);
        let right = moved(ESCROW, US, 1, 97);
        assert_eq!(of(&[income], &[right]).others, []);
        for other in [moved(RIVAL, US, 1, 97), moved(US, ESCROW, 1, 97), moved(ESCROW, US, 2, 97)] {
            let matched = of(&[income], &[other, right]);
            assert_eq!((matched.others, matched.mismatched.len()), (vec![other], 0));
            let matched = of(&[income], &[other]);
            assert_eq!((matched.others, matched.mismatched.len()), (vec![other], 1));
            assert!(matched.mismatched[0].contains("job 1: the payment was 97 of"), "{:?}", matched.mismatched);
            assert!(matched.mismatched[0].contains("moved nothing in block 5"), "{:?}", matched.mismatched);
        }
        // Two in one transaction, of which the token kept something of one.
        let (second, less) = (paid(Why::Refund, 1, 50), moved(ESCROW, US, 1, 49));
        let matched = of(&[second, income], &[less, right]);
        assert_eq!((matched.others.len(), matched.mismatched.len()), (0, 1));
        assert!(matched.mismatched[0].contains("was 50 of") && matched.mismatched[0].contains("moved 49 in block 5"));
        let books = Reconciled::of(4, 5, wei(0), &matched.movements, wei(97 + 49));
        assert_eq!(books.unexplained, I256::MINUS_ONE, "what it kept is left");
    }

    fn credit(tx: u8, amount: u64, to: Option<Address>) -> Credit {
        Credit { token: TOKEN, block: 5, tx: B256::repeat_byte(tx), amount: wei(amount), to }
    }

    #[test]
    fn what_the_escrow_credited_is_owed_until_it_is_withdrawn() {
        // Payments that the token moved otherwise, what is left unexplained, and what is owed.
        let of = |payments: &[Payment], credits: &[Credit], transfers: &[Transfer]| {
            let matched = Matched::of(US, ESCROW, payments, credits, transfers);
            let closing = transfers.iter().fold(U256::ZERO, |sum, it| sum + it.amount);
            let books = Reconciled::of(4, 5, wei(0), &matched.movements, closing);
            (matched.mismatched.len() + matched.others.len(), books.unexplained.as_i64(), owed(credits).to::<u64>())
        };
        let (income, refund) = (paid(Why::Income, 1, 97), paid(Why::Refund, 2, 50));
        let (first, second) = (credit(1, 97, None), credit(2, 50, None));
        assert_eq!(of(&[income, refund], &[first, second], &[]), (0, 0, 147));
        assert_eq!(of(&[income, refund], &[first], &[]), (1, -50, 97), "the other is missing");
        // Of another transaction, amount or token: not this payment's.
        for other in [credit(2, 97, None), credit(1, 96, None), Credit { token: RIVAL, ..first }] {
            assert_eq!(of(&[income], &[other], &[]).0, 1, "{other:?}");
        }
        // What the account pays in is never credited.
        assert_eq!(of(&[paid(Why::Posted, 1, 97)], &[first], &[]).0, 1);
        // Two of one amount in one transaction, of which the token refused one.
        assert_eq!(of(&[income, income], &[first], &[moved_by(&income)]), (0, 0, 97));
        let withdrawn = credit(3, 97, Some(US));
        assert_eq!(of(&[income], &[first, withdrawn], &[moved(ESCROW, US, 3, 97)]), (0, 0, 0));
        assert_eq!(of(&[income], &[first, withdrawn], &[]), (1, -97, 0), "the token moved nothing");
        assert_eq!(of(&[income], &[first, credit(3, 97, Some(RIVAL))], &[]), (0, 0, 0), "it is another's");
        // Withdrawn in the transaction that credits it.
        assert_eq!(of(&[income], &[first, credit(1, 97, Some(US))], &[moved_by(&income)]), (0, 0, 0));
        // The treasury's, of which no job of its own tells.
        assert_eq!(of(&[], &[first], &[]), (0, 0, 97));
    }

    proptest! {
        #[test]
        fn every_wei_is_in_the_total_in_one_group_and_under_one_kind(jobs in jobs(), spent in spent()) {
            let paid = spent.iter().fold(U256::ZERO, |sum, tx| sum + tx.fee_wei);
            for by in [By::Model, By::Renter, By::Job] {
                let ledger = Ledger::of(US, NOW, &jobs, &spent, by);
                prop_assert_eq!(ledger.total.gas_wei(), paid);
                let grouped = ledger.groups.values().fold(U256::ZERO, |sum, line| sum + line.gas_wei());
                prop_assert_eq!(grouped, paid);
                let kinds = ledger.kinds.values().flat_map(|fates| fates.values());
                prop_assert_eq!(kinds.fold(U256::ZERO, |sum, gas| sum + gas.wei), paid);
                for (token, income) in &ledger.total.income {
                    let of_groups = ledger.groups.values().filter_map(|line| line.income.get(token));
                    prop_assert_eq!(of_groups.fold(U256::ZERO, |sum, of| sum + of.net), income.net);
                }
            }
        }

        #[test]
        fn a_wei_more_is_a_wei_unexplained(opening in any::<u64>(), moved in movements(), more in any::<i32>()) {
            let opening = U256::from(opening) << 64;
            let closing = moved.iter().filter(|it| (4..=15).contains(&it.block)).fold(opening, |sum, it| {
                if it.why.adds() { sum + it.amount } else { sum - it.amount }
            });
            prop_assert_eq!(Reconciled::of(3, 15, opening, &moved, closing).unexplained, I256::ZERO);
            prop_assert_eq!(Reconciled::of(3, 15, opening, &moved, closing + wei(1)).unexplained, I256::ONE);
            // Whatever it has in the end: what came less what went, and what is left, lead there.
            let more = I256::try_from(more).expect("small");
            let books = Reconciled::of(3, 15, opening, &moved, closing.wrapping_add(more.into_raw()));
            let of = |whys: &[Why]| whys.iter().fold(U256::ZERO, |sum, why| sum + books.of_why(*why));
            let came = of(&[Why::Income, Why::Refund, Why::Withdrawn, Why::Received]);
            let went = of(&[Why::Credited, Why::Gas, Why::OtherGas, Why::Posted, Why::Sent]);
            prop_assert_eq!(books.unexplained, more);
            prop_assert_eq!((opening + came - went).wrapping_add(books.unexplained.into_raw()), books.closing);
            // A day split in two is the same day.
            let half = Reconciled::of(3, 9, opening, &moved, closing);
            let rest = Reconciled::of(9, 15, closing, &moved, closing);
            prop_assert_eq!(half.unexplained + rest.unexplained, I256::ZERO);
        }

        /// Whatever else the token moved, in the same transactions and by the same amounts.
        #[test]
        fn each_payment_has_its_transfer_and_the_rest_are_others(
            payments in prop::collection::vec((0..3usize, 0..4u8, 1..3u64, any::<bool>()), 0..8),
            strangers in prop::collection::vec((0..4usize, 0..4u8, 0..3u64), 0..8),
            order in any::<u64>(),
            lost in any::<prop::sample::Index>(),
        ) {
            let (refused, made): (Vec<_>, Vec<_>) = payments.iter().partition(|(why, _, _, refused)| *refused && *why < 2);
            let of = |(why, tx, amount, _): &(usize, u8, u64, bool)| paid([Why::Income, Why::Refund, Why::Posted][*why], *tx, *amount);
            let (refused, made): (Vec<Payment>, Vec<Payment>) =
                (refused.into_iter().map(of).collect(), made.into_iter().map(of).collect());
            let payments = [&made[..], &refused[..]].concat();
            // What the token refused was credited, and withdrawn at last.
            let refused = refused.iter().map(|it| credit(it.tx[0], it.movement.amount.to(), None));
            let mut credits: Vec<Credit> = refused.collect();
            let withdrawn = credit(9, owed(&credits).to(), Some(US));
            credits.push(withdrawn);
            let strangers: Vec<Transfer> = strangers.iter().map(|(way, tx, amount)| {
                let (from, to) = [(RIVAL, US), (US, RIVAL), (US, US), (RIVAL, US)][*way];
                moved(from, to, *tx, *amount)
            }).collect();
            let mut transfers: Vec<Transfer> = made.iter().map(moved_by).chain(strangers.iter().copied()).collect();
            transfers.push(moved(ESCROW, US, 9, withdrawn.amount.to()));
            transfers.sort_by_key(|it| (it.amount.wrapping_mul(U256::from(order | 1)), it.from, it.to, it.tx));
            let matched = Matched::of(US, ESCROW, &payments, &credits, &transfers);
            prop_assert_eq!(&matched.mismatched, &Vec::<String>::new());
            let sorted = |mut of: Vec<Transfer>| { of.sort_by_key(|it| (it.tx, it.from, it.to, it.amount)); of };
            prop_assert_eq!(sorted(matched.others.clone()), sorted(strangers));
            // The transfers alone make of one balance the other.
            let had = wei(1000);
            let closing = transfers.iter().fold(had, |sum, it| {
                let sum = if it.to == US { sum + it.amount } else { sum };
                if it.from == US { sum - it.amount } else { sum }
            });
            prop_assert_eq!(Reconciled::of(0, 9, had, &matched.movements, closing).unexplained, I256::ZERO);
            // Without one of them its payment is told, and no other.
            if !made.is_empty() {
                let lost = lost.get(&made);
                let gone = transfers.iter().position(|it| *it == moved_by(lost)).expect("it is there");
                transfers.remove(gone);
                let matched = Matched::of(US, ESCROW, &payments, &credits, &transfers);
                prop_assert_eq!(matched.mismatched.len(), 1);
            }
        }
    }
}
