//! How many blocks to ask `eth_getLogs` for at once.
//!
//! Each provider has limits of its own, of blocks, of logs or of time, and tells of them in its own words when they are passed.
//! Asks little at first, more after each answer, and less after a refusal, by what the words say. Pure: asks nobody.
//!
//! Source: the providers' texts as users reported them, see the tests; Chiu and Jain, "Analysis of the increase and decrease
//! algorithms for congestion avoidance", 1989.

use std::time::Duration;

/// Blocks asked for at first.
const BLOCKS_FIRST: u64 = 100;
/// Logs and time that one answer should have: enough that the round trip does not matter.
const LOGS_WANTED: usize = 10_000;
const TIME_WANTED: Duration = Duration::from_secs(4);
/// Answers at a learned limit until it is tried whether more blocks are given, at first and at most: twice as many after each
/// trial that failed.
const TRIAL_FIRST: u32 = 64;
const TRIAL_LAST: u32 = 4096;

/// Learns how many blocks an endpoint gives logs of in one answer.
#[derive(Debug, Clone)]
pub struct Reach {
    max: u64,
    blocks: u64,
    /// Up to here growth is fast: no such range was ever too large.
    proven: u64,
    /// The most blocks the endpoint gives, whatever is in them.
    limit: Option<u64>,
    answers_at_limit: u32,
    trial_after: u32,
    /// Refusals since the last answer.
    refusals: u32,
}

/// What a refusal was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// So many blocks are too many, whatever is in them; perhaps with the number that is not.
    Blocks(Option<u64>),
    /// These blocks have too much in them, or take too long; perhaps with the number that would do.
    Content(Option<u64>),
    /// It has nothing to do with the number of blocks.
    Other,
}

impl Reach {
    /// Starts modest and grows to `max_blocks`.
    pub fn new(max_blocks: u64) -> Self {
        let max = max_blocks.max(1);
        Self {
            max,
            blocks: max.min(BLOCKS_FIRST),
            proven: max,
            limit: None,
            answers_at_limit: 0,
            trial_after: TRIAL_FIRST,
            refusals: 0,
        }
    }

    /// Returns how many blocks to ask for: at least 1.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Learns from an answer to a question for so many blocks: how many logs it had and how long it took.
    pub fn answered(&mut self, blocks: u64, logs: usize, took: Duration) {
        self.refusals = 0;
        if let Some(limit) = self.limit {
            if blocks > limit {
                self.limit = Some(blocks).filter(|limit| *limit < self.max);
                self.trial_after = TRIAL_FIRST;
            }
            self.answers_at_limit = if blocks == limit { self.answers_at_limit + 1 } else { 0 };
        }
        let fit =
            (LOGS_WANTED as f64 / logs.max(1) as f64).min(TIME_WANTED.as_secs_f64() / took.as_secs_f64().max(1e-3));
        if fit < 1.0 {
            let fewer = (blocks as f64 * fit.max(0.5)) as u64;
            self.blocks = self.blocks.min(fewer).max(1);
            return;
        }
        // The last piece of a range shows nothing of a full one.
        if blocks >= self.blocks {
            let step = if blocks < self.proven { blocks } else { blocks.div_ceil(8) };
            let more = blocks.saturating_add(step.min((blocks as f64 * (fit - 1.0)) as u64).max(1));
            self.blocks = more.min(self.limit.unwrap_or(self.max)).min(self.max);
            if self.answers_at_limit >= self.trial_after {
                self.answers_at_limit = 0;
                self.blocks = self.blocks.saturating_mul(2).min(self.max);
            }
        }
    }

    /// Learns from an endpoint's words of refusal to a question for so many blocks. Returns whether to ask for fewer: not where
    /// that cannot help, because the error is about something else, or it was one block already.
    pub fn refused(&mut self, blocks: u64, text: &str) -> bool {
        let refusal = Refusal::read(text, blocks);
        if refusal == Refusal::Other || blocks <= 1 {
            return false;
        }
        let half = blocks / 2;
        // Words that did not help once are not relied upon twice.
        let trusted =
            |named: Option<u64>| named.map_or(half, |named| if self.refusals == 0 { named } else { named.min(half) });
        match refusal {
            Refusal::Blocks(named) => {
                // A trial that failed leaves what was known.
                let known = self.limit.filter(|limit| *limit < blocks);
                if known.is_some() {
                    self.trial_after = (self.trial_after * 2).min(TRIAL_LAST);
                }
                let limit = trusted(named.or(known)).clamp(1, self.max);
                self.limit = Some(limit);
                self.blocks = limit;
            }
            Refusal::Content(named) => {
                self.blocks = trusted(named).clamp(1, self.max);
                self.proven = self.blocks;
            }
            Refusal::Other => {}
        }
        self.answers_at_limit = 0;
        self.refusals = self.refusals.saturating_add(1);
        true
    }
}

