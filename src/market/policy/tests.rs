use proptest::prelude::*;

use super::backtest::{Given, PastJob, Tally, replay};
use super::*;
use crate::market::breaker::expected;
use crate::market::event::{Commitment, Event, Level, Terms};
use crate::market::gate::Gates;
use crate::market::job::Fact;
use crate::market::types::{B256, Cid};

const US: Address = Address::repeat_byte(8);
const RENTER: Address = Address::repeat_byte(9);
const RIVAL: Address = Address::repeat_byte(7);
const USD: Address = Address::repeat_byte(6);
const MODEL: ModelId = ModelId([1; 32]);

fn policy() -> Policy {
    Policy {
        host: US,
        models: [(MODEL, Served { max_tokens: 64, slots: 2, queue: 0, context_tokens: 200, speed: None })].into(),
        price_per_1k: [(Address::ZERO, U256::from(1000))].into(),
        fee_bps: 250,
        tokens_per_second: 10,
        margin_seconds: 30,
        proves: true,
        gate: Gates::default().claim,
        limits: Limits::default(),
    }
}

fn limited(change: impl FnOnce(&mut Limits)) -> Policy {
    let mut policy = policy();
    change(&mut policy.limits);
    policy
}

fn measured(prefill: u64, decode: u64) -> Policy {
    let mut policy = policy();
    policy.models.get_mut(&MODEL).unwrap().speed = Some(Speed { prefill, decode });
    policy
}

fn chain(event: Event) -> Fact {
    Fact::Chain { event, block: BlockRef { number: 1, hash: B256::ZERO } }
}

fn terms() -> Terms {
    Terms {
        renter: RENTER,
        model: MODEL.to_string(),
        input: Cid::of(b"hi").to_string(),
        max_tokens: 40,
        temperature_milli: 0,
        seed: 1,
        payment: U256::from(100),
        token: Address::ZERO,
        deadline: UnixSeconds(1100),
        requires_proof: true,
        min_gpu_memory: 0,
        min_reputation: 0,
        reserved_for: None,
        region: None,
    }
}

/// A posted job whose escrow has what its terms say, and what came after.
fn job_with(change: impl FnOnce(&mut Terms), after: &[Event]) -> Job {
    let mut terms = terms();
    change(&mut terms);
    let (job, amount, token) = (JobId(1), terms.payment, terms.token);
    let posted = [Event::JobTerms { job, terms }, Event::EscrowCreated { job, amount, token }];
    let facts: Vec<Fact> = posted.into_iter().chain(after.iter().cloned()).map(chain).collect();
    Job::fold(job, &facts).unwrap().unwrap()
}

fn job(change: impl FnOnce(&mut Terms)) -> Job {
    job_with(change, &[])
}

const SOUND: Standing = Standing {
    stake: U256::from_limbs([1000, 0, 0, 0]),
    open_jobs: 99,
    active: true,
    reputation: 500,
    breaker_level: 1,
    controller: US,
};
const KNOWN: Outlook = Outlook {
    standing: SOUND,
    fee_bps: 250,
    job_stake: U256::from_limbs([10, 0, 0, 0]),
    gas_price: U256::ONE,
    age_seconds: 60,
    block: 5,
    races: Races { won: 1, lost: 19 },
};
const PROVEN: Ground = Ground { number: 1, level: Level::Complete, head: 1, safe: 0, last_final: 0, time: None };
const FINE: Circumstances = Circumstances {
    now: UnixSeconds(1000),
    input_held: true,
    grounds: [PROVEN; 2],
    load: Load { slots_taken: 1, queued_tokens: 64, held: 0, pending_claims: 0, chosen_last_hour: 3 },
    changed: None,
    turn: Turn { before: 2, waited_seconds: 10 },
    outlook: Some(KNOWN),
};

