//! What a node needs and lacks is said before it starts, by name, with what would be right.

use anyhow::Result;
use fabstir::market::types::U256;
use fabstir::node::Node;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_work_refuses_to_start() -> Result<()> {
    let world = World::new().await?;
    let url = world.devnet.rpc_url.clone();
    let signer = world.account("host").await?;
    let refusal = async |config| match Node::start(&config).await {
        Ok(_) => panic!("a node that cannot work started"),
        Err(error) => format!("{error:#}"),
    };
    let config = world.config("host", true, &url, &[])?;

    let unregistered = refusal(config.clone()).await;
    assert!(
        unregistered.contains(&signer.address().to_string()) && unregistered.contains("fabstir register"),
        "{unregistered}"
    );
    world.register(&signer).await?;

    world.devnet.fund(signer.address(), U256::ZERO).await?;
    let unfunded = refusal(config.clone()).await;
    assert!(unfunded.contains("no ETH") && unfunded.contains("fund it"), "{unfunded}");
    world.devnet.fund(signer.address(), U256::from(1_000_000_000_000_000_000u64)).await?;

    let mut other_chain = config.clone();
    other_chain.chain.id = 8453;
    let wrong = refusal(other_chain).await;
    assert!(wrong.contains("serves chain 31337") && wrong.contains("chain_id = 8453"), "{wrong}");

    let mut elsewhere = config.clone();
    elsewhere.contracts.proof_system = signer.address();
    let codeless = refusal(elsewhere).await;
    assert!(codeless.contains("contracts.proof_system") && codeless.contains("no code"), "{codeless}");

    let mut swapped = config.clone();
    std::mem::swap(&mut swapped.contracts.payment_escrow, &mut swapped.contracts.node_registry);
    let (registry, swapped) = (swapped.contracts.node_registry, refusal(swapped).await);
    assert!(
        swapped.contains(&format!("contracts.node_registry = {registry} does not know isActive(address)")),
        "{swapped}"
    );
    assert!(swapped.contains("selector 0x9f8a13d7") && swapped.contains("9 more of 10"), "{swapped}");

    let mut modelless = config.clone();
    let not_a_model = world.folder.path().join("notes.gguf");
    std::fs::write(&not_a_model, "these are notes")?;
    modelless.host.as_mut().unwrap().models[0].path = not_a_model;
    let no_model = refusal(modelless).await;
    assert!(no_model.contains("notes.gguf"), "{no_model}");

    let mut unable = config.clone();
    unable.prover.python = world.folder.path().join("no-python");
    let unable = refusal(unable).await;
    assert!(unable.contains("no-python") || unable.contains("ezkl"), "{unable}");

    let mut locked_out = config.clone();
    locked_out.host.as_mut().unwrap().password_file = world.folder.path().join("host.toml");
    let locked_out = refusal(locked_out).await;
    assert!(locked_out.contains("chmod 600") || locked_out.contains("password"), "{locked_out}");

    // What a node that was killed left of itself says nothing of this one, which is not there until its model is loaded.
    std::fs::write(config.node_file(), r#"{ "http": "127.0.0.1:1" }"#)?;
    // Two nodes would send from one account, and both take up what the file says is left.
    let node = Node::start(&config).await?;
    assert!(!config.node_file().exists());
    let second = refusal(config.clone()).await;
    let data_dir = config.data_dir.display().to_string();
    assert!(second.contains("another process works with") && second.contains(&data_dir), "{second}");
    node.stop().await;
    Node::start(&config).await?.stop().await;
    Ok(())
}
