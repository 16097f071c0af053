//! The faults, one row each: what goes wrong, and what the operator must be able to read of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use fabstir::market::types::B256;
use serde_json::{Value, json};

use super::chains::Chains;
use super::proxy::{Proxy, Reply, UNFINAL, When, quantity, refusal};
use super::{Course, Row, TIMEOUT};

/// One row for each fault. Those that take longest stand last.
pub const TABLE: &[Row] = &[
    // Logs that are not the block's.
    row("1 log in 3 is missing in eth_getLogs", &["corrected"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| leave_out(answer));
    }),
    row("1 log in 3 is missing in the receipts", &["the receipts' root is"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| leave_out(answer));
    }),
    row("1 log in 3 is missing in both", &["the receipts' root is"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| leave_out(answer));
        proxy.answer(RECEIPTS, When::Always, |_, answer| leave_out(answer));
    }),
    row("all logs are missing in both, and the bloom says none", &["the header's hash is"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| answer["result"] = json!([]));
        proxy.answer(RECEIPTS, When::Always, |_, answer| each_receipt(answer, |receipt| receipt["logs"] = json!([])));
        proxy.answer(HEADER, When::Always, |_, answer| {
            if answer["result"].is_object() {
                answer["result"]["logsBloom"] = json!(format!("0x{}", "0".repeat(512)));
            }
        });
    }),
    row("the first event of each job is missing in both", &["the receipts' root is"], |_, proxy| {
        let first = |answer: &mut Value| each_logs(answer, |logs| logs.retain(|log| !is_long(log)));
        proxy.answer("eth_getLogs", When::Always, move |_, answer| first(answer));
        proxy.answer(RECEIPTS, When::Always, move |_, answer| first(answer));
    }),
    row("a log is invented in eth_getLogs", &["corrected"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| invent(answer));
    }),
    row("a log is invented in both", &["the receipts' root is"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| invent(answer));
        proxy.answer(RECEIPTS, When::Always, |_, answer| invent(answer));
    }),
    row("a log's data is altered in both", &["the receipts' root is"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| alter(answer, "data"));
        proxy.answer(RECEIPTS, When::Always, |_, answer| alter(answer, "data"));
    }),
    row("a log's topics are altered in both", &["the receipts' root is"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| alter(answer, "topics"));
        proxy.answer(RECEIPTS, When::Always, |_, answer| alter(answer, "topics"));
    }),
    row("two logs of a block are swapped in both", &["the receipts' root is"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| each_logs(answer, |logs| swap(logs)));
        proxy.answer(RECEIPTS, When::Always, |_, answer| each_logs(answer, |logs| swap(logs)));
    }),
    row("no receipts, and a log is missing in eth_getLogs", &["no receipts of the block"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| leave_out(answer));
        proxy.answer(RECEIPTS, When::Always, |_, answer| answer["result"] = Value::Null);
    }),
    row("no receipts, and eth_getLogs finds nothing", &["no receipts of the block"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| answer["result"] = json!([]));
        proxy.answer(RECEIPTS, When::Always, |_, answer| answer["result"] = Value::Null);
    }),
    row("no receipts, and eth_getLogs tells removed logs", &["a removed log"], |_, proxy| {
        let removed = |logs: &mut Vec<Value>| logs.iter_mut().for_each(|log| log["removed"] = json!(true));
        proxy.answer("eth_getLogs", When::Always, move |_, answer| each_logs(answer, removed));
        proxy.answer(RECEIPTS, When::Always, |_, answer| answer["result"] = Value::Null);
    }),
    // Receipts that are not the block's.
    row("a receipt's status is another", &["the receipts' root is"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| each_receipt(answer, |one| one["status"] = json!("0x0")));
    }),
    row("a receipt's gas is another", &["the receipts' root is"], |_, proxy| {
        let bend = |one: &mut Value| one["cumulativeGasUsed"] = json!("0x5208");
        proxy.answer(RECEIPTS, When::Always, move |_, answer| each_receipt(answer, bend));
    }),
    row("the last receipt of a block is missing", &["the receipts' root is"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| _ = answer["result"].as_array_mut().and_then(Vec::pop));
    }),
    row("the receipts are another block's", &["is of block"], |_, proxy| {
        let other = |one: &mut Value| one["blockHash"] = json!(B256::repeat_byte(7));
        proxy.answer(RECEIPTS, When::Always, move |_, answer| each_receipt(answer, other));
    }),
    row("the receipts are null", &["no receipts of the block"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| answer["result"] = Value::Null);
    }),
    row("the receipts are an empty list", &["the receipts' root is"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| answer["result"] = json!([]));
    }),
    row("the receipts of 1 call in 3 are null", &["no receipts of the block"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Every(3), |_, answer| answer["result"] = Value::Null);
    }),
    Row {
        name: "eth_getBlockReceipts is not supported, until a restart",
        says: &["is not supported"],
        course: Course::RulesUntilRestart(|_, proxy| {
            proxy.answer(RECEIPTS, When::Always, |_, answer| refusal(answer, -32601, "the method is not supported"));
        }),
    },
    row("the receipts are no receipts", &["read the block's receipts"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| answer["result"] = json!([{ "logs": 7 }]));
    }),
    // Replicas.
    row("a replica 7 blocks behind answers", &["unharmed"], |_, proxy| proxy.lag(When::Always, 7)),
    row("a replica 3 blocks behind answers 1 request in 2", &["lacks block", "lost block", "unharmed"], |_, proxy| {
        proxy.lag(When::Every(2), 3);
    }),
    row("a replica 3 blocks behind answers 1 request in 3", &["lacks block", "lost block", "unharmed"], |_, proxy| {
        proxy.lag(When::Every(3), 3);
    }),
    row("the newest block is null, 1 time in 2", &["no newest block"], |_, proxy| {
        let there = AtomicBool::new(true);
        proxy.answer(HEADER, When::Always, move |call, answer| {
            if call["params"][0] == "latest" && there.fetch_not(Relaxed) {
                answer["result"] = Value::Null;
            }
        });
    }),
    row("a block that is there is null", &["lacks block"], |chains, proxy| {
        let number = chains.main.head() - 40;
        proxy.answer(HEADER, When::Always, move |_, answer| {
            if quantity(&answer["result"]["number"]) == Some(number) {
                answer["result"] = Value::Null;
            }
        });
    }),
    row("eth_getLogs past a replica's head finds nothing", &["corrected"], |chains, proxy| {
        let head = chains.main.head() - UNFINAL - 20;
        proxy.answer("eth_getLogs", When::Always, move |_, answer| {
            each_logs(answer, |logs| logs.retain(|log| quantity(&log["blockNumber"]).is_some_and(|at| at <= head)));
        });
    }),
    row("the endpoint does not know what is final", &["unharmed"], |_, proxy| {
        proxy.answer(HEADER, When::Always, |call, answer| {
            if call["params"][0] == "finalized" {
                refusal(answer, -39001, "Unknown block");
            }
        });
    }),
    // Caps.
    row("eth_getLogs is capped at 10 blocks, in the words of one", &["unharmed", "got through"], |_, proxy| {
        cap_range(
            proxy,
            10,
            -32600,
            "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range",
        );
    }),
    row("eth_getLogs is capped at 16 blocks, in the words of another", &["unharmed", "got through"], |_, proxy| {
        cap_range(proxy, 16, -32005, "block range is too wide");
    }),
    row("eth_getLogs is capped at 8 blocks, in no known words", &["unharmed", "got through"], |_, proxy| {
        cap_range(proxy, 8, -32000, "computer says no");
    }),
    row("eth_getLogs is capped at 30 results", &["unharmed", "got through"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| {
            if answer["result"].as_array().is_some_and(|logs| logs.len() > 30) {
                refusal(answer, -32005, "query returned more than 30 results");
            }
        });
    }),
    row("eth_getLogs is not supported", &["unharmed", "got through"], |_, proxy| {
        proxy.answer("eth_getLogs", When::Always, |_, answer| refusal(answer, -32601, "the method does not exist"));
    }),
    row("batches are refused at HTTP 200", &["unharmed", "got through"], |_, proxy| {
        let refused = Reply::Error(-32600, "batch requests are not supported");
        proxy.request(When::Always, move |calls| (calls.len() > 1).then_some(refused));
    }),
    row("batches are refused at HTTP 400", &["unharmed", "got through"], |_, proxy| {
        let refused = Reply::Status(400, "batch requests are not supported");
        proxy.request(When::Always, move |calls| (calls.len() > 1).then_some(refused));
    }),
    row("batches are capped at 10 calls", &["unharmed", "got through"], |_, proxy| {
        let refused = Reply::Error(-32005, "batch size is too large, at most 10");
        proxy.request(When::Always, move |calls| (calls.len() > 10).then_some(refused));
    }),
    // An endpoint in trouble.
    row("429 to 3 requests in 4", &["429"], |_, proxy| {
        proxy.request(When::But(4), |_| Some(Reply::Status(429, "too many requests")));
    }),
    row("429 to 1 request in 3, with Retry-After", &["429", "unharmed"], |_, proxy| {
        proxy.request(When::Every(3), |_| Some(Reply::RetryAfter(429, "1")));
    }),
    row("429 to everything, with Retry-After", &["429"], |_, proxy| {
        proxy.request(When::Always, |_| Some(Reply::RetryAfter(429, "1")));
    }),
    row("a rate limit told at HTTP 200", &["request limit", "unharmed"], |_, proxy| {
        proxy.request(When::Every(3), |_| Some(Reply::Error(-32005, "daily request limit reached")));
    }),
    row("503 to 1 request in 3", &["503", "unharmed"], |_, proxy| {
        proxy.request(When::Every(3), |_| Some(Reply::Status(503, "busy")));
    }),
    row("502 to everything", &["502"], |_, proxy| {
        proxy.request(When::Always, |_| Some(Reply::Status(502, "<html><h1>Bad Gateway</h1></html>")));
    }),
    row("an HTML page at HTTP 200, 1 time in 3", &["no JSON-RPC", "unharmed"], |_, proxy| {
        proxy.request(When::Every(3), |_| Some(Reply::Text("<html><h1>Just a moment...</h1></html>")));
    }),
    row("the connection ends in the middle of 1 answer in 3", &["error", "unharmed"], |_, proxy| {
        proxy.request(When::Every(3), |_| Some(Reply::Torn));
    }),
    row("half of the JSON, 1 time in 3", &["no JSON-RPC", "unharmed"], |_, proxy| {
        proxy.request(When::Every(3), |_| Some(Reply::Half));
    }),
    row("an answer comes too late", &["timed out", "error sending request", "unharmed"], |_, proxy| {
        proxy.request(When::First(1), |_| Some(Reply::Late(TIMEOUT * 2)));
    }),
    // One of two endpoints.
    one_of_two("1 of 2 endpoints answers 502 to everything", &["unharmed", "got through"], |_, proxy| {
        proxy.request(When::Always, |_| Some(Reply::Status(502, "Bad Gateway")));
    }),
    one_of_two("1 of 2 endpoints answers 429 to everything", &["unharmed", "got through"], |_, proxy| {
        proxy.request(When::Always, |_| Some(Reply::Status(429, "too many requests")));
    }),
    one_of_two("1 of 2 endpoints serves another chain id", &["unharmed", "got through"], |chains, proxy| {
        proxy.share(When::Always, &chains.other_id.rpc_url);
    }),
    one_of_two("1 of 2 endpoints does not know eth_getBlockReceipts", &["unharmed", "got through"], |_, proxy| {
        proxy.answer(RECEIPTS, When::Always, |_, answer| refusal(answer, -32601, "the method does not exist"));
    }),
    one_of_two(
        "1 of 2 endpoints leaves 1 log in 3 out everywhere",
        &["the receipts' root is", "corrected"],
        |_, proxy| {
            proxy.answer("eth_getLogs", When::Always, |_, answer| leave_out(answer));
            proxy.answer(RECEIPTS, When::Always, |_, answer| leave_out(answer));
        },
    ),
    one_of_two("1 of 2 endpoints is 20 blocks behind", &["unharmed", "got through"], |_, proxy| {
        proxy.lag(When::Always, 20);
    }),
    one_of_two("1 of 2 endpoints has another newest block", &["unharmed", "got through"], |chains, proxy| {
        proxy.share(When::Always, &chains.sibling.url);
    }),
    // Answers to other questions.
    row("the answers of a batch are in another order", &["unharmed"], |_, proxy| {
        proxy.batch(When::Always, |answers| answers.reverse());
    }),
    row("an answer of a batch comes twice", &["calls", "unharmed"], |_, proxy| {
        proxy.batch(When::Always, |answers| answers.push(answers[0].clone()));
    }),
    row("an answer of each batch is missing", &["calls", "unharmed"], |_, proxy| {
        proxy.batch(When::Always, |answers| _ = answers.pop());
    }),
    row("the answers of a batch bear each other's ids", &["asked for block"], |_, proxy| {
        proxy.batch(When::Always, |answers| {
            let first = answers[0]["id"].take();
            answers[0]["id"] = answers[1]["id"].take();
            answers[1]["id"] = first;
        });
    }),
    row("the block before the one asked for", &["asked for block"], |_, proxy| {
        let last = Mutex::new(Value::Null);
        proxy.answer(HEADER, When::Every(5), move |call, answer| {
            let mut last = last.lock().unwrap();
            if call["params"][0] != "latest" && call["params"][0] != "finalized" && last.is_object() {
                answer["result"] = last.clone();
            }
            *last = answer["result"].clone();
        });
    }),
    // Headers that are not the chain's.
    row("1 header in 7 is not what its hash says", &["the header's hash is"], |_, proxy| {
        proxy.answer(HEADER, When::Always, |_, answer| {
            if quantity(&answer["result"]["number"]).is_some_and(|number| number % 7 == 0) {
                answer["result"]["stateRoot"] = json!(B256::ZERO);
            }
        });
    }),
    row("a header names another parent", &["another parent", "does not follow"], |chains, proxy| {
        let number = chains.main.head() - 30;
        proxy.answer(HEADER, When::Always, move |_, answer| {
            if quantity(&answer["result"]["number"]) == Some(number) {
                answer["result"]["parentHash"] = json!(B256::ZERO);
            }
        });
    }),
    row("a header's time is another", &["the header's hash is"], |chains, proxy| {
        let number = chains.main.head() - 30;
        proxy.answer(HEADER, When::Always, move |_, answer| {
            if quantity(&answer["result"]["number"]) == Some(number) {
                answer["result"]["timestamp"] = json!("0x1");
            }
        });
    }),
    row(
        "a replica with another newest block answers 1 request in 2",
        &["rewound", "another parent", "unknown block"],
        |chains, proxy| {
            proxy.share(When::Every(2), &chains.sibling.url);
        },
    ),
    row(
        "a replica with 6 other blocks answers 1 request in 3",
        &["rewound", "another parent", "unknown block"],
        |chains, proxy| {
            proxy.share(When::Every(3), &chains.forks[1].url);
        },
    ),
    // Reorganisations.
    Row { name: "the newest block is replaced", says: &["rewound"], course: Course::Fork(|chains| &chains.sibling) },
    Row { name: "1 block is replaced by 2", says: &["rewound"], course: Course::Fork(|chains| &chains.forks[0]) },
    Row { name: "5 blocks are replaced by 6", says: &["rewound"], course: Course::Fork(|chains| &chains.forks[1]) },
    Row {
        name: "64 blocks are replaced, all that are not final",
        says: &["rewound"],
        course: Course::Fork(|chains| &chains.forks[2]),
    },
    Row {
        name: "the newest block is replaced between any two requests",
        says: &["rewound"],
        course: Course::ForkAnywhere(|chains| &chains.sibling),
    },
    Row {
        name: "5 blocks are replaced between any two requests",
        says: &["rewound"],
        course: Course::ForkAnywhere(|chains| &chains.forks[1]),
    },
    Row {
        name: "a final block is replaced",
        says: &["was final"],
        course: Course::Stranger(|chains| &chains.below_final.url),
    },
    // Other chains.
    Row {
        name: "another chain of the same id, later",
        says: &["was final"],
        course: Course::Stranger(|chains| &chains.stranger.rpc_url),
    },
    Row {
        name: "another chain of the same id, midway",
        says: &["another chain", "was final"],
        course: Course::StrangerMidway(|chains| &chains.stranger.rpc_url),
    },
    Row {
        name: "another chain of the same id, from the start",
        says: &["has no code"],
        course: Course::StrangerFirst(|chains| &chains.stranger.rpc_url),
    },
    Row {
        name: "another chain id, later",
        says: &["was final", "serves chain 4242"],
        course: Course::Stranger(|chains| &chains.other_id.rpc_url),
    },
    Row {
        name: "another chain id, midway",
        says: &["another chain", "was final", "serves chain 4242"],
        course: Course::StrangerMidway(|chains| &chains.other_id.rpc_url),
    },
    Row {
        name: "another chain id, from the start",
        says: &["serves chain 4242"],
        course: Course::StrangerFirst(|chains| &chains.other_id.rpc_url),
    },
    Row { name: "kill -9, again and again", says: &["unharmed"], course: Course::Kills },
];

