//! A host whose key AWS KMS keeps: it registers, claims, proves and is paid, and its key was never here.
//!
//! In a build with `--features aws` only. The KMS is moto's, a program's on this machine (`tests/kms.py`); `make test-aws` installs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use fabstir::chain::call;
use fabstir::market::types::{Address, U256};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{World, root};

/// A KMS with one key; it ends when this is dropped.
struct Kms {
    server: Child,
    url: String,
    key: String,
}

impl Drop for Kms {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Kms {
    fn start() -> Result<Self> {
        let python = root().join(".fabstir/moto/bin/python");
        ensure!(python.exists(), "{} is missing: `make test-aws` installs it", python.display());
        let mut server = Command::new(python)
            .arg(root().join("tests/kms.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the KMS")?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("its output")?).read_line(&mut line)?;
        let (url, key) = line.trim().split_once(' ').context("the KMS told no URL and key")?;
        Ok(Self { server, url: url.to_owned(), key: key.to_owned() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_paid_whose_key_aws_keeps() -> Result<()> {
    let (world, kms) = (World::new().await?, Kms::start()?);
    world.config("host", true, &world.devnet.rpc_url, &[])?;
    let file = world.folder.path().join("host.toml");
    let text = std::fs::read_to_string(&file)?;
    let here = "keystore = \"host.json\"\npassword_file = \"password\"\n";
    ensure!(text.contains(here), "{text}");
    std::fs::write(&file, text.replacen(here, &format!("signer = {{ aws = \"{}\" }}\n", kms.key), 1))?;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
        command.arg("--config").arg(&file).args(arguments).stdin(Stdio::null());
        command.env("AWS_ENDPOINT_URL", &kms.url).env("AWS_REGION", "eu-west-1");
        command.env("AWS_ACCESS_KEY_ID", "somebody").env("AWS_SECRET_ACCESS_KEY", "a secret");
        command
    };
    let does = async |arguments: &[&str]| {
        let mut command = command(arguments);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };

    let host: Address = does(&["key", "address"]).await?.trim().parse()?;
    world.devnet.fund(host, U256::from(10).pow(U256::from(20))).await?;
    let stake = call::transfer(world.book.contracts.governance_token, host, world.chain.stake_min().await?);
    world.devnet.send(&stake).await?;
    does(&["register"]).await?;
    assert!(world.chain.is_active(host).await?);

    let data_dir = world.folder.path().join("host");
    let job = world.post_beside(&data_dir).await?;
    let mut node = command(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    world.until_paid(&data_dir, job).await?;
    kill_process(Pid::from_raw(node.id() as i32).context("its number")?, Signal::TERM)?;
    let ended = tokio::task::spawn_blocking(move || node.wait()).await??;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}
