//! A renter finds a host, pays in ETH and in a token, gets its answer, and everyone's books agree.

use alloy::primitives::{B256, keccak256};
use alloy::sol_types::SolValue;
use anyhow::{Context, Result};
use fabstir::chain::call::{self, Order};
use fabstir::chain::key;
use fabstir::market::job::State;
use fabstir::market::ledger::Why;
use fabstir::market::types::{Address, ModelId, U256};
use fabstir::node::Node;
use fabstir::renter::Renter;
use fabstir::{audit, books};
use serde_json::{Value, json};

use crate::world::{WAIT_MAX, World, fabstir, nothing_left, told, until, until_job};

#[tokio::test(flavor = "multi_thread")]
async fn happy_path_in_eth_and_in_a_token() -> Result<()> {
    let world = World::new().await?;
    let (host, _) = world.host("host").await?;
    let second = world.observer("second", Some(&host.p2p)).await?;
    let renter = world.renter(&host).await?;
    for token in [Address::ZERO, world.usd()] {
        let account = host.host.expect("a host");
        let before = world.chain.balance(token, account).await?;
        let (offer, posted) = world.ask(&renter, token, 3600).await?;
        let mut streamed = String::new();
        let answer = renter.stream(&offer, posted.job, WAIT_MAX, |text| streamed.push_str(text)).await?;
        assert_eq!(streamed, "The capital of France is Paris.");
        let job = until_job(&host, posted.job, "paid", |job| matches!(job.state, State::Released { .. })).await?;
        renter.verify(&answer, &job)?;

        let (net, fee) = job.escrow_released.expect("the escrow paid");
        assert_eq!(net + fee, offer.quote.price);
        assert_eq!(fee, offer.quote.price * U256::from(250) / U256::from(10_000));
        if !token.is_zero() {
            assert_eq!(world.chain.balance(token, account).await? - before, net);
        }
        assert_eq!(world.chain.escrowed(posted.job).await?.amount, U256::ZERO);
    }
    until("two receipts at the second node", || async { Ok(second.store.peer_receipts().await?.len() == 2) }).await?;
    for node in [&host, &second] {
        let report = audit::run(&node.store, &world.chain, |_, _| ()).await?;
        assert_eq!(report.divergences, Vec::<String>::new());
        assert_eq!(report.jobs, 2);
    }
    nothing_left(&host).await?;
    world.freeze(true).await?;
    the_hosts_tokens_add_up(&world, &host).await?;
    the_renters_tokens_add_up(&world, &renter, &second).await?;
    host.stop().await;
    second.stop().await;
    Ok(())
}