/// Returns the rule that refuses, or `none`; a verdict and a decision must agree.
fn refused_by(policy: &Policy, job: &Job, at: &Circumstances) -> &'static str {
    let verdict = policy.judge(job, at);
    assert_eq!(verdict.findings.len(), rules::RULES.len(), "every rule answers");
    assert!(verdict.findings.iter().all(|finding| !finding.detail.is_empty()), "{verdict:#?}");
    let rule = verdict.refusal().map_or("none", |finding| finding.rule);
    assert_eq!(policy.decide(job, at).err().unwrap_or("none"), rule);
    assert_eq!(verdict.claims(), rule == "none");
    rule
}

#[test]
fn each_rule_of_the_jobs_terms_refuses_what_it_guards() {
    let refused = |change: &dyn Fn(&mut Terms)| refused_by(&policy(), &job(change), &FINE);
    assert_eq!(refused(&|_| ()), "none");
    assert_eq!(refused(&|t| t.model = "gpt-4".into()), "model");
    assert_eq!(refused(&|t| t.model = ModelId([2; 32]).to_string()), "model");
    assert_eq!(refused(&|t| t.max_tokens = 65), "length");
    assert_eq!(refused(&|t| t.reserved_for = Some(RENTER)), "reserved");
    assert_eq!(refused(&|t| t.reserved_for = Some(US)), "none");
    assert_eq!(refused(&|t| t.payment = U256::from(40)), "price");
    assert_eq!(refused(&|t| t.token = USD), "price");
    assert_eq!(refused(&|t| t.region = Some("eu".into())), "region");
    assert_eq!(refused(&|t| t.input = "b".into()), "input");
    // 2 bytes of prompt and 64 for the template; the slot holds 200.
    let long = |length| move |t: &mut Terms| t.input = Cid { length, ..Cid::of(b"hi") }.to_string();
    assert_eq!(refused(&long(96)), "none");
    assert_eq!(refused(&long(97)), "context");
    assert_eq!(refused(&long(u64::MAX)), "context");
    assert_eq!(refused(&|t| t.min_reputation = 500), "none");
    assert_eq!(refused(&|t| t.min_reputation = 501), "reputation");
    assert_eq!(refused(&|t| t.min_gpu_memory = 80), "none");
    assert_eq!(refused(&|t| t.deadline = UnixSeconds(1034)), "none");
    assert_eq!(refused(&|t| t.deadline = UnixSeconds(1033)), "deadline");
    let cannot = Policy { proves: false, ..policy() };
    assert_eq!(refused_by(&cannot, &job(|_| ()), &FINE), "proof");
    assert_eq!(refused_by(&cannot, &job(|t| t.requires_proof = false), &FINE), "none");
}

#[test]
fn each_limit_refuses_what_it_names() {
    let refused = |change: &dyn Fn(&mut Limits)| refused_by(&limited(change), &job(|_| ()), &FINE);
    assert_eq!(refused(&|l| l.renters = [RENTER].into()), "none");
    assert_eq!(refused(&|l| l.renters = [RIVAL].into()), "renter");
    assert_eq!(refused(&|l| (l.renters, l.renters_denied) = ([RENTER].into(), [RENTER].into())), "renter");
    assert_eq!(refused(&|l| l.tokens = [USD].into()), "token");
    assert_eq!(refused(&|l| l.tokens = [USD, Address::ZERO].into()), "none");
    assert_eq!(refused(&|l| l.win_percent_min = 5), "none");
    assert_eq!(refused(&|l| l.win_percent_min = 6), "win");
    assert_eq!(refused(&|l| (l.win_percent_min, l.win_races_min) = (100, 21)), "none");
    // The stake of three claims within the hour, and of this one.
    assert_eq!(refused(&|l| l.value_at_risk_per_hour_max = Some(U256::from(40))), "none");
    assert_eq!(refused(&|l| l.value_at_risk_per_hour_max = Some(U256::from(39))), "risk");
    assert_eq!(refused(&|l| l.survey_age_max_seconds = 59), "fresh");
    let asks = |gb| refused_by(&limited(|l| l.gpu_memory_gb = Some(24)), &job(|t| t.min_gpu_memory = gb), &FINE);
    assert_eq!((asks(24), asks(25)), ("none", "vram"));
    let here = limited(|l| l.regions = vec!["eu-west".into(), "eu".into()]);
    assert_eq!(refused_by(&here, &job(|t| t.region = Some("EU".into())), &FINE), "none");
    assert_eq!(refused_by(&here, &job(|t| t.region = Some("us".into())), &FINE), "region");
    let alone = limited(|l| l.win_percent_min = 100);
    assert_eq!(refused_by(&alone, &job(|t| t.reserved_for = Some(US)), &FINE), "none");
}

