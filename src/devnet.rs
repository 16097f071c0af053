//! A local chain with the contracts on it: anvil from the contracts' own tools, deployed by their own script.
//!
//! For the demonstration, for tests and for trying things out. Its accounts are anvil's, whose keys everybody knows.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::chain::Contracts;
use crate::market::types::{Address, U256};

/// anvil's first account: deployer, arbiter, guardian and holder of the FAB of a local chain.
pub const DEPLOYER: Address = alloy::primitives::address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
/// anvil's chain id.
pub const CHAIN_ID: u64 = 31337;
const START_WITHIN: Duration = Duration::from_secs(30);
/// Compiling included, where nobody has yet.
const DEPLOY_WITHIN: Duration = Duration::from_secs(300);

/// A running anvil. Dropping it ends it.
#[derive(Debug)]
pub struct Devnet {
    pub rpc_url: String,
    _anvil: Child,
}

/// Where a deployment put the contracts.
#[derive(Debug, Clone, Deserialize)]
pub struct AddressBook {
    pub chain_id: u64,
    /// The block in which the deployment began.
    pub block: u64,
    #[serde(flatten)]
    pub contracts: Contracts,
    /// What brings the smart accounts' operations (ERC-4337).
    pub entry_point: Address,
    pub verifier: Option<Address>,
    /// A token with six decimals, where one was asked for.
    pub usd: Option<Address>,
}

impl Devnet {
    /// Starts a chain on a free port that makes a block for each transaction. `contracts` is the contracts' folder, whose
    /// installed tools hold anvil; one on the path serves as well.
    ///
    /// # Errors
    /// If there is no anvil, with how to get it, or it does not come up.
    pub async fn start(contracts: &Path) -> Result<Self> {
        Self::start_with(contracts, &[]).await
    }

    /// As [`Devnet::start`], with more of anvil's own options.
    ///
    /// # Errors
    /// As [`Devnet::start`].
    pub async fn start_with(contracts: &Path, options: &[&str]) -> Result<Self> {
        let mut command = Command::new(tool(contracts, "anvil"));
        command.args(["--port", "0", "--hardfork", "prague"]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut anvil = command.spawn().with_context(|| format!("start anvil: {}", hint()))?;
        let mut lines = BufReader::new(anvil.stdout.take().context("anvil's output")?).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = line.trim().strip_prefix("Listening on ") {
                    return Ok(address.to_owned());
                }
            }
            bail!("anvil ended before it listened")
        };
        let address = tokio::time::timeout(START_WITHIN, listening).await.context("anvil does not come up")??;
        // What anvil prints of each block must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { rpc_url: format!("http://{address}"), _anvil: anvil })
    }

    /// Makes a block every `seconds` from now on, whether or not there are transactions; 0 makes none by itself.
    ///
    /// # Errors
    /// If the chain refuses.
    pub async fn mine_every(&self, seconds: u32) -> Result<()> {
        self.rpc("evm_setIntervalMining", json!([seconds])).await.map(|_| ())
    }

    /// Makes one JSON-RPC call, such as anvil's own `anvil_reorg`.
    ///
    /// # Errors
    /// If the chain answers with an error.
    pub async fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        rpc(&self.rpc_url, method, params).await
    }

    /// Gives an account `wei` of ETH, whatever it had.
    ///
    /// # Errors
    /// If the chain refuses.
    pub async fn fund(&self, account: Address, wei: U256) -> Result<()> {
        self.rpc("anvil_setBalance", json!([account, wei])).await.map(|_| ())
    }

    /// Sends a call as [`DEPLOYER`] and waits until it is mined.
    ///
    /// # Errors
    /// If it reverts or is not mined in time.
    pub async fn send(&self, call: &crate::chain::call::Call) -> Result<()> {
        self.send_from(DEPLOYER, call).await
    }

    /// As [`Devnet::send`], as another account that the chain acts for.
    ///
    /// # Errors
    /// As [`Devnet::send`].
    pub async fn send_from(&self, from: Address, call: &crate::chain::call::Call) -> Result<()> {
        let tx = json!([{ "from": from, "to": call.to, "data": call.data, "value": call.value }]);
        let hash = self.rpc("eth_sendTransaction", tx).await?;
        let mined = async {
            loop {
                let receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await?;
                match receipt["status"].as_str() {
                    Some("0x1") => return anyhow::Ok(()),
                    Some(_) => bail!("transaction {hash} was reverted"),
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(START_WITHIN, mined).await.context("a transaction is not mined")?
    }
}

/// Makes one JSON-RPC call to `url`.
///
/// # Errors
/// If the endpoint fails or answers with an error.
pub async fn rpc(url: &str, method: &str, params: Value) -> Result<Value> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    // No certificates: reading the system's takes longer than the call.
    let client = reqwest::Client::builder().timeout(START_WITHIN).tls_certs_only([]).build()?;
    let mut answer: Value =
        client.post(url).json(&body).send().await?.json().await.with_context(|| format!("call {method}"))?;
    ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
    Ok(answer["result"].take())
}

/// Deploys the contracts, the verifier, an ERC-4337 entry point and a test token with six decimals to the local chain at `rpc_url`.
///
/// `challenge_window` is in seconds. The contracts must be built (`make setup` does it).
///
/// # Errors
/// If forge is missing or the script fails, with the end of what it printed.
pub async fn deploy(rpc_url: &str, contracts: &Path, challenge_window: u64) -> Result<AddressBook> {
    let scratch = tempfile::tempdir().context("make a scratch folder")?;
    let book = scratch.path().join("addresses.json");
    let contracts = std::path::absolute(contracts)?;
    let mut command = Command::new(tool(&contracts, "forge"));
    command.args(["script", "script/Deploy.s.sol:Deploy", "--broadcast", "--unlocked", "--rpc-url", rpc_url]);
    // One transaction after the other: of several at once, anvil sometimes loses one and forge waits for ever.
    command.args(["--sender", &DEPLOYER.to_string(), "--slow"]);
    command.current_dir(&contracts).stdin(Stdio::null()).kill_on_drop(true);
    let settings: [(&str, PathBuf); 5] = [
        ("FOUNDRY_OFFLINE", "true".into()),
        ("FOUNDRY_PROFILE", "deploy".into()),
        ("FOUNDRY_SOLC", contracts.join("tools/solc")),
        ("FOUNDRY_BROADCAST", scratch.path().join("broadcast")),
        ("ADDRESS_BOOK", book.clone()),
    ];
    command
        .envs(settings)
        .env("CHALLENGE_WINDOW", challenge_window.to_string())
        .env("WITH_TEST_USD", "true")
        .env("WITH_ENTRY_POINT", "true");
    let output = tokio::time::timeout(DEPLOY_WITHIN, command.output()).await.context("forge script does not end")?;
    let output = output.with_context(|| format!("start forge: {}", hint()))?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        let tail: Vec<&str> = printed.lines().rev().take(12).collect();
        bail!("forge script failed:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    let text = std::fs::read_to_string(&book).context("forge wrote no address book")?;
    serde_json::from_str(&text).with_context(|| format!("address book {text}"))
}

fn tool(contracts: &Path, name: &str) -> PathBuf {
    let installed = contracts.join("node_modules/.bin").join(name);
    if installed.exists() { std::path::absolute(&installed).unwrap_or(installed) } else { name.into() }
}

fn hint() -> &'static str {
    "run `make setup` in the checkout, or install Foundry 1.7.1 and put it on the path"
}
