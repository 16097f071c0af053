//! Two hosts, of which the cheaper is of another region: a renter that names a region takes the dearer one, whose policy takes the job,
//! and is told what there is where nobody is.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fabstir::config::Config;
use fabstir::market::types::Address;
use fabstir::node::Node;
use fabstir::p2p::Multiaddr;
use fabstir::renter::{Offer, Renter};
use serde_json::Value;

use crate::world::{QUESTION, WAIT_MAX, World, fabstir_as, peer, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_finds_a_host_of_its_region() -> Result<()> {
    let world = World::new().await?;
    let near = host_in(&world, "near", "eu-west", "2000000", &[]).await?;
    let addresses = near.p2p.listen_addresses();
    let far = host_in(&world, "far", "us", "1000000", &addresses).await?;
    let renter = Renter::new(world.chain.clone(), peer(&near.p2p).await?, world.account("renter").await?);
    let discover = async |region, limit| renter.discover(world.model, QUESTION, 32, Address::ZERO, region, limit).await;
    let hosts = |offers: &[Offer]| offers.iter().map(|offer| offer.capabilities.host).collect::<Vec<_>>();
    let both = [far.host.context("a host")?, near.host.context("a host")?];
    until("both are found, the cheaper first", || async { Ok(hosts(&discover(None, WAIT_MAX).await?) == both) })
        .await?;
    assert_eq!(hosts(&discover(Some("EU-West"), WAIT_MAX).await?), both[1..]);
    let error = discover(Some("mars"), Duration::from_secs(10)).await.expect_err("nobody is there").to_string();
    assert_eq!(error, r#"none of 2 hosts takes jobs of region "mars": offered are "eu-west"; "us""#);

    world.config("asker", false, &world.devnet.rpc_url, &[addresses, far.p2p.listen_addresses()].concat())?;
    let path = |name: &str| world.folder.path().join(name).display().to_string();
    let (keystore, password, model) = (path("renter.json"), path("password"), world.model.to_string());
    let key = ["--json", "post", "--keystore", &keystore, "--password-file", &password, "--model", &model];
    let asked = ["--max-tokens", "32", "--region", "eu-west", QUESTION];
    let answered = fabstir_as(&world, "asker", &[&key[..], &asked].concat()).await?;
    ensure!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
    let answered: Value = serde_json::from_slice(&answered.stdout)?;
    assert_eq!(
        (&answered["regions"], &answered["receipt"]["receipt"]["host"], &answered["state"]),
        (&serde_json::json!(["eu-west"]), &serde_json::to_value(both[1])?, &"released".into()),
        "{answered}"
    );
    near.stop().await;
    far.stop().await;
    Ok(())
}

/// A registered host of a region, running, joined to the peers at `bootstrap`.
async fn host_in(world: &World, name: &str, region: &str, price: &str, bootstrap: &[Multiaddr]) -> Result<Node> {
    world.register(&world.account(name).await?).await?;
    world.config(name, true, &world.devnet.rpc_url, bootstrap)?;
    let file = world.folder.path().join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&file)?;
    let text = text.replace("[host]\n", &format!("[host]\nregion = {region:?}\n"));
    std::fs::write(&file, text.replace("eth = \"1000000\"", &format!("eth = {price:?}")))?;
    Node::start(&Config::load(&file)?).await
}
