// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Blockhash} from "@openzeppelin/contracts/utils/Blockhash.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {JobMarketplace, orderOf} from "./JobMarketplace.sol";

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
///
/// Whoever believes that a completed job's result is not what the proof cannot show, the model's own, puts up a bond and
/// challenges it; the marketplace's arbiter decides. The loser pays: the host with the stake of the job, or the challenger
/// with the bond.
contract ProofSystem is Ownable {
    using SafeERC20 for IERC20;

    /// How a challenge ended. The numbers are on the wire.
    enum Verdict {
        /// Nobody decided in time.
        Undecided,
        /// The challenger was right.
        Upheld,
        /// The host was right.
        Rejected
    }

    /// An open challenge. `challenger` is 0 when there is none.
    struct Challenge {
        address challenger;
        /// In FAB wei.
        uint96 bond;
    }

    /// A registered circuit `select-v1`. Everything but `active` is fixed with the id.
    struct Circuit {
        address verifier;
        /// Of the verifier's code.
        bytes32 codehash;
        /// Jobs per proof, at least 1.
        uint16 jobs;
        /// Positions opened per job; of all jobs together 1 to 64.
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

    /// Where a job stands in a submission.
    struct Place {
        uint256 jobId;
        /// Its number among the jobs of the proof.
        uint256 index;
        uint256 jobs;
        uint256 spots;
        /// Where its first path begins.
        uint256 path;
    }

    /// The order of the BN254 scalar field.
    uint256 private constant R = 21888242871839275222246405745257275088548364400416034343698204186575808495617;
    bytes32 public constant DOMAIN = keccak256("fabstir.select-v1");
    uint256 private constant DRAW_MASK = (1 << 12) - 1;
    uint256 public constant SPOTS_MAX = 64;

    JobMarketplace public immutable marketplace;
    /// What bonds are put up in: FAB.
    IERC20 public immutable token;
    address public immutable treasury;

    /// The bond of a challenge, in FAB wei.
    uint96 public challengeBond;
    mapping(bytes32 circuitId => Circuit) private _circuits;
    mapping(uint256 jobId => Commitment) private _commitments;
    /// The beacon stored by `pinBeacon`, else 0.
    mapping(uint256 jobId => bytes32) public pinnedBeacon;
    mapping(uint256 jobId => Challenge) private _challenges;

    event CircuitRegistered(bytes32 indexed circuitId, Circuit circuit);
    event ResultCommitted(
        uint256 indexed jobId,
        address indexed host,
        bytes32 root,
        uint32 nTokens,
        bytes32 resultHash,
        bytes32 tokensDigest
    );
    /// The host gave the job up: its commitment and beacon are gone.
    event CommitmentDiscarded(uint256 indexed jobId);
    event BeaconPinned(uint256 indexed jobId, bytes32 beacon);
    event ProofSubmitted(uint256 indexed jobId, address indexed prover, bytes32 proofHash, uint256 timestamp);
    event ProofVerified(uint256 indexed jobId, address indexed verifier, bool isValid);
    /// One proof showed several jobs; `ProofVerified` says it of each.
    event BatchVerificationCompleted(uint256[] jobIds, bool[] results, uint256 timestamp);
    event ProofChallenged(uint256 indexed jobId, address indexed challenger, bytes32 evidenceHash);
    /// Follows every `ProofChallenged`.
    event ChallengeBonded(uint256 indexed jobId, uint96 bond);
    /// `winner` has the bond: the challenger, or the host with one half of it.
    event ChallengeResolved(uint256 indexed jobId, bool success, address winner);
    event ChallengeBondChanged(uint96 bond);

    error NoTreasury();
    error NoVerifierCode(address verifier);
    error CodehashMismatch(bytes32 circuitId, bytes32 given, bytes32 actual);
    error JobsOutOfRange(uint256 jobs, uint256 min, uint256 max);
    error SpotsOutOfRange(uint256 spots, uint256 min, uint256 max);
    error CandidatesOutOfRange(uint256 candidates, uint256 min, uint256 max);
    error CircuitFixed(bytes32 circuitId);
    error OnlyMarketplace(address caller);
    error NotClaimed(uint256 jobId, JobMarketplace.JobStatus status);
    error NotHost(uint256 jobId, address host, address caller);
    error DeadlinePassed(uint256 jobId, uint256 deadline, uint256 time);
    error TokenCountOutOfRange(uint256 nTokens, uint256 min, uint256 max);
    error AlreadyCommitted(uint256 jobId);
    error WrongOrder(uint256 jobId, bytes32 order);
    error NotCommitted(uint256 jobId);
    error AlreadyPinned(uint256 jobId);
    error BeaconNotReady(uint256 jobId, uint256 readyAtBlock, uint256 blockNumber);
    error BeaconLost(uint256 jobId, uint256 beaconBlock, uint256 blockNumber);
    error MalformedProof(uint256 length);
    error CircuitNotActive(bytes32 circuitId);
    error JobCountMismatch(uint256 given, uint256 need);
    error InstanceCountMismatch(uint256 given, uint256 need);
    error PathCountMismatch(uint256 given, uint256 need);
    error RuleViolated(uint256 instance, uint256 value);
    error AlreadyProven(uint256 jobId);
    error ContextMismatch(uint256 jobId, uint256 given, uint256 need);
    error DrawMismatch(uint256 jobId, uint256 spot, uint256 given, uint256 need);
    error RootMismatch(uint256 jobId, uint256 spot, bytes32 given, bytes32 need);
    error ProofRejected(address verifier);

    constructor(address owner, JobMarketplace marketplace_, IERC20 token_, address treasury_) Ownable(owner) {
        if (treasury_ == address(0)) revert NoTreasury();
        marketplace = marketplace_;
        token = token_;
        treasury = treasury_;
        _setBond(100e18);
    }

    /// @notice Registers a circuit, whose verifier's code must have the given hash; or switches a registered one on or off.
    function registerCircuit(bytes32 circuitId, Circuit calldata circuit) external onlyOwner {
        if (circuit.verifier.code.length == 0) revert NoVerifierCode(circuit.verifier);
        bytes32 actual = circuit.verifier.codehash;
        if (actual != circuit.codehash) revert CodehashMismatch(circuitId, circuit.codehash, actual);
        if (circuit.jobs == 0 || circuit.jobs > SPOTS_MAX) revert JobsOutOfRange(circuit.jobs, 1, SPOTS_MAX);
        uint256 spotsMax = SPOTS_MAX / circuit.jobs;
        if (circuit.spots == 0 || circuit.spots > spotsMax) revert SpotsOutOfRange(circuit.spots, 1, spotsMax);
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
        _commit(
            jobId,
            marketplace.getJob(jobId),
            Commitment(root, resultHash, tokensDigest, uint64(block.number), nTokens, false)
        );
    }

    /// @notice As `commitResult`, but only if the job asks for what the result was made for: after reorgs the caller may hold
    /// the claim of another order with the same number.
    /// @param order Of that job's stored values: `keccak256(abi.encodePacked(modelHash, promptHash, uint32(maxTokens),
    /// uint32(temperature), seed))`.
    function commitExactly(
        uint256 jobId,
        bytes32 order,
        bytes32 root,
        uint32 nTokens,
        bytes32 resultHash,
        bytes32 tokensDigest
    ) external {
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        bytes32 there = orderOf(job);
        if (there != order) revert WrongOrder(jobId, there);
        _commit(jobId, job, Commitment(root, resultHash, tokensDigest, uint64(block.number), nTokens, false));
    }

    /// @notice Stores the job's beacon before the chain forgets it (256 blocks, 8191 with EIP-2935). Anyone may call.
    function pinBeacon(uint256 jobId) external {
        if (pinnedBeacon[jobId] != 0) revert AlreadyPinned(jobId);
        bytes32 beacon = beaconOf(jobId);
        pinnedBeacon[jobId] = beacon;
        emit BeaconPinned(jobId, beacon);
    }

    /// @notice Checks the proof of the results of jobs and reverts, saying why, unless it holds. Only the marketplace calls,
    /// for the jobs' host.
    /// @param data `abi.encode(bytes32 circuitId, bytes proof, uint256[] instances, bytes32[] paths)`. With J jobs of S spots
    /// each the instances are: two unused digests, J·S record digests, J contexts, J·S draws, J·S rank errors, J·S order
    /// errors; spots are counted job after job. The paths hold each spot's siblings, from the leaf up, spot after spot.
    function submit(uint256[] calldata jobIds, bytes calldata data) external {
        if (msg.sender != address(marketplace)) revert OnlyMarketplace(msg.sender);
        // Set by the one way that goes on.
        // slither-disable-next-line uninitialized-local
        Submission memory submission;
        try this.decodeProof(data) returns (Submission memory decoded) {
            submission = decoded;
        } catch {
            revert MalformedProof(data.length);
        }
        Circuit memory circuit = _checkShape(jobIds.length, submission);
        address verifier = circuit.verifier;
        bytes32 proofHash = keccak256(data);
        uint256 path = 0;
        for (uint256 i = 0; i < jobIds.length; i++) {
            uint256 jobId = jobIds[i];
            JobMarketplace.Job memory job = marketplace.getJob(jobId);
            path = _checkStatement(Place(jobId, i, jobIds.length, circuit.spots, path), job, submission);
            _commitments[jobId].proven = true;
            emit ProofSubmitted(jobId, job.host, proofHash, block.timestamp);
            emit ProofVerified(jobId, verifier, true);
        }
        if (path != submission.paths.length) revert PathCountMismatch(submission.paths.length, path);
        if (jobIds.length > 1) _emitBatch(jobIds);
        _checkProof(verifier, submission);
    }

    /// @notice Called by the marketplace when a host gives a job up: its commitment, if there is one, binds nobody any more.
    function discard(uint256 jobId) external {
        if (msg.sender != address(marketplace)) revert OnlyMarketplace(msg.sender);
        if (_commitments[jobId].nTokens == 0) return;
        delete _commitments[jobId];
        delete pinnedBeacon[jobId];
        emit CommitmentDiscarded(jobId);
    }

    /// @notice Challenges the result of a completed job within its challenge window, for a bond that the caller approved
    /// before. The marketplace's arbiter decides.
    /// @param evidenceHash Digest of what the challenger shows the arbiter, such as the logits of its own run of the model.
    function challenge(uint256 jobId, bytes32 evidenceHash) external {
        uint96 bond = challengeBond;
        _challenges[jobId] = Challenge(msg.sender, bond);
        emit ProofChallenged(jobId, msg.sender, evidenceHash);
        emit ChallengeBonded(jobId, bond);
        marketplace.challengeJob(jobId, msg.sender, evidenceHash);
        token.safeTransferFrom(msg.sender, address(this), bond);
    }

    /// @notice Called by the marketplace when the dispute about a job ends: the bond of its challenge, if there is one, goes
    /// back, or to the host and the treasury, one half each, if the challenge was rejected.
    /// @return challenger Who had challenged the job; 0 if nobody had.
    function settle(uint256 jobId, Verdict verdict, address host) external returns (address challenger) {
        if (msg.sender != address(marketplace)) revert OnlyMarketplace(msg.sender);
        Challenge memory ended = _challenges[jobId];
        challenger = ended.challenger;
        if (challenger == address(0)) return challenger;
        delete _challenges[jobId];
        bool rejected = verdict == Verdict.Rejected;
        emit ChallengeResolved(jobId, verdict == Verdict.Upheld, rejected ? host : challenger);
        uint256 share = rejected ? ended.bond / 2 : ended.bond;
        token.safeTransfer(rejected ? host : challenger, share);
        token.safeTransfer(treasury, ended.bond - share);
    }

    /// @notice Sets the bond of challenges from now on, in FAB wei.
    function setChallengeBond(uint96 bond) external onlyOwner {
        _setBond(bond);
    }

    /// @notice The open challenge of a job; all zero when there is none.
    function challengeOf(uint256 jobId) external view returns (Challenge memory) {
        return _challenges[jobId];
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

    function _commit(uint256 jobId, JobMarketplace.Job memory job, Commitment memory commitment) private {
        if (job.status != JobMarketplace.JobStatus.Claimed) revert NotClaimed(jobId, job.status);
        if (msg.sender != job.host) revert NotHost(jobId, job.host, msg.sender);
        if (block.timestamp >= job.deadline) revert DeadlinePassed(jobId, job.deadline, block.timestamp);
        uint32 nTokens = commitment.nTokens;
        if (nTokens == 0 || nTokens > job.maxTokens) revert TokenCountOutOfRange(nTokens, 1, job.maxTokens);
        if (_commitments[jobId].nTokens != 0) revert AlreadyCommitted(jobId);
        _commitments[jobId] = commitment;
        emit ResultCommitted(
            jobId, msg.sender, commitment.root, nTokens, commitment.resultHash, commitment.tokensDigest
        );
    }

    /// Checks that the circuit is in use and made for `jobs` jobs, and that no rule was broken.
    function _checkShape(uint256 jobs, Submission memory submission) private view returns (Circuit memory circuit) {
        circuit = _circuits[submission.circuitId];
        if (!circuit.active) revert CircuitNotActive(submission.circuitId);
        if (jobs != circuit.jobs) revert JobCountMismatch(jobs, circuit.jobs);
        uint256[] memory instances = submission.instances;
        uint256 spots = jobs * circuit.spots;
        uint256 need = 2 + jobs + 4 * spots;
        if (instances.length != need) revert InstanceCountMismatch(instances.length, need);
        for (uint256 i = 2 + jobs + 2 * spots; i < need; i++) {
            if (instances[i] != 0) revert RuleViolated(i, instances[i]);
        }
    }

    /// Checks that the instances say what the chain knows of one job: everything but the EZKL proof itself.
    /// @return end Where the next job's paths begin.
    function _checkStatement(Place memory place, JobMarketplace.Job memory job, Submission memory submission)
        private
        view
        returns (uint256 end)
    {
        Commitment memory commitment = _committed(place.jobId);
        if (commitment.proven) revert AlreadyProven(place.jobId);
        uint256 depth = Math.log2(commitment.nTokens, Math.Rounding.Ceil);
        end = place.path + place.spots * depth;
        if (end > submission.paths.length) revert PathCountMismatch(submission.paths.length, end);
        {
            uint256 given = submission.instances[2 + place.jobs * place.spots + place.index];
            uint256 context = _context(job, place.jobId, submission.circuitId, commitment);
            if (given != context) revert ContextMismatch(place.jobId, given, context);
        }
        bytes32 beacon = beaconOf(place.jobId);
        for (uint256 spot = 0; spot < place.spots; spot++) {
            uint256 position = _position(beacon, place.jobId, spot, commitment.nTokens);
            _checkDraw(place, spot, _draw(job, place.jobId, position), submission);
            _checkRecord(place, spot, position, depth, submission);
        }
    }

    /// Checks that the draw of a spot is the job's.
    function _checkDraw(Place memory place, uint256 spot, uint256 draw, Submission memory submission) private pure {
        uint256 first = 2 + place.jobs * (place.spots + 1) + place.index * place.spots;
        uint256 given = submission.instances[first + spot];
        if (given != draw) revert DrawMismatch(place.jobId, spot, given, draw);
    }

    /// Checks that the record of a spot is the one committed to, at the position the beacon picks.
    function _checkRecord(
        Place memory place,
        uint256 spot,
        uint256 position,
        uint256 depth,
        Submission memory submission
    ) private view {
        bytes32 digest = bytes32(submission.instances[2 + place.index * place.spots + spot]);
        bytes32 root = _root(position, digest, submission.paths, place.path + spot * depth, depth);
        bytes32 need = _commitments[place.jobId].root;
        if (root != need) revert RootMismatch(place.jobId, spot, root, need);
    }

    function _checkProof(address verifier, Submission memory submission) private {
        try IVerifier(verifier).verifyProof(submission.proof, submission.instances) returns (bool valid) {
            if (!valid) revert ProofRejected(verifier);
        } catch {
            revert ProofRejected(verifier);
        }
    }

    function _emitBatch(uint256[] calldata jobIds) private {
        bool[] memory results = new bool[](jobIds.length);
        for (uint256 i = 0; i < jobIds.length; i++) {
            results[i] = true;
        }
        emit BatchVerificationCompleted(jobIds, results, block.timestamp);
    }

    function _setBond(uint96 bond) private {
        challengeBond = bond;
        emit ChallengeBondChanged(bond);
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
