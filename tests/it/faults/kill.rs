//! The program is killed at points of chance while it catches up and follows, again and again.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio::process::Command;

use super::chains::Chains;
use super::{Cell, Found, Index, Proxy, STEP, check_once, check_recovered, check_right};

/// How often, unless FAULTS_KILLS says.
const KILLS: u64 = 20;

/// Kills `fabstir index` as often as FAULTS_KILLS says, at points drawn from FAULTS_SEED, while the chain grows under it; then lets
/// it finish.
pub async fn run(chains: &Chains) -> Result<Found> {
    let kills: u64 = std::env::var("FAULTS_KILLS").map_or(Ok(KILLS), |text| text.parse())?;
    let seed: u64 = std::env::var("FAULTS_SEED").map_or_else(|_| Ok(rand::random()), |text| text.parse())?;
    let mut chance = StdRng::seed_from_u64(seed);
    let proxy = Proxy::start(&chains.main.url).await?;
    let (first, head) = (chains.world.book.block, chains.main.head());
    proxy.show(first + 20);
    // What a start and four steps take here and now: kills come within twice that.
    let begun = Instant::now();
    let once = finish(&config(chains, &proxy, "measured")?).await?;
    let life = begun.elapsed() * 2;
    ensure!(once.status.success(), "index --once: {}", String::from_utf8_lossy(&once.stderr));

    let file = config(chains, &proxy, "killed")?;
    for kill in 0..kills {
        proxy.show(first + (head - first) * kill / kills);
        let mut program = fabstir(&file, &["index"]).spawn().context("start the program")?;
        let life = life.mul_f64(chance.r#gen::<f64>());
        for part in 0..4 {
            proxy.show((first + (head - first) * kill / kills + part).min(head));
            tokio::time::sleep(life / 4).await;
        }
        program.start_kill()?;
        let ended = program.wait_with_output().await?;
        let by_itself = || format!("the program ended by itself: {}", String::from_utf8_lossy(&ended.stderr));
        ensure!(ended.status.signal() == Some(9), by_itself());
    }

    let database = chains.world.folder.path().join("killed/node.sqlite");
    let index = Index::at(chains, &[&proxy], &database, STEP).await?;
    let cursor = index.store.cursor().await?.map(|cursor| cursor.number);
    let known = [&chains.main.truth];
    let right = check_whole_file(&database).await?.and(check_right(&index, &known).await?);
    let right = right.and(cursor.map(|_| ()).ok_or("nothing was ever stored".into()));
    let twice = check_once(&index).await?;
    index.store.close().await;

    proxy.show(head);
    let finished = finish(&file).await?;
    ensure!(finished.status.success(), "after it: {}", String::from_utf8_lossy(&finished.stderr));
    let mut index = Index::at(chains, &[&proxy], &database, STEP).await?;
    index.drive(0).await;
    let recovered = check_recovered(&index, chains).await?;
    let once = twice.and(check_once(&index).await?);
    let at = cursor.unwrap_or(0);
    let signs = vec![format!("unharmed: killed {kills} times, seed {seed}, the last time at block {at} of {head}")];
    Ok(Found { right, once, signs, recovered })
}

/// What SQLite itself says of the file.
async fn check_whole_file(file: &Path) -> Result<Cell> {
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(file)).await?;
    let says: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&pool).await?;
    pool.close().await;
    Ok(if says == "ok" { Ok(()) } else { Err(format!("integrity_check: {says}")) })
}

/// The configuration of an indexer that takes small steps and never waits long.
fn config(chains: &Chains, proxy: &Proxy, name: &str) -> Result<std::path::PathBuf> {
    chains.world.config(name, false, &proxy.url, &[])?;
    let file = chains.world.folder.path().join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("poll_ms = 100", "poll_ms = 10\nblocks_per_step = 5"))?;
    Ok(file)
}

async fn finish(config: &Path) -> Result<Output> {
    Ok(fabstir(config, &["index", "--once"]).output().await?)
}

fn fabstir(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    command.arg("-c").arg(config).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}
