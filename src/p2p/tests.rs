//! Real nodes over loopback, on ports from the system. Every wait is for a state, within [`SOON`].

use alloy::signers::{SignerSync, local::PrivateKeySigner};
use futures::{AsyncWriteExt, StreamExt};
use libp2p::{Swarm, request_response, swarm::SwarmEvent};

use super::*;
use crate::market::{
    offer::{Capabilities, STREAM_VERSION, StreamMessage, peer_statement},
    types::{Address, Bytes, Cid, JobId},
};

/// Generous, since a wait that ends early costs nothing: only a failure takes this long.
const SOON: Duration = Duration::from_secs(60);
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const MODEL: ModelId = ModelId([0xab; 32]);
const REGISTRY: Address = Address::repeat_byte(7);

struct Peer {
    p2p: P2p,
    inbound: mpsc::Receiver<Inbound>,
}

fn config(listen: &[&str], bootstrap: Vec<Multiaddr>) -> Config {
    let listen = listen.iter().map(|address| address.parse().unwrap()).collect();
    Config { identity: Keypair::generate_ed25519(), listen, bootstrap, mdns: false }
}

async fn peer(listen: &[&str], bootstrap: Vec<Multiaddr>) -> Peer {
    let (p2p, inbound) = start(config(listen, bootstrap)).await.unwrap();
    Peer { p2p, inbound }
}

/// Two peers, the second of which has connected to the first.
async fn pair() -> (Peer, Peer) {
    pair_over(TCP).await
}

async fn pair_over(transport: &str) -> (Peer, Peer) {
    let host = peer(&[transport], vec![]).await;
    let renter = peer(&[], host.p2p.listen_addresses()).await;
    renter.until(|view| view.connected.contains(&host.id())).await;
    (host, renter)
}

impl Peer {
    fn id(&self) -> PeerId {
        self.p2p.peer_id()
    }

    async fn until(&self, state: impl FnMut(&View) -> bool) {
        soon(self.p2p.view.clone().wait_for(state)).await.unwrap();
    }

    async fn next(&mut self) -> Inbound {
        soon(self.inbound.recv()).await.expect("the node runs")
    }

    async fn next_receipt(&mut self) -> (PeerId, Vec<u8>, Verdict) {
        match self.next().await {
            Inbound::Receipt { from, bytes, verdict } => (from, bytes, verdict),
            other => panic!("expected a receipt, got {other:?}"),
        }
    }

    async fn next_tokens(&mut self) -> (StreamInit, TokenWriter) {
        match self.next().await {
            Inbound::Tokens { init, writer, .. } => (init, writer),
            other => panic!("expected a token stream, got {other:?}"),
        }
    }

    async fn next_request(&mut self) -> (PeerId, Request, Reply) {
        match self.next().await {
            Inbound::Request { peer, request, reply } => (peer, request, reply),
            other => panic!("expected a request, got {other:?}"),
        }
    }
}

/// Asks `host`, which reads the request and gives its `answer`.
async fn ask(renter: &Peer, host: &mut Peer, request: Request, answer: impl FnOnce(Request, Reply)) -> Response {
    let asking = renter.p2p.request(host.id(), request);
    let answering = async {
        let (from, request, reply) = host.next_request().await;
        assert_eq!(from, renter.id());
        answer(request, reply);
    };
    tokio::join!(asking, answering).0.unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("this takes far less time")
}

fn init(from_index: u32) -> StreamInit {
    StreamInit { version: STREAM_VERSION.into(), job: JobId(1), from_index, signature: Bytes::new() }
}

fn token(index: u32) -> StreamMessage {
    StreamMessage::Token { index, content: format!(" word{index}"), token: index + 100 }
}

fn end(tokens: u32) -> StreamMessage {
    StreamMessage::End { tokens, output: Cid::of(b"words"), receipt: serde_json::json!({ "job": 1 }) }
}

