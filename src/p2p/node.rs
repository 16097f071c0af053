//! The background task that owns the swarm: it turns commands into libp2p calls and libp2p events into answers.
//!
//! It never waits: what takes time is a query, a request or an answer remembered here until its event arrives.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, MessageAcceptance, MessageId, PublishError},
    identify,
    kad::{self, store::RecordStore},
    mdns,
    request_response::{self, OutboundFailure, OutboundRequestId, ResponseChannel},
    swarm::{
        SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    Inbound, View,
    behaviour::{Behaviour, BehaviourEvent, KAD_PROTOCOL, RESPONSE_MAX_BYTES, receipts_topic},
    tokens::Acceptor,
};
use crate::market::{
    offer::{Request, Response},
    types::ModelId,
};

/// How often lost bootstrap peers are dialed again.
const BOOTSTRAP_RETRY: Duration = Duration::from_secs(15);
/// A search stops collecting here; also how many peers keep a record.
const HOSTS_MAX: usize = 20;
/// Addresses remembered of one peer.
const ADDRESSES_PER_PEER_MAX: usize = 10;
/// The multihash head of a SHA-256 digest: its code and its 32 bytes' length.
/// Source: <https://github.com/multiformats/multihash>.
const SHA2_256: [u8; 2] = [0x12, 0x20];

/// What a [`P2p`](super::P2p) handle asks of the task.
#[derive(Debug)]
pub(super) enum Command {
    Provide { model: ModelId, reply: oneshot::Sender<Result<()>> },
    StopProviding { model: ModelId, reply: oneshot::Sender<()> },
    Hosts { model: ModelId, reply: oneshot::Sender<Vec<PeerId>> },
    Addresses { peer: PeerId, reply: oneshot::Sender<Vec<Multiaddr>> },
    Request { peer: PeerId, request: Request, reply: oneshot::Sender<Result<Response>> },
    Publish { bytes: Vec<u8>, reply: oneshot::Sender<Result<bool>> },
    Stop,
}

/// The one answer to a request; dropping it refuses the request.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Response>);

impl Reply {
    /// Answers; a peer that no longer waits is no error.
    pub fn send(self, response: Response) {
        let _ = self.0.send(response);
    }
}

/// The decision about a receipt, to be made within ten seconds; dropping it ignores the receipt.
#[derive(Debug)]
pub struct Verdict(oneshot::Sender<MessageAcceptance>);

impl Verdict {
    /// The receipt is true: forward it.
    pub fn accept(self) {
        let _ = self.0.send(MessageAcceptance::Accept);
    }

    /// The receipt is false: do not forward it, and count it against who sent it; after nine they are not heard.
    pub fn reject(self) {
        let _ = self.0.send(MessageAcceptance::Reject);
    }

    /// This node cannot tell, perhaps not yet: do not forward it, blame nobody.
    pub fn ignore(self) {
        let _ = self.0.send(MessageAcceptance::Ignore);
    }
}

/// A decision the reader of [`Inbound`] has made.
enum Answer {
    Response(ResponseChannel<Response>, Response),
    Verdict(MessageId, PeerId, MessageAcceptance),
}

/// A Kademlia query and who waits for it.
enum Query {
    Announce(oneshot::Sender<Result<()>>),
    Hosts(Vec<PeerId>, oneshot::Sender<Vec<PeerId>>),
    Addresses(PeerId, oneshot::Sender<Vec<Multiaddr>>),
}

pub(super) struct Node {
    // The order is the order of dropping: the view goes after the swarm, so that its end means the swarm's.
    swarm: Swarm<Behaviour>,
    greetings: JoinSet<()>,
    acceptor: Acceptor,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    queries: HashMap<kad::QueryId, Query>,
    requests: HashMap<OutboundRequestId, oneshot::Sender<Result<Response>>>,
    providing: HashSet<ModelId>,
    bootstrap: BTreeMap<PeerId, Vec<Multiaddr>>,
    events: mpsc::Sender<Inbound>,
    view: watch::Sender<View>,
    commands: mpsc::Receiver<Command>,
}

