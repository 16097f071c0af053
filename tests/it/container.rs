//! The node in its image, beside a chain in a container: what an operator deploys, not what cargo runs.
//!
//! Needs an engine, which `tools/engine.sh run` finds or starts (`make test` calls it); its sign is
//! `FABSTIR_BASE_IMAGE`, an image on which a program built on this machine runs. Without it the test says that it is
//! skipped. The image is the `Dockerfile`'s own, up to the stage that compiles: there the binary that cargo made for
//! these tests takes the compiler's place.

use std::{env, fs, path::Path, process::Command, sync::OnceLock, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use testcontainers::{
    ContainerAsync, GenericImage, ImageExt,
    core::{ContainerPort, WaitFor, wait::HttpWaitStrategy},
    runners::AsyncRunner,
};

use crate::world;

const ANVIL_PORT: ContainerPort = ContainerPort::Tcp(8545);
const API_PORT: ContainerPort = ContainerPort::Tcp(8080);
const ANVIL_CHAIN_ID: u64 = 31337;

/// How long a state may take to be reached. Not a measure of anything: a loaded machine needs the room.
const STATE_WAIT_MAX: Duration = Duration::from_secs(60);

/// An operator's second node: it follows the chain, says so, says so too when the chain is gone, and comes back.
#[tokio::test]
async fn an_observer_in_a_container_follows_a_chain_in_another_and_reports_its_loss() -> Result<()> {
    let Some(image) = image() else { return Ok(()) };
    let network = format!("fabstir-{}", std::process::id());

    let anvil = start_anvil(&network).await?;
    let contracts = world::deploy(&format!("http://{}", address(&anvil, ANVIL_PORT).await?)).await?;

    let mut node = GenericImage::new(image.0, image.1)
        .with_exposed_port(API_PORT)
        .with_wait_for(WaitFor::http(
            HttpWaitStrategy::new("/readyz").with_port(API_PORT).with_expected_status_code(200_u16),
        ))
        .with_network(&network)
        .with_startup_timeout(STATE_WAIT_MAX)
        .with_env_var("RPC_URL", format!("http://{}:8545", anvil.get_bridge_ip_address().await?))
        .with_env_var("CHAIN_ID", ANVIL_CHAIN_ID.to_string());
    // No key and no model: that makes it an observer.
    for (name, address) in contracts.named() {
        node = node.with_env_var(format!("CONTRACT_{}", name.to_uppercase()), address.to_string());
    }
    let node = node.start().await.context("start the observer and wait until it is ready")?;

    anvil.pause().await?;
    let lost = until_readyz(&node, 503).await?;
    ensure!(lost.contains("indexer"), "/readyz must name the part that fails (the indexer), and said: {lost}");

    anvil.unpause().await?;
    until_readyz(&node, 200).await?;

    node.stop_with_timeout(Some(30)).await?;
    let code = node.exit_code().await?;
    ensure!(code == Some(0), "SIGTERM must end the node in order, and its exit code is {code:?}");
    Ok(())
}

/// The image runs on its own, as the user it declares, and is the program that was built here.
#[tokio::test]
async fn the_image_runs_this_program_and_not_as_root() -> Result<()> {
    let Some(image) = image() else { return Ok(()) };
    let name = format!("{}:{}", image.0, image.1);

    let version = docker(Command::new("docker").args(["run", "--rm", &name, "--version"]))?;
    ensure!(version.trim() == concat!("fabstir ", env!("CARGO_PKG_VERSION")), "--version printed {version:?}");
    let user = docker(Command::new("docker").args(["run", "--rm", "--entrypoint", "id", &name, "-u"]))?;
    ensure!(user.trim() == "1000", "the image runs as user {user:?}");
    Ok(())
}

/// Name and tag of the image under test, built once; or nothing, said on stderr, where no engine is.
fn image() -> Option<(&'static str, &'static str)> {
    static BUILT: OnceLock<()> = OnceLock::new();
    let Ok(base_image) = env::var("FABSTIR_BASE_IMAGE") else {
        eprintln!("skipped: no container engine; `make test` finds one, or starts one as root on Debian and Ubuntu");
        return None;
    };
    BUILT.get_or_init(|| build_image("fabstir:under-test", &base_image).unwrap_or_else(|error| panic!("{error:#}")));
    Some(("fabstir", "under-test"))
}

/// Builds the `prebuilt` stage of the `Dockerfile` around the binary under test. The engine caches the layers below it.
fn build_image(name: &str, base_image: &str) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let context = tempfile::tempdir()?;
    for (from, to) in [
        (root.join("Dockerfile"), "Dockerfile"),
        (root.join("src/prover/select-v1/requirements.txt"), "src/prover/select-v1/requirements.txt"),
        (env!("CARGO_BIN_EXE_fabstir").into(), "image/fabstir"),
    ] {
        let to = context.path().join(to);
        fs::create_dir_all(to.parent().expect("a path below the context"))?;
        fs::copy(&from, &to).with_context(|| format!("copy {} into the build context", from.display()))?;
    }
    // The last run's image, if any: taking only its name away would leave it lying in the engine.
    let _ = docker(Command::new("docker").args(["image", "rm", "--force", name]));
    // The host's network is for apt: an engine without rules for the packet filter gives a build none of its own.
    docker(
        Command::new("docker")
            .args(["build", "--quiet", "--network", "host", "--target", "prebuilt", "--tag", name])
            .args(["--build-arg", "PROVER=0", "--build-arg", &format!("BASE_IMAGE={base_image}")])
            .arg(context.path()),
    )?;
    Ok(())
}

/// Starts anvil on `network` and waits until it answers a call.
async fn start_anvil(network: &str) -> Result<ContainerAsync<GenericImage>> {
    let answers = HttpWaitStrategy::new("/")
        .with_port(ANVIL_PORT)
        .with_method(reqwest::Method::POST)
        .with_header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .with_body(r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}"#)
        .with_expected_status_code(200_u16);
    GenericImage::new("ghcr.io/foundry-rs/foundry", "v1.7.1")
        .with_exposed_port(ANVIL_PORT)
        .with_wait_for(WaitFor::http(answers))
        .with_network(network)
        .with_startup_timeout(STATE_WAIT_MAX)
        // The image's entry point is a shell: one string.
        .with_cmd(["anvil --host 0.0.0.0 --block-time 1"])
        .start()
        .await
        .context("start anvil in a container")
}

/// Where `port` of `container` is reached from here. The engine picks it anew at each start.
async fn address(container: &ContainerAsync<GenericImage>, port: ContainerPort) -> Result<String> {
    Ok(format!("{}:{}", container.get_host().await?, container.get_host_port_ipv4(port).await?))
}

/// Polls `/readyz` until it answers `status`, and returns the body.
async fn until_readyz(node: &ContainerAsync<GenericImage>, status: u16) -> Result<String> {
    let url = format!("http://{}/readyz", address(node, API_PORT).await?);
    let mut last = None;
    let reached = tokio::time::timeout(STATE_WAIT_MAX, async {
        loop {
            let response = reqwest::get(&url).await?;
            if response.status() == status {
                return response.text().await;
            }
            last = Some(response.status());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    Ok(reached.with_context(|| format!("{url} must come to answer {status}, and answered {last:?}"))??)
}

/// Runs `command` and returns what it printed.
fn docker(command: &mut Command) -> Result<String> {
    let output = command.output().context("run docker")?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
