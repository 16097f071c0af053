//! Endpoints over loopback that misbehave as real ones do, and how often each was asked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::sol_types::SolEvent;
use anyhow::{Context, Result};
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::abi::Erc20::Transfer;
use super::endpoint::Pace;
use super::*;

const CHAIN: u64 = 31337;
const BALANCE: &str = "eth_getBalance";
const CHAIN_ID: &str = "eth_chainId";
/// How long a state may take to be reached on a loaded machine; not a measure of anything.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What a server does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Answer,
    /// An HTTP status with this text.
    Status(u16, &'static str),
    /// 429, and how long to wait.
    Wait(&'static str),
    /// Half an answer.
    Truncate,
    /// A body without an end.
    Babble,
    /// A page for people, who may like to see what they asked for.
    Page,
    Hang,
    OtherChain,
    /// This error to each call but the first question, which chain it is.
    Refuse(i64, &'static str),
    /// This error, with this HTTP status, to batches of more calls.
    RefuseBatch(usize, u16, &'static str),
    /// Answers after so many milliseconds.
    Slowly(u64),
    /// Gives the logs of no more blocks at once: in each a transfer from account 7 to account 8, whatever is asked for.
    LogsOf(u64),
    /// Takes a transaction, whose bytes are its nonce, only after the one before; and the request with the first comes late.
    InOrder,
}

struct Server {
    address: SocketAddr,
    work: Arc<Work>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

struct Work {
    does: Mutex<Does>,
    /// Each HTTP request: the method, and of how many calls where it was a batch.
    asked: Mutex<Vec<String>>,
    bodies: Mutex<Vec<Value>>,
    head: AtomicU64,
    /// The nonce of [`Does::InOrder`] that is next.
    nonce: AtomicU64,
}

impl Server {
    async fn start(does: Does) -> Result<Server> {
        let (asked, bodies) = Default::default();
        let work = Work { does: Mutex::new(does), asked, bodies, head: 100.into(), nonce: 0.into() };
        let mut server = Server { address: ([127, 0, 0, 1], 0).into(), work: Arc::new(work), running: None };
        server.come_back().await?;
        Ok(server)
    }

    async fn come_back(&mut self) -> Result<()> {
        let listener = tokio::net::TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        let (die, dying) = oneshot::channel();
        let app = Router::new().fallback(serve).with_state(self.work.clone());
        let serving = axum::serve(listener, app).with_graceful_shutdown(async move { drop(dying.await) });
        self.running = Some((die, tokio::spawn(async move { serving.await.unwrap() })));
        Ok(())
    }

    async fn die(&mut self) -> Result<()> {
        let (die, running) = self.running.take().context("it is dead")?;
        drop(die);
        Ok(running.await?)
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn now(&self, does: Does) {
        *self.work.does.lock().unwrap() = does;
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.work.asked.lock().unwrap())
    }
}

async fn serve(State(work): State<Arc<Work>>, uri: axum::http::Uri, Json(body): Json<Value>) -> Response {
    let calls = body.as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
    let method = calls[0]["method"].as_str().unwrap_or_default();
    let label = if body.is_array() { format!("{} {method}", calls.len()) } else { method.to_owned() };
    work.asked.lock().unwrap().push(label);
    work.bodies.lock().unwrap().push(body.clone());
    let does = *work.does.lock().unwrap();
    let nonce = |call: &Value| u64::from_str_radix(&call["params"][0].as_str().unwrap_or_default()[2..], 16).unwrap();
    if does == Does::InOrder && method == "eth_sendRawTransaction" && nonce(&calls[0]) == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = |call: &Value| {
        let result = match (call["method"].as_str().unwrap_or_default(), does) {
            (CHAIN_ID, Does::OtherChain) => json!("0x1"),
            (CHAIN_ID, _) => json!(U64::from(CHAIN)),
            (_, Does::Refuse(code, message)) => {
                return json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": code, "message": message}});
            }
            ("eth_getLogs", Does::LogsOf(max)) => {
                let [from, to] = ["fromBlock", "toBlock"].map(|end| {
                    serde_json::from_value::<U64>(call["params"][0][end].clone()).map_or(0, |number| number.to::<u64>())
                });
                if to - from >= max {
                    let error = json!({"code": -32005, "message": format!("exceed maximum block range: {max}")});
                    return json!({"jsonrpc": "2.0", "id": call["id"], "error": error});
                }
                let topics = [Transfer::SIGNATURE_HASH, account(7).into_word(), account(8).into_word()];
                let log = |number| {
                    json!({
                        "address": account(1), "topics": topics, "data": B256::from(U256::from(number)), "removed": false,
                        "blockNumber": U64::from(number), "blockHash": B256::repeat_byte(1), "transactionIndex": "0x0",
                        "transactionHash": B256::repeat_byte(2), "logIndex": "0x0",
                    })
                };
                (from..=to).map(log).collect()
            }
            ("eth_blockNumber", _) => json!(U64::from(work.head.load(Ordering::Relaxed))),
            ("eth_sendRawTransaction", Does::InOrder) if nonce(call) != work.nonce.load(Ordering::Relaxed) => {
                let error = json!({"code": -32000, "message": "nonce too high"});
                return json!({"jsonrpc": "2.0", "id": call["id"], "error": error});
            }
            ("eth_sendRawTransaction", Does::InOrder) => {
                work.nonce.fetch_add(1, Ordering::Relaxed);
                json!(B256::repeat_byte(7))
            }
            ("eth_sendRawTransaction", _) => json!(B256::repeat_byte(7)),
            ("eth_getBlockReceipts", _) => json!([]),
            // Who asks for a balance is told the account's last byte.
            (BALANCE, _) => json!(U256::from(call["params"][0].as_str().map_or(0, |it| it.as_bytes()[41] - b'0'))),
            // A rollup's receipts, and its blocks with kinds of transactions that Ethereum has not.
            ("eth_getTransactionReceipt", _) => json!({
                "status": "0x1", "gasUsed": "0x64", "effectiveGasPrice": "0x3", "l1Fee": "0x7", "type": "0x2", "logs": [],
            }),
            ("eth_getBlockByNumber", _) if call["params"][1] == true => json!({ "transactions": [
                { "type": "0x7e", "hash": B256::ZERO, "from": account(8), "nonce": "0x0", "value": "0x0", "mint": "0x1" },
                { "type": "0x2", "hash": B256::repeat_byte(5), "from": account(8), "nonce": "0x4", "value": "0xa" },
            ]}),
            _ => Value::Null,
        };
        json!({"jsonrpc": "2.0", "id": call["id"], "result": result})
    };
    let answered = match &body {
        Value::Array(_) => Value::Array(calls.iter().map(answer).collect()),
        call => answer(call),
    };
    match does {
        Does::Status(status, text) => (StatusCode::from_u16(status).unwrap(), text).into_response(),
        Does::Wait(after) => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, after)], "slower").into_response(),
        Does::Truncate => answered.to_string()[..20].to_owned().into_response(),
        Does::Babble => {
            let noise = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1024]));
            Body::from_stream(noise).into_response()
        }
        Does::Page => format!("<html>\n<p>Cannot POST {uri}</html>").into_response(),
        Does::Hang => std::future::pending().await,
        Does::RefuseBatch(max, status, message) if body.is_array() && calls.len() > max => {
            let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": 31, "message": message}});
            (StatusCode::from_u16(status).unwrap(), Json(error)).into_response()
        }
        Does::Slowly(millis) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Json(answered).into_response()
        }
        _ => Json(answered).into_response(),
    }
}