#[test]
fn each_rule_of_the_circumstances_refuses_what_it_guards() {
    let refused = |at: Circumstances| refused_by(&policy(), &job(|_| ()), &at);
    assert_eq!(refused(Circumstances { now: UnixSeconds(1066), ..FINE }), "none");
    assert_eq!(refused(Circumstances { now: UnixSeconds(1067), ..FINE }), "deadline");
    assert_eq!(refused(Circumstances { input_held: false, ..FINE }), "input");
    assert_eq!(refused(Circumstances { load: Load { slots_taken: 2, ..FINE.load }, ..FINE }), "capacity");
    let unproven = Ground { level: Level::Linked, ..PROVEN };
    assert_eq!(refused(Circumstances { grounds: [unproven, PROVEN], ..FINE }), "block");
    assert_eq!(refused(Circumstances { grounds: [PROVEN, unproven], ..FINE }), "block");
    let knows = |outlook| Circumstances { outlook, ..FINE };
    assert_eq!(refused(knows(None)), "fresh");
    assert_eq!(refused(knows(Some(Outlook { age_seconds: 61, ..KNOWN }))), "fresh");
    assert_eq!(refused(Circumstances { changed: Some(6), ..FINE }), "fresh");
    assert_eq!(refused(knows(Some(Outlook { fee_bps: 6100, ..KNOWN }))), "price");
    let stands = |standing| knows(Some(Outlook { standing, ..KNOWN }));
    assert_eq!(refused(stands(Standing { open_jobs: 100, ..SOUND })), "stake");
    assert_eq!(refused(Circumstances { load: Load { held: 99, ..FINE.load }, ..FINE }), "none");
    assert_eq!(refused(Circumstances { load: Load { held: 100, ..FINE.load }, ..FINE }), "stake");
    assert_eq!(refused(Circumstances { load: Load { pending_claims: 1, ..FINE.load }, ..FINE }), "stake");
    assert_eq!(refused(stands(Standing { active: false, ..SOUND })), "stake");
    assert_eq!(refused(stands(Standing { breaker_level: 2, ..SOUND })), "breaker");
    assert_eq!(refused(stands(Standing { reputation: 0, ..SOUND })), "none");
}

#[test]
fn only_the_escrows_own_word_for_the_whole_payment_counts() {
    let job = job(|_| ());
    assert_eq!(refused_by(&policy(), &Job { escrowed: None, ..job.clone() }, &FINE), "escrow");
    for (token, amount) in [(Address::ZERO, 99), (Address::ZERO, 101), (USD, 100)] {
        let other = Job { escrowed: Some((token, U256::from(amount))), ..job.clone() };
        assert_eq!(refused_by(&policy(), &other, &FINE), "escrow", "{amount} of {token}");
    }
}

#[test]
fn a_job_that_a_host_of_our_controller_gave_up_is_refused_us() {
    let given_up = |controller| {
        let (job, host) = (JobId(1), RIVAL);
        job_with(|_| (), &[Event::JobClaimed { job, host }, Event::JobReopened { job, controller }])
    };
    assert_eq!(refused_by(&policy(), &given_up(RIVAL), &FINE), "none");
    assert_eq!(refused_by(&policy(), &given_up(US), &FINE), "sybil");
}

