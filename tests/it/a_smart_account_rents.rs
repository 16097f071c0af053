//! A renter whose account is a contract (ERC-4337): one user operation deploys it, allows the payment and posts the job;
//! the answer streams to the contract's owner and to nobody else, and the host is paid.

use alloy::primitives::aliases::U192;
use alloy::sol_types::SolCall;
use anyhow::{Context, Result};
use fabstir::chain::Signer;
use fabstir::chain::call::{Call, Order, approve, transfer};
use fabstir::market::event::Event;
use fabstir::market::job::State;
use fabstir::market::types::{Address, B256, Bytes, JobId, U256};
use fabstir::renter::Renter;
use serde_json::json;

use crate::world::{QUESTION, WAIT_MAX, World, done_once, until_job};

alloy::sol! {
    struct PackedUserOperation {
        address sender;
        uint256 nonce;
        bytes initCode;
        bytes callData;
        bytes32 accountGasLimits;
        uint256 preVerificationGas;
        bytes32 gasFees;
        bytes paymasterAndData;
        bytes signature;
    }

    struct Inner {
        address target;
        uint256 value;
        bytes data;
    }

    function getNonce(address sender, uint192 key) external view returns (uint256);
    function getUserOpHash(PackedUserOperation calldata op) external view returns (bytes32);
    function handleOps(PackedUserOperation[] calldata ops, address beneficiary) external;
    function createAccount(address owner, bytes32 salt) external returns (address);
    function accountOf(address owner, bytes32 salt) external view returns (address);
    function executeBatch(Inner[] calldata calls) external;
}

const SALT: B256 = B256::repeat_byte(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_smart_account_rents() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let (owner, bundler) = (world.account("renter").await?, world.account("bundler").await?);
    let factory = world.book.contracts.account_factory;
    let account = view(&world, factory, accountOfCall { owner: owner.address(), salt: SALT }).await?;
    world.devnet.fund(account, U256::from(10_u64.pow(18))).await?;
    world.devnet.send(&transfer(world.usd(), account, U256::from(1_000_000))).await?;
    let p2p = crate::world::peer(&host.p2p).await?;
    let renter = Renter { account: Some(account), ..Renter::new(world.chain.clone(), p2p, owner) };

    let offers = renter.discover(world.model, QUESTION, 32, world.usd(), None, WAIT_MAX).await?;
    let offer = offers.first().context("no host was found")?;
    let input = renter.deliver(offer, QUESTION).await?;
    let order = Order { input, ..world.order(world.usd(), offer.quote.price, 3600) };
    let contracts = world.chain.contracts();
    let calls = [approve(order.token, contracts.job_marketplace, order.payment), contracts.post(&order)];
    let job = operate(&world, &renter, &bundler, &calls).await?;
    let posted = until_job(&host, job, "posted", |_| true).await?;
    assert_eq!(posted.terms.renter, account);

    let answer = renter.stream(offer, job, WAIT_MAX, |_| ()).await?;
    assert_eq!(answer.text, "The capital of France is Paris.");
    let paid = until_job(&host, job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    renter.verify(&answer, &paid)?;
    done_once(&host, job).await?;
    // Neither somebody else nor the owner's own account may ask for the account's tokens.
    let peer = crate::world::peer(&host.p2p).await?;
    let stranger = Renter { account: Some(account), ..Renter::new(world.chain.clone(), peer, bundler) };
    let plain = Renter { account: None, ..renter };
    stranger.discover(world.model, QUESTION, 32, world.usd(), None, WAIT_MAX).await?;
    for asker in [stranger, plain] {
        let refused = format!("{:#}", asker.stream(offer, job, WAIT_MAX, |_| ()).await.expect_err("streamed"));
        assert!(refused.contains("the request is signed by"), "{refused}");
    }
    host.stop().await;
    Ok(())
}

/// Has a bundler bring one operation of the renter's account, its first, and returns the job that it posts.
async fn operate(world: &World, renter: &Renter, bundler: &Signer, calls: &[Call]) -> Result<JobId> {
    let (owner, entry_point) = (renter.signer.address(), world.book.entry_point);
    let account = renter.account.context("a smart account")?;
    let inner = calls.iter().map(|call| Inner { target: call.to, value: call.value, data: call.data.clone() });
    let create = createAccountCall { owner, salt: SALT }.abi_encode();
    let pair = |high: u128, low: u128| B256::from(U256::from(high) << 128 | U256::from(low));
    let fees = world.chain.fees().await?;
    let mut op = PackedUserOperation {
        sender: account,
        nonce: view(world, entry_point, getNonceCall { sender: account, key: U192::ZERO }).await?,
        initCode: [world.book.contracts.account_factory.as_slice(), &create].concat().into(),
        callData: executeBatchCall { calls: inner.collect() }.abi_encode().into(),
        accountGasLimits: pair(1_000_000, 1_000_000),
        preVerificationGas: U256::from(100_000),
        gasFees: pair(fees.tip_cap, fees.fee_cap),
        paymasterAndData: Bytes::new(),
        signature: Bytes::new(),
    };
    let hash = view(world, entry_point, getUserOpHashCall { op: op.clone() }).await?;
    op.signature = renter.signer.sign_hash(hash).await?;
    let bring = handleOpsCall { ops: vec![op], beneficiary: bundler.address() };
    let call = Call { to: entry_point, data: bring.abi_encode().into(), value: U256::ZERO };
    let mined = world.chain.transact(bundler, &call, WAIT_MAX).await?;
    let decode = world.chain.decoder();
    let posted = mined.logs.iter().find_map(|log| match decode(log) {
        Ok(Event::JobTerms { job, .. }) => Some(job),
        _ => None,
    });
    posted.context("the operation posted no job")
}

/// Reads from a contract that the node knows nothing of.
async fn view<C: SolCall>(world: &World, to: Address, call: C) -> Result<C::Return> {
    let data = Bytes::from(call.abi_encode());
    let answer = world.devnet.rpc("eth_call", json!([{ "to": to, "data": data }, "latest"])).await?;
    let answer: Bytes = serde_json::from_value(answer)?;
    Ok(C::abi_decode_returns(&answer)?)
}