/// Nothing happens by itself, and nothing takes long.
fn pace() -> Pace {
    Pace {
        probe: Duration::from_secs(3600),
        backoff_min: Duration::from_secs(600),
        backoff_max: Duration::from_secs(600),
        answer_max_bytes: 1 << 20,
    }
}

fn contracts() -> Contracts {
    let [a, b, c, d, e, f, g, h, i] = [Address::repeat_byte(1); 9];
    Contracts {
        governance_token: a,
        node_registry: b,
        payment_escrow: c,
        job_marketplace: d,
        proof_system: e,
        reputation_system: f,
        governance: g,
        timelock: h,
        account_factory: i,
        also: Vec::new(),
    }
}

fn chain_of(urls: &[String], pace: Pace) -> Result<Chain> {
    let timeout = Duration::from_secs(2);
    Chain::at_pace(Endpoints { urls: urls.to_vec(), requests_per_second: 0, timeout }, CHAIN, contracts(), pace)
}

fn chain(servers: &[&Server]) -> Result<Chain> {
    chain_of(&servers.iter().map(|server| server.url()).collect::<Vec<_>>(), pace())
}

fn account(last: u8) -> Address {
    Address::with_last_byte(last)
}

/// Asks for something; the answer must be right.
async fn ask(chain: &Chain) -> Result<()> {
    let balance = chain.balance(Address::ZERO, account(7)).await?;
    assert_eq!(balance, U256::from(7));
    Ok(())
}