/// Gas at 1 wei: 55 000 + 135 000 + 110 000 + 130 000, with a proof 685 000 more.
#[test]
fn a_margin_asks_for_gas_both_ways_and_for_the_claims_that_are_lost() {
    let pays = |payment: u64, proof: bool| job(|t| (t.payment, t.requires_proof) = (U256::from(payment), proof));
    let at = |gas_price: u64, won, lost| Circumstances {
        outlook: Some(Outlook { gas_price: U256::from(gas_price), races: Races { won, lost }, fee_bps: 0, ..KNOWN }),
        ..FINE
    };
    let asks = |margin| limited(|l| l.margin_percent_min = Some(margin));
    let cases = [
        (0, 430_000, false, at(1, 0, 0), "none"),
        (0, 429_999, false, at(1, 0, 0), "gas"),
        (0, 1_115_000, true, at(1, 0, 0), "none"),
        (0, 1_114_999, true, at(1, 0, 0), "gas"),
        (10, 473_000, false, at(1, 0, 0), "none"),
        (10, 472_999, false, at(1, 0, 0), "gas"),
        (0, 859_999, false, at(2, 0, 0), "gas"),
        // Two claims lost for each that was won; of too few nothing follows.
        (0, 430_000 + 70_000, false, at(1, 10, 20), "none"),
        (0, 430_000 + 69_999, false, at(1, 10, 20), "gas"),
        (0, 430_000, false, at(1, 4, 8), "none"),
    ];
    for (margin, payment, proof, at, says) in cases {
        assert_eq!(refused_by(&asks(margin), &pays(payment, proof), &at), says, "{margin} {payment} {proof} {at:?}");
    }
    assert_eq!(refused_by(&policy(), &pays(100, true), &at(u64::MAX, 0, 0)), "none", "shown, not asked");
}

#[test]
fn a_token_is_compared_with_gas_by_its_value_or_as_configured() {
    let takes_usd = |value: Option<Worth>, unvalued_tokens| {
        let mut policy = limited(|l| {
            (l.margin_percent_min, l.unvalued_tokens) = (Some(0), unvalued_tokens);
            l.token_value.extend(value.map(|value| (USD, value)));
        });
        policy.price_per_1k.insert(USD, U256::from(1));
        policy
    };
    let worth = |units: u64, wei: u64| Some(Worth { units: U256::from(units), wei: U256::from(wei) });
    let job = job(|t| t.token = USD);
    // 98 units are left after the fee, 1 115 000 wei are asked.
    assert_eq!(refused_by(&takes_usd(worth(1, 11_378), false), &job, &FINE), "gas");
    assert_eq!(refused_by(&takes_usd(worth(1, 50_000), false), &job, &FINE), "none");
    assert_eq!(refused_by(&takes_usd(worth(2, 50_000), false), &job, &FINE), "none");
    assert_eq!(refused_by(&takes_usd(None, false), &job, &FINE), "cost");
    assert_eq!(refused_by(&takes_usd(None, true), &job, &FINE), "none");
    let verdict = takes_usd(None, true).judge(&job, &FINE);
    let gas = verdict.findings.iter().find(|finding| finding.rule == "gas").unwrap();
    assert!(gas.detail.contains("no value in wei is set for token"), "{}", gas.detail);
}

#[test]
fn computing_costs_the_models_rate_or_its_share_of_the_machine() {
    let free_gas = Circumstances { outlook: Some(Outlook { gas_price: U256::ZERO, fee_bps: 0, ..KNOWN }), ..FINE };
    let with = |mut policy: Policy, rate: u64, hour: u64| {
        policy.limits.margin_percent_min = Some(0);
        policy.limits.compute_per_1k_wei.insert(MODEL, U256::from(rate));
        policy.limits.machine_hour_wei = U256::from(hour);
        refused_by(&policy, &job(|_| ()), &free_gas)
    };
    // 40 tokens, 100 wei.
    assert_eq!(with(policy(), 2_500, u64::MAX), "none");
    assert_eq!(with(policy(), 2_501, 0), "cost");
    // 66 tokens of prompt at 66 a second, 40 of output at 10 a second: 5 seconds.
    assert_eq!(with(measured(66_000, 10_000), u64::MAX, 72_000), "none");
    assert_eq!(with(measured(66_000, 10_000), 0, 72_001), "cost");
    assert_eq!(with(measured(66_000, 10_000), 2_501, 0), "cost");
}