/// The methods that are changed most.
const HEADER: &str = "eth_getBlockByNumber";
const RECEIPTS: &str = "eth_getBlockReceipts";

const fn one_of_two(name: &'static str, says: &'static [&'static str], rules: fn(&Chains, &Proxy)) -> Row {
    Row { name, says, course: Course::OneOfTwo(rules) }
}

const fn row(name: &'static str, says: &'static [&'static str], rules: fn(&Chains, &Proxy)) -> Row {
    Row { name, says, course: Course::Rules(rules) }
}

/// Calls `change` with each list of logs in an answer: of eth_getLogs one, of receipts one each.
fn each_logs(answer: &mut Value, change: impl Fn(&mut Vec<Value>)) {
    let Some(entries) = answer["result"].as_array_mut() else { return };
    if entries.iter().any(|entry| entry["logs"].is_array()) {
        entries.iter_mut().filter_map(|entry| entry["logs"].as_array_mut()).for_each(change);
    } else if entries.iter().any(|entry| entry["topics"].is_array()) {
        change(entries);
    }
}

fn each_receipt(answer: &mut Value, change: impl Fn(&mut Value)) {
    answer["result"].as_array_mut().into_iter().flatten().for_each(change);
}

/// Leaves out every third log, the same ones wherever it is asked.
fn leave_out(answer: &mut Value) {
    let place = |log: &Value| quantity(&log["blockNumber"]).zip(quantity(&log["logIndex"]));
    each_logs(answer, |logs| logs.retain(|log| place(log).is_none_or(|(block, index)| (block + index) % 3 != 0)));
}

/// Adds a log like the last one, of another transaction and at the next place.
fn invent(answer: &mut Value) {
    each_logs(answer, |logs| {
        if let Some(mut more) = logs.last().cloned() {
            more["transactionHash"] = json!(B256::repeat_byte(7));
            more["logIndex"] = json!(format!("{:#x}", quantity(&more["logIndex"]).unwrap_or(0) + 1));
            logs.push(more);
        }
    });
}

/// Alters the last log of each list.
fn alter(answer: &mut Value, what: &str) {
    each_logs(answer, |logs| match (logs.last_mut(), what) {
        (Some(log), "topics") => {
            if let Some(topic) = log["topics"].as_array_mut().and_then(|topics| topics.last_mut()) {
                *topic = json!(B256::with_last_byte(9));
            }
        }
        (Some(log), _) => log["data"] = json!(log["data"].as_str().unwrap_or("0x").replace(['1', '2', '3'], "4")),
        (None, _) => {}
    });
}

/// Swaps what the first two logs say.
fn swap(logs: &mut [Value]) {
    if let [first, second, ..] = logs {
        std::mem::swap(&mut first["data"], &mut second["data"]);
        std::mem::swap(&mut first["topics"], &mut second["topics"]);
    }
}

/// Whether a log is one that posts a job: they have the longest data by far.
fn is_long(log: &Value) -> bool {
    log["data"].as_str().is_some_and(|data| data.len() > 800)
}

fn cap_range(proxy: &Proxy, blocks: u64, code: i64, words: &'static str) {
    proxy.answer("eth_getLogs", When::Always, move |call, answer| {
        let end = |name: &str| quantity(&call["params"][0][name]);
        if end("fromBlock").zip(end("toBlock")).is_some_and(|(from, to)| to - from + 1 > blocks) {
            refusal(answer, code, words);
        }
    });
}