/// Listens on `addresses` and returns what that came to, at least one bound address for each.
pub(super) async fn listen(swarm: &mut Swarm<Behaviour>, addresses: &[Multiaddr]) -> Result<BTreeSet<Multiaddr>> {
    let mut waiting = HashMap::new();
    for address in addresses {
        let id = swarm.listen_on(address.clone()).with_context(|| format!("listen on {address}"))?;
        waiting.insert(id, address);
    }
    let mut bound = BTreeSet::new();
    while !waiting.is_empty() {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                waiting.remove(&listener_id);
                bound.insert(address);
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                let address = waiting.get(&listener_id).context("a listener closed at once")?;
                reason.with_context(|| format!("listen on {address}"))?;
                bail!("listening on {address} ended at once");
            }
            _ => {}
        }
    }
    Ok(bound)
}

impl Node {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Inbound>,
        view: watch::Sender<View>,
        bootstrap: BTreeMap<PeerId, Vec<Multiaddr>>,
    ) -> Result<Self> {
        let acceptor = Acceptor::new(&swarm, events.clone())?;
        let (greetings, answers) = (JoinSet::new(), FuturesUnordered::new());
        let (queries, requests, providing) = (HashMap::new(), HashMap::new(), HashSet::new());
        Ok(Self {
            swarm,
            greetings,
            acceptor,
            answers,
            queries,
            requests,
            providing,
            bootstrap,
            events,
            view,
            commands,
        })
    }

    /// Runs until the command queue is closed and empty.
    pub(super) async fn run(mut self) {
        let mut upkeep = interval(BOOTSTRAP_RETRY);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(answer) = self.answers.next() => self.on_answer(answer),
                Some((peer, stream)) = self.acceptor.incoming.next() => {
                    if let Some(greeting) = self.acceptor.greet(peer, stream) {
                        self.greetings.spawn(greeting);
                    }
                }
                Some(_) = self.greetings.join_next() => {}
                _ = upkeep.tick() => self.dial_bootstrap(),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
            }
        }
    }

    fn dial_bootstrap(&mut self) {
        for (&peer, addresses) in &self.bootstrap {
            let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
            // Refused where it is connected or being dialed; a failed dial is reported as an event.
            let _ = self.swarm.dial(options.addresses(addresses.clone()).build());
        }
    }

    fn on_command(&mut self, command: Command) {
        let behaviour = self.swarm.behaviour_mut();
        match command {
            Command::Provide { model, reply } => {
                self.providing.insert(model);
                match behaviour.kad.start_providing(record_key(&model)) {
                    Ok(id) => _ = self.queries.insert(id, Query::Announce(reply)),
                    Err(error) => _ = reply.send(Err(anyhow!(error))),
                }
            }
            Command::StopProviding { model, reply } => {
                self.providing.remove(&model);
                behaviour.kad.stop_providing(&record_key(&model));
                let _ = reply.send(());
            }
            Command::Hosts { model, reply } => {
                let id = behaviour.kad.get_providers(record_key(&model));
                self.queries.insert(id, Query::Hosts(vec![], reply));
            }
            Command::Addresses { peer, reply } => {
                let id = behaviour.kad.get_closest_peers(peer);
                self.queries.insert(id, Query::Addresses(peer, reply));
            }
            Command::Request { peer, request, reply } => {
                let id = behaviour.market.send_request(&peer, request);
                self.requests.insert(id, reply);
            }
            Command::Publish { bytes, reply } => {
                let _ = reply.send(match behaviour.gossip.publish(receipts_topic(), bytes) {
                    Ok(_) => Ok(true),
                    Err(PublishError::NoPeersSubscribedToTopic) => Ok(false),
                    Err(error) => Err(error.into()),
                });
            }
            Command::Stop => self.commands.close(),
        }
    }

    fn on_answer(&mut self, answer: Answer) {
        let behaviour = self.swarm.behaviour_mut();
        match answer {
            Answer::Response(channel, response) => {
                // Fails where the peer no longer waits, which concerns nobody.
                let _ = behaviour.market.send_response(channel, fitting(response));
            }
            Answer::Verdict(message, peer, acceptance) => {
                behaviour.gossip.report_message_validation_result(&message, &peer, acceptance);
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Market(event)) => self.on_market(event),
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.on_identified(peer_id, info);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
                    let _ = self.swarm.dial(options.addresses(vec![address]).build());
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.view.send_modify(|view| _ = view.listening.insert(address));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.view.send_modify(|view| _ = view.listening.remove(&address));
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::error!(?addresses, "no longer listening on {addresses:?}: {reason:?}");
                self.view.send_modify(|view| view.listening.retain(|address| !addresses.contains(address)));
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                self.view.send_modify(|view| _ = view.connected.insert(peer_id));
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => self.view.send_modify(|view| {
                view.connected.remove(&peer_id);
                view.subscribed.remove(&peer_id);
            }),
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. }
                if self.bootstrap.contains_key(&peer) =>
            {
                tracing::warn!(%peer, "cannot reach bootstrap peer {peer}: {error}");
            }
            _ => {}
        }
    }

    /// Takes a peer of our network into the routing table, so that others find it through us.
    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        if info.protocols.contains(&KAD_PROTOCOL) {
            for address in info.listen_addrs.into_iter().take(ADDRESSES_PER_PEER_MAX) {
                self.swarm.behaviour_mut().kad.add_address(&peer, address);
            }
        }
    }

    fn on_market(&mut self, event: request_response::Event<Request, Response>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                let (reply, response) = oneshot::channel();
                match self.events.try_reserve() {
                    Ok(place) => place.send(Inbound::Request { peer, request, reply: Reply(reply) }),
                    Err(_) => Reply(reply).send(refused("busy; try again later")),
                }
                let response = response.map(|response| response.unwrap_or_else(|_| refused("no answer")));
                self.answers.push(response.map(|response| Answer::Response(channel, response)).boxed());
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(reply) = self.requests.remove(&request_id) {
                    let _ = reply.send(Ok(response));
                }
            }
            Event::OutboundFailure { request_id, error, .. } => {
                if let Some(reply) = self.requests.remove(&request_id) {
                    let _ = reply.send(Err(explain(error)));
                }
            }
            Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, "a request of peer {peer} failed: {error}");
            }
            Event::ResponseSent { .. } => {}
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let (verdict, acceptance) = oneshot::channel();
                // Without an author or a place to wait, the verdict is dropped, which ignores the receipt.
                if let (Some(from), Ok(place)) = (message.source, self.events.try_reserve()) {
                    place.send(Inbound::Receipt { from, bytes: message.data, verdict: Verdict(verdict) });
                } else {
                    drop(verdict);
                }
                let acceptance = acceptance.map(|acceptance| acceptance.unwrap_or(MessageAcceptance::Ignore));
                let answer = acceptance.map(move |answer| Answer::Verdict(message_id, propagation_source, answer));
                self.answers.push(answer.boxed());
            }
            gossipsub::Event::Subscribed { peer_id, .. } => {
                self.view.send_modify(|view| _ = view.subscribed.insert(peer_id));
            }
            gossipsub::Event::Unsubscribed { peer_id, .. } => {
                self.view.send_modify(|view| _ = view.subscribed.remove(&peer_id));
            }
            _ => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => self.on_query(id, result, step.last),
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => self.on_new_peer(),
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } }
                if is_model_key(&record.key) =>
            {
                if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
                    tracing::debug!("provider record not kept: {error}");
                }
            }
            _ => {}
        }
    }

    /// Announces our models again while a new peer is bound to be among the closest [`HOSTS_MAX`] that keep a record.
    fn on_new_peer(&mut self) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        if kad.kbuckets().map(|bucket| bucket.num_entries()).sum::<usize>() <= HOSTS_MAX {
            for model in &self.providing {
                // Fails where the store is full, which `provide` has said already.
                let _ = kad.start_providing(record_key(model));
            }
        }
    }

    fn on_query(&mut self, id: kad::QueryId, result: kad::QueryResult, last: bool) {
        if let kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })) = &result
            && let Some(Query::Hosts(found, _)) = self.queries.get_mut(&id)
        {
            let us = self.swarm.local_peer_id();
            for peer in providers.iter().filter(|peer| *peer != us) {
                if !found.contains(peer) && found.len() < HOSTS_MAX {
                    found.push(*peer);
                }
            }
        }
        if !last {
            return;
        }
        match self.queries.remove(&id) {
            Some(Query::Hosts(found, reply)) => _ = reply.send(found),
            Some(Query::Addresses(peer, reply)) => _ = reply.send(self.addresses(peer, result)),
            Some(Query::Announce(reply)) => {
                _ = reply.send(match result {
                    kad::QueryResult::StartProviding(Err(error)) => Err(anyhow!(error)),
                    _ => Ok(()),
                })
            }
            None => {}
        }
    }

    /// Returns the addresses a search for `peer` came to, and keeps them for dialing it.
    fn addresses(&mut self, peer: PeerId, result: kad::QueryResult) -> Vec<Multiaddr> {
        let found = match result {
            kad::QueryResult::GetClosestPeers(Ok(found)) => found.peers,
            kad::QueryResult::GetClosestPeers(Err(kad::GetClosestPeersError::Timeout { peers, .. })) => peers,
            _ => vec![],
        };
        let mut addresses: BTreeSet<Multiaddr> =
            found.into_iter().filter(|info| info.peer_id == peer).flat_map(|info| info.addrs).collect();
        if let Some(bucket) = self.swarm.behaviour_mut().kad.kbucket(peer) {
            let known = bucket.iter().filter(|entry| *entry.node.key.preimage() == peer);
            addresses.extend(known.flat_map(|entry| entry.node.value.iter().cloned().collect::<Vec<_>>()));
        }
        let addresses: Vec<_> = addresses.into_iter().take(ADDRESSES_PER_PEER_MAX).collect();
        for address in &addresses {
            self.swarm.add_peer_address(peer, address.clone());
        }
        addresses
    }
}