#[test]
fn a_measured_speed_is_shared_by_all_slots_and_stands_before_the_configured_one() {
    let served = |policy: &Policy| policy.models[&MODEL];
    let (configured, fast) = (policy(), measured(66_000, 40_000));
    assert_eq!(configured.seconds_for(&served(&configured), 66, 40), 30 + 4);
    // 1 s of prompt and 1 s of output, each twice as long beside another.
    assert_eq!(fast.seconds_for(&served(&fast), 66, 40), 30 + 4);
    let slow = measured(66_000, 20_000);
    assert_eq!(slow.seconds_for(&served(&slow), 66, 40), 30 + 6);
    assert_eq!(refused_by(&slow, &job(|t| t.deadline = UnixSeconds(1036)), &FINE), "none");
    assert_eq!(refused_by(&slow, &job(|t| t.deadline = UnixSeconds(1035)), &FINE), "deadline");
    let full = Load { slots_taken: 2, queued_tokens: 100, ..Load::default() };
    assert_eq!(slow.queue_seconds(&served(&slow), &full), 5);
    assert_eq!(configured.queue_seconds(&served(&configured), &full), 5);
    assert_eq!(slow.queue_seconds(&served(&slow), &Load { slots_taken: 1, ..full }), 0);
}

#[test]
fn a_calibration_counts_for_the_same_device_only() {
    let decode = |sequences, tokens_per_second| Decode { sequences, tokens_per_second };
    let measured = Measured {
        model: MODEL,
        name: "m".into(),
        threads: 4,
        gpu_layers: 0,
        slots: 2,
        measured_at: UnixSeconds(1),
        prefill_tokens_per_second: 100.5,
        decode: vec![decode(1, 0.8), decode(2, 1.25)],
    };
    let calibration = Calibration { models: vec![measured] };
    let text = serde_json::to_string(&calibration).unwrap();
    assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), calibration);
    assert_eq!(calibration.speed(MODEL, 4, 0, 2), Some(Speed { prefill: 100_500, decode: 1_250 }));
    for (model, threads, layers, slots) in
        [(ModelId([2; 32]), 4, 0, 2), (MODEL, 3, 0, 2), (MODEL, 4, 1, 2), (MODEL, 4, 0, 1)]
    {
        assert_eq!(calibration.speed(model, threads, layers, slots), None);
    }
    let mut broken = calibration;
    for speed in [0.0, -1.0, f64::NAN] {
        broken.models[0].prefill_tokens_per_second = speed;
        assert_eq!(broken.speed(MODEL, 4, 0, 2), None, "{speed}");
    }
}

/// The fee is read from a contract, prices from a file: no value of either may wrap into a price that looks good.
#[test]
fn no_price_wraps_around() {
    for fee_bps in [9_999, 10_000, u16::MAX] {
        let host = Policy { fee_bps, ..policy() };
        assert!(host.gross(U256::from(1000)) >= U256::from(10_000_000));
        let at = Circumstances { outlook: Some(Outlook { fee_bps, ..KNOWN }), ..FINE };
        assert_eq!(refused_by(&host, &job(|_| ()), &at), "price", "fee {fee_bps}");
    }
    let dear = Policy { price_per_1k: [(Address::ZERO, U256::MAX)].into(), ..policy() };
    assert_eq!(refused_by(&dear, &job(|_| ()), &FINE), "price");
    assert!(dear.gross(U256::MAX) > U256::MAX / U256::from(10_000));
    let never = Policy { margin_seconds: u64::MAX, ..policy() };
    assert_eq!(never.seconds_for(&never.models[&MODEL], u64::MAX, 1), u64::MAX);
    let asked = limited(|l| l.margin_percent_min = Some(0));
    let terms = |token| Terms { payment: U256::from(1000), token, ..terms() };
    assert_eq!(asked.ceiling(&terms(Address::ZERO)), Some(expected(U256::from(1000), asked.fee_bps)));
    assert_eq!(asked.ceiling(&terms(Address::repeat_byte(1))), None, "nobody knows what a token is worth");
    assert_eq!(policy().ceiling(&terms(Address::ZERO)), None, "no margin is asked");
    let costly = limited(|l| l.margin_percent_min = Some(u32::MAX));
    let at = Circumstances { outlook: Some(Outlook { gas_price: U256::MAX, ..KNOWN }), ..FINE };
    assert_eq!(refused_by(&costly, &job(|_| ()), &at), "gas");
}

