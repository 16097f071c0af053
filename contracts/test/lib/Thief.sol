// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {CircuitBreaker} from "../../src/CircuitBreaker.sol";
import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {ReputationSystem} from "../../src/ReputationSystem.sol";
import {Books} from "./Books.sol";

/// Calls every function of the suite that changes state from accounts that have no right to it, with arguments that would do
/// something. Each call must fail.
abstract contract Thief is Books {
    uint256 private constant KINDS = 57;
    /// What `theftOfJobs` and `theftBetween` are about.
    uint256 private victim;

    /// @return Whether there was something to steal.
    function trySteal() internal returns (bool) {
        uint256 kind = draw(KINDS);
        (address target, bytes memory call) = kind < 19
            ? theftByRight(kind)
            : kind < 33 ? theftOfJobs(kind - 19) : kind < 46 ? theftBetween(kind - 33) : theftOfStakes(kind - 46);
        if (target == address(0)) return false;
        // Whoever the dispute is about would most like to decide it.
        if (kind == 19 && chance(2)) {
            uint256 jobId = find(DISPUTED);
            if (jobId == 0) return false;
            address party = chance(2) ? jobs[jobId].host : jobs[jobId].renter;
            attempt(party, target, abi.encodeCall(marketplace.resolveDispute, (jobId, chance(2))), false);
        } else {
            attempt(thiefFor(kind), target, call, false);
        }
        return true;
    }

    /// A stranger; or the arbiter, the guardian or even the owner, outside their office.
    function thiefFor(uint256 kind) private returns (address) {
        // What the host or the renter of a job may do, the others may not, though they have jobs of their own.
        if ((kind >= 22 && kind <= 29) || kind == 42) {
            address other = someone();
            if (other != jobs[victim].host && other != jobs[victim].renter) return other;
        }
        uint256 who = draw(8);
        if (who == 0 && kind > 18) return owner;
        if (who == 1) return treasury;
        // Deciding is the arbiter's right and pausing the guardian's.
        if (who == 2 && kind != 19) return arbiter;
        if (who == 3 && kind != 20) return guardian;
        return stranger;
    }

    /// What only the owner of a contract may do.
    function theftByRight(uint256 kind) private returns (address, bytes memory) {
        NodeRegistry any = NodeRegistry(suite[draw(suite.length)]);
        if (kind == 0) return (address(any), abi.encodeCall(any.transferOwnership, (stranger)));
        if (kind == 1) return (address(any), abi.encodeCall(any.renounceOwnership, ()));
        if (kind == 2) return (address(registry), abi.encodeCall(registry.slash, (someone(), 1, "text")));
        if (kind == 3) return (address(registry), abi.encodeCall(registry.setRegistrationsPerWindow, (9)));
        if (kind == 4) return (address(registry), abi.encodeCall(registry.retire, (next)));
        if (kind == 5) return (address(marketplace), abi.encodeCall(marketplace.retire, (address(verifier))));
        if (kind == 6) return (address(marketplace), abi.encodeCall(marketplace.allowToken, (address(fab), true)));
        if (kind == 7) return (address(marketplace), abi.encodeCall(marketplace.setArbiter, (stranger)));
        if (kind == 8) return (address(marketplace), abi.encodeCall(marketplace.setGuardian, (stranger, true)));
        if (kind == 9) return (address(marketplace), abi.encodeCall(marketplace.unpause, ()));
        if (kind == 10) return (address(marketplace), abi.encodeCall(marketplace.setBreakerThresholds, (7, 8)));
        if (kind == 11) return (address(escrow), abi.encodeCall(escrow.setFee, (0)));
        if (kind == 12) return (address(proofSystem), abi.encodeCall(proofSystem.setChallengeBond, (0)));
        if (kind == 13) return (address(reputation), abi.encodeCall(reputation.slash, (someone(), 1, "text")));
        if (kind == 14) return (address(reputation), abi.encodeCall(reputation.setIncentiveThreshold, (0)));
        if (kind < 17) return (address(proofSystem), abi.encodeCall(proofSystem.registerCircuit, (0, circuit())));
        ProofSystem.Circuit memory off = circuit();
        off.active = false;
        return (address(proofSystem), abi.encodeCall(proofSystem.registerCircuit, (CIRCUIT, off)));
    }

    /// What only a job's renter, its host, the arbiter or a guardian may do, and what nobody may before its time.
    function theftOfJobs(uint256 kind) private returns (address, bytes memory) {
        uint256 jobId = jobFor(kind);
        victim = jobId;
        address target = address(marketplace);
        uint256[] memory one = single(jobId);
        string[] memory cids = new string[](1);
        cids[0] = CID;
        if (kind == 0) return (target, abi.encodeCall(marketplace.resolveDispute, (jobId, chance(2))));
        if (kind == 1) return (target, abi.encodeCall(CircuitBreaker.pause, ("text")));
        bytes32 deal = jobId > jobCount ? bytes32(0) : marketplace.dealOf(jobId);
        if (kind == 2) {
            if (chance(2)) return (target, abi.encodeCall(marketplace.claimJob, (jobId)));
            return (target, abi.encodeCall(marketplace.claimExactly, (jobId, deal)));
        }
        if (kind == 3) return (target, abi.encodeCall(marketplace.completeJob, (jobId, CID, "")));
        if (kind == 4) return (target, abi.encodeCall(marketplace.completeJobs, (one, cids, "")));
        if (kind == 5) {
            if (chance(2)) return (target, abi.encodeCall(marketplace.failJob, (jobId, "text")));
            return (target, abi.encodeCall(marketplace.failExactly, (jobId, deal, "text")));
        }
        if (kind == 6) return (target, abi.encodeCall(marketplace.cancelJob, (jobId)));
        if (kind == 7) return (target, abi.encodeCall(marketplace.requestRefund, (jobId)));
        if (kind == 8) return (target, abi.encodeCall(marketplace.agreeRefund, (jobId)));
        if (kind == 9) return (target, abi.encodeCall(marketplace.disputeJob, (jobId, keccak256("evidence"))));
        if (kind == 10) return (address(reputation), abi.encodeCall(reputation.rate, (jobId, 5, "text")));
        if (kind == 13) return (target, abi.encodeCall(marketplace.postJob, (details(), requirements(), 1 ether)));
        bool late = jobs[jobId].status < JobMarketplace.JobStatus.Completed && block.timestamp >= jobs[jobId].deadline;
        if (late || isDue(jobId)) return (address(0), "");
        if (kind == 11) return (target, abi.encodeCall(marketplace.expireJob, (jobId)));
        if (chance(2)) return (target, abi.encodeCall(marketplace.releasePayment, (jobId)));
        return (target, abi.encodeCall(marketplace.releasePayments, (one)));
    }

    /// What the contracts say to each other, and what needs the caller's money.
    function theftBetween(uint256 kind) private returns (address, bytes memory) {
        uint256 jobId = find(kind == 9 ? CLAIMED : kind > 9 ? COMPLETED : POSTED | CLAIMED | COMPLETED | DISPUTED);
        if (jobId == 0) jobId = anyJob();
        victim = jobId;
        address target = address(escrow);
        if (kind == 0) return (target, abi.encodeCall(escrow.release, (jobId, stranger)));
        if (kind == 1) return (target, abi.encodeCall(escrow.refund, (jobId)));
        if (kind == 2) return (target, abi.encodeCall(escrow.dispute, (jobId, stranger)));
        if (kind == 3) return (target, abi.encodeCall(escrow.requestRefund, (jobId)));
        if (kind == 4) {
            return (target, abi.encodeCall(escrow.create, (jobCount + 1, stranger, address(0), address(usd), 1)));
        }
        if (kind == 5) {
            return (target, abi.encodeCall(escrow.withdraw, (chance(2) ? address(0) : address(usd), stranger)));
        }
        target = address(proofSystem);
        if (kind == 6) {
            return (target, abi.encodeCall(proofSystem.settle, (jobId, ProofSystem.Verdict.Rejected, stranger)));
        }
        if (kind == 7) return (target, abi.encodeCall(proofSystem.discard, (jobId)));
        if (kind == 8) return (target, abi.encodeCall(proofSystem.submit, (single(jobId), "proof")));
        if (kind == 9) return (target, abi.encodeCall(proofSystem.commitResult, (jobId, "root", 1, "cid", "tokens")));
        if (kind == 10) {
            if (proofSystem.challengeBond() == 0) return (address(0), "");
            return (target, abi.encodeCall(proofSystem.challenge, (jobId, keccak256("evidence"))));
        }
        if (kind == 11) {
            return (address(marketplace), abi.encodeCall(marketplace.challengeJob, (jobId, stranger, bytes32("e"))));
        }
        bytes memory call = abi.encodeCall(reputation.jobEnded, (someone(), ReputationSystem.Outcome(draw(4))));
        return (address(reputation), call);
    }

    function theftOfStakes(uint256 kind) private returns (address, bytes memory) {
        address target = address(chance(4) ? next : registry);
        if (kind == 0) return (target, abi.encodeCall(registry.jobOpened, (someone())));
        if (kind == 1) return (target, abi.encodeCall(registry.jobClosed, (someone())));
        if (kind == 2) return (target, abi.encodeCall(registry.jobForfeited, (someone(), stranger, "text")));
        if (kind == 3) return (target, abi.encodeCall(registry.acceptStake, (stranger, stranger, 1000e18, "{}")));
        if (kind == 4) return (target, abi.encodeCall(registry.registerNode, ("{}")));
        if (kind == 5) return (target, abi.encodeCall(registry.registerControlledNode, ("{}", someone())));
        if (kind == 6) return (target, abi.encodeCall(registry.unregisterNode, ()));
        if (kind == 7) return (target, abi.encodeCall(registry.moveStake, ("{}")));
        if (kind == 8) return (target, abi.encodeCall(registry.addStake, (1)));
        if (kind == 9) {
            return chance(2)
                ? (target, abi.encodeCall(registry.startUnbonding, ()))
                : (target, abi.encodeCall(registry.cancelUnbonding, ()));
        }
        JobMarketplace.JobDetails memory d = details();
        return
            (address(marketplace), abi.encodeCall(marketplace.postJobWithToken, (d, requirements(), address(usd), 1e6)));
    }

    /// Everything that ends a job, by whoever may, about a job that has ended.
    function endTwice() internal {
        if (jobCount == 0) return;
        uint256 jobId = 1 + draw(jobCount);
        Entry storage job = jobs[jobId];
        if (job.status != JobMarketplace.JobStatus.Released && job.status != JobMarketplace.JobStatus.Refunded) return;
        address target = address(marketplace);
        attempt(job.renter, target, abi.encodeCall(marketplace.cancelJob, (jobId)), false);
        attempt(job.host, target, abi.encodeCall(marketplace.agreeRefund, (jobId)), false);
        attempt(job.host, target, abi.encodeCall(marketplace.failJob, (jobId, "text")), false);
        attempt(job.host, target, abi.encodeCall(marketplace.completeJob, (jobId, CID, "")), false);
        attempt(job.renter, target, abi.encodeCall(marketplace.disputeJob, (jobId, bytes32("e"))), false);
        attempt(job.renter, target, abi.encodeCall(marketplace.expireJob, (jobId)), false);
        attempt(job.renter, target, abi.encodeCall(marketplace.releasePayment, (jobId)), false);
        attempt(marketplace.arbiter(), target, abi.encodeCall(marketplace.resolveDispute, (jobId, true)), false);
        attempt(marketplace.arbiter(), target, abi.encodeCall(marketplace.resolveDispute, (jobId, false)), false);
        attempt(someone(), address(proofSystem), abi.encodeCall(proofSystem.challenge, (jobId, bytes32("e"))), false);
        reach("second end refused");
    }

    /// Mostly a job in the state in which somebody may do it.
    function jobFor(uint256 kind) private returns (uint256) {
        uint256 jobId = 0;
        if (kind == 0) jobId = find(DISPUTED);
        else if (kind == 2 || kind == 6) jobId = find(POSTED);
        else if (kind < 6) jobId = find(CLAIMED);
        else if (kind == 7 || kind == 8) jobId = find(CLAIMED | COMPLETED | DISPUTED);
        else if (kind == 9 || kind == 12) jobId = find(COMPLETED);
        else if (kind == 10 && paid.length != 0) jobId = paid[draw(paid.length)];
        for (uint256 n = 0; kind == 8 && n < 4 && !jobs[jobId].refundRequested; n++) {
            jobId = find(CLAIMED | COMPLETED | DISPUTED);
        }
        return jobId == 0 || chance(8) ? anyJob() : jobId;
    }

    /// One that was posted, or, at times, one that was not.
    function anyJob() private returns (uint256) {
        return 1 + draw(chance(8) ? jobCount + 1 : jobCount == 0 ? 1 : jobCount);
    }
}
