//! Token streams: one libp2p stream for each reader of a job's tokens.
//!
//! The renter opens it and sends a [`StreamInit`]; the host sends [`StreamMessage`]s. Nothing is kept here: a reader
//! that lost its stream opens another one from the index it needs.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use libp2p::{PeerId, Stream, Swarm};
use libp2p_stream::{Control, IncomingStreams};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use super::{
    Inbound,
    behaviour::{Behaviour, TOKENS_PROTOCOL},
    wire::{FrameReader, write_frame},
};
use crate::market::offer::{STREAM_VERSION, StreamInit, StreamMessage};

/// Token streams served at once; further ones are closed.
pub const TOKEN_STREAMS_MAX: usize = 64;
/// How long a peer may take to say what it wants.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a reader may leave a message unread once its buffers are full.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// The host's end of a token stream.
#[derive(Debug)]
pub struct TokenWriter {
    /// `None` after the last message or a failure.
    stream: Option<Stream>,
    _slot: OwnedSemaphorePermit,
}

impl TokenWriter {
    /// Sends one message; waits while the reader is slow. `End` and `Error` are the last and close the stream.
    ///
    /// Dropping the returned future, or the writer, breaks the stream off.
    ///
    /// # Errors
    /// If the reader has left or took nothing for 30 seconds, the message is longer than
    /// [`FRAME_MAX_BYTES`](super::FRAME_MAX_BYTES), or the stream is closed. The stream is closed then.
    pub async fn send(&mut self, message: &StreamMessage) -> Result<()> {
        let mut stream = self.stream.take().context("the token stream is closed")?;
        timeout(SEND_TIMEOUT, write_frame(&mut stream, message)).await.context("the reader takes no tokens")??;
        match message {
            StreamMessage::Token { .. } => self.stream = Some(stream),
            StreamMessage::End { .. } | StreamMessage::Error { .. } => {
                let close = futures::AsyncWriteExt::close(&mut stream);
                timeout(SEND_TIMEOUT, close).await.context("the reader takes no tokens")?.context("close")?;
            }
        }
        Ok(())
    }
}

/// The renter's end of a token stream.
#[derive(Debug)]
pub struct TokenReader {
    frames: FrameReader<Stream>,
    /// The index that is due.
    next_index: u32,
    state: ReaderState,
}

#[derive(Debug, PartialEq)]
enum ReaderState {
    Open,
    Ended,
    Broken,
}

impl TokenReader {
    /// Returns the next message, or `None` after `End` or `Error`. Cancelling it loses nothing; it waits as long as
    /// the host does, so a limit is for the caller to set.
    ///
    /// # Errors
    /// If the stream breaks off before its end, a message is malformed, or a token is not the one that is due. The
    /// rest of the stream is lost; a new one can start at the index that was due.
    pub async fn next(&mut self) -> Result<Option<StreamMessage>> {
        match self.state {
            ReaderState::Open => {}
            ReaderState::Ended => return Ok(None),
            ReaderState::Broken => bail!("the token stream is broken"),
        }
        let message = self.frames.next().await.and_then(|message| {
            let message = message.context("the peer broke off the token stream before its end")?;
            self.next_index = check(&message, self.next_index)?;
            Ok(message)
        });
        self.state = match &message {
            Ok(StreamMessage::Token { .. }) => ReaderState::Open,
            Ok(_) => ReaderState::Ended,
            Err(_) => ReaderState::Broken,
        };
        message.map(Some)
    }
}

/// Returns the index due after `message`, where `due` was due before it.
fn check(message: &StreamMessage, due: u32) -> Result<u32> {
    match *message {
        StreamMessage::Token { index, .. } => {
            ensure!(index == due, "the peer sent token {index} where {due} was due");
            due.checked_add(1).context("the peer sent more tokens than a job can have")
        }
        StreamMessage::End { tokens, .. } => {
            ensure!(tokens == due, "the peer ended a stream of {tokens} tokens where token {due} was due");
            Ok(due)
        }
        StreamMessage::Error { .. } => Ok(due),
    }
}

/// Opens token streams.
#[derive(Clone)]
pub(super) struct Opener(Control);

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

impl Opener {
    pub(super) fn new(swarm: &Swarm<Behaviour>) -> Self {
        Self(swarm.behaviour().tokens.new_control())
    }

    pub(super) async fn open(&self, peer: PeerId, init: StreamInit) -> Result<TokenReader> {
        let mut stream = self.0.clone().open_stream(peer, TOKENS_PROTOCOL).await?;
        let next_index = init.from_index;
        write_frame(&mut stream, &init).await?;
        Ok(TokenReader { frames: FrameReader::new(stream), next_index, state: ReaderState::Open })
    }
}

/// Takes in the streams that peers open.
pub(super) struct Acceptor {
    pub(super) incoming: IncomingStreams,
    slots: Arc<Semaphore>,
    events: mpsc::Sender<Inbound>,
}

impl Acceptor {
    pub(super) fn new(swarm: &Swarm<Behaviour>, events: mpsc::Sender<Inbound>) -> Result<Self> {
        let incoming = swarm.behaviour().tokens.new_control().accept(TOKENS_PROTOCOL)?;
        Ok(Self { incoming, slots: Arc::new(Semaphore::new(TOKEN_STREAMS_MAX)), events })
    }

    /// Returns the work of hearing what `peer` wants on `stream`, or `None` where too many streams are open.
    pub(super) fn greet(&self, peer: PeerId, stream: Stream) -> Option<impl Future<Output = ()> + use<>> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        let events = self.events.clone();
        Some(async move {
            if let Err(error) = hear(peer, stream, slot, events).await {
                tracing::debug!(%peer, "refused a token stream of peer {peer}: {error:#}");
            }
        })
    }
}

async fn hear(peer: PeerId, stream: Stream, slot: OwnedSemaphorePermit, events: mpsc::Sender<Inbound>) -> Result<()> {
    let mut frames = FrameReader::new(stream);
    let init = timeout(INIT_TIMEOUT, frames.next::<StreamInit>()).await.context("it said nothing")?;
    let mut writer = TokenWriter { stream: Some(frames.into_stream()), _slot: slot };
    let init = match init {
        Ok(init) => init.context("it left at once")?,
        Err(error) => return refuse(writer, format!("the first message: {error:#}")).await,
    };
    if init.version != STREAM_VERSION {
        return refuse(writer, format!("version {:?} is not {STREAM_VERSION}", init.version)).await;
    }
    match events.try_reserve() {
        Ok(place) => place.send(Inbound::Tokens { peer, init, writer }),
        Err(_) => writer.send(&StreamMessage::Error { reason: "busy; try again later".into() }).await?,
    }
    Ok(())
}

async fn refuse(mut writer: TokenWriter, reason: String) -> Result<()> {
    writer.send(&StreamMessage::Error { reason: reason.clone() }).await?;
    bail!(reason)
}