#[test]
fn a_gross_price_covers_its_net_price_and_no_more_than_needed() {
    for net in [1u64, 40, 977, 1_000_003] {
        let gross = policy().gross(U256::from(net));
        assert!(expected(gross, 250) >= U256::from(net), "net {net}");
        assert!(expected(gross - U256::from(2), 250) < U256::from(net), "net {net}");
    }
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let limits = (prop::option::of(0..300u32), 0..=100u32, prop::option::of(0..80u64), any::<bool>(), 0..3_000_000u64);
    (limits, 0..2000u64, any::<bool>()).prop_map(|((margin, win, risk, unvalued, worth), price, calibrated)| {
        let mut policy = if calibrated { measured(50_000, 20_000) } else { policy() };
        policy.price_per_1k = [(Address::ZERO, U256::from(price)), (USD, U256::from(price))].into();
        let limits = &mut policy.limits;
        (limits.margin_percent_min, limits.win_percent_min, limits.unvalued_tokens) = (margin, win, unvalued);
        limits.value_at_risk_per_hour_max = risk.map(U256::from);
        limits.machine_hour_wei = U256::from(worth);
        if worth.is_multiple_of(2) {
            limits.token_value.insert(USD, Worth { units: U256::from(3), wei: U256::from(worth) });
        }
        policy
    })
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let more = (any::<bool>(), 1030..1200u64, 490..510u64);
    (0..3_000_000u64, any::<bool>(), 1..70u32, more).prop_map(
        |(payment, usd, max_tokens, (proof, deadline, reputation))| {
            let token = if usd { USD } else { Address::ZERO };
            Terms {
                payment: U256::from(payment),
                token,
                max_tokens,
                requires_proof: proof,
                deadline: UnixSeconds(deadline),
                min_reputation: reputation,
                ..terms()
            }
        },
    )
}

fn any_circumstances() -> impl Strategy<Value = Circumstances> {
    let races = (0..30u32, 0..30u32);
    (races, 0..3u64, 0..3u32, 0..70u64, 0..500u16).prop_map(|((won, lost), gas, slots_taken, age_seconds, fee_bps)| {
        let races = Races { won, lost };
        let outlook = Outlook { gas_price: U256::from(gas), races, age_seconds, fee_bps, ..KNOWN };
        Circumstances { load: Load { slots_taken, ..FINE.load }, outlook: Some(outlook), ..FINE }
    })
}