async fn failure(chain: &Chain) -> String {
    format!("{:#}", ask(chain).await.unwrap_err())
}

/// Asks in a batch; each answer must be its question's.
async fn ask_batch(chain: &Chain, calls: u8) -> Result<()> {
    let mut batch = chain.client.new_batch();
    let accounts = (0..calls).map(|place| place % 10);
    let answers: Vec<_> = accounts
        .clone()
        .map(|last| batch.add_call::<_, U256>(BALANCE, &(account(last), "latest")))
        .collect::<Result<_, _>>()?;
    batch.send().await?;
    for (last, answer) in accounts.zip(answers) {
        assert_eq!(answer.await?, U256::from(last));
    }
    Ok(())
}

async fn until(what: &str, done: impl AsyncFn() -> bool) -> Result<()> {
    let reached = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, reached).await.with_context(|| format!("never so: {what}"))
}

#[tokio::test]
async fn what_fails_is_asked_once_and_then_let_alone() -> Result<()> {
    for fault in [
        Does::Status(500, "sorry"),
        Does::Status(502, ""),
        Does::Status(429, "slower"),
        Does::Wait("3600"),
        Does::Status(401, "who are you?"),
        Does::Truncate,
        Does::Babble,
        Does::Page,
        Does::Hang,
        Does::Refuse(-32016, "over rate limit"),
        Does::Refuse(429, "Your app has exceeded its compute units per second capacity"),
    ] {
        let (first, second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
        let chain = chain(&[&first, &second])?;
        ask(&chain).await?;
        ask(&chain).await?;
        assert_eq!((first.asked(), second.asked()), (vec![CHAIN_ID.into(), BALANCE.into(), BALANCE.into()], vec![]));
        first.now(fault);
        for _ in 0..3 {
            ask(&chain).await?;
        }
        assert_eq!(first.asked(), [BALANCE]);
        assert_eq!(second.asked(), [CHAIN_ID, BALANCE, BALANCE, BALANCE]);
        // It stays so when the first is well again, and when the second fails too, either may be asked.
        first.now(Does::Answer);
        ask(&chain).await?;
        second.now(fault);
        let said = failure(&chain).await;
        assert!(said.contains(&second.url()), "{said}");
        let states = chain.endpoints();
        assert_eq!((states[0].failures, states[1].failures), (1, 1));
        assert_eq!((states[0].requests, states[1].requests), (4, 6));
        assert_eq!((states[0].lag, states[1].lag), (None, None), "neither answers");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_transaction_cost_is_gas_and_what_the_rollup_takes() -> Result<()> {
    let server = Server::start(Does::Answer).await?;
    let chain = chain(&[&server])?;
    let paid = super::Paid { hash: B256::repeat_byte(5), fee_wei: U256::from(307), value: U256::from(10) };
    assert_eq!(chain.paid(account(8), 1, 4).await?, Some(paid));
    assert_eq!(chain.paid(account(8), 1, 5).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_lone_endpoint_is_asked_each_time_and_taken_back_at_once() -> Result<()> {
    let mut server = Server::start(Does::Status(500, "sorry")).await?;
    let chain = chain(&[&server])?;
    for _ in 0..3 {
        let said = failure(&chain).await;
        assert!(said.contains(&format!("{}: HTTP 500 Internal Server Error: sorry", server.url())), "{said}");
    }
    assert_eq!(server.asked(), [CHAIN_ID; 3]);
    server.now(Does::Answer);
    ask(&chain).await?;
    ask(&chain).await?;
    assert_eq!(server.asked(), [CHAIN_ID, BALANCE, BALANCE]);
    server.die().await?;
    let said = failure(&chain).await;
    assert!(said.contains("Connection refused"), "{said}");
    server.come_back().await?;
    ask(&chain).await?;
    assert_eq!(server.asked(), [CHAIN_ID, BALANCE], "which chain it is may have changed meanwhile");
    Ok(())
}

#[tokio::test]
async fn who_says_wait_is_not_asked_before() -> Result<()> {
    let server = Server::start(Does::Answer).await?;
    let chain = chain(&[&server])?;
    ask(&chain).await?;
    server.asked();
    server.now(Does::Wait("1"));
    let said = failure(&chain).await;
    assert!(said.contains("HTTP 429 Too Many Requests: slower"), "{said}");
    server.now(Does::Answer);
    let said = failure(&chain).await;
    assert!(said.contains("asked too often: not asked again for"), "{said}");
    until("it is asked again", async || ask(&chain).await.is_ok()).await?;
    assert_eq!(server.asked(), [BALANCE, CHAIN_ID, BALANCE]);
    Ok(())
}

#[tokio::test]
async fn another_chain_is_never_believed() -> Result<()> {
    let (other, ours) = (Server::start(Does::OtherChain).await?, Server::start(Does::Answer).await?);
    let both = chain(&[&other, &ours])?;
    for _ in 0..3 {
        ask(&both).await?;
    }
    assert_eq!((other.asked(), ours.asked().len()), (vec![CHAIN_ID.into()], 4));

    // Nor is who does not say which it serves, in whatever way.
    for does in [Does::Status(400, "?"), Does::Status(405, ""), Does::Page] {
        let odd = Server::start(does).await?;
        let both = chain(&[&odd, &ours])?;
        ask(&both).await?;
        ask(&both).await?;
        assert_eq!(odd.asked(), [CHAIN_ID]);
    }

    let alone = chain(&[&other])?;
    let error = ask(&alone).await.unwrap_err();
    assert!(Failure::is_other_chain(&error));
    let said = format!("{error:#}");
    let says = format!("{}: it serves chain 1, but the configuration says chain_id = 31337", other.url());
    assert!(said.contains(&says), "{said}");
    other.now(Does::Answer);
    ask(&alone).await?;
    assert_eq!(other.asked(), [CHAIN_ID, CHAIN_ID, BALANCE]);
    Ok(())
}

#[tokio::test]
async fn an_error_about_the_call_is_an_answer() -> Result<()> {
    let (first, second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
    let chain = chain(&[&first, &second])?;
    ask(&chain).await?;
    for (code, message) in [
        (3, "execution reverted: rate limit"),
        (-32000, "execution reverted: too many requests"),
        (-32602, "query exceeds max block range 1000"),
        (-32601, "the method eth_getBalance does not exist/is not available"),
        (-32005, "query returned more than 10000 results"),
    ] {
        first.now(Does::Refuse(code, message));
        let said = failure(&chain).await;
        assert!(said.contains(message) && said.contains(&code.to_string()), "{said}");
    }
    // So is a status that is about this request alone.
    first.now(Does::Status(413, "too large for us"));
    assert!(failure(&chain).await.contains("HTTP 413 Payload Too Large: too large for us"));
    first.now(Does::Answer);
    ask(&chain).await?;
    assert_eq!((first.asked().len(), second.asked().len()), (9, 0));
    Ok(())
}

#[tokio::test]
async fn a_batch_is_taken_apart_for_who_takes_none() -> Result<()> {
    let repeated = |label: &str, times: usize| vec![label.to_owned(); times];
    for (refusal, calls, first, later) in [
        // Not at all.
        (Does::RefuseBatch(0, 200, "Invalid Request"), 5, repeated(BALANCE, 5), repeated(BALANCE, 5)),
        (Does::RefuseBatch(0, 400, "a list is no object"), 5, repeated(BALANCE, 5), repeated(BALANCE, 5)),
        // Base's public endpoint, and dRPC, name the number.
        (
            Does::RefuseBatch(10, 200, "maximum 10 calls in 1 batch"),
            20,
            repeated("10 eth_getBalance", 2),
            repeated("10 eth_getBalance", 2),
        ),
        (
            Does::RefuseBatch(3, 500, "Batch of more than 3 requests are not allowed on free tier"),
            6,
            repeated("3 eth_getBalance", 2),
            repeated("3 eth_getBalance", 2),
        ),
        // Others are found out.
        (
            Does::RefuseBatch(5, 200, "batch too large"),
            20,
            [repeated("10 eth_getBalance", 2), repeated("5 eth_getBalance", 4)].concat(),
            repeated("5 eth_getBalance", 4),
        ),
    ] {
        let server = Server::start(refusal).await?;
        let chain = chain(&[&server])?;
        ask_batch(&chain, calls).await?;
        let mut asked = server.asked();
        assert_eq!(asked.drain(..2).collect::<Vec<_>>(), [CHAIN_ID.to_owned(), format!("{calls} {BALANCE}")]);
        // Parts under way are broken off by the first refusal: as many as it takes for one.
        let refused = first.len() - later.len();
        asked.drain(..asked.len() - later.len()).for_each(|label| assert!(refused > 0 && label == first[0], "{label}"));
        assert_eq!(asked, later);
        ask_batch(&chain, calls).await?;
        assert_eq!(server.asked(), later);
        assert_eq!(chain.endpoints()[0].failures, 0);
    }
    // One that fails is asked as any other.
    let (first, second) = (Server::start(Does::Truncate).await?, Server::start(Does::Answer).await?);
    ask_batch(&chain(&[&first, &second])?, 3).await?;
    assert_eq!(second.asked(), [CHAIN_ID, "3 eth_getBalance"]);
    Ok(())
}

#[tokio::test]
async fn what_is_steady_asks_one_and_fails_with_it() -> Result<()> {
    let (mut first, second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
    let chain = chain(&[&first, &second])?;
    let step = chain.steady();
    ask(&step).await?;
    assert_eq!((step.name(), step.steady().name()), (first.url().as_str(), first.url().as_str()));
    first.die().await?;
    let said = failure(&step).await;
    assert!(said.contains(&first.url()) && !said.contains(&second.url()), "{said}");
    assert_eq!(second.asked(), Vec::<String>::new());
    let step = chain.steady();
    assert_eq!(step.name(), second.url());
    ask(&step).await?;
    // Nobody is well: they take turns.
    second.now(Does::Page);
    assert!(ask(&step).await.is_err());
    first.come_back().await?;
    let step = chain.steady();
    ask(&step).await?;
    assert_eq!(step.name(), first.url());
    Ok(())
}

#[tokio::test]
async fn the_same_bytes_go_to_the_next_endpoint() -> Result<()> {
    for fault in [Does::Hang, Does::Status(503, ""), Does::Truncate] {
        let (first, second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
        let chain = chain(&[&first, &second])?;
        ask(&chain).await?;
        first.now(fault);
        let raw = Bytes::from_static(b"signed");
        assert_eq!(chain.send(std::slice::from_ref(&raw)).await?, [Sent::Accepted]);
        for server in [&first, &second] {
            let bodies = std::mem::take(&mut *server.work.bodies.lock().unwrap());
            let sent: Vec<_> = bodies.iter().filter(|body| body["method"] == "eth_sendRawTransaction").collect();
            assert!(matches!(sent[..], [body] if body["params"][0] == json!(raw)), "{bodies:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_overtook_its_predecessor_is_sent_once_more() -> Result<()> {
    let server = Server::start(Does::InOrder).await?;
    let chain = chain(&[&server])?;
    ask(&chain).await?;
    server.asked();
    let raw: Vec<Bytes> = (0..20).map(|nonce| vec![nonce].into()).collect();
    assert_eq!(chain.send(&raw).await?, vec![Sent::Accepted; 20]);
    let mut asked = server.asked();
    let again = asked.pop();
    assert_eq!((asked.len(), again.as_deref()), (7, Some("17 eth_sendRawTransaction")), "{asked:?}");
    // What follows nothing that is there is told so, however often it is sent.
    assert_eq!(chain.send(&[vec![21].into(), vec![22].into()]).await?, vec![Sent::NonceAhead; 2]);
    assert_eq!(server.asked(), ["2 eth_sendRawTransaction"]);
    Ok(())
}

#[tokio::test]
async fn who_lags_or_dawdles_is_passed_over() -> Result<()> {
    let (first, second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
    let chain = chain_of(&[first.url(), second.url()], Pace { probe: Duration::from_millis(20), ..pace() })?;
    let uses = async |server: &Server| {
        until("it is used", async || ask(&chain).await.is_ok() && chain.steady().name() == server.url()).await
    };
    for (behind, ahead) in [(&first, &second), (&second, &first)] {
        behind.work.head.store(1000, Ordering::Relaxed);
        ahead.work.head.store(1006, Ordering::Relaxed);
        uses(ahead).await?;
        // Who is asked nothing looks at nobody.
        until("both were looked at", async || {
            ask(&chain).await.ok();
            let mut lags: Vec<_> = chain.endpoints().iter().map(|it| it.lag).collect();
            lags.sort_unstable();
            lags == [Some(0), Some(6)]
        })
        .await?;
        behind.work.head.store(1001, Ordering::Relaxed);
        ahead.now(Does::Slowly(300));
        uses(behind).await?;
        ahead.now(Does::Answer);
    }
    Ok(())
}

#[tokio::test]
async fn what_dies_and_comes_back_is_used_again() -> Result<()> {
    let (mut first, mut second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
    let pace = Pace {
        probe: Duration::from_millis(20),
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        ..pace()
    };
    let chain = chain_of(&[first.url(), second.url()], pace)?;
    for _ in 0..2 {
        for _ in 0..2 {
            ask(&chain).await?;
            first.die().await?;
            ask(&chain).await?;
            first.come_back().await?;
            first.asked();
            // Only a probe asks it, and that is enough.
            until("it was looked at", async || {
                ask(&chain).await.is_ok() && first.asked().iter().any(|label| label == "eth_blockNumber")
            })
            .await?;
            std::mem::swap(&mut first, &mut second);
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_one_cannot_do_is_not_asked_of_it_again() -> Result<()> {
    let (first, second) = (Server::start(Does::Answer).await?, Server::start(Does::Answer).await?);
    let chain = chain(&[&first, &second])?;
    let receipts = async |chain: &Chain| {
        let mut batch = chain.client.new_batch();
        let call = batch.add_call::<_, Option<Value>>("eth_getBlockReceipts", &("latest",))?;
        batch.send().await?;
        anyhow::Ok(call.await?)
    };
    ask(&chain).await?;
    first.asked();
    first.now(Does::Refuse(-32601, "the method eth_getBlockReceipts does not exist/is not available"));
    let step = chain.steady();
    for _ in 0..3 {
        let said = format!("{:#}", receipts(&step).await.unwrap_err());
        assert!(said.contains("does not exist"), "{said}");
    }
    assert_eq!(first.asked(), ["1 eth_getBlockReceipts"]);
    // Who has them is preferred.
    first.now(Does::Answer);
    let step = chain.steady();
    assert_eq!(receipts(&step).await?, Some(json!([])));
    assert_eq!((step.name(), first.asked()), (second.url().as_str(), vec![]));
    let able: Vec<_> = chain.endpoints().iter().map(|it| it.block_receipts).collect();
    assert_eq!(able, [Some(false), Some(true)]);

    // An unknown tag is no failure.
    let [first, _] = &chain.each()[..] else { panic!("two endpoints") };
    assert!(first.finalized().await?.is_none());
    assert_eq!(chain.endpoints()[0].finalized, None, "no block yet, or none ever");
    Ok(())
}

#[tokio::test]
async fn a_reach_knows_what_fewer_blocks_would_help() -> Result<()> {
    let mut server = Server::start(Does::Answer).await?;
    let chain = chain(&[&server])?;
    let helps = async |text: &str| {
        let said = failure(&chain).await;
        assert!(said.contains(text), "{said}");
        Reach::new(1000).refused(1000, &said)
    };
    for (does, text, fewer) in [
        (Does::Hang, "timed out", true),
        (Does::Babble, "too large", true),
        (Does::Status(413, ""), "HTTP 413", true),
        (Does::Status(503, "no backend is currently healthy"), "HTTP 503", true),
        (Does::Refuse(-32005, "limit exceeded"), "limit exceeded", true),
        (Does::Status(401, ""), "HTTP 401 Unauthorized", false),
        (Does::OtherChain, "serves chain 1", false),
    ] {
        server.now(does);
        assert_eq!(helps(text).await, fewer, "{text}");
    }
    server.die().await?;
    assert!(!helps("Connection refused").await);
    server.come_back().await?;
    server.now(Does::Wait("3600"));
    assert!(!helps("HTTP 429").await);
    assert!(!helps("not asked again").await);
    Ok(())
}

#[tokio::test]
async fn transfers_are_read_in_as_many_pieces_as_the_endpoint_wants() -> Result<()> {
    let server = Server::start(Does::LogsOf(1000)).await?;
    let chain = chain(&[&server])?;
    let transfers = chain.transfers(account(1), account(7), 5..=4321).await?;
    assert!(transfers.iter().map(|it| (it.block, it.amount)).eq((5..=4321).map(|block| (block, U256::from(block)))));
    assert_eq!((transfers[0].from, transfers[0].to), (account(7), account(8)));
    // What was not asked for is nothing to count; the error names its block.
    for (token, owner) in [(account(1), account(9)), (account(2), account(7))] {
        let said = format!("{:#}", chain.transfers(token, owner, 1..=10).await.unwrap_err());
        assert!(said.contains(&format!("read the transfers of token {token} in blocks 1..=1 from")), "{said}");
        assert!(said.contains(&format!("got a log of {} in block 1", account(1))), "{said}");
    }
    server.now(Does::LogsOf(0));
    assert!(format!("{:#}", chain.transfers(account(1), account(7), 1..=9).await.unwrap_err()).contains("1..=1 from"));
    Ok(())
}

#[tokio::test]
async fn no_text_tells_more_of_a_url_than_its_host() -> Result<()> {
    let mut server = Server::start(Does::Answer).await?;
    let url = format!("http://name:passw0rd@{}/v2/4f8c1d2e9b7a6543?token=s3cr3t5s3cr3t5", server.address);
    let mut told = Vec::new();
    for fault in [
        Does::Status(500, "POST /v2/4f8c1d2e9b7a6543?token=s3cr3t5s3cr3t5"),
        Does::Status(404, "no 4f8c1d2e9b7a6543 here, name:passw0rd"),
        Does::Page,
        Does::Truncate,
        Does::Babble,
        Does::Hang,
        Does::OtherChain,
        Does::Refuse(-32000, "key 4f8c1d2e9b7a6543 is not known"),
    ] {
        server.now(fault);
        told.push(failure(&chain_of(std::slice::from_ref(&url), pace())?).await);
    }
    server.die().await?;
    let chain = chain_of(&[url], pace())?;
    told.push(failure(&chain).await);
    told.push(format!("{:?} {}", chain.endpoints(), chain.name()));
    told.push(format!("{:#}", chain_of(&["ftp://x/4f8c1d2e9b7a6543".into()], pace()).err().context("no error")?));
    told.push(format!("{:#}", chain_of(&["/v2/4f8c1d2e9b7a6543".into()], pace()).err().context("no error")?));
    for text in &told {
        for secret in ["4f8c1d2e9b7a6543", "s3cr3t5", "passw0rd", "/v2"] {
            assert!(!text.contains(secret) || (secret == "/v2" && text.contains("POST /v2/…")), "{text}");
        }
    }
    assert!(told.iter().filter(|text| text.contains(&server.url())).count() >= 9, "{told:#?}");
    Ok(())
}
