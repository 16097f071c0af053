// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Blockhash} from "@openzeppelin/contracts/utils/Blockhash.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {JobMarketplace} from "./JobMarketplace.sol";

/// What EZKL generates for a circuit. It reverts on most bad proofs and answers false on the others.
interface IVerifier {
    function verifyProof(bytes calldata proof, uint256[] calldata instances) external returns (bool);
}

/// Binds a host to its result before it knows what will be checked, and checks the proof of the positions drawn then.
///
/// What an accepted proof shows, and no more: at each drawn position the committed record is in order and its token is the
/// one the job's seeded sampler picks from the committed logits; and the proof was made for this job, host, model id,
/// prompt and result. It does not show that the logits came from the model.
///
/// Every value of a job comes from the marketplace or from the stored commitment, never from the caller.
contract ProofSystem is Ownable {
    /// A registered circuit `select-v1`. Everything but `active` is fixed with the id.
    struct Circuit {
        address verifier;
        /// Of the verifier's code.
        bytes32 codehash;
        /// Positions opened per job, 1 to 64.
        uint16 spots;
        /// Candidates per record.
        uint16 candidates;
        bool active;
        /// Digest of the circuit's manifest file.
        bytes32 manifest;
    }

    /// What a host committed to. `nTokens` is 0 when there is no commitment.
    struct Commitment {
        /// Root of the keccak tree over the records of all output positions.
        bytes32 root;
        /// keccak256 of the result's content id, as text.
        bytes32 resultHash;
        /// keccak256 of the output tokens, each as 4 big-endian bytes.
        bytes32 tokensDigest;
        /// The block of the commitment; the hash of the next one is the beacon.
        uint64 atBlock;
        uint32 nTokens;
        bool proven;
    }

    /// The argument of `submit`, taken apart.
    struct Submission {
        bytes32 circuitId;
        bytes proof;
        uint256[] instances;
        bytes32[] paths;
    }

    /// The order of the BN254 scalar field.
    uint256 private constant R = 21888242871839275222246405745257275088548364400416034343698204186575808495617;
    bytes32 public constant DOMAIN = keccak256("fabstir.select-v1");
    uint256 private constant DRAW_MASK = (1 << 12) - 1;
    uint256 public constant SPOTS_MAX = 64;

    JobMarketplace public immutable marketplace;

    mapping(bytes32 circuitId => Circuit) private _circuits;
    mapping(uint256 jobId => Commitment) private _commitments;
    /// The beacon stored by `pinBeacon`, else 0.
    mapping(uint256 jobId => bytes32) public pinnedBeacon;

    event CircuitRegistered(bytes32 indexed circuitId, Circuit circuit);
    event ResultCommitted(
        uint256 indexed jobId,
        address indexed host,
        bytes32 root,
        uint32 nTokens,
        bytes32 resultHash,
        bytes32 tokensDigest
    );
    event BeaconPinned(uint256 indexed jobId, bytes32 beacon);
    event ProofSubmitted(uint256 indexed jobId, address indexed prover, bytes32 proofHash, uint256 timestamp);
    event ProofVerified(uint256 indexed jobId, address indexed verifier, bool isValid);

    error NoVerifierCode(address verifier);
    error CodehashMismatch(bytes32 circuitId, bytes32 given, bytes32 actual);
    error SpotsOutOfRange(uint256 spots, uint256 min, uint256 max);
    error CandidatesOutOfRange(uint256 candidates, uint256 min, uint256 max);
    error CircuitFixed(bytes32 circuitId);
    error OnlyMarketplace(address caller);
    error NotClaimed(uint256 jobId, JobMarketplace.JobStatus status);
    error NotHost(uint256 jobId, address host, address caller);
    error DeadlinePassed(uint256 jobId, uint256 deadline, uint256 time);
    error TokenCountOutOfRange(uint256 nTokens, uint256 min, uint256 max);
    error AlreadyCommitted(uint256 jobId);
    error NotCommitted(uint256 jobId);
    error AlreadyPinned(uint256 jobId);
    error BeaconNotReady(uint256 jobId, uint256 readyAtBlock, uint256 blockNumber);
    error BeaconLost(uint256 jobId, uint256 beaconBlock, uint256 blockNumber);
    error MalformedProof(uint256 length);
    error CircuitNotActive(bytes32 circuitId);
    error InstanceCountMismatch(uint256 given, uint256 need);
    error PathCountMismatch(uint256 given, uint256 need);
    error RuleViolated(uint256 instance, uint256 value);
    error AlreadyProven(uint256 jobId);
    error ContextMismatch(uint256 given, uint256 need);
    error DrawMismatch(uint256 spot, uint256 given, uint256 need);
    error RootMismatch(uint256 spot, bytes32 given, bytes32 need);
    error ProofRejected(uint256 jobId, address verifier);

    constructor(address owner, JobMarketplace marketplace_) Ownable(owner) {
        marketplace = marketplace_;
    }

    /// @notice Registers a circuit, whose verifier's code must have the given hash; or switches a registered one on or off.
    function registerCircuit(bytes32 circuitId, Circuit calldata circuit) external onlyOwner {
        if (circuit.verifier.code.length == 0) revert NoVerifierCode(circuit.verifier);
        bytes32 actual = circuit.verifier.codehash;
        if (actual != circuit.codehash) revert CodehashMismatch(circuitId, circuit.codehash, actual);
        if (circuit.spots == 0 || circuit.spots > SPOTS_MAX) revert SpotsOutOfRange(circuit.spots, 1, SPOTS_MAX);
        if (circuit.candidates == 0) revert CandidatesOutOfRange(circuit.candidates, 1, type(uint16).max);
        Circuit memory known = _circuits[circuitId];
        if (known.verifier != address(0)) {
            known.active = circuit.active;
            if (keccak256(abi.encode(known)) != keccak256(abi.encode(circuit))) revert CircuitFixed(circuitId);
        }
        _circuits[circuitId] = circuit;
        emit CircuitRegistered(circuitId, circuit);
    }

    /// @notice Commits the caller, who holds the job's claim, to a result; once per job, before its deadline.
    /// @param root Root of the keccak tree over the output positions' records.
    /// @param nTokens Output tokens, 1 to the job's `maxTokens`.
    /// @param resultHash keccak256 of the result's content id, as text.
    /// @param tokensDigest keccak256 of the output tokens, each as 4 big-endian bytes.
    function commitResult(uint256 jobId, bytes32 root, uint32 nTokens, bytes32 resultHash, bytes32 tokensDigest)
        external
    {
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        if (job.status != JobMarketplace.JobStatus.Claimed) revert NotClaimed(jobId, job.status);
        if (msg.sender != job.host) revert NotHost(jobId, job.host, msg.sender);
        if (block.timestamp >= job.deadline) revert DeadlinePassed(jobId, job.deadline, block.timestamp);
        if (nTokens == 0 || nTokens > job.maxTokens) revert TokenCountOutOfRange(nTokens, 1, job.maxTokens);
        if (_commitments[jobId].nTokens != 0) revert AlreadyCommitted(jobId);
        _commitments[jobId] = Commitment(root, resultHash, tokensDigest, uint64(block.number), nTokens, false);
        emit ResultCommitted(jobId, msg.sender, root, nTokens, resultHash, tokensDigest);
    }

    /// @notice Stores the job's beacon before the chain forgets it (256 blocks, 8191 with EIP-2935). Anyone may call.
    function pinBeacon(uint256 jobId) external {
        if (pinnedBeacon[jobId] != 0) revert AlreadyPinned(jobId);
        bytes32 beacon = beaconOf(jobId);
        pinnedBeacon[jobId] = beacon;
        emit BeaconPinned(jobId, beacon);
    }

    /// @notice Checks the proof of a job's result and reverts, saying why, unless it holds. Only the marketplace calls, for
    /// the job's host.
    /// @param data `abi.encode(bytes32 circuitId, bytes proof, uint256[] instances, bytes32[] paths)`. With S spots the
    /// instances are: two unused digests, S record digests, the context, S draws, S rank errors, S order errors. The paths
    /// hold each spot's siblings, from the leaf up, spot after spot.
    function submit(uint256 jobId, bytes calldata data) external {
        if (msg.sender != address(marketplace)) revert OnlyMarketplace(msg.sender);
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        Submission memory submission;
        try this.decodeProof(data) returns (Submission memory decoded) {
            submission = decoded;
        } catch {
            revert MalformedProof(data.length);
        }
        address verifier = _checkStatement(jobId, job, submission);
        _checkProof(jobId, verifier, submission);
        _commitments[jobId].proven = true;
        emit ProofSubmitted(jobId, job.host, keccak256(data), block.timestamp);
        emit ProofVerified(jobId, verifier, true);
    }

    /// @notice A registered circuit; all zero when there is none.
    function circuitOf(bytes32 circuitId) external view returns (Circuit memory) {
        return _circuits[circuitId];
    }

    /// @notice What was committed for a job; all zero when nothing was.
    function commitmentOf(uint256 jobId) external view returns (Commitment memory) {
        return _commitments[jobId];
    }

    /// @notice The random word a job's positions are drawn from: the hash of the block after the commitment's.
    function beaconOf(uint256 jobId) public view returns (bytes32 beacon) {
        beacon = pinnedBeacon[jobId];
        if (beacon != 0) return beacon;
        uint256 beaconBlock = _committed(jobId).atBlock + 1;
        if (block.number <= beaconBlock) revert BeaconNotReady(jobId, beaconBlock + 1, block.number);
        beacon = Blockhash.blockHash(beaconBlock);
        if (beacon == 0) revert BeaconLost(jobId, beaconBlock, block.number);
    }

    /// @notice The output position, from 0, that spot `spot` of a job opens.
    function positionOf(uint256 jobId, uint256 spot) external view returns (uint256) {
        return _position(beaconOf(jobId), jobId, spot, _committed(jobId).nTokens);
    }

    /// @notice The sampler's random number at an output position of a job, 0 to 4095; 0 when the job is greedy.
    function drawOf(uint256 jobId, uint256 position) external view returns (uint256) {
        return _draw(marketplace.getJob(jobId), jobId, position);
    }

    /// @notice The field element that binds a proof to a job, its host, its terms and the commitment.
    function contextOf(uint256 jobId, bytes32 circuitId) external view returns (uint256) {
        return _context(marketplace.getJob(jobId), jobId, circuitId, _committed(jobId));
    }

    /// @notice Takes the argument of `submit` apart.
    function decodeProof(bytes calldata data) external pure returns (Submission memory submission) {
        (submission.circuitId, submission.proof, submission.instances, submission.paths) =
            abi.decode(data, (bytes32, bytes, uint256[], bytes32[]));
    }

    /// Checks that the instances say what the chain knows of the job: everything but the EZKL proof itself.
    function _checkStatement(uint256 jobId, JobMarketplace.Job memory job, Submission memory submission)
        private
        view
        returns (address)
    {
        Circuit memory circuit = _circuits[submission.circuitId];
        if (!circuit.active) revert CircuitNotActive(submission.circuitId);
        Commitment memory commitment = _committed(jobId);
        uint256[] memory instances = submission.instances;
        uint256 spots = circuit.spots;
        uint256 need = 3 + 4 * spots;
        if (instances.length != need) revert InstanceCountMismatch(instances.length, need);
        need = spots * Math.log2(commitment.nTokens, Math.Rounding.Ceil);
        if (submission.paths.length != need) revert PathCountMismatch(submission.paths.length, need);
        for (uint256 i = 3 + 2 * spots; i < instances.length; i++) {
            if (instances[i] != 0) revert RuleViolated(i, instances[i]);
        }
        if (commitment.proven) revert AlreadyProven(jobId);
        uint256 context = _context(job, jobId, submission.circuitId, commitment);
        if (instances[2 + spots] != context) revert ContextMismatch(instances[2 + spots], context);
        _checkSpots(jobId, job, commitment, submission, spots);
        return circuit.verifier;
    }

    /// Checks that the draws are the job's and the records those committed to, at the positions the beacon picks.
    function _checkSpots(
        uint256 jobId,
        JobMarketplace.Job memory job,
        Commitment memory commitment,
        Submission memory submission,
        uint256 spots
    ) private view {
        bytes32 beacon = beaconOf(jobId);
        uint256 depth = submission.paths.length / spots;
        for (uint256 spot = 0; spot < spots; spot++) {
            uint256 position = _position(beacon, jobId, spot, commitment.nTokens);
            {
                uint256 draw = _draw(job, jobId, position);
                uint256 given = submission.instances[3 + spots + spot];
                if (given != draw) revert DrawMismatch(spot, given, draw);
            }
            bytes32 digest = bytes32(submission.instances[2 + spot]);
            bytes32 root = _root(position, digest, submission.paths, spot * depth, depth);
            if (root != commitment.root) revert RootMismatch(spot, root, commitment.root);
        }
    }

    function _checkProof(uint256 jobId, address verifier, Submission memory submission) private {
        try IVerifier(verifier).verifyProof(submission.proof, submission.instances) returns (bool valid) {
            if (!valid) revert ProofRejected(jobId, verifier);
        } catch {
            revert ProofRejected(jobId, verifier);
        }
    }

    function _committed(uint256 jobId) private view returns (Commitment memory commitment) {
        commitment = _commitments[jobId];
        if (commitment.nTokens == 0) revert NotCommitted(jobId);
    }

    function _position(bytes32 beacon, uint256 jobId, uint256 spot, uint256 nTokens) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(beacon, jobId, spot))) % nTokens;
    }

    function _draw(JobMarketplace.Job memory job, uint256 jobId, uint256 position) private pure returns (uint256) {
        if (job.temperature == 0) return 0;
        return uint256(keccak256(abi.encode(uint256(job.seed), jobId, position))) & DRAW_MASK;
    }

    function _context(JobMarketplace.Job memory job, uint256 jobId, bytes32 circuitId, Commitment memory commitment)
        private
        view
        returns (uint256)
    {
        // One abi.encode of 15 words, in parts because the stack holds fewer.
        bytes memory subject = abi.encode(DOMAIN, block.chainid, address(this), circuitId, jobId, job.host);
        bytes memory terms = abi.encode(job.modelHash, job.promptHash, job.seed, job.temperature, job.maxTokens);
        bytes memory result =
            abi.encode(commitment.root, commitment.nTokens, commitment.resultHash, commitment.tokensDigest);
        return uint256(keccak256(bytes.concat(subject, terms, result))) % R;
    }

    /// The root of the tree that has `digest` at leaf `position`, by `depth` siblings from `paths[first]` on.
    function _root(uint256 position, bytes32 digest, bytes32[] memory paths, uint256 first, uint256 depth)
        private
        pure
        returns (bytes32 node)
    {
        node = keccak256(abi.encodePacked(bytes1(0x00), uint32(position), digest));
        for (uint256 level = 0; level < depth; level++) {
            bytes32 sibling = paths[first + level];
            (bytes32 left, bytes32 right) = (position >> level) & 1 == 0 ? (node, sibling) : (sibling, node);
            node = keccak256(abi.encodePacked(bytes1(0x01), left, right));
        }
    }
}