/// What the host has of the token follows from its income and from all that its key and others did, until it has what no transfer
/// brought.
async fn the_hosts_tokens_add_up(world: &World, host: &Node) -> Result<()> {
    let (us, usd) = (host.host.context("a host")?, world.usd());
    let check = ["ledger", "--check"];
    let of_usd = |told: &Value| {
        let tokens = told["check"]["tokens"].as_array().cloned().unwrap_or_default();
        assert_eq!(tokens.len(), 1, "{told}");
        tokens[0].clone()
    };
    world.caught_up(&host.store).await?;
    let right = told(world, &check).await?;
    let books = of_usd(&right);
    assert_eq!(books["token"], json!(usd));
    assert_eq!(books["income"], right["total"]["income"][json!(usd).as_str().context("a text")?]["net"]);
    assert_eq!(books["closing"], world.chain.balance(usd, us).await?.to_string());
    assert_eq!((&books["unexplained"], &books["others"], &books["mismatched"]), (&json!("0"), &json!([]), &json!([])));
    assert_eq!(right["check"]["right"], true);
    assert_eq!(world.chain.balance_at(usd, us, 0).await?, U256::ZERO, "before there was such a token");

    let elsewhere = Address::repeat_byte(0x77);
    world.devnet.send(&call::transfer(usd, us, U256::from(12345))).await?;
    let signer = key::open(&world.folder.path().join("host.json"), &world.folder.path().join("password"))?;
    let sent = world.chain.transact(&signer, &call::transfer(usd, elsewhere, U256::from(345)), WAIT_MAX).await?;
    world.caught_up(&host.store).await?;
    let moved = told(world, &check).await?;
    let other = of_usd(&moved);
    assert_eq!((&other["unexplained"], &moved["check"]["right"]), (&json!("0"), &json!(true)));
    assert_eq!((&other["other_in"], &other["other_out"]), (&json!("12345"), &json!("345")));
    assert_eq!((&other["from"], &other["income"]), (&books["from"], &books["income"]));
    assert_eq!(other["others"].as_array().map(Vec::len), Some(2));
    let [came, went] = [&other["others"][0], &other["others"][1]];
    assert_eq!((&came["to"], &came["amount"]), (&json!(us), &json!("12345")));
    let told_of = json!({
        "block": sent.block.number, "tx": sent.hash, "from": us, "to": elsewhere, "amount": "345",
    });
    assert_eq!(went, &told_of);
    // From a block after its income on, that is no more part of it.
    let later = told(world, &[&check[..], &["--from", &(sent.block.number - 1).to_string()]].concat()).await?;
    let later = of_usd(&later);
    assert_eq!(
        (&later["income"], &later["others"], &later["unexplained"]),
        (&json!("0"), &json!([told_of]), &json!("0"))
    );

    // The token's own book is changed, and it tells nobody.
    let slot = keccak256((us, U256::ZERO).abi_encode());
    let has = world.chain.balance(usd, us).await?;
    let made_up = B256::from(has - U256::from(7));
    world.devnet.rpc("anvil_setStorageAt", json!([usd, slot, made_up])).await?;
    assert_eq!(world.chain.balance(usd, us).await?, has - U256::from(7), "slot 0 is the token's balances");
    world.mine().await?;
    world.caught_up(&host.store).await?;
    let output = fabstir(world, &[&check[..], &["--json"]].concat()).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("the books and the chain differ in token {usd}")), "{said}");
    let wrong: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&wrong["check"]["right"], &wrong["check"]["books"]["unexplained"]), (&json!(false), &json!("0")));
    assert_eq!((&of_usd(&wrong)["unexplained"], &of_usd(&wrong)["other_in"]), (&json!("-7"), &json!("12345")));
    assert_eq!(of_usd(&wrong)["unexplained_in"][0]["amount"], "-7");
    let text = fabstir(world, &check).await?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&format!("the account's token {usd} from the end of block")), "{text}");
    assert!(text.contains("UNEXPLAINED: -7 units in block"), "{text}");
    assert!(text.contains(&format!("not of a job: 345 to {elsewhere} in block {}", sent.block.number)), "{text}");
    Ok(())
}

/// Whoever follows the chain can say as much of the renter, who paid for a job and took another back.
async fn the_renters_tokens_add_up(world: &World, renter: &Renter, observer: &Node) -> Result<()> {
    let usd = world.usd();
    let order = world.order(usd, U256::from(1000), 3600);
    let posted = renter.post(&Order { model: ModelId([0xfa; 32]), ..order }).await?;
    assert_eq!(renter.cancel(posted.job).await?, U256::from(1000));
    world.caught_up(&observer.store).await?;
    let jobs = observer.store.job(posted.job).await?.context("stored")?;
    let checked = books::check(&observer.store, &world.chain, jobs.terms.renter, None).await?;
    assert!(checked.is_right(), "{checked:?}");
    let [token] = &checked.tokens[..] else { panic!("one token: {checked:?}") };
    let of = |why| token.books.of_why(why);
    assert_eq!((of(Why::Refund), of(Why::Income)), (U256::from(1000), U256::ZERO));
    assert_eq!(of(Why::Posted) - of(Why::Refund), token.books.opening - token.books.closing);
    assert_eq!(token.others, []);
    Ok(())
}
