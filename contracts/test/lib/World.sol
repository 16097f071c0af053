// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TestUsd} from "../../script/TestUsd.sol";
import {GovernanceToken} from "../../src/GovernanceToken.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Test} from "./Test.sol";
import {TestVerifier} from "./TestVerifier.sol";

/// The whole suite, wired as deployed, with a renter, two registered hosts and a circuit of two spots.
abstract contract World is Test {
    uint256 internal constant R = 21888242871839275222246405745257275088548364400416034343698204186575808495617;
    bytes32 internal constant CIRCUIT = keccak256("select-v1/J1S2K8");
    uint256 internal constant SPOTS = 2;
    uint256 internal constant WINDOW = 1 hours;
    uint256 internal constant FEE_BPS = 250;
    uint256 internal constant TIME = 10 minutes;
    uint256 internal constant PRICE = 1 ether;
    string internal constant CID = "blake3-result";

    GovernanceToken internal fab;
    TestUsd internal usd;
    NodeRegistry internal registry;
    PaymentEscrow internal escrow;
    ProofSystem internal proofSystem;
    JobMarketplace internal marketplace;
    TestVerifier internal verifier;

    address internal owner = address(0x0A1);
    address internal treasury = address(0x0A2);
    address internal renter = address(0x0B1);
    address internal host = address(0x0C1);
    address internal rival = address(0x0C2);
    address internal stranger = address(0x0D1);

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        vm.roll(1000);
        fab = new GovernanceToken(address(this));
        usd = new TestUsd(address(this));
        address predicted = vm.computeCreateAddress(address(this), vm.getNonce(address(this)) + 3);
        registry = new NodeRegistry(fab, predicted);
        escrow = new PaymentEscrow(predicted, treasury, FEE_BPS);
        proofSystem = new ProofSystem(owner, JobMarketplace(predicted));
        marketplace = new JobMarketplace(owner, registry, escrow, proofSystem, WINDOW);
        vm.assertEq(address(marketplace), predicted);
        verifier = new TestVerifier();
        vm.startPrank(owner);
        marketplace.allowToken(address(usd), true);
        proofSystem.registerCircuit(CIRCUIT, circuit());
        vm.stopPrank();
        vm.deal(renter, 100 ether);
        register(host);
        register(rival);
    }

    function circuit() internal view returns (ProofSystem.Circuit memory) {
        return ProofSystem.Circuit({
            verifier: address(verifier),
            codehash: address(verifier).codehash,
            spots: uint16(SPOTS),
            candidates: 8,
            active: true,
            manifest: keccak256("manifest")
        });
    }

    function details() internal pure returns (JobMarketplace.JobDetails memory) {
        return JobMarketplace.JobDetails({
            modelId: "sha256:0000000000000000000000000000000000000000000000000000000000000001",
            prompt: "blake3-prompt",
            maxTokens: 100,
            temperature: 700,
            seed: 42,
            resultFormat: "text"
        });
    }

    function requirements() internal pure returns (JobMarketplace.JobRequirements memory) {
        return JobMarketplace.JobRequirements({
            minGPUMemory: 0, minReputationScore: 0, maxTimeToComplete: TIME, requiresProof: true
        });
    }

    function register(address who) internal {
        fab.transfer(who, registry.MIN_STAKE());
        vm.startPrank(who);
        fab.approve(address(registry), registry.MIN_STAKE());
        registry.registerNode("{}");
        vm.stopPrank();
    }

    function post() internal returns (uint256) {
        return post(details(), requirements());
    }

    function post(JobMarketplace.JobDetails memory d, JobMarketplace.JobRequirements memory r)
        internal
        returns (uint256)
    {
        vm.prank(renter);
        return marketplace.postJob{value: PRICE}(d, r, PRICE);
    }

    function postUsd(uint256 amount) internal returns (uint256) {
        usd.transfer(renter, amount);
        vm.startPrank(renter);
        usd.approve(address(marketplace), amount);
        uint256 jobId = marketplace.postJobWithToken(details(), requirements(), address(usd), amount);
        vm.stopPrank();
        return jobId;
    }

    function claim(uint256 jobId) internal {
        vm.prank(host);
        marketplace.claimJob(jobId);
    }

    /// Commits the host to `nTokens` records, whose digests are `digest(position)`, and lets the beacon's block pass.
    function commit(uint256 jobId, uint32 nTokens) internal {
        bytes32 root = node(nTokens, depth(nTokens), 0);
        vm.prank(host);
        proofSystem.commitResult(jobId, root, nTokens, keccak256(bytes(CID)), keccak256("tokens"));
        pass(2);
    }

    /// Moves the chain on by `count` blocks.
    function pass(uint256 count) internal {
        vm.roll(block.number + count);
    }

    function complete(uint256 jobId) internal {
        bytes memory proof = prove(jobId);
        vm.prank(host);
        marketplace.completeJob(jobId, CID, proof);
    }

    function release(uint256 jobId) internal {
        vm.warp(marketplace.getJob(jobId).releaseAt);
        marketplace.releasePayment(jobId);
    }

    /// Posts, claims and commits a job of five tokens.
    function committed() internal returns (uint256 jobId) {
        jobId = post();
        claim(jobId);
        commit(jobId, 5);
    }

    /// Posts, claims, commits and completes a job of five tokens.
    function completed() internal returns (uint256 jobId) {
        jobId = committed();
        complete(jobId);
    }

    // The host's side of a proof.

    function prove(uint256 jobId) internal view returns (bytes memory) {
        return encode(submission(jobId));
    }

    function encode(ProofSystem.Submission memory s) internal pure returns (bytes memory) {
        return abi.encode(s.circuitId, s.proof, s.instances, s.paths);
    }

    /// What an honest host submits for a committed job.
    function submission(uint256 jobId) internal view returns (ProofSystem.Submission memory s) {
        uint32 nTokens = proofSystem.commitmentOf(jobId).nTokens;
        uint256 levels = depth(nTokens);
        s.circuitId = CIRCUIT;
        s.proof = "proof";
        s.instances = new uint256[](3 + 4 * SPOTS);
        s.paths = new bytes32[](SPOTS * levels);
        s.instances[2 + SPOTS] = proofSystem.contextOf(jobId, CIRCUIT);
        for (uint256 spot = 0; spot < SPOTS; spot++) {
            uint256 position = proofSystem.positionOf(jobId, spot);
            s.instances[2 + spot] = uint256(digest(position));
            s.instances[3 + SPOTS + spot] = proofSystem.drawOf(jobId, position);
            for (uint256 level = 0; level < levels; level++) {
                s.paths[spot * levels + level] = node(nTokens, level, (position >> level) ^ 1);
            }
        }
    }

    /// Stands for the Poseidon digest of the record at `position`.
    function digest(uint256 position) internal pure returns (bytes32) {
        return bytes32(uint256(keccak256(abi.encode("record", position))) % R);
    }

    /// The least d with 2^d >= n.
    function depth(uint256 n) internal pure returns (uint256 d) {
        while (1 << d < n) d++;
    }

    /// The tree's node `index` of `level`, counted from the leaves, by definition.
    function node(uint256 nTokens, uint256 level, uint256 index) internal pure returns (bytes32) {
        if (level == 0) {
            if (index >= nTokens) return 0;
            return keccak256(abi.encodePacked(bytes1(0), uint32(index), digest(index)));
        }
        bytes32 left = node(nTokens, level - 1, 2 * index);
        return keccak256(abi.encodePacked(bytes1(0x01), left, node(nTokens, level - 1, 2 * index + 1)));
    }
}
