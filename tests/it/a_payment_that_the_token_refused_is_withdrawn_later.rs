//! A token refuses to move what the escrow owes a host and a renter, so that both are credited: their books name it until they withdraw
//! it, and add up before and after.

use alloy::primitives::{B256, keccak256};
use alloy::sol_types::SolValue;
use anyhow::{Context, Result};
use fabstir::books::{self, CheckedToken};
use fabstir::chain::call::Order;
use fabstir::market::job::State;
use fabstir::market::ledger::Why;
use fabstir::market::types::{Address, ModelId, U256};
use fabstir::node::Node;
use serde_json::{Value, json};

use crate::world::{World, fabstir, told, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_the_token_refused_is_withdrawn_later() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let renter = world.renter(&host).await?;
    let (us, usd, escrow) = (host.host.context("a host")?, world.usd(), world.book.contracts.payment_escrow);
    let had = world.chain.balance(usd, us).await?;
    let order = Order { model: ModelId([0xfa; 32]), ..world.order(usd, U256::from(1000), 3600) };
    let cancelled = renter.post(&order).await?.job;
    let (_, posted) = world.ask(&renter, usd, 3600).await?;

    // By the token's own book the escrow has nothing: it moves none of what that wants to pay.
    let escrowed = world.chain.balance(usd, escrow).await?;
    set_balance(&world, escrow, U256::ZERO).await?;
    assert_eq!(renter.cancel(cancelled).await?, U256::from(1000));
    let job = until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
    let (net, _) = job.escrow_released.context("the escrow paid")?;
    assert_eq!(world.chain.balance(usd, us).await?, had, "the host was not paid");

    world.freeze(true).await?;
    world.caught_up(&host.store).await?;
    let owed = check(&world).await?;
    assert_eq!(
        (&owed["income"], &owed["credited"], &owed["withdrawn"], &owed["credited_not_withdrawn"]),
        (&json!(net.to_string()), &json!(net.to_string()), &json!("0"), &json!(net.to_string()))
    );
    assert_eq!(owed["closing"], had.to_string());
    let text = String::from_utf8(fabstir(&world, &["ledger", "--check"]).await?.stdout)?;
    assert!(text.contains(&format!("credited, not withdrawn: {net} ")), "{text}");
    let renters = check_renter(&world, &host, renter.signer.address()).await?;
    assert_eq!((renters.credited, renters.books.of_why(Why::Credited)), (U256::from(1000), U256::from(1000)));

    // While the token refuses it still, nothing is lost.
    let path = |name: &str| world.folder.path().join(name).display().to_string();
    let (keystore, password, token) = (path("renter.json"), path("password"), usd.to_string());
    let elsewhere = Address::repeat_byte(0x77);
    let withdraw = ["withdraw", "--token", &token];
    let to = elsewhere.to_string();
    let renters_key = ["--keystore", &keystore, "--password-file", &password, "--to", &to];
    let refused = fabstir(&world, &[&withdraw[..], &renters_key].concat()).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("TransferFailed"), "{said}");

    set_balance(&world, escrow, escrowed).await?;
    let withdrawn = told(&world, &[&withdraw[..], &renters_key].concat()).await?;
    assert_eq!((&withdrawn["withdrawn"], &withdrawn["to"]), (&json!("1000"), &json!(elsewhere)));
    assert_eq!(world.chain.balance(usd, elsewhere).await?, U256::from(1000));
    world.caught_up(&host.store).await?;
    let renters = check_renter(&world, &host, renter.signer.address()).await?;
    let of = |why| renters.books.of_why(why);
    assert_eq!((of(Why::Withdrawn), of(Why::Sent), renters.credited), (U256::from(1000), U256::from(1000), U256::ZERO));

    // The host's account has one sender at a time.
    let beside = fabstir(&world, &withdraw).await?;
    let said = String::from_utf8_lossy(&beside.stderr).into_owned();
    assert!(beside.status.code() == Some(2) && said.contains("the node runs"), "{said}");
    host.stop().await;
    let withdrawn = told(&world, &withdraw).await?;
    assert_eq!((&withdrawn["withdrawn"], &withdrawn["to"]), (&json!(net.to_string()), &json!(us)));
    assert_eq!(world.chain.balance(usd, us).await?, had + net);
    told(&world, &["index", "--once"]).await?;
    let paid = check(&world).await?;
    assert_eq!(
        (&paid["credited"], &paid["withdrawn"], &paid["credited_not_withdrawn"]),
        (&json!(net.to_string()), &json!(net.to_string()), &json!("0"))
    );
    assert_eq!(paid["closing"], (had + net).to_string());
    let again = fabstir(&world, &withdraw).await?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && said.contains("NoCredit"), "{said}");
    Ok(())
}

/// What the host's books say of the token: that all adds up, and by transfers of jobs alone.
async fn check(world: &World) -> Result<Value> {
    let told = told(world, &["ledger", "--check"]).await?;
    assert_eq!(told["check"]["right"], true, "{told}");
    let of_usd = told["check"]["tokens"][0].clone();
    assert_eq!((&of_usd["token"], &of_usd["others"]), (&json!(world.usd()), &json!([])));
    Ok(of_usd)
}

async fn check_renter(world: &World, host: &Node, renter: Address) -> Result<CheckedToken> {
    let checked = books::check(&host.store, &world.chain, renter, None).await?;
    assert!(checked.is_right(), "{checked:?}");
    checked.tokens.into_iter().next().context("one token")
}

/// Changes how much the token says that `account` has, in slot 0 of its storage.
async fn set_balance(world: &World, account: Address, amount: U256) -> Result<()> {
    let slot = keccak256((account, U256::ZERO).abi_encode());
    world.devnet.rpc("anvil_setStorageAt", json!([world.usd(), slot, B256::from(amount)])).await?;
    assert_eq!(world.chain.balance(world.usd(), account).await?, amount, "slot 0 is the token's balances");
    Ok(())
}
