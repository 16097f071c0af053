//! The rules: each a small function that answers with its numbers. What a rule says is only written down when somebody reads it.

use std::fmt;

use super::super::types::{Cid, ModelId, U256};
use super::{Circumstances, Outlook, Policy, Served, Turn};
use crate::market::breaker::expected;
use crate::market::job::Job;
use crate::market::offer::serves_region;

/// One rule: returns whether `case` passes, and says its numbers.
pub type Rule = fn(&Case<'_>, &mut Say) -> bool;

/// Every rule by name, in the order in which they are asked: what the job itself tells first.
pub const RULES: [(&str, Rule); 25] = [
    ("model", model),
    ("length", length),
    ("reserved", reserved),
    ("renter", renter),
    ("token", token),
    ("region", region),
    ("price", price),
    ("proof", proof),
    ("vram", vram),
    ("block", block),
    ("escrow", escrow),
    ("input", input),
    ("context", context),
    ("capacity", capacity),
    ("deadline", deadline),
    ("fresh", fresh),
    ("stake", stake),
    ("reputation", reputation),
    ("breaker", breaker),
    ("sybil", sybil),
    ("cost", cost),
    ("gas", gas),
    ("win", win),
    ("risk", risk),
    ("turn", turn),
];

/// Takes what a rule says: writes it down, or drops it unformatted.
#[derive(Debug, Default)]
pub struct Say(Option<String>);

impl Say {
    /// Returns one that writes down.
    pub fn aloud() -> Self {
        Self(Some(String::new()))
    }

    /// Returns what was said.
    pub fn said(self) -> String {
        self.0.unwrap_or_default()
    }

    fn it(&mut self, what: fmt::Arguments<'_>) {
        if let Some(text) = &mut self.0 {
            let _ = fmt::Write::write_fmt(text, what);
        }
    }
}

/// A job before a policy, with what several rules compute from both.
#[derive(Debug)]
pub struct Case<'a> {
    policy: &'a Policy,
    job: &'a Job,
    at: &'a Circumstances,
    served: Option<&'a Served>,
    input: Option<Cid>,
    /// What is left of the payment after the fee, in its token and, where that has a value, in wei.
    net: U256,
    net_wei: Option<U256>,
    /// At most so many tokens of prompt, and of prompt and output together.
    prompt_tokens: u64,
    tokens: u64,
    /// What computing it costs, in wei.
    compute: U256,
}

impl<'a> Case<'a> {
    pub fn new(policy: &'a Policy, job: &'a Job, at: &'a Circumstances) -> Self {
        let terms = &job.terms;
        let input: Option<Cid> = terms.input.parse().ok();
        let model: Option<ModelId> = terms.model.parse().ok();
        let served = model.and_then(|model| policy.models.get(&model));
        let fee_bps = at.outlook.map_or(policy.fee_bps, |outlook| outlook.fee_bps);
        let net = expected(terms.payment, fee_bps);
        let prompt_tokens = policy.prompt_tokens(input.map_or(0, |input| input.length));
        let tokens = prompt_tokens.saturating_add(terms.max_tokens.into());
        let net_wei = policy.limits.wei(terms.token, net);
        let compute = model
            .zip(served)
            .map_or(U256::ZERO, |(model, served)| policy.compute_cost(model, served, prompt_tokens, terms.max_tokens));
        Self { policy, job, at, served, input, net, net_wei, prompt_tokens, tokens, compute }
    }

    fn for_us_alone(&self) -> bool {
        self.job.terms.reserved_for == Some(self.policy.host)
    }

    /// Returns what the survey knows, or says that it knows nothing.
    fn outlook(&self, say: &mut Say) -> Option<&Outlook> {
        if self.at.outlook.is_none() {
            say.it(format_args!("unknown: the contracts were not asked yet"));
        }
        self.at.outlook.as_ref()
    }

    /// Returns whether the payment covers `cost` and the margin that is asked, and says so.
    fn covers(&self, cost: U256, of: fmt::Arguments<'_>, say: &mut Say) -> bool {
        let limits = &self.policy.limits;
        let Some(margin) = limits.margin_percent_min else {
            match self.net_wei {
                Some(net) => say.it(format_args!("{net} wei against {cost} wei {of}: no margin is asked")),
                None => say.it(format_args!("{cost} wei {of}: no margin is asked")),
            }
            return true;
        };
        let Some(net) = self.net_wei else {
            let then = if limits.unvalued_tokens { "taken" } else { "refused" };
            say.it(format_args!("no value in wei is set for token {}: {then} as configured", self.job.terms.token));
            return limits.unvalued_tokens;
        };
        let asked = cost.saturating_mul(U256::from(100 + u64::from(margin))).div_ceil(U256::from(100));
        say.it(format_args!("{net} wei, asked {asked}: {cost} wei {of} and {margin} %"));
        net >= asked
    }
}

fn model(case: &Case<'_>, say: &mut Say) -> bool {
    let held = case.served.is_some();
    say.it(format_args!("{} {}", case.job.terms.model, if held { "held" } else { "not held" }));
    held
}