proptest! {
    #[test]
    fn more_money_never_turns_a_claim_into_a_refusal(
        policy in any_policy(), terms in any_terms(), at in any_circumstances(), more in any::<u128>(),
    ) {
        let paying = |payment| job(|t| *t = Terms { payment, ..terms.clone() });
        if policy.decide(&paying(terms.payment), &at).is_ok() {
            prop_assert_eq!(policy.decide(&paying(terms.payment + U256::from(more)), &at), Ok(()));
        }
    }

    #[test]
    fn more_time_and_less_load_never_turn_a_claim_into_a_refusal(
        policy in any_policy(), terms in any_terms(), at in any_circumstances(), more in 0..u64::from(u32::MAX),
    ) {
        if policy.decide(&job(|t| *t = terms.clone()), &at).is_ok() {
            let longer = job(|t| *t = Terms { deadline: UnixSeconds(terms.deadline.0 + more), ..terms.clone() });
            let idle = Circumstances { load: Load::default(), ..at };
            prop_assert_eq!(policy.decide(&longer, &idle), Ok(()));
        }
    }

    #[test]
    fn a_decision_is_what_the_verdict_says(policy in any_policy(), terms in any_terms(), at in any_circumstances()) {
        let job = job(|t| *t = terms.clone());
        let verdict = policy.judge(&job, &at);
        prop_assert_eq!(policy.decide(&job, &at).err(), verdict.refusal().map(|finding| finding.rule));
    }
}

// The past.

const COMMITMENT: Commitment =
    Commitment { root: B256::ZERO, tokens: 20, result_hash: B256::ZERO, tokens_digest: B256::ZERO };

fn paid_to(host: Address) -> Vec<Event> {
    let (job, output) = (JobId(1), "out".to_owned());
    vec![
        Event::JobClaimed { job, host },
        Event::ResultCommitted { job, host, commitment: COMMITMENT },
        Event::JobCompleted { job, output },
        Event::EscrowReleased { job, net: U256::from(98), fee: U256::from(2) },
        Event::PaymentReleased { job, host, amount: U256::from(98) },
    ]
}

fn refunded() -> Event {
    Event::PaymentRefunded { job: JobId(1), renter: RENTER, amount: U256::from(100) }
}

fn past(posted_at: u64, change: impl FnOnce(&mut Terms), after: &[Event]) -> PastJob {
    let deadline = UnixSeconds(posted_at + 100);
    let job = job_with(|t| (t.deadline, _) = (deadline, change(t)), after);
    let claimed = after.iter().any(|event| matches!(event, Event::JobClaimed { .. }));
    PastJob { job, posted_at: UnixSeconds(posted_at), claimed }
}

const GIVEN: Given = Given {
    races: Races { won: 1, lost: 3 },
    gas_price: U256::from_limbs([2, 0, 0, 0]),
    fee_bps: 250,
    now: UnixSeconds(1_000_000),
};

fn run(policy: &Policy, jobs: &[PastJob]) -> Tally {
    replay(policy, jobs, &GIVEN)
}

#[test]
fn each_ending_of_the_past_is_booked_as_assumed() {
    let gas = Gas::default();
    let (won, lost) = (2 * gas.won(true), 2 * gas.lost_claim);
    let claimed = Event::JobClaimed { job: JobId(1), host: RIVAL };
    let now = GIVEN.now.0;
    let cases: [(PastJob, [u64; 4], u64, u64); 6] = [
        // paid, unclaimed, refunded, open; income; gas.
        (past(0, |_| (), &paid_to(US)), [1, 0, 0, 0], 98, won),
        (past(0, |_| (), &paid_to(RIVAL)), [1, 0, 0, 0], 24, won / 4 + lost * 3 / 4),
        (past(0, |_| (), &[refunded()]), [0, 1, 0, 0], 98, won),
        (past(0, |_| (), &[]), [0, 1, 0, 0], 98, won),
        (past(0, |_| (), &[claimed.clone(), refunded()]), [0, 0, 1, 0], 0, won / 4 + lost * 3 / 4),
        (past(now - 10, |_| (), &[]), [0, 0, 0, 1], 0, 0),
    ];
    for (past, [paid, unclaimed, refunded, open], income, gas) in cases {
        let tally = run(&policy(), std::slice::from_ref(&past));
        assert_eq!((tally.judged, tally.taken), (1, 1), "{tally:?}");
        assert_eq!([tally.paid, tally.unclaimed, tally.refunded, tally.open], [paid, unclaimed, refunded, open]);
        let earned = tally.income.get(&Address::ZERO).copied().unwrap_or_default();
        assert_eq!((earned.net, tally.gas_wei), (U256::from(income), U256::from(gas)), "{past:?}");
        assert_eq!(tally.income_wei, earned.net);
        assert_eq!(earned.of_unclaimed, if unclaimed == 1 { earned.net } else { U256::ZERO });
    }
}