impl Refusal {
    /// Reads the words with which a question for `asked` blocks was refused.
    fn read(text: &str, asked: u64) -> Self {
        const CONTENT: [&str; 18] = [
            "response size",
            "results",
            "too many logs",
            "many logs",
            "logs matched",
            "response too large",
            "response is too large",
            "answer is too large",
            "payload too large",
            "content too large",
            "entity too large",
            "length limit",
            "too long",
            "deadline",
            "query duration",
            "no backend",
            "out of memory",
            "bytes",
        ];
        const OTHER: [&str; 21] = [
            "beyond current head",
            "beyond the head",
            "invalid block range",
            "rate limit",
            "too often",
            "too many requests",
            "request limit",
            "compute units",
            "unauthor",
            "authenticat",
            "forbidden",
            "api key",
            "pruned",
            "archive",
            "specify an address",
            "connection refused",
            "connection reset",
            "connect error",
            "serves chain",
            "method not found",
            "the method",
        ];
        // A host may be called anything.
        let words: Vec<&str> = text.split_whitespace().filter(|word| !word.contains("://")).collect();
        let text = words.join(" ").to_lowercase();
        let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
        let proposed = proposed(&text).filter(|blocks| *blocks < asked);
        if says(&["timeout", "timed out", "time out"]) {
            Refusal::Content(proposed)
        } else if says(&OTHER) {
            Refusal::Other
        } else if says(&CONTENT) {
            Refusal::Content(proposed)
        } else if says(&["range", "blocks", "block span", "block distance", "smaller than size"]) {
            Refusal::Blocks(named(&text, asked).or(proposed))
        } else {
            // Words nobody has heard yet: fewer blocks may help, and one is no help in the end.
            Refusal::Content(None)
        }
    }
}

/// Returns the length of the range that a refusal proposes: `[0x1, 0x7d0]`, or `range 1-2000`.
fn proposed(text: &str) -> Option<u64> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || "[],()".contains(c)).filter(|it| !it.is_empty()).collect();
    let hex = |word: &str| word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let in_hex = words.windows(2).find_map(|pair| Some((hex(pair[0])?, hex(pair[1])?)));
    let decimal = |word: &str| {
        let (first, last) = word.trim_matches(['.', ':', ';', '"']).split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let (first, last): (u64, u64) = in_hex.or_else(|| words.iter().find_map(|word| decimal(word)))?;
    last.checked_sub(first)?.checked_add(1)
}