fn length(case: &Case<'_>, say: &mut Say) -> bool {
    let (asked, limit) = (case.job.terms.max_tokens, case.served.map_or(0, |served| served.max_tokens));
    say.it(format_args!("{asked} tokens asked, at most {limit} served"));
    asked <= limit
}

fn reserved(case: &Case<'_>, say: &mut Say) -> bool {
    match case.job.terms.reserved_for {
        None => say.it(format_args!("for any host")),
        Some(host) => say.it(format_args!("for {host}")),
    }
    case.job.terms.reserved_for.is_none_or(|host| host == case.policy.host)
}

fn renter(case: &Case<'_>, say: &mut Say) -> bool {
    let (renter, limits) = (case.job.terms.renter, &case.policy.limits);
    let denied = limits.renters_denied.contains(&renter);
    let listed = limits.renters.contains(&renter);
    let known = match (denied, listed) {
        (true, _) => "denied",
        (false, true) => "on the list",
        (false, false) if limits.renters.is_empty() => "as any other",
        (false, false) => "not on the list",
    };
    say.it(format_args!("{renter} {known}"));
    !denied && (listed || limits.renters.is_empty())
}

fn token(case: &Case<'_>, say: &mut Say) -> bool {
    let (token, taken) = (case.job.terms.token, &case.policy.limits.tokens);
    let passed = case.policy.takes(token);
    let how = if taken.is_empty() {
        "taken as any with a price"
    } else if passed {
        "taken"
    } else {
        "not taken"
    };
    say.it(format_args!("{token} {how}"));
    passed
}

fn region(case: &Case<'_>, say: &mut Say) -> bool {
    let (asked, ours) = (case.job.terms.region.as_deref(), &case.policy.limits.regions);
    match asked {
        None => say.it(format_args!("none asked")),
        Some(asked) => say.it(format_args!("{asked:?} asked, here {ours:?}")),
    }
    serves_region(ours, asked)
}

fn price(case: &Case<'_>, say: &mut Say) -> bool {
    let (terms, net) = (&case.job.terms, case.net);
    let asked = case.policy.price(terms.token, terms.max_tokens);
    match asked {
        Some(asked) => say.it(format_args!("pays {net} after the fee, asked {asked}, token {}", terms.token)),
        None => say.it(format_args!("no price is set for token {}", terms.token)),
    }
    asked.is_some_and(|asked| net >= asked)
}

fn proof(case: &Case<'_>, say: &mut Say) -> bool {
    let (required, able) = (case.job.terms.requires_proof, case.policy.proves);
    say.it(format_args!("required {required}, able {able}"));
    able || !required
}

fn vram(case: &Case<'_>, say: &mut Say) -> bool {
    let asked = case.job.terms.min_gpu_memory;
    match case.policy.limits.gpu_memory_gb {
        None => say.it(format_args!("{asked} GB asked, not looked at")),
        Some(here) => say.it(format_args!("{asked} GB asked, {here} GB here")),
    }
    case.policy.limits.gpu_memory_gb.is_none_or(|here| here >= asked)
}

/// The escrow's own log tells what it took, in a block proven as far as the gate asks.
fn escrow(case: &Case<'_>, say: &mut Say) -> bool {
    let (Some((token, amount)), terms) = (case.job.escrowed, &case.job.terms) else {
        say.it(format_args!(
            "the escrow said nothing of the {} of token {}",
            case.job.terms.payment, case.job.terms.token
        ));
        return false;
    };
    say.it(format_args!("the escrow took {amount} of {}, token {token}", terms.payment));
    (token, amount) == (terms.token, terms.payment)
}

fn input(case: &Case<'_>, say: &mut Say) -> bool {
    let held = case.input.is_some() && case.at.input_held;
    say.it(format_args!("{} {}", case.job.terms.input, if held { "held" } else { "not held" }));
    held
}

/// The context of a slot must hold the whole job: what does not fit is found out after the claim, and costs the stake.
fn context(case: &Case<'_>, say: &mut Say) -> bool {
    let (needed, room) = (case.tokens, case.served.map_or(0, |served| served.context_tokens));
    let prompt = case.prompt_tokens;
    say.it(format_args!("at most {needed} tokens with {prompt} of prompt, a slot has {room}"));
    needed <= room.into()
}

fn block(case: &Case<'_>, say: &mut Say) -> bool {
    let refusal = case.at.grounds.iter().find_map(|ground| case.policy.gate.refusal(ground));
    match &refusal {
        None => say.it(format_args!("{}", case.at.grounds[1])),
        Some(refusal) => say.it(format_args!("{refusal}")),
    }
    refusal.is_none()
}

fn capacity(case: &Case<'_>, say: &mut Say) -> bool {
    let served = case.served.copied().unwrap_or_default();
    let (slots, taken) = (served.slots.saturating_add(served.queue), case.at.load.slots_taken);
    say.it(format_args!("{taken} jobs taken, {} computed at once and {} waiting at most", served.slots, served.queue));
    taken < slots
}