async fn a_renter_finds_a_host_and_asks_it(transport: &str) {
    let meeting = peer(&[transport], vec![]).await;
    let mut host = peer(&[transport], meeting.p2p.listen_addresses()).await;
    let renter = peer(&[], meeting.p2p.listen_addresses()).await;
    soon(host.p2p.provide(&MODEL)).await.unwrap();

    let found = soon(renter.p2p.find_hosts(&MODEL, SOON)).await.unwrap();
    assert_eq!(found, [(host.id(), host.p2p.listen_addresses())]);
    assert!(host.p2p.listen_addresses()[0].to_string().ends_with(&format!("/p2p/{}", host.id())));

    let account = PrivateKeySigner::random();
    let statement = peer_statement(&host.id().to_string(), account.address(), 31337, REGISTRY);
    let peer_proof = account.sign_message_sync(statement.as_bytes()).unwrap().as_bytes().into();
    let ours = Capabilities {
        host: account.address(),
        chain_id: 31337,
        models: vec![],
        regions: vec!["eu".into()],
        peer_proof,
    };
    let response = ask(&renter, &mut host, Request::Capabilities, |request, reply| {
        assert_eq!(request, Request::Capabilities);
        reply.send(Response::Capabilities(ours.clone()));
    });
    let Response::Capabilities(theirs) = response.await else { panic!("asked for capabilities") };
    assert_eq!(theirs, ours);
    theirs.verify(&found[0].0.to_string(), 31337, REGISTRY).unwrap();
    assert!(theirs.verify(&meeting.id().to_string(), 31337, REGISTRY).is_err());
}

#[tokio::test]
async fn a_renter_finds_a_host_through_a_third_peer_over_tcp() {
    a_renter_finds_a_host_and_asks_it(TCP).await;
}

#[tokio::test]
async fn a_renter_finds_a_host_through_a_third_peer_over_quic() {
    a_renter_finds_a_host_and_asks_it(QUIC).await;
}

#[tokio::test]
async fn a_model_provided_before_anybody_is_there_is_announced_to_who_comes() {
    use behaviour::BehaviourEvent::Kad;
    use libp2p::kad::{Event::InboundRequest, InboundRequest::AddProvider};

    let host = peer(&[TCP], vec![]).await;
    soon(host.p2p.provide(&MODEL)).await.unwrap();
    let mut newcomer = rude(&host).await;
    let record = async {
        loop {
            if let SwarmEvent::Behaviour(Kad(InboundRequest { request: AddProvider { record } })) =
                newcomer.select_next_some().await
            {
                return record.unwrap();
            }
        }
    };
    let record = soon(record).await;
    assert_eq!((record.provider, &record.key.to_vec()[2..]), (host.id(), &MODEL.0[..]));
}

#[tokio::test]
async fn nobody_is_found_for_a_model_nobody_serves_any_more() {
    let (host, renter) = pair().await;
    let short = Duration::from_millis(200);
    assert_eq!(renter.p2p.find_hosts(&MODEL, short).await.unwrap(), []);
    soon(host.p2p.provide(&MODEL)).await.unwrap();
    assert_eq!(soon(renter.p2p.find_hosts(&MODEL, SOON)).await.unwrap()[0].0, host.id());
    assert_eq!(host.p2p.find_hosts(&MODEL, short).await.unwrap(), [], "a host does not find itself");
    soon(host.p2p.stop_providing(&MODEL)).await.unwrap();
    assert_eq!(renter.p2p.find_hosts(&MODEL, short).await.unwrap(), []);
}

#[tokio::test]
async fn a_request_the_reader_drops_is_refused() {
    let (mut host, renter) = pair().await;
    let response = ask(&renter, &mut host, Request::Capabilities, |_, reply| drop(reply)).await;
    assert_eq!(response, Response::Refused { reason: "no answer".into() });
}

#[tokio::test]
async fn a_node_that_cannot_keep_up_says_so() {
    let (host, renter) = pair().await;
    drop(host.inbound);
    let busy = "busy; try again later";
    let response = soon(renter.p2p.request(host.p2p.peer_id(), Request::Capabilities)).await.unwrap();
    assert_eq!(response, Response::Refused { reason: busy.into() });
    let mut reader = soon(renter.p2p.open_tokens(host.p2p.peer_id(), init(0))).await.unwrap();
    assert_eq!(soon(reader.next()).await.unwrap(), Some(StreamMessage::Error { reason: busy.into() }));
    assert_eq!(soon(reader.next()).await.unwrap(), None);
}