#[test]
fn what_a_policy_declines_is_counted_by_its_rule_and_costs_nothing() {
    let jobs = [past(0, |t| t.payment = U256::from(40), &[]), past(1, |t| t.token = USD, &paid_to(RIVAL))];
    let tally = run(&policy(), &jobs);
    assert_eq!((tally.judged, tally.taken, tally.declined["price"]), (2, 0, 2));
    assert_eq!((tally.gas_wei, tally.profit()), (U256::ZERO, "0".into()));
}

#[test]
fn slots_are_taken_and_given_back_as_time_goes_on() {
    // Each takes 34 seconds of one of two slots.
    let at = |times: &[u64]| times.iter().map(|time| past(*time, |_| (), &[refunded()])).collect::<Vec<_>>();
    let taken = |times: &[u64]| run(&policy(), &at(times)).taken;
    assert_eq!(taken(&[0, 0, 33]), 2);
    assert_eq!(taken(&[0, 0, 34]), 3);
    assert_eq!(taken(&[0, 10, 34, 44, 50]), 4);
    assert_eq!(run(&policy(), &at(&[0, 0, 33])).declined["capacity"], 1);
    let careful = limited(|l| l.value_at_risk_per_hour_max = Some(U256::from(20_000_000_000_000_000_000u128)));
    let tally = run(&careful, &at(&[0, 100, 200, 3_599, 3_600]));
    assert_eq!((tally.taken, tally.declined["risk"]), (3, 2));
}

#[test]
fn a_dearer_policy_takes_less_and_its_profit_has_a_sign() {
    let jobs = [past(0, |_| (), &paid_to(US)), past(500, |t| t.payment = U256::from(5_000_000), &[refunded()])];
    let cheap = run(&policy(), &jobs);
    let covered = run(&limited(|l| l.margin_percent_min = Some(0)), &jobs);
    assert_eq!((cheap.taken, covered.taken, covered.declined["gas"]), (2, 1, 1));
    // 4 875 000 and 98 wei after fees, twice 2 230 000 of gas.
    assert_eq!((cheap.profit(), covered.profit()), ("415098".into(), "2645000".into()));
    assert_eq!(run(&policy(), &jobs[..1]).profit(), "-2229902");
}

#[test]
fn a_host_waits_until_those_before_it_had_their_turn() {
    let (patient, at) = (limited(|l| l.turn_seconds = 5), |waited_seconds| Circumstances {
        turn: Turn { before: 2, waited_seconds },
        ..FINE
    });
    assert_eq!(refused_by(&patient, &job(|_| ()), &at(9)), "turn");
    assert_eq!(refused_by(&patient, &job(|_| ()), &at(10)), "none");
    assert_eq!(refused_by(&patient, &job(|t| t.reserved_for = Some(US)), &at(0)), "none");
    assert_eq!(refused_by(&policy(), &job(|_| ()), &at(0)), "none", "no turns are taken");
}

#[test]
fn every_host_finds_the_same_order_and_each_is_first_in_its_share_of_jobs() {
    let hosts: Vec<Address> = (1..=3).map(Address::repeat_byte).collect();
    let block = BlockRef { number: 1, hash: B256::repeat_byte(7) };
    let mut first = [0; 3];
    for id in 1..=600 {
        let mut places: Vec<u32> = hosts.iter().map(|us| Turn::before(*us, &hosts, JobId(id), block)).collect();
        first[places.iter().position(|place| *place == 0).expect("one is first")] += 1;
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2]);
    }
    assert!(first.iter().all(|jobs| (150..250).contains(jobs)), "{first:?}");
    assert_eq!(Turn::before(Address::repeat_byte(9), &[], JobId(1), block), 0);
}
