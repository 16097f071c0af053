//! Which libp2p protocols this node speaks, and within which limits.
//!
//! Configuration only: never a decision about a message. Specifications: <https://github.com/libp2p/specs>.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, anyhow};
use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, connection_limits,
    gossipsub::{
        self, IdentTopic, IdentityTransform, MessageAuthenticity, PeerScoreParams, PeerScoreThresholds,
        TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter,
    },
    identify,
    identity::Keypair,
    kad, mdns, noise, ping, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};

use crate::market::offer::{Request, Response};

/// The longest request, in bytes of JSON; a prompt travels in one.
pub const REQUEST_MAX_BYTES: usize = 256 * 1024;
/// The longest response, in bytes of JSON.
pub const RESPONSE_MAX_BYTES: usize = 256 * 1024;
/// The longest receipt, in bytes.
pub const RECEIPT_MAX_BYTES: usize = 64 * 1024;
/// How long a request may take, dialing and answering included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) const MARKET_PROTOCOL: StreamProtocol = StreamProtocol::new("/fabstir/market/1");
pub(super) const TOKENS_PROTOCOL: StreamProtocol = StreamProtocol::new("/fabstir/tokens/1");
/// A table of our own: the public one would fill it with peers that know no model.
pub(super) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/fabstir/kad/1");
const IDENTIFY_PROTOCOL: &str = "/fabstir/1";
const RECEIPTS_TOPIC: &str = "fabstir/receipts/1";

const CONNECTIONS_PENDING_MAX: u32 = 64;
const CONNECTIONS_INCOMING_MAX: u32 = 256;
const CONNECTIONS_OUTGOING_MAX: u32 = 128;
const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Requests at once on one connection.
const REQUESTS_PER_CONNECTION_MAX: usize = 16;
/// How long a connection nobody uses stays open.
const CONNECTION_IDLE: Duration = Duration::from_secs(60);
/// Gossipsub heartbeats (seconds) a receipt waits for its verdict; later it is not forwarded any more.
const VERDICT_HEARTBEATS: usize = 10;
/// How long rejected receipts count against a peer.
const REJECTION_FORGOTTEN: Duration = Duration::from_secs(600);
/// Transport, handshake and multiplexer together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// First, so that a refused connection costs the others nothing.
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) gossip: Gossip,
    pub(super) market: request_response::json::Behaviour<Request, Response>,
    pub(super) tokens: libp2p_stream::Behaviour,
}

/// Remote subscriptions to any other topic are ignored, so that they take no memory.
pub(super) type Gossip = gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// Returns a swarm over TCP and QUIC that listens nowhere yet.
///
/// # Errors
/// If the host's name resolution or, with `mdns`, its multicast cannot be used.
pub(super) fn swarm(identity: Keypair, mdns: bool) -> Result<Swarm<Behaviour>> {
    let behaviour = Behaviour::new(&identity, mdns)?;
    let swarm = SwarmBuilder::with_existing_identity(identity)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .context("set up encryption with the peer identity")?
        .with_quic()
        .with_dns()
        .context("read the system's name resolution (/etc/resolv.conf)")?
        .with_behaviour(|_| behaviour)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(CONNECTION_IDLE))
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build();
    Ok(swarm)
}

/// The gossip topic of receipts.
pub(super) fn receipts_topic() -> IdentTopic {
    IdentTopic::new(RECEIPTS_TOPIC)
}

impl Behaviour {
    fn new(identity: &Keypair, mdns: bool) -> Result<Self> {
        let peer = identity.public().to_peer_id();
        let mdns = if mdns {
            Some(mdns::tokio::Behaviour::new(mdns::Config::default(), peer).context("start mDNS; set mdns = false?")?)
        } else {
            None
        };
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits()),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.into(), identity.public())
                    .with_agent_version(format!("fabstir/{}", env!("CARGO_PKG_VERSION")))
                    .with_push_listen_addr_updates(true),
            ),
            ping: ping::Behaviour::default(),
            kad: kademlia(identity),
            mdns: mdns.into(),
            gossip: gossip(identity)?,
            market: market(),
            tokens: libp2p_stream::Behaviour::new(),
        })
    }
}

fn limits() -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(CONNECTIONS_PENDING_MAX))
        .with_max_pending_outgoing(Some(CONNECTIONS_PENDING_MAX))
        .with_max_established_incoming(Some(CONNECTIONS_INCOMING_MAX))
        .with_max_established_outgoing(Some(CONNECTIONS_OUTGOING_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
}

/// Server mode always: a host behind no known external address still answers on the addresses it has.
fn kademlia(identity: &Keypair) -> kad::Behaviour<kad::store::MemoryStore> {
    let peer = identity.public().to_peer_id();
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config.set_record_filtering(kad::StoreInserts::FilterBoth);
    let mut kad = kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Signed messages only; none is forwarded before its verdict.
fn gossip(identity: &Keypair) -> Result<Gossip> {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(RECEIPT_MAX_BYTES + 1024) // the receipt and its envelope
        .history_length(VERDICT_HEARTBEATS)
        .build()
        .context("gossipsub's settings contradict each other")?;
    let topics = WhitelistSubscriptionFilter(HashSet::from([receipts_topic().hash()]));
    let author = MessageAuthenticity::Signed(identity.clone());
    let mut gossip = Gossip::new_with_subscription_filter(author, config, topics).map_err(|error| anyhow!(error))?;
    gossip.with_peer_score(scores(), PeerScoreThresholds::default()).map_err(|error| anyhow!(error))?;
    gossip.subscribe(&receipts_topic()).context("subscribe to receipts")?;
    Ok(gossip)
}

/// A peer loses a point for each rejected receipt, squared: after nine within minutes it is not heard.
///
/// Nothing else counts. Receipts are too rare for rates of delivery to mean anything, and honest peers share addresses.
fn scores() -> PeerScoreParams {
    let receipts = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -1.0,
        invalid_message_deliveries_decay: gossipsub::score_parameter_decay(REJECTION_FORGOTTEN),
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: [(receipts_topic().hash(), receipts)].into(),
        ip_colocation_factor_weight: 0.0,
        ..PeerScoreParams::default()
    }
}

fn market() -> request_response::json::Behaviour<Request, Response> {
    let codec = request_response::json::codec::Codec::default()
        .set_request_size_maximum(REQUEST_MAX_BYTES as u64)
        .set_response_size_maximum(RESPONSE_MAX_BYTES as u64);
    let config = request_response::Config::default()
        .with_request_timeout(REQUEST_TIMEOUT)
        .with_max_concurrent_streams(REQUESTS_PER_CONNECTION_MAX);
    let protocols = [(MARKET_PROTOCOL, request_response::ProtocolSupport::Full)];
    request_response::Behaviour::with_codec(codec, protocols, config)
}