/// Returns the largest number that can be the limit a question for `asked` blocks has passed. The number asked for, as it may be
/// repeated, is none, and neither are codes.
fn named(text: &str, asked: u64) -> Option<u64> {
    let separators = |c: char| c.is_whitespace() || "()[]{}:;=<>\"'".contains(c);
    let words: Vec<&str> = text.split(separators).filter(|word| !word.is_empty()).collect();
    let number = |word: &str| {
        let word = word.trim_end_matches(['.', ',']);
        let (digits, unit) = word.strip_suffix('k').map_or((word, 1), |digits| (digits, 1000));
        let digits = digits.replace([',', '_'], "");
        digits.parse::<u64>().ok()?.checked_mul(unit)
    };
    let is_code = |place: usize| place > 0 && matches!(words[place - 1], "code" | "http" | "error" | "status");
    let numbers = (0..words.len()).filter(|place| !is_code(*place)).filter_map(|place| number(words[place]));
    // Some count the steps between the ends instead of the blocks.
    numbers.filter(|number| *number >= 1 && *number < asked.saturating_sub(1)).max()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUICK: Duration = Duration::from_millis(100);

    /// Texts that providers were reported to answer with, and what a question for 20 000 blocks learns from each.
    #[test]
    fn each_dialect_is_understood() {
        use Refusal::{Blocks, Content, Other};
        for (text, refusal) in [
            // Alchemy
            (
                "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no limit on the \
                 response size, or you can request any block range with a cap of 10K logs in the response. Based on your \
                 parameters and the response size limit, this block range should work: [0xc5dc00, 0xc5e3cf]",
                Content(Some(2000)),
            ),
            (
                "error code -32600: Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based \
                 on your parameters, this block range should work: [0x1180fca, 0x1180fd3]. Upgrade to PAYG for expanded block range.",
                Blocks(Some(10)),
            ),
            (
                "error code -32000: Query timeout exceeded. Consider reducing your block range. Based on your parameters and the \
                 response size limit, this block range should work: [0x5223c98, 0x5223e80]",
                Content(Some(489)),
            ),
            // Infura
            ("query returned more than 10000 results. Try with this block range [0x1, 0x64].", Content(Some(100))),
            ("error code -32005: query returned more than 1000 results", Content(None)),
            ("query timeout exceeded", Content(None)),
            ("error code -32602: range 20000 exceeds limit of 10000", Blocks(Some(10_000))),
            ("error code -32602: range 19999 exceeds limit of 10000", Blocks(Some(10_000))),
            ("daily request count exceeded, request rate limited", Other),
            // QuickNode, 1RPC, Blast, BlockPI
            ("HTTP 413 Payload Too Large: eth_getLogs is limited to a 10,000 range", Content(None)),
            ("error code -32614: eth_getLogs is limited to a 10,000 range", Blocks(Some(10_000))),
            ("error code -32602: eth_getLogs is limited to 0 - 50 blocks range", Blocks(Some(50))),
            ("eth_getLogs is limited to 1024 block range. Please check the parameter requirements", Blocks(Some(1024))),
            ("response size should not greater than 10000000 bytes", Content(None)),
            ("exceeds the range allowed for your plan (20000 > 3000)", Blocks(Some(3000))),
            ("50/second request limit reached - reduce calls per second or upgrade your account", Other),
            // Ankr, Chainstack, Moonriver
            ("error code -32600: block range is too wide", Blocks(None)),
            ("block range is too wide (maximum 1024)", Blocks(Some(1024))),
            (
                "Block range limit exceeded. See more details at https://docs.chainstack.com/docs/limits#evm-range-limits-2024",
                Blocks(None),
            ),
            // publicnode, BNB's geth, dRPC, Cloudflare, LlamaRPC and Merkle, Base, Coinbase, thirdweb
            ("error code -32701: exceed maximum block range: 5000", Blocks(Some(5000))),
            ("error code 35: ranges over 10000 blocks are not supported on freetier", Blocks(Some(10_000))),
            ("Max range: 800", Blocks(Some(800))),
            ("error code -32603: eth_getLogs range is too large, max is 1k blocks", Blocks(Some(1000))),
            ("http://mainnet.base.org:8545: HTTP 503: no backend is currently healthy to serve traffic", Content(None)),
            ("block range greater than 10000 max", Blocks(Some(10_000))),
            ("block range too large", Blocks(None)),
            ("please limit the query to at most 1000 blocks", Blocks(Some(1000))),
            ("Maximum allowed number of requested blocks is 3500", Blocks(Some(3500))),
            // reth, geth, Avalanche, Arbitrum, Harmony, Somnia, Scroll, Morph, Tenderly, zkEVM, Optimism
            ("error code -32602: query exceeds max block range 10000", Blocks(Some(10_000))),
            ("query exceeds max results 20000, retry with the range 24383075-24383096", Content(Some(22))),
            ("query exceeds max results 20000, retry with the range 25766988-25786987", Content(None)),
            ("error code -32602: block range extends beyond current head block", Other),
            ("requested too many blocks from 60000 to 80000, maximum is set to 2048", Blocks(Some(2048))),
            ("logs matched by query exceeds limit of 10000", Content(None)),
            ("query must be smaller than size 1024", Blocks(Some(1024))),
            ("block range exceeds 1000", Blocks(Some(1000))),
            ("block range is bigger than maxBlockRange", Blocks(None)),
            (
                "block range is larger than max block range, block range = 20000, max block range = 5000",
                Blocks(Some(5000)),
            ),
            ("invalid params, data: range 20000 is bigger than range limit 2000", Blocks(Some(2000))),
            ("backend response too large", Content(None)),
            ("error code -32005: limit exceeded", Content(None)),
            ("https://archive.example: error sending request: operation timed out", Content(None)),
            // Not about the blocks
            ("error code -32601: the method eth_getLogs does not exist/is not available", Other),
            (
                "http://127.0.0.1:9: error sending request: client error (Connect): tcp connect error: Connection refused",
                Other,
            ),
            ("HTTP 401 Unauthorized: Must be authenticated!", Other),
        ] {
            assert_eq!(Refusal::read(text, 20_000), refusal, "{text}");
        }
    }

    #[test]
    fn growth_is_fast_at_first_and_stops_at_what_an_answer_should_have() {
        let mut reach = Reach::new(1_000_000);
        let mut answers = 0;
        // One log in four blocks: 40 000 blocks have 10 000.
        while reach.blocks() < 30_000 {
            let blocks = reach.blocks();
            reach.answered(blocks, (blocks / 4) as usize, QUICK);
            answers += 1;
            assert!(answers < 12, "{reach:?}");
        }
        for _ in 0..100 {
            let blocks = reach.blocks();
            reach.answered(blocks, (blocks / 4) as usize, QUICK);
            assert!((20_000..=80_000).contains(&reach.blocks()), "{reach:?}");
        }
        // A busier part of the chain, and a slower endpoint.
        for _ in 0..20 {
            let blocks = reach.blocks();
            reach.answered(blocks, 10 * blocks as usize, QUICK);
        }
        assert!((500..=2000).contains(&reach.blocks()), "{reach:?}");
        for _ in 0..20 {
            let blocks = reach.blocks();
            reach.answered(blocks, 0, Duration::from_millis(40) * blocks as u32);
        }
        assert!((50..=200).contains(&reach.blocks()), "{reach:?}");
    }

    #[test]
    fn a_limit_is_kept_and_seldom_tried() {
        let mut reach = Reach::new(1_000_000);
        let mut limit = 2_000;
        let (mut refused, mut answered) = (0, 0);
        while answered < 5_000 {
            let blocks = reach.blocks();
            if blocks > limit {
                assert!(reach.refused(blocks, &format!("exceed maximum block range: {limit}")));
                refused += 1;
            } else {
                reach.answered(blocks, 0, QUICK);
                answered += 1;
            }
        }
        assert_eq!((refused, reach.blocks()), (7, limit), "once, and seldom again: {reach:?}");
        // A better plan is found out.
        limit = 10_000;
        for _ in 0..10_000 {
            let blocks = reach.blocks();
            if blocks > limit {
                reach.refused(blocks, "block range is too wide");
            } else {
                reach.answered(blocks, 0, QUICK);
            }
        }
        assert!(reach.blocks() > 5_000, "{reach:?}");
    }

    #[test]
    fn the_end_of_a_range_shows_nothing_and_one_block_is_the_least() {
        let mut reach = Reach::new(1000);
        reach.answered(3, 0, QUICK);
        assert_eq!(reach.blocks(), 100);
        assert!(reach.refused(2, "query timeout exceeded"));
        assert_eq!(reach.blocks(), 1);
        assert!(!reach.refused(1, "query timeout exceeded"));
        assert!(!Reach::new(0).refused(100, "rate limit exceeded"));
        assert_eq!(Reach::new(0).blocks(), 1);
    }

    /// How a provider refuses, given what was asked, what it gives, and a number that is none of the two.
    fn words(kind: u8, from: u64, asked: u64, given: u64, lie: u64) -> String {
        let end = from.saturating_add(given.max(1) - 1);
        match kind % 9 {
            0 => format!("exceed maximum block range: {given}"),
            1 => "block range is too wide".into(),
            2 => format!("query returned more than 10000 results. Try with this block range [{from:#x}, {end:#x}]."),
            3 => "query timeout exceeded".into(),
            4 => format!("query exceeds max results 20000, retry with the range {from}-{end}"),
            5 => format!("requested too many blocks from {from} to {}, maximum is set to {given}", from + asked),
            6 => format!("eth_getLogs is limited to a {lie} range"),
            7 => format!("too many results, retry with the range {from}-{}", from.saturating_add(lie)),
            _ => "whatever".into(),
        }
    }

    proptest! {
        /// Covers a range through an endpoint with another hidden limit at each question: each block once, in order, with few
        /// refusals at one place.
        #[test]
        fn a_range_is_covered_once_whatever_the_limits(
            start in 0u64..1_000_000_000,
            length in 1u64..200_000,
            max in 1u64..1_000_000,
            whims in prop::collection::vec((1u64..20_000, any::<u8>(), 1u64..2_000_000, 0usize..30_000, 0u64..20_000), 1..50),
        ) {
            let mut reach = Reach::new(max);
            let (mut next, end) = (start, start + length);
            let mut turns = whims.iter().cycle();
            let mut covered = 0;
            while next < end {
                let (limit, kind, lie, logs, took) = turns.next().expect("it has no end");
                let mut refusals = 0;
                // One place keeps its limit until it has answered.
                loop {
                    prop_assert!((1..=max).contains(&reach.blocks()), "{:?}", reach);
                    let blocks = reach.blocks().min(end - next);
                    if blocks <= *limit {
                        reach.answered(blocks, *logs, Duration::from_millis(*took));
                        covered += blocks;
                        next += blocks;
                        break;
                    }
                    let smaller = reach.refused(blocks, &words(*kind, next, blocks, *limit, *lie));
                    prop_assert!(smaller && reach.blocks() < blocks, "{:?}", reach);
                    refusals += 1;
                    prop_assert!(refusals <= 22, "{} refusals: {:?}", refusals, reach);
                }
            }
            prop_assert_eq!((covered, next), (length, end));
        }

        /// Whatever is said, there is something to ask for, and less than was refused.
        #[test]
        fn no_text_stops_it(text in ".*", blocks in 0u64.., max in 0u64.., logs in any::<usize>(), millis in any::<u64>()) {
            let mut reach = Reach::new(max);
            if reach.refused(blocks, &text) {
                prop_assert!((1..blocks).contains(&reach.blocks()));
            }
            reach.answered(blocks, logs, Duration::from_millis(millis));
            prop_assert!((1..=max.max(1)).contains(&reach.blocks()), "{:?}", reach);
        }
    }
}
