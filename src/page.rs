//! Telling the operator that something needs a person: a command, a URL, or both.
//!
//! Knows nothing of what it tells. Never retries: it says whether somebody was reached.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long a command or a URL may take.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Whom to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pager {
    /// Program and arguments; it gets the message on its standard input. Empty: none.
    pub command: Vec<String>,
    /// Gets the message in a POST request.
    pub url: Option<String>,
}

impl Pager {
    /// Returns whether there is anyone to tell.
    pub fn is_set(&self) -> bool {
        !self.command.is_empty() || self.url.is_some()
    }

    /// Gives the command and the URL `message`, which is JSON.
    ///
    /// # Errors
    /// If nobody was reached: all that is set failed, or took longer than ten seconds. Telling them again is safe. Where one of both was
    /// reached, the other's failure is logged.
    pub async fn page(&self, message: &str) -> Result<()> {
        let (ran, posted) = tokio::join!(self.run(message), self.post(message));
        let both = !self.command.is_empty() && self.url.is_some();
        match (ran, posted) {
            (Err(ran), Err(posted)) => bail!("{ran:#}; {posted:#}"),
            (Ok(()), Err(error)) | (Err(error), Ok(())) if both => {
                tracing::warn!(error = format!("{error:#}"), "the operator was paged one way and not the other");
                Ok(())
            }
            (ran, posted) => ran.and(posted),
        }
    }

    async fn run(&self, message: &str) -> Result<()> {
        let Some((program, arguments)) = self.command.split_first() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let what = || format!("run page_command {program:?}");
        let mut child = command.process_group(0).kill_on_drop(true).spawn().with_context(what)?;
        // Declared after the child, so dropped before it: the group's number is not reused before its leader is reaped.
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
        let mut stdin = child.stdin.take();
        let told = async {
            if let Some(stdin) = &mut stdin {
                // One that ends without reading says by its exit code what it thinks of that.
                stdin.write_all(message.as_bytes()).await.ok();
            }
            drop(stdin.take());
            child.wait().await
        };
        let late = || format!("page_command {program:?} took longer than {} s and was killed", TIME_MAX.as_secs());
        let status = tokio::time::timeout(TIME_MAX, told).await.with_context(late)?.with_context(what)?;
        group.0 = None;
        ensure!(status.success(), "page_command {program:?} ended with {status}");
        Ok(())
    }

    async fn post(&self, message: &str) -> Result<()> {
        let Some(url) = &self.url else { return Ok(()) };
        // A URL may hold a key: neither it nor an error that names it is told.
        let client = reqwest::Client::builder().timeout(TIME_MAX).build().context("build the HTTP client")?;
        let request = client.post(url).header("content-type", "application/json").body(message.to_owned());
        let answer = request.send().await.map_err(reqwest::Error::without_url).context("post to page_url")?;
        ensure!(answer.status().is_success(), "page_url answered {}", answer.status());
        Ok(())
    }
}

/// Kills the group when dropped, unless its leader was reaped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended by itself just now.
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn shell(script: &str) -> Pager {
        Pager { command: vec!["sh".into(), "-c".into(), script.into()], url: None }
    }

    #[tokio::test]
    async fn a_command_gets_the_message_and_says_whether_it_told_anyone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("page");
        shell(&format!("cat > {}", file.display())).page(r#"{"a":1}"#).await.expect("told");
        assert_eq!(std::fs::read_to_string(&file).expect("written"), r#"{"a":1}"#);
        let failed = shell("exit 3").page("{}").await.expect_err("it failed");
        assert!(format!("{failed:#}").contains("ended with exit status: 3"), "{failed:#}");
        let missing = Pager { command: vec!["/nowhere/pager".into()], url: None };
        let missing = missing.page("{}").await.expect_err("there is none");
        assert!(format!("{missing:#}").contains("run page_command \"/nowhere/pager\""), "{missing:#}");
        Pager::default().page("{}").await.expect("nobody is to be told");
    }

    #[tokio::test]
    async fn a_url_gets_the_message_and_is_not_repeated_in_errors_and_one_way_is_enough() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let url = format!("http://{}/s3cr3t", listener.local_addr().expect("bound"));
        let answers = tokio::spawn(async move {
            let mut told = Vec::new();
            for status in ["200 OK", "500 No", "500 No", "200 OK"] {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut request = [0; 2048];
                let mut text = String::new();
                while !text.ends_with(r#"{"b":2}"#) {
                    let read = stream.read(&mut request).await.expect("read");
                    text += &String::from_utf8_lossy(&request[..read]);
                }
                told.push(text);
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
            told
        });
        let pager = Pager { command: Vec::new(), url: Some(url) };
        pager.page(r#"{"b":2}"#).await.expect("told");
        let refused = pager.page(r#"{"b":2}"#).await.expect_err("refused");
        assert!(format!("{refused:#}").contains("500"), "{refused:#}");
        // One that was reached is enough, or it would be told again and again.
        let both = |command: &str| Pager { command: vec![command.into()], url: pager.url.clone() };
        both("true").page(r#"{"b":2}"#).await.expect("the command told somebody");
        both("false").page(r#"{"b":2}"#).await.expect("the URL told somebody");
        let told = answers.await.expect("served");
        assert!(told[0].starts_with("POST /s3cr3t") && told[0].contains("application/json"), "{}", told[0]);
        // Nobody listens any more.
        let gone = format!("{:#}", pager.page("{}").await.expect_err("gone"));
        assert!(!gone.contains("s3cr3t"), "{gone}");
        let neither = format!("{:#}", both("false").page("{}").await.expect_err("nobody was told"));
        assert!(neither.contains("page_command \"false\" ended with") && neither.contains("page_url"), "{neither}");
    }
}
