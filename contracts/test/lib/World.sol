// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {TestUsd} from "../../script/TestUsd.sol";
import {GovernanceToken} from "../../src/GovernanceToken.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {ReputationSystem} from "../../src/ReputationSystem.sol";
import {Test} from "./Test.sol";
import {TestVerifier} from "./TestVerifier.sol";

/// The whole suite, wired as deployed, with a renter, two registered hosts and a circuit of two spots.
abstract contract World is Test {
    uint256 internal constant R = 21888242871839275222246405745257275088548364400416034343698204186575808495617;
    bytes32 internal constant CIRCUIT = keccak256("select-v1/J1S2K8");
    uint256 internal constant SPOTS = 2;
    uint256 internal constant WINDOW = 1 hours;
    uint16 internal constant FEE_BPS = 250;
    uint256 internal constant TIME = 10 minutes;
    uint256 internal constant PRICE = 1 ether;
    string internal constant CID = "blake3-result";

    GovernanceToken internal fab;
    TestUsd internal usd;
    NodeRegistry internal registry;
    PaymentEscrow internal escrow;
    ProofSystem internal proofSystem;
    ReputationSystem internal reputation;
    JobMarketplace internal marketplace;
    TestVerifier internal verifier;

    address internal owner = address(0x0A1);
    address internal treasury = address(0x0A2);
    address internal arbiter = address(0x0A3);
    address internal guardian = address(0x0A4);
    address internal renter = address(0x0B1);
    address internal host = address(0x0C1);
    address internal rival = address(0x0C2);
    address internal stranger = address(0x0D1);

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        vm.roll(1000);
        fab = new GovernanceToken(address(this));
        usd = new TestUsd(address(this));
        address predicted = vm.computeCreateAddress(address(this), vm.getNonce(address(this)) + 4);
        registry = new NodeRegistry(owner, fab, predicted, treasury, NodeRegistry(address(0)));
        escrow = new PaymentEscrow(owner, predicted, treasury, FEE_BPS);
        proofSystem = new ProofSystem(owner, JobMarketplace(predicted), fab, treasury);
        reputation = new ReputationSystem(owner, JobMarketplace(predicted), ReputationSystem(address(0)));
        marketplace = new JobMarketplace(owner, registry, escrow, proofSystem, reputation, WINDOW);
        vm.assertEq(address(marketplace), predicted);
        verifier = new TestVerifier();
        vm.startPrank(owner);
        marketplace.allowToken(address(usd), true);
        marketplace.setArbiter(arbiter);
        marketplace.setGuardian(guardian, true);
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
            jobs: 1,
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

    /// Has `who` start to leave and waits until it may.
    function unbond(address who) internal {
        vm.prank(who);
        registry.startUnbonding();
        vm.warp(block.timestamp + registry.UNBONDING_TIME());
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
        claimAs(host, jobId);
    }

    function claimAs(address who, uint256 jobId) internal {
        vm.prank(who);
        marketplace.claimJob(jobId);
    }

    /// A digest of what `d` asks for, by definition.
    function order(JobMarketplace.JobDetails memory d) internal pure returns (bytes32) {
        bytes memory texts = bytes.concat(keccak256(bytes(d.modelId)), keccak256(bytes(d.prompt)));
        return
            keccak256(bytes.concat(texts, bytes4(uint32(d.maxTokens)), bytes4(uint32(d.temperature)), bytes4(d.seed)));
    }

    /// A batch of one job.
    function posting(address token, uint256 payment, address reservedFor)
        internal
        pure
        returns (JobMarketplace.Posting[] memory postings)
    {
        postings = new JobMarketplace.Posting[](1);
        postings[0] = JobMarketplace.Posting(details(), requirements(), token, payment, reservedFor);
    }

    /// Posts a job in ETH that only `who` may claim.
    function postReserved(address who) internal returns (uint256) {
        vm.prank(renter);
        return marketplace.postJobs{value: PRICE}(posting(address(0), PRICE, who));
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
        uint256 releaseAt = marketplace.getJob(jobId).releaseAt;
        if (block.timestamp < releaseAt) vm.warp(releaseAt);
        marketplace.releasePayment(jobId);
    }

    /// Has the renter dispute a completed job.
    function dispute(uint256 jobId) internal {
        vm.prank(renter);
        marketplace.disputeJob(jobId, "evidence");
    }

    /// Has `who`, which is given the bond for it, challenge a completed job.
    function challenge(address who, uint256 jobId) internal {
        uint256 bond = proofSystem.challengeBond();
        fab.transfer(who, bond);
        vm.startPrank(who);
        fab.approve(address(proofSystem), bond);
        proofSystem.challenge(jobId, "evidence");
        vm.stopPrank();
    }

    function resolve(uint256 jobId, bool favorClient) internal {
        vm.prank(arbiter);
        marketplace.resolveDispute(jobId, favorClient);
    }

    /// The fee of the payment `amount`.
    function feeOf(uint256 amount) internal pure returns (uint256) {
        return amount * FEE_BPS / 10_000;
    }

    function assertStatus(uint256 jobId, JobMarketplace.JobStatus status) internal view {
        vm.assertEq(uint256(marketplace.getJob(jobId).status), uint256(status));
    }

    function assertEscrow(uint256 jobId, PaymentEscrow.State state) internal view {
        vm.assertEq(uint256(escrow.getEscrow(jobId).state), uint256(state));
    }

    function wrongStatus(uint256 jobId, JobMarketplace.JobStatus have, JobMarketplace.JobStatus need)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodeWithSelector(JobMarketplace.WrongStatus.selector, jobId, have, need);
    }

    function notOwner(address who) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, who);
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

    function single(uint256 jobId) internal pure returns (uint256[] memory jobIds) {
        jobIds = new uint256[](1);
        jobIds[0] = jobId;
    }

    // The host's side of a proof.

    function prove(uint256 jobId) internal view returns (bytes memory) {
        return encode(submission(jobId));
    }

    function encode(ProofSystem.Submission memory s) internal pure returns (bytes memory) {
        return abi.encode(s.circuitId, s.proof, s.instances, s.paths);
    }

    /// What an honest host submits for a committed job.
    function submission(uint256 jobId) internal view returns (ProofSystem.Submission memory) {
        return submission(single(jobId), CIRCUIT, SPOTS);
    }

    /// What an honest host submits for several committed jobs with a circuit of `spots` spots per job.
    function submission(uint256[] memory jobIds, bytes32 circuitId, uint256 spots)
        internal
        view
        returns (ProofSystem.Submission memory s)
    {
        uint256 all = jobIds.length * spots;
        s.circuitId = circuitId;
        s.proof = "proof";
        s.instances = new uint256[](2 + jobIds.length + 4 * all);
        for (uint256 i = 0; i < jobIds.length; i++) {
            s.instances[2 + all + i] = proofSystem.contextOf(jobIds[i], circuitId);
            for (uint256 spot = 0; spot < spots; spot++) {
                uint256 position = proofSystem.positionOf(jobIds[i], spot);
                s.instances[2 + i * spots + spot] = uint256(digest(position));
                s.instances[2 + all + jobIds.length + i * spots + spot] = proofSystem.drawOf(jobIds[i], position);
                s.paths = append(s.paths, pathOf(jobIds[i], position));
            }
        }
    }

    /// The siblings of the record at `position`, from the leaf up.
    function pathOf(uint256 jobId, uint256 position) internal view returns (bytes32[] memory path) {
        uint32 nTokens = proofSystem.commitmentOf(jobId).nTokens;
        path = new bytes32[](depth(nTokens));
        for (uint256 level = 0; level < path.length; level++) {
            path[level] = node(nTokens, level, (position >> level) ^ 1);
        }
    }

    function append(bytes32[] memory some, bytes32[] memory more) internal pure returns (bytes32[] memory all) {
        all = new bytes32[](some.length + more.length);
        for (uint256 i = 0; i < all.length; i++) {
            all[i] = i < some.length ? some[i] : more[i - some.length];
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
