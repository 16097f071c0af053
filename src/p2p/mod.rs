//! Peers: finding hosts by model, asking them, receiving tokens, spreading receipts.
//!
//! Owns libp2p: TCP and QUIC, noise, yamux, Kademlia provider records, request-response, gossipsub and one stream
//! protocol. It carries the words of [`market::offer`](crate::market::offer) and knows nothing of chain, store or
//! engine: who may ask, and whether a receipt is true, is answered by whoever reads the [`Inbound`] events.
//!
//! [`start`] runs one background task that owns the swarm; [`P2p`] is a handle that can be cloned.
//! Everything a peer can fill is bounded: when the reader of [`Inbound`] falls behind, peers are told "busy".
//!
//! Source: <https://github.com/libp2p/specs>.

mod behaviour;
pub mod identity;
mod node;
mod tokens;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::future::join_all;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

pub use behaviour::{RECEIPT_MAX_BYTES, REQUEST_MAX_BYTES, REQUEST_TIMEOUT, RESPONSE_MAX_BYTES};
pub use libp2p::{Multiaddr, PeerId, identity::Keypair};
pub use node::{Reply, Verdict};
pub use tokens::{TokenReader, TokenWriter};
pub use wire::FRAME_MAX_BYTES;

use crate::market::{
    offer::{Request, Response, StreamInit},
    types::ModelId,
};
use node::Command;

/// Events from peers that wait to be read; further ones are refused.
pub const INBOUND_MAX: usize = 256;
/// Calls from [`P2p`] handles that wait for the background task; further callers wait.
const COMMANDS_MAX: usize = 64;
/// How long a listen address may take to come up, and a stream to open.
const SETUP_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two searches that found nothing, unless the network changes first.
const SEARCH_PAUSE: Duration = Duration::from_millis(500);

/// What a node is and where it stands in the network.
#[derive(Debug, Clone)]
pub struct Config {
    pub identity: Keypair,
    /// Such as `/ip4/0.0.0.0/tcp/4001` and `/ip4/0.0.0.0/udp/4001/quic-v1`; port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// Peers to join by, each ending in `/p2p/<peer id>`; dialed again whenever they are lost.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to find and be found by peers of the local network.
    pub mdns: bool,
}

/// What a peer wants of us.
#[derive(Debug)]
pub enum Inbound {
    /// A question, to be answered once.
    Request { peer: PeerId, request: Request, reply: Reply },
    /// A receipt signed by the peer `from`, at most [`RECEIPT_MAX_BYTES`]; forwarded only if accepted.
    Receipt { from: PeerId, bytes: Vec<u8>, verdict: Verdict },
    /// A renter wants a job's tokens; whether it may have them is for the reader to check.
    Tokens { peer: PeerId, init: StreamInit, writer: TokenWriter },
}

/// A handle to this node; clones speak for the same node, which stops when the last is dropped.
#[derive(Debug, Clone)]
pub struct P2p {
    peer: PeerId,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    streams: tokens::Opener,
}

/// What the node knows of its surroundings.
#[derive(Debug, Clone, Default)]
struct View {
    listening: BTreeSet<Multiaddr>,
    connected: BTreeSet<PeerId>,
    /// Connected peers that take receipts.
    subscribed: BTreeSet<PeerId>,
}

/// Starts a node and returns once it listens on every address of `config`.
///
/// Must be called within a tokio runtime. Bootstrap peers are dialed in the background, since they may come up later.
///
/// # Errors
/// If an address cannot be listened on, a bootstrap address names no peer, or mDNS cannot be used.
pub async fn start(config: Config) -> Result<(P2p, mpsc::Receiver<Inbound>)> {
    let bootstrap = by_peer(&config.bootstrap)?;
    let peer = config.identity.public().to_peer_id();
    let mut swarm = behaviour::swarm(config.identity, config.mdns)?;
    let listening = timeout(SETUP_TIMEOUT, node::listen(&mut swarm, &config.listen))
        .await
        .with_context(|| format!("no answer from the system on listening on {:?}", config.listen))??;

    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (events, inbound) = mpsc::channel(INBOUND_MAX);
    let (view, seen) = watch::channel(View { listening, ..View::default() });
    let streams = tokens::Opener::new(&swarm);
    let node = node::Node::new(swarm, command_queue, events, view, bootstrap)?;
    tokio::spawn(node.run());
    Ok((P2p { peer, commands, view: seen, streams }, inbound))
}