#[tokio::test]
async fn a_prompt_travels_whole_and_an_oversized_one_not_at_all() {
    let (mut host, renter) = pair().await;
    let text = "ä".repeat(100_000);
    let response = ask(&renter, &mut host, Request::Prompt { text: text.clone() }, |request, reply| {
        let Request::Prompt { text } = request else { panic!("a prompt was sent") };
        reply.send(Response::Stored { cid: Cid::of(text.as_bytes()) });
    });
    assert_eq!(response.await, Response::Stored { cid: Cid::of(text.as_bytes()) });

    let text = "x".repeat(REQUEST_MAX_BYTES);
    let error = renter.p2p.request(host.id(), Request::Prompt { text }).await.unwrap_err();
    assert!(error.to_string().contains("is longer than 262144"), "{error}");
}

#[tokio::test]
async fn an_answer_too_long_becomes_a_refusal() {
    let (mut host, renter) = pair().await;
    let response = ask(&renter, &mut host, Request::Capabilities, |_, reply| {
        reply.send(Response::Refused { reason: "x".repeat(RESPONSE_MAX_BYTES) });
    });
    assert_eq!(response.await, Response::Refused { reason: "the answer is too long".into() });
}

/// A peer that keeps no rules of ours: the bare swarm, connected to `host`.
async fn rude(host: &Peer) -> Swarm<behaviour::Behaviour> {
    let mut swarm = behaviour::swarm(Keypair::generate_ed25519(), false).unwrap();
    soon(node::listen(&mut swarm, &[TCP.parse().unwrap()])).await.unwrap();
    swarm.dial(host.p2p.listen_addresses()[0].clone()).unwrap();
    let connected =
        async { while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {} };
    soon(connected).await;
    swarm
}

#[tokio::test]
async fn a_request_that_ignores_the_limit_never_reaches_the_reader() {
    let mut host = peer(&[TCP], vec![]).await;
    let mut rude = rude(&host).await;
    let text = "x".repeat(REQUEST_MAX_BYTES + 1);
    rude.behaviour_mut().market.send_request(&host.id(), Request::Prompt { text });
    let failed = async {
        use behaviour::BehaviourEvent::Market;
        use request_response::Event::OutboundFailure;
        while !matches!(rude.select_next_some().await, SwarmEvent::Behaviour(Market(OutboundFailure { .. }))) {}
    };
    soon(failed).await;
    assert!(host.inbound.try_recv().is_err());
}

