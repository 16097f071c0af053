// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {World} from "./lib/World.sol";

/// What the calls that people pay for cost, as committed in `snapshots/`: `npm run gas:check` fails when one drifts,
/// `npm run gas:update` writes them anew.
///
/// Each is the gas that a transaction with the one call uses: with its 21,000, its calldata, everything cold, and less what
/// it gets back. Proofs are checked by `TestVerifier`, which costs next to nothing: a real one comes on top.
///
/// forge-config: default.isolate = true
contract GasTest is World {
    bytes32 private constant BATCH = keccak256("select-v1/J4S2K8");

    function setUp() public override {
        super.setUp();
        ProofSystem.Circuit memory c = circuit();
        c.jobs = 4;
        vm.prank(owner);
        proofSystem.registerCircuit(BATCH, c);
        // Nobody's first time: balances and counters that are 0 only once cost more only once.
        completedUsd(1);
        vm.deal(treasury, 1);
        vm.deal(host, 1);
        usd.transfer(renter, 1e9);
        usd.transfer(host, 1);
        usd.transfer(treasury, 1);
        release(completed());
        fab.transfer(treasury, 1);
        vm.prank(renter);
        usd.approve(address(marketplace), 1e9);
    }

    function completedUsd(uint256 amount) private returns (uint256 jobId) {
        jobId = postUsd(amount);
        claim(jobId);
        commit(jobId, 5);
        complete(jobId);
    }

    function postings(uint256 count) private pure returns (JobMarketplace.Posting[] memory all) {
        all = new JobMarketplace.Posting[](count);
        for (uint256 i = 0; i < count; i++) {
            all[i] = JobMarketplace.Posting(details(), requirements(), address(0), PRICE, address(0));
        }
    }

    function committedJobs(uint256 count) private returns (uint256[] memory jobIds, string[] memory cids) {
        (jobIds, cids) = (new uint256[](count), new string[](count));
        for (uint256 i = 0; i < count; i++) {
            jobIds[i] = committed();
            cids[i] = CID;
        }
    }

    function test_post() public {
        vm.startPrank(renter);
        marketplace.postJob{value: PRICE}(details(), requirements(), PRICE);
        vm.snapshotGasLastCall("post", "eth");
        marketplace.postJobWithToken(details(), requirements(), address(usd), 5e6);
        vm.snapshotGasLastCall("post", "usd");
        marketplace.postJobs{value: 4 * PRICE}(postings(4));
        vm.snapshotGasLastCall("post", "batch of 4 in eth");
        marketplace.postJobs{value: 16 * PRICE}(postings(16));
        vm.snapshotGasLastCall("post", "batch of 16 in eth");
        vm.stopPrank();
    }

    function test_claim_and_commit() public {
        uint256 jobId = post();
        vm.startPrank(host);
        marketplace.claimJob(jobId);
        vm.snapshotGasLastCall("host", "claim");
        proofSystem.commitResult(jobId, "root", 100, keccak256(bytes(CID)), "tokens");
        vm.snapshotGasLastCall("host", "commit");
        pass(2);
        proofSystem.pinBeacon(jobId);
        vm.snapshotGasLastCall("host", "pin beacon");
        vm.stopPrank();
    }

    function test_claim_and_commit_exactly() public {
        uint256 jobId = post();
        bytes32 deal = marketplace.dealOf(jobId);
        vm.startPrank(host);
        marketplace.claimExactly(jobId, deal);
        vm.snapshotGasLastCall("host", "claim exactly");
        proofSystem.commitExactly(jobId, order(details()), "root", 100, keccak256(bytes(CID)), "tokens");
        vm.snapshotGasLastCall("host", "commit exactly");
        vm.stopPrank();
    }

    function test_complete() public {
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        vm.prank(host);
        marketplace.completeJob(jobId, CID, proof);
        vm.snapshotGasLastCall("host", "complete with a proof, test verifier");
        (uint256[] memory jobIds, string[] memory cids) = committedJobs(4);
        proof = encode(submission(jobIds, BATCH, SPOTS));
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids, proof);
        vm.snapshotGasLastCall("host", "complete 4 with one proof, test verifier");
        JobMarketplace.JobRequirements memory r = requirements();
        r.requiresProof = false;
        jobId = post(details(), r);
        claim(jobId);
        commit(jobId, 5);
        vm.prank(host);
        marketplace.completeJob(jobId, CID, "");
        vm.snapshotGasLastCall("host", "complete without a proof");
    }

    function test_fail() public {
        uint256 jobId = committed();
        vm.prank(host);
        marketplace.failJob(jobId, "no");
        vm.snapshotGasLastCall("host", "fail");
    }

    function test_fail_exactly() public {
        uint256 jobId = committed();
        bytes32 deal = marketplace.dealOf(jobId);
        vm.prank(host);
        marketplace.failExactly(jobId, deal, "no");
        vm.snapshotGasLastCall("host", "fail exactly");
    }

    function test_release() public {
        (uint256[] memory jobIds,) = committedJobs(16);
        for (uint256 i = 0; i < 16; i++) {
            complete(jobIds[i]);
        }
        uint256 single_ = completed();
        uint256 inUsd = completedUsd(5e6);
        vm.warp(block.timestamp + WINDOW);
        marketplace.releasePayment(single_);
        vm.snapshotGasLastCall("end", "release eth");
        marketplace.releasePayment(inUsd);
        vm.snapshotGasLastCall("end", "release usd");
        marketplace.releasePayments(jobIds);
        vm.snapshotGasLastCall("end", "release batch of 16 in eth");
    }

    function test_expire_and_cancel() public {
        uint256 unclaimed = post();
        uint256 cancelled = post();
        uint256 missed = committed();
        vm.prank(renter);
        marketplace.cancelJob(cancelled);
        vm.snapshotGasLastCall("end", "cancel");
        vm.warp(block.timestamp + TIME);
        marketplace.expireJob(unclaimed);
        vm.snapshotGasLastCall("end", "expire unclaimed");
        marketplace.expireJob(missed);
        vm.snapshotGasLastCall("end", "expire missed");
    }

    function test_dispute_and_resolve() public {
        uint256 forRenter = completed();
        uint256 forHost = completed();
        uint256 challenged = completed();
        vm.startPrank(renter);
        marketplace.disputeJob(forRenter, "evidence");
        vm.snapshotGasLastCall("dispute", "dispute");
        marketplace.disputeJob(forHost, "evidence");
        vm.stopPrank();
        fab.transfer(stranger, 101e18);
        vm.startPrank(stranger);
        fab.approve(address(proofSystem), 101e18);
        proofSystem.challenge(challenged, "evidence");
        vm.snapshotGasLastCall("dispute", "challenge");
        vm.stopPrank();
        vm.startPrank(arbiter);
        marketplace.resolveDispute(forRenter, true);
        vm.snapshotGasLastCall("dispute", "resolve for the renter");
        marketplace.resolveDispute(forHost, false);
        vm.snapshotGasLastCall("dispute", "resolve for the host");
        marketplace.resolveDispute(challenged, true);
        vm.snapshotGasLastCall("dispute", "resolve a challenge upheld");
        vm.stopPrank();
    }
}