impl P2p {
    /// Returns this node's identity.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Returns the addresses this node listens on now, each ending in `/p2p/<peer id>`.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.view.borrow().listening.iter().map(|address| with_peer(address.clone(), self.peer)).collect()
    }

    /// Returns the peers this node has a connection to now.
    pub fn connected_peers(&self) -> Vec<PeerId> {
        self.view.borrow().connected.iter().copied().collect()
    }

    /// Returns the connected peers that take receipts.
    pub fn receipt_peers(&self) -> Vec<PeerId> {
        self.view.borrow().subscribed.iter().copied().collect()
    }

    /// Announces that this node serves `model`, and keeps announcing it until [`P2p::stop_providing`].
    ///
    /// Returns when the peers known now were told; later ones are told as they appear.
    ///
    /// # Errors
    /// If the peers did not answer in time, in which case the announcement is still repeated, or the node has stopped.
    pub async fn provide(&self, model: &ModelId) -> Result<()> {
        let model = *model;
        self.ask(|reply| Command::Provide { model, reply }).await?.with_context(|| format!("announce model {model}"))
    }

    /// Stops announcing `model`; peers forget it when their records expire (two days).
    ///
    /// # Errors
    /// If the node has stopped.
    pub async fn stop_providing(&self, model: &ModelId) -> Result<()> {
        let model = *model;
        self.ask(|reply| Command::StopProviding { model, reply }).await
    }

    /// Returns peers that announced `model`, never ourselves, with their addresses (ending in `/p2p/<peer id>`).
    ///
    /// Searches until somebody is found or `limit` is over; nobody is an empty list, at most 20 are returned. A peer that
    /// has gone since may come without addresses. An announcement proves nothing: ask for capabilities and verify them.
    ///
    /// # Errors
    /// If the node has stopped.
    pub async fn find_hosts(&self, model: &ModelId, limit: Duration) -> Result<Vec<(PeerId, Vec<Multiaddr>)>> {
        let deadline = Instant::now() + limit;
        let mut view = self.view.clone();
        loop {
            view.mark_unchanged();
            match timeout_at(deadline, self.search(model)).await {
                Ok(Ok(hosts)) if hosts.is_empty() => {}
                Ok(result) => return result,
                Err(_) => return Ok(vec![]),
            }
            let pause = deadline.min(Instant::now() + SEARCH_PAUSE);
            // Either way, search again: a new connection may know more, and so may time.
            let _ = timeout_at(pause, view.changed()).await;
            if Instant::now() >= deadline {
                return Ok(vec![]);
            }
        }
    }

    async fn search(&self, model: &ModelId) -> Result<Vec<(PeerId, Vec<Multiaddr>)>> {
        let model = *model;
        let hosts = self.ask(|reply| Command::Hosts { model, reply }).await?;
        let addresses = hosts.iter().map(|&peer| self.ask(move |reply| Command::Addresses { peer, reply }));
        let addresses = join_all(addresses).await.into_iter().collect::<Result<Vec<_>>>()?;
        let full = |peer, addresses: Vec<Multiaddr>| addresses.into_iter().map(|one| with_peer(one, peer)).collect();
        Ok(hosts.into_iter().zip(addresses).map(|(peer, addresses)| (peer, full(peer, addresses))).collect())
    }

    /// Asks `peer`, connecting to it on the addresses known of it, and returns its answer.
    ///
    /// # Errors
    /// If the request or the answer is too long, the peer cannot be reached, does not speak the protocol, or does not
    /// answer within [`REQUEST_TIMEOUT`]. It may have received the request all the same.
    pub async fn request(&self, peer: PeerId, request: Request) -> Result<Response> {
        let length = serde_json::to_vec(&request).context("encode a request")?.len();
        ensure!(length <= REQUEST_MAX_BYTES, "a request of {length} bytes is longer than {REQUEST_MAX_BYTES}");
        self.ask(|reply| Command::Request { peer, request, reply }).await?.with_context(|| format!("ask peer {peer}"))
    }

    /// Asks `peer` for the tokens of a job, connecting to it on the addresses known of it.
    ///
    /// # Errors
    /// If the peer cannot be reached, does not speak the protocol, or takes too long. A peer that refuses says so in
    /// the stream's first message.
    pub async fn open_tokens(&self, peer: PeerId, init: StreamInit) -> Result<TokenReader> {
        let open = timeout(SETUP_TIMEOUT, self.streams.open(peer, init));
        let result = tokio::select! {
            result = open => result.map_err(|_| anyhow!("it took longer than {SETUP_TIMEOUT:?}")).flatten(),
            () = self.commands.closed() => Err(stopped()),
        };
        result.with_context(|| format!("open a token stream to peer {peer}"))
    }

    /// Publishes a receipt, signed with this node's identity; returns whether any peer was there to take it.
    ///
    /// # Errors
    /// If `bytes` is longer than [`RECEIPT_MAX_BYTES`], every peer's queue is full, or the node has stopped.
    pub async fn publish_receipt(&self, bytes: Vec<u8>) -> Result<bool> {
        let length = bytes.len();
        ensure!(length <= RECEIPT_MAX_BYTES, "a receipt of {length} bytes is longer than {RECEIPT_MAX_BYTES}");
        self.ask(|reply| Command::Publish { bytes, reply }).await?.context("publish a receipt")
    }

    /// Stops the node and returns when its swarm is gone: listeners, connections and streams with it.
    pub async fn shutdown(&self) {
        // A node that has stopped already cannot take the command, and need not.
        let _ = self.commands.send(Command::Stop).await;
        let mut view = self.view.clone();
        while view.changed().await.is_ok() {}
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

fn stopped() -> anyhow::Error {
    anyhow!("the peer-to-peer node has stopped")
}

/// Returns `address` ending in `/p2p/<peer>`; one that ends in another peer is left as it is.
fn with_peer(address: Multiaddr, peer: PeerId) -> Multiaddr {
    address.with_p2p(peer).unwrap_or_else(|address| address)
}

fn by_peer(bootstrap: &[Multiaddr]) -> Result<BTreeMap<PeerId, Vec<Multiaddr>>> {
    let mut peers = BTreeMap::<PeerId, Vec<Multiaddr>>::new();
    for address in bootstrap {
        match address.iter().last() {
            Some(libp2p::multiaddr::Protocol::P2p(peer)) => peers.entry(peer).or_default().push(address.clone()),
            _ => bail!("bootstrap address {address} does not end in /p2p/<peer id>"),
        }
    }
    Ok(peers)
}