#[tokio::test]
async fn a_token_request_that_is_no_token_request_is_told_so() {
    let mut host = peer(&[TCP], vec![]).await;
    let mut rude = rude(&host).await;
    let mut control = rude.behaviour().tokens.new_control();
    let id = host.id();
    let swarm = tokio::spawn(async move {
        loop {
            rude.next().await;
        }
    });
    let oversize = (FRAME_MAX_BYTES as u32 + 1).to_be_bytes();
    let old = serde_json::to_vec(&StreamInit { version: "0.9".into(), ..init(0) }).unwrap();
    let old = [&(old.len() as u32).to_be_bytes()[..], &old].concat();
    for (bytes, complaint) in [
        (&oversize[..], "announces 65537 bytes"),
        (b"\0\0\0\x02{}", "is not what this stream carries"),
        (&old, "version \"0.9\" is not 1.0.0"),
    ] {
        let mut stream = soon(control.open_stream(id, behaviour::TOKENS_PROTOCOL)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let answer = soon(wire::FrameReader::new(stream).next::<StreamMessage>()).await.unwrap();
        let Some(StreamMessage::Error { reason }) = answer else { panic!("expected a refusal, got {answer:?}") };
        assert!(reason.contains(complaint), "{reason}");
    }
    assert!(host.inbound.try_recv().is_err());
    swarm.abort();
}

#[tokio::test]
async fn tokens_arrive_in_order_and_end() {
    for transport in [TCP, QUIC] {
        let (mut host, renter) = pair_over(transport).await;
        let mut reader = soon(renter.p2p.open_tokens(host.id(), init(2))).await.unwrap();
        let (asked, mut writer) = host.next_tokens().await;
        assert_eq!(asked, init(2));
        let mut sent: Vec<_> = (2..500).map(token).collect();
        sent.push(end(500));
        let write = async {
            for message in &sent {
                writer.send(message).await.unwrap();
            }
        };
        let read = async {
            let mut received = vec![];
            while let Some(message) = reader.next().await.unwrap() {
                received.push(message);
            }
            received
        };
        let ((), received) = soon(async { tokio::join!(write, read) }).await;
        assert_eq!(received, sent);
        assert!(writer.send(&token(500)).await.unwrap_err().to_string().contains("closed"));
    }
}

#[tokio::test]
async fn a_host_stops_sending_when_its_reader_leaves() {
    for transport in [TCP, QUIC] {
        let (mut host, renter) = pair_over(transport).await;
        let mut reader = soon(renter.p2p.open_tokens(host.id(), init(0))).await.unwrap();
        let (_, mut writer) = host.next_tokens().await;
        writer.send(&token(0)).await.unwrap();
        assert_eq!(soon(reader.next()).await.unwrap(), Some(token(0)));
        drop(reader);
        let send_on = async {
            let mut index = 1;
            while writer.send(&token(index)).await.is_ok() {
                index += 1;
            }
        };
        soon(send_on).await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_host_back() {
    for transport in [TCP, QUIC] {
        let (mut host, renter) = pair_over(transport).await;
        let mut reader = soon(renter.p2p.open_tokens(host.id(), init(0))).await.unwrap();
        let (_, mut writer) = host.next_tokens().await;
        let mut sent = 0;
        let content = "x".repeat(FRAME_MAX_BYTES / 2);
        let message = |index| StreamMessage::Token { index, content: content.clone(), token: 0 };
        // A connection buffers some megabytes; a host that is never held back would send on.
        while timeout(Duration::from_millis(500), writer.send(&message(sent))).await.is_ok() {
            sent += 1;
            assert!(sent < 10_000, "300 MB were sent to a reader that reads nothing");
        }
        // The send that was held back was dropped with its message half written, and the stream with it.
        for index in 0..sent {
            assert_eq!(soon(reader.next()).await.unwrap(), Some(message(index)));
        }
        assert!(soon(reader.next()).await.is_err());
    }
}

#[tokio::test]
async fn a_missing_token_breaks_the_stream() {
    for transport in [TCP, QUIC] {
        let (mut host, renter) = pair_over(transport).await;
        let cases = [
            (vec![token(0), token(2)], "sent token 2 where 1 was due"),
            (vec![token(1)], "sent token 1 where 0 was due"),
            (vec![token(0), token(0)], "sent token 0 where 1 was due"),
            (vec![token(0), end(2)], "ended a stream of 2 tokens where token 1 was due"),
            (vec![token(0)], "broke off"),
        ];
        for (messages, complaint) in cases {
            let mut reader = soon(renter.p2p.open_tokens(host.id(), init(0))).await.unwrap();
            let (_, mut writer) = host.next_tokens().await;
            for message in &messages {
                writer.send(message).await.unwrap();
            }
            drop(writer);
            let error = loop {
                match soon(reader.next()).await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{complaint}: the stream ended well"),
                    Err(error) => break error,
                }
            };
            assert!(error.to_string().contains(complaint), "{error}");
            assert!(soon(reader.next()).await.unwrap_err().to_string().contains("broken"));
        }
    }
}

#[tokio::test]
async fn a_receipt_goes_on_only_when_accepted() {
    // A line: the ends have no address, so neither can reach the other.
    let mut middle = peer(&[TCP], vec![]).await;
    let first = peer(&[], middle.p2p.listen_addresses()).await;
    let mut last = peer(&[], middle.p2p.listen_addresses()).await;
    first.until(|view| view.subscribed.contains(&middle.id())).await;
    middle.until(|view| view.subscribed.contains(&first.id()) && view.subscribed.contains(&last.id())).await;

    for text in ["false", "unclear", "unread", "true"] {
        assert!(soon(first.p2p.publish_receipt(text.into())).await.unwrap());
        let (from, bytes, verdict) = middle.next_receipt().await;
        assert_eq!((from, &bytes[..]), (first.id(), text.as_bytes()));
        match text {
            "false" => verdict.reject(),
            "unclear" => verdict.ignore(),
            "unread" => drop(verdict),
            _ => verdict.accept(),
        }
    }
    let (from, bytes, _) = last.next_receipt().await;
    assert_eq!((from, &bytes[..]), (first.id(), &b"true"[..]), "signed by its author, not by who forwarded it");
    assert!(last.inbound.try_recv().is_err());
    assert_eq!(last.p2p.connected_peers(), [middle.id()]);
}

#[tokio::test]
async fn a_peer_that_sends_false_receipts_is_heard_no_more() {
    let (mut host, liar) = pair().await;
    liar.until(|view| view.subscribed.contains(&host.id())).await;
    for count in 0..20 {
        liar.p2p.publish_receipt(format!("false {count}").into()).await.unwrap();
        match timeout(Duration::from_secs(2), host.inbound.recv()).await {
            Ok(Some(Inbound::Receipt { verdict, .. })) => verdict.reject(),
            Ok(other) => panic!("expected a receipt, got {other:?}"),
            Err(_) => {
                assert!((9..13).contains(&count), "heard {count} false receipts");
                return;
            }
        }
    }
    panic!("twenty false receipts were heard");
}

#[tokio::test]
async fn a_receipt_without_readers_or_limits_is_reported() {
    let alone = peer(&[], vec![]).await;
    assert!(!soon(alone.p2p.publish_receipt(b"receipt".to_vec())).await.unwrap());
    let error = alone.p2p.publish_receipt(vec![0; RECEIPT_MAX_BYTES + 1]).await.unwrap_err();
    assert!(error.to_string().contains("longer than 65536"), "{error}");
    let (mut host, renter) = pair().await;
    renter.until(|view| view.subscribed.contains(&host.id())).await;
    assert!(soon(renter.p2p.publish_receipt(vec![7; RECEIPT_MAX_BYTES])).await.unwrap());
    assert_eq!(host.next_receipt().await.1.len(), RECEIPT_MAX_BYTES);
}

#[tokio::test]
async fn a_peer_nobody_can_reach_is_an_error_that_names_it() {
    let alone = peer(&[], vec![]).await;
    let nobody = Keypair::generate_ed25519().public().to_peer_id();
    let error = soon(alone.p2p.request(nobody, Request::Capabilities)).await.unwrap_err();
    assert_eq!(format!("{error:#}"), format!("ask peer {nobody}: no address we know of it answers"));
    let error = soon(alone.p2p.open_tokens(nobody, init(0))).await.unwrap_err();
    assert!(error.to_string().contains(&format!("open a token stream to peer {nobody}")), "{error}");
}

#[tokio::test]
async fn a_node_that_stops_frees_its_address_and_comes_back_as_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer.key");
    let settings =
        |listen: &str| Config { identity: identity::load_or_create(&path).unwrap(), ..config(&[listen], vec![]) };
    let (host, _) = start(settings(TCP)).await.unwrap();
    let address = host.listen_addresses().remove(0);
    let renter = peer(&[], vec![address.clone()]).await;
    renter.until(|view| view.connected.contains(&host.peer_id())).await;

    soon(host.shutdown()).await;
    renter.until(|view| view.connected.is_empty()).await;
    assert!(host.provide(&MODEL).await.unwrap_err().to_string().contains("has stopped"));
    assert!(soon(host.open_tokens(renter.id(), init(0))).await.is_err());
    soon(host.shutdown()).await;

    let listen = address.iter().take(2).collect::<Multiaddr>();
    let (again, _) = start(settings(&listen.to_string())).await.unwrap();
    assert_eq!(again.listen_addresses(), [address]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_explained() {
    let bare: Multiaddr = "/ip4/127.0.0.1/tcp/4001".parse().unwrap();
    let error = start(config(&[], vec![bare])).await.unwrap_err();
    assert!(error.to_string().contains("does not end in /p2p/<peer id>"), "{error}");
    let error = start(config(&["/ip4/127.0.0.1/udp/4001"], vec![])).await.unwrap_err();
    assert!(error.to_string().contains("listen on /ip4/127.0.0.1/udp/4001"), "{error}");
    // 192.0.2.0/24 is kept for documentation: no machine has it.
    let error = start(config(&["/ip4/192.0.2.1/tcp/0"], vec![])).await.unwrap_err();
    assert!(error.to_string().contains("listen on /ip4/192.0.2.1/tcp/0"), "{error}");
}

#[tokio::test]
async fn mdns_runs_only_when_asked_for() {
    let swarm = |mdns| behaviour::swarm(Keypair::generate_ed25519(), mdns).unwrap();
    assert!(!swarm(false).behaviour().mdns.is_enabled());
    assert!(swarm(true).behaviour().mdns.is_enabled());
}
