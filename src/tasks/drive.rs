//! Runs a task's passes: again at once after work, else when woken or after a while. Watches how long each takes, and outlives a
//! panic in one.
//!
//! Knows nothing of what a task does: a pass may be cut off anywhere and is run again.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::FutureExt;
use tokio::sync::watch;

use super::{Pass, Task};
use crate::http::{Health, Kind, Metrics};

/// A task that panics as often without one pass that ends has a defect no further pass mends.
const PANICS_MAX: u32 = 5;

/// How far a node is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Runs,
    /// No further work is taken; what is under way is finished.
    Finishes,
    /// Every pass is cut off.
    Stops,
}

/// What every task is driven with.
#[derive(Debug, Clone)]
pub struct Drive {
    /// The longest wait for the next pass, and the pause after one that failed.
    pub poll: Duration,
    /// How long it lets be what woke it: tasks that have time leave the machine to those that have none.
    pub breath: Duration,
    pub health: Health,
    pub metrics: Metrics,
    pub phase: watch::Receiver<Phase>,
}

impl Drive {
    /// Runs `task`'s passes until the node stops; where it takes work, until its pass has ended after the node began to finish.
    ///
    /// # Errors
    /// If it panicked five times in a row.
    pub async fn run<T: Task>(self, task: T, wake: watch::Receiver<u64>) -> Result<()> {
        let mut phase = self.phase.clone();
        tokio::select! {
            ended = self.passes(task, wake) => ended,
            _ = phase.wait_for(|phase| *phase == Phase::Stops) => Ok(()),
        }
    }

    async fn passes<T: Task>(mut self, mut task: T, mut wake: watch::Receiver<u64>) -> Result<()> {
        let failures = self.metrics.failures.get_or_create_owned(&Kind::of(T::NAME));
        let seconds = self.metrics.pass_seconds.get_or_create_owned(&Kind::of(T::NAME));
        let mut panics = 0;
        while !T::TAKES_WORK || *self.phase.borrow() == Phase::Runs {
            wake.borrow_and_update();
            let began = Instant::now();
            let watched = self.health.begin(T::NAME, task.pass_max());
            let passed = AssertUnwindSafe(task.pass()).catch_unwind().await;
            drop(watched);
            seconds.observe(began.elapsed().as_secs_f64());
            panics = if passed.is_ok() { 0 } else { panics + 1 };
            match passed {
                Ok(Ok(Pass::Again)) => continue,
                Ok(Ok(Pass::Idle)) => {}
                Ok(Err(error)) => {
                    failures.inc();
                    tracing::warn!(task = T::NAME, error = format!("{error:#}"), "a pass failed: trying again");
                    tokio::time::sleep(self.poll).await;
                }
                Err(panic) => {
                    self.metrics.panics.get_or_create(&Kind::of(T::NAME)).inc();
                    let (task, panic) = (T::NAME, words(&*panic));
                    tracing::error!(task, panic, panics, "a pass panicked: trying again");
                    if panics >= PANICS_MAX {
                        bail!("task {task} panicked {panics} times in a row, at last with: {panic}");
                    }
                    // Longer each time: what it met may be gone by then.
                    tokio::time::sleep(self.poll * 2_u32.pow(panics)).await;
                    continue;
                }
            }
            tokio::select! {
                changed = wake.changed() => {
                    let pause = if changed.is_err() { self.poll } else { self.breath };
                    // The shortest sleep takes a millisecond.
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                _ = tokio::time::sleep(self.poll) => {}
                () = finishing(&mut self.phase), if T::TAKES_WORK => {}
            }
        }
        Ok(())
    }
}

async fn finishing(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase > Phase::Runs).await;
}

/// Returns what a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics, or ends well, as its script says; then waits for ever.
    struct Scripted {
        script: Vec<bool>,
        began: watch::Sender<usize>,
    }

    impl Task for Scripted {
        const NAME: &'static str = "scripted";
        const TAKES_WORK: bool = true;

        async fn pass(&mut self) -> Result<Pass> {
            self.began.send_modify(|began| *began += 1);
            tokio::task::yield_now().await;
            match self.script.pop() {
                None => std::future::pending().await,
                Some(true) => Ok(Pass::Again),
                Some(false) => panic!("as the script says"),
            }
        }

        fn pass_max(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// Returns what drives tasks, the node's phase, and a task whose passes end well or panic in that order.
    fn stage(script: &[bool]) -> (Drive, watch::Sender<Phase>, Scripted, watch::Receiver<usize>) {
        let (stop, phase) = watch::channel(Phase::Runs);
        let (began, seen) = watch::channel(0);
        let (poll, breath) = (Duration::from_millis(1), Duration::ZERO);
        let drive = Drive { poll, breath, health: Health::default(), metrics: Metrics::new(), phase };
        (drive, stop, Scripted { script: script.iter().rev().copied().collect(), began }, seen)
    }

    fn panics(drive: &Drive) -> u64 {
        drive.metrics.panics.get_or_create(&Kind::of("scripted")).get()
    }

    #[tokio::test]
    async fn a_panic_costs_one_pass_and_nothing_else() {
        let (drive, stop, task, mut began) = stage(&[false, false, true, false, false, false, false, true]);
        let (health, watched) = (drive.health.clone(), drive.clone());
        let never = watch::channel(0).1;
        let running = tokio::spawn(drive.run(task, never));
        began.wait_for(|began| *began == 9).await.expect("it goes on");
        assert_eq!(panics(&watched), 6, "never five in a row");
        let told = health.problems();
        assert_eq!((told.len(), told[0].part), (1, "scripted"), "the last one hangs: {told:?}");
        stop.send_replace(Phase::Stops);
        running.await.expect("no panic gets out").expect("stopped in order");
        assert_eq!(health.problems(), [], "cut off");
    }

    #[tokio::test]
    async fn a_task_that_only_panics_ends_the_node() {
        let (drive, _stop, task, _) = stage(&[true, false, false, false, false, false, true]);
        let watched = drive.clone();
        let told = drive.run(task, watch::channel(0).1).await.expect_err("it gave up").to_string();
        assert_eq!(told, "task scripted panicked 5 times in a row, at last with: as the script says");
        assert_eq!(panics(&watched), 5);
    }

    #[tokio::test]
    async fn who_takes_work_takes_none_when_the_node_finishes() {
        let (drive, stop, task, began) = stage(&[true, true]);
        stop.send_replace(Phase::Finishes);
        drive.run(task, watch::channel(0).1).await.expect("ends by itself");
        assert_eq!(*began.borrow(), 0);
    }
}