fn deadline(case: &Case<'_>, say: &mut Say) -> bool {
    let (terms, load) = (&case.job.terms, &case.at.load);
    let left = terms.deadline.0.saturating_sub(case.at.now.0);
    let served = case.served.copied().unwrap_or_default();
    let own = case.policy.seconds_for(&served, case.prompt_tokens, terms.max_tokens);
    let queue = case.policy.queue_seconds(&served, load);
    let needed = own.saturating_add(queue);
    let speed = if served.speed.is_some() { "as measured" } else { "as configured" };
    say.it(format_args!(
        "{left} s left, {needed} s needed {speed}, {queue} s of them behind {} jobs",
        load.slots_taken
    ));
    left >= needed
}

fn fresh(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(outlook) = case.outlook(say) else { return false };
    let (age, most) = (outlook.age_seconds, case.policy.limits.survey_age_max_seconds);
    match case.at.changed {
        None => say.it(format_args!("the contracts were asked {age} s ago, at most {most} s")),
        Some(block) => say.it(format_args!("block {block} changed what was asked as of block {}", outlook.block)),
    }
    age <= most && case.at.changed.is_none()
}

fn stake(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(Outlook { standing, job_stake, .. }) = case.outlook(say) else { return false };
    let load = &case.at.load;
    let open = u64::from(standing.open_jobs.max(load.held)) + u64::from(load.pending_claims);
    let needed = job_stake.saturating_mul(U256::from(open) + U256::from(1));
    let (stake, active) = (standing.stake, standing.active);
    say.it(format_args!("{stake} at stake, {needed} needed with {open} open jobs, active {active}"));
    active && stake >= needed
}

fn reputation(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(outlook) = case.outlook(say) else { return false };
    let (have, asked) = (outlook.standing.reputation, case.job.terms.min_reputation);
    say.it(format_args!("{have} of {asked} asked"));
    have >= asked
}

fn breaker(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(outlook) = case.outlook(say) else { return false };
    let level = outlook.standing.breaker_level;
    say.it(format_args!("the marketplace is at level {level}"));
    level < 2
}

/// The marketplace refuses a job to all hosts of a controller one of whose hosts gave it up.
fn sybil(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(outlook) = case.outlook(say) else { return false };
    let controller = outlook.standing.controller;
    let gave_up = case.job.given_up_by.contains(&controller);
    say.it(format_args!("controller {controller} {}", if gave_up { "gave it up" } else { "did not give it up" }));
    !gave_up
}

fn cost(case: &Case<'_>, say: &mut Say) -> bool {
    case.covers(case.compute, format_args!("to compute"), say)
}

/// Gas both ways: of the claim, and of everything until the payment; and of the claims that are lost for each that is won.
fn gas(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(Outlook { gas_price, races, .. }) = case.outlook(say) else { return false };
    let (terms, limits) = (&case.job.terms, &case.policy.limits);
    let won = gas_price.saturating_mul(U256::from(limits.gas.won(terms.requires_proof)));
    let counts = !case.for_us_alone() && races.decided() >= limits.win_races_min;
    let losses = if counts { races.lost.div_ceil(races.won.max(1)) } else { 0 };
    let lost = gas_price.saturating_mul(U256::from(limits.gas.lost_claim)).saturating_mul(U256::from(losses));
    let total = won.saturating_add(lost).saturating_add(case.compute);
    case.covers(total, format_args!("with gas at {gas_price} and {losses} lost claims for a won one"), say)
}

fn win(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(Outlook { races, .. }) = case.outlook(say) else { return false };
    let (limits, decided) = (&case.policy.limits, races.decided());
    let (won, least) = (races.won, limits.win_percent_min);
    let told = decided >= limits.win_races_min;
    let how = if case.for_us_alone() {
        "but it is for this host alone"
    } else if told {
        "asked"
    } else {
        "asked of more claims"
    };
    say.it(format_args!("{won} of {decided} claims won, at least {least} % {how}"));
    case.for_us_alone() || !told || u64::from(won) * 100 >= u64::from(least) * u64::from(decided)
}

fn turn(case: &Case<'_>, say: &mut Say) -> bool {
    let (Turn { before, waited_seconds }, each) = (case.at.turn, case.policy.limits.turn_seconds);
    let needed = each.saturating_mul(before.into());
    let alone = case.for_us_alone();
    let how = if alone { "but it is for this host alone" } else { "asked" };
    say.it(format_args!("{before} hosts come before this one, {waited_seconds} s waited, {needed} s {how}"));
    alone || waited_seconds >= needed
}

/// What a claim puts at risk is the stake of the job: it is lost when the job is.
fn risk(case: &Case<'_>, say: &mut Say) -> bool {
    let Some(outlook) = case.outlook(say) else { return false };
    let claims = case.at.load.chosen_last_hour;
    let value = outlook.job_stake.saturating_mul(U256::from(claims) + U256::from(1));
    let most = case.policy.limits.value_at_risk_per_hour_max;
    match most {
        None => say.it(format_args!("{value} at risk with {claims} claims of the last hour, no limit")),
        Some(most) => say.it(format_args!("{value} at risk with {claims} claims of the last hour, at most {most}")),
    }
    most.is_none_or(|most| value <= most)
}