/// Returns the key of a model's provider records: the multihash of its SHA-256.
fn record_key(model: &ModelId) -> kad::RecordKey {
    kad::RecordKey::new(&[&SHA2_256[..], &model.0].concat())
}

/// Whether a key can be a model's; records under others are not kept.
fn is_model_key(key: &kad::RecordKey) -> bool {
    let key = key.to_vec();
    key.len() == SHA2_256.len() + 32 && key.starts_with(&SHA2_256)
}

fn refused(reason: &str) -> Response {
    Response::Refused { reason: reason.into() }
}

/// Returns `response`, or a refusal where it is too long to be read.
fn fitting(response: Response) -> Response {
    match serde_json::to_vec(&response) {
        Ok(bytes) if bytes.len() <= RESPONSE_MAX_BYTES => response,
        _ => refused("the answer is too long"),
    }
}

fn explain(error: OutboundFailure) -> anyhow::Error {
    match error {
        OutboundFailure::DialFailure => anyhow!("no address we know of it answers"),
        OutboundFailure::Io(error) => anyhow!(error).context("it took or gave no valid message"),
        error => anyhow!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_record_key_is_the_multihash_of_its_digest() {
        let key = record_key(&ModelId([0xab; 32]));
        assert_eq!(alloy::hex::encode(key.to_vec()), format!("1220{}", "ab".repeat(32)));
        assert!(is_model_key(&key));
        for other in [&b""[..], &[0x12, 0x20], &[0x12; 34], &[&[0x12, 0x20][..], &[0; 33]].concat()] {
            assert!(!is_model_key(&kad::RecordKey::new(&other)), "{other:?}");
        }
    }
}
