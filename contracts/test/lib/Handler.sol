// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Books} from "./Books.sol";
import {Picky} from "./Tokens.sol";
import {Thief} from "./Thief.sol";

/// What accounts may do in any order, as the fuzzer picks it: five accounts each of which posts, hosts and challenges, two
/// of which take ETH only at times, an arbiter, guardians, the owner, time, and thieves.
///
/// Each action draws what it does from its seed, tries it, and says beforehand whether the suite must allow it: it fails
/// if the suite says otherwise. What it allowed goes into the `Books`.
contract Handler is Thief {
    /// The actions, for a fuzzer or `act` to pick from.
    function actions() public pure returns (bytes4[] memory list) {
        bytes4[19] memory all = [
            this.doPost.selector,
            this.doPostBatch.selector,
            this.doClaim.selector,
            this.doWork.selector,
            this.doFinishBatch.selector,
            this.doRelease.selector,
            this.doReleaseMany.selector,
            this.doExpire.selector,
            this.doGiveUpOrCancel.selector,
            this.doRefund.selector,
            this.doDispute.selector,
            this.doDecide.selector,
            this.doRate.selector,
            this.doWithdraw.selector,
            this.doEnrol.selector,
            this.doChore.selector,
            this.doGovern.selector,
            this.doWait.selector,
            this.doSteal.selector
        ];
        list = new bytes4[](all.length);
        for (uint256 i = 0; i < all.length; i++) {
            list[i] = all[i];
        }
    }

    /// Has the few jobs that a run misses raise the level.
    function tighten() external {
        vm.prank(owner);
        marketplace.setBreakerThresholds(3, 5);
        configured = config();
    }

    /// Does what `seed` says: one action.
    function act(uint256 seed) external {
        bytes4[] memory list = actions();
        bytes4 action = list[uint256(keccak256(abi.encode("action", seed))) % list.length];
        (bool ok, bytes memory answer) = address(this).call(abi.encodeWithSelector(action, seed));
        if (!ok) bubble(answer);
    }

    // Renters.

    function doPost(uint256 seed) external seeded(seed) {
        if (open.length >= OPEN_MAX) return;
        address who = someone();
        JobMarketplace.Posting memory p = posting();
        p.reservedFor = address(0);
        uint256 fee = escrow.feeBps();
        bytes memory call = p.token == address(0)
            ? abi.encodeCall(marketplace.postJob, (p.details, p.requirements, p.payment))
            : abi.encodeCall(marketplace.postJobWithToken, (p.details, p.requirements, p.token, p.payment));
        uint256 value = p.token == address(0) ? p.payment : 0;
        if (attempt(who, address(marketplace), value, call, mayPost(p))) notePosted(who, p, fee);
    }

    function doPostBatch(uint256 seed) external seeded(seed) {
        if (open.length >= OPEN_MAX) return;
        address who = someone();
        JobMarketplace.Posting[] memory p = new JobMarketplace.Posting[](1 + draw(3));
        uint256 fee = escrow.feeBps();
        uint256 value = 0;
        bool may = true;
        for (uint256 i = 0; i < p.length; i++) {
            p[i] = posting();
            if (p[i].token == address(0)) value += p[i].payment;
            may = may && mayPost(p[i]);
        }
        bytes memory call = abi.encodeCall(marketplace.postJobs, (p));
        if (!attempt(who, address(marketplace), value, call, may)) return;
        if (p.length > 1) reach("posted in a batch");
        for (uint256 i = 0; i < p.length; i++) {
            notePosted(who, p[i], fee);
        }
    }

    function doRefund(uint256 seed) external seeded(seed) {
        uint256 jobId = find(CLAIMED | COMPLETED | DISPUTED);
        if (jobId == 0) return;
        Entry storage job = jobs[jobId];
        if (!job.refundRequested) {
            attempt(job.renter, address(marketplace), abi.encodeCall(marketplace.requestRefund, (jobId)), true);
            job.refundRequested = true;
            reach("refund requested");
            return;
        }
        if (chance(3)) return;
        attempt(job.host, address(marketplace), abi.encodeCall(marketplace.agreeRefund, (jobId)), true);
        reach("refund agreed");
        if (job.status == JobMarketplace.JobStatus.Disputed) reach("refund of a disputed job agreed");
        if (job.challenger != address(0)) reach("refund of a challenged job agreed");
        noteConceded(jobId);
        noteRefunded(jobId);
    }

    /// The renter disputes, or anybody challenges.
    function doDispute(uint256 seed) external seeded(seed) {
        uint256 jobId = find(COMPLETED);
        if (jobId == 0) return;
        Entry storage job = jobs[jobId];
        bool may = block.timestamp < job.releaseAt;
        if (chance(2)) {
            bytes memory call = abi.encodeCall(marketplace.disputeJob, (jobId, keccak256("evidence")));
            if (!attempt(job.renter, address(marketplace), call, may)) return;
            reach("disputed");
        } else {
            address challenger = someone();
            uint256 bond = proofSystem.challengeBond();
            bytes memory call = abi.encodeCall(proofSystem.challenge, (jobId, keccak256("evidence")));
            if (!attempt(challenger, address(proofSystem), call, may)) return;
            moveFab(challenger, address(proofSystem), bond);
            (job.challenger, job.bond) = (challenger, bond);
            reach("challenged");
        }
        job.status = JobMarketplace.JobStatus.Disputed;
        job.releaseAt = block.timestamp + marketplace.ARBITRATION_TIME();
    }

    /// Of a job that was paid, once; of any other, refused.
    function doRate(uint256 seed) external seeded(seed) {
        if (jobCount == 0) return;
        uint256 jobId = paid.length == 0 || chance(8) ? 1 + draw(jobCount) : paid[draw(paid.length)];
        Entry storage job = jobs[jobId];
        uint8 rating = uint8(1 + draw(5));
        bool may = job.status == JobMarketplace.JobStatus.Released && !job.rated;
        bytes memory call = abi.encodeCall(reputation.rate, (jobId, rating, "text"));
        if (!attempt(job.renter, address(reputation), call, may)) return;
        job.rated = true;
        noteScore(job.host, (int256(uint256(rating)) - 3) * 4);
        reach("rated");
    }

    function doWithdraw(uint256 seed) external seeded(seed) {
        if (chance(3)) Picky(payable(accounts[draw(2)])).setWilling(chance(2));
        address who = accounts[draw(2)];
        address to = chance(4) ? someone() : who;
        uint256 amount = escrow.credits(address(0), who);
        bytes memory call = abi.encodeCall(escrow.withdraw, (address(0), to));
        if (!attempt(who, address(escrow), call, amount != 0 && takesEth(to))) return;
        due[0][who] -= amount;
        due[0][to] += amount;
        reach("credit withdrawn");
    }

    // Hosts.

    function doClaim(uint256 seed) external seeded(seed) {
        for (uint256 n = 1 + draw(4); n != 0; n--) {
            uint256 jobId = find(POSTED);
            if (jobId == 0) return;
            Entry storage job = jobs[jobId];
            address who = claimant(jobId);
            bytes memory call = chance(2)
                ? abi.encodeCall(marketplace.claimJob, (jobId))
                : abi.encodeCall(marketplace.claimExactly, (jobId, marketplace.dealOf(jobId)));
            if (!attempt(who, address(marketplace), call, mayClaim(jobId, who))) continue;
            job.host = who;
            job.status = JobMarketplace.JobStatus.Claimed;
            openJobs[who]++;
            reach(job.reserved ? "reserved job claimed" : job.reopened ? "claimed again" : "claimed");
        }
    }

    /// The next thing to do about a claimed job: commit to its result, wait for its beacon, complete it.
    function doWork(uint256 seed) external seeded(seed) {
        uint256 jobId = find(CLAIMED);
        if (jobId == 0 || !commitTo(jobId) || chance(4)) return;
        bool proves = jobs[jobId].requiresProof ? !chance(8) : chance(4);
        if (proves && !provable(jobId, CIRCUIT)) return;
        uint256[] memory jobIds = single(jobId);
        bytes memory proof = proves ? proofOf(jobIds, CIRCUIT) : bytes("");
        bytes memory call = abi.encodeCall(marketplace.completeJob, (jobId, CID, proof));
        bool may = block.timestamp < jobs[jobId].deadline && (proves || !jobs[jobId].requiresProof);
        if (!attempt(jobs[jobId].host, address(marketplace), call, may)) return;
        noteCompleted(jobId, proves);
        reach(proves ? "completed with a proof" : "completed");
    }

    /// Two jobs of a host, with one proof of both or with none.
    function doFinishBatch(uint256 seed) external seeded(seed) {
        uint256[] memory jobIds = pair();
        if (jobIds.length == 0 || !commitTo(jobIds[0]) || !commitTo(jobIds[1])) return;
        bool proves = chance(2);
        if (proves && !(provable(jobIds[0], CIRCUIT2) && provable(jobIds[1], CIRCUIT2))) return;
        bool may = true;
        string[] memory cids = new string[](2);
        for (uint256 i = 0; i < 2; i++) {
            cids[i] = CID;
            Entry storage job = jobs[jobIds[i]];
            may = may && block.timestamp < job.deadline && (proves || !job.requiresProof);
        }
        bytes memory proof = proves ? proofOf(jobIds, CIRCUIT2) : bytes("");
        bytes memory call = abi.encodeCall(marketplace.completeJobs, (jobIds, cids, proof));
        if (!attempt(jobs[jobIds[0]].host, address(marketplace), call, may)) return;
        noteCompleted(jobIds[0], proves);
        noteCompleted(jobIds[1], proves);
        reach(proves ? "batch completed with one proof" : "batch completed");
    }

    function doGiveUpOrCancel(uint256 seed) external seeded(seed) {
        if (chance(2)) return;
        uint256 jobId = find(chance(3) ? POSTED : CLAIMED);
        if (jobId == 0) return;
        Entry storage job = jobs[jobId];
        if (job.status == JobMarketplace.JobStatus.Posted) {
            attempt(job.renter, address(marketplace), abi.encodeCall(marketplace.cancelJob, (jobId)), true);
            noteRefunded(jobId);
            reach("cancelled");
            return;
        }
        bytes memory call = chance(2)
            ? abi.encodeCall(marketplace.failJob, (jobId, "text"))
            : abi.encodeCall(marketplace.failExactly, (jobId, marketplace.dealOf(jobId), "text"));
        if (!attempt(job.host, address(marketplace), call, block.timestamp < job.deadline)) return;
        openJobs[job.host]--;
        noteScore(job.host, -20);
        if (job.reserved || job.refundRequested) {
            noteRefunded(jobId);
            reach("given up and refunded");
            return;
        }
        gaveUp[jobId][controllers[job.host]] = true;
        (job.host, job.status, job.nTokens) = (address(0), JobMarketplace.JobStatus.Posted, 0);
        job.reopened = true;
        reach("given up and reopened");
    }

    /// Registers, leaves, stays after all, moves.
    function doEnrol(uint256 seed) external seeded(seed) {
        address who = someone();
        NodeRegistry.Node memory node = registry.getNode(who);
        if (node.controller == address(0)) {
            if (next.getNode(who).controller == address(0)) tryRegister(who);
        } else if (address(registry.successor()) == address(next) && chance(2)) {
            bytes memory call = abi.encodeCall(registry.moveStake, ("{}"));
            if (!attempt(who, address(registry), call, openJobs[who] == 0)) return;
            moveFab(address(registry), address(next), stakes[who]);
            (stakes[who], controllers[who]) = (0, address(0));
            reach("stake moved");
        } else if (stakes[who] < registry.MIN_STAKE() && !chance(4)) {
            tryStake(who, registry.MIN_STAKE() - stakes[who]);
        } else if (node.unbondedAt == 0) {
            if (!chance(8)) return;
            attempt(who, address(registry), abi.encodeCall(registry.startUnbonding, ()), true);
            reach("unbonding");
        } else if (chance(3)) {
            attempt(who, address(registry), abi.encodeCall(registry.cancelUnbonding, ()), true);
            reach("unbonding cancelled");
        } else {
            if (chance(4) && openJobs[who] == 0) passUntil(node.unbondedAt);
            tryUnregister(who, block.timestamp >= node.unbondedAt && openJobs[who] == 0);
        }
    }

    function doChore(uint256 seed) external seeded(seed) {
        address who = someone();
        uint256 kind = draw(4);
        if (kind == 0) {
            tryStake(who, 1 + draw(50e18));
        } else if (kind == 1) {
            bytes memory call = abi.encodeCall(registry.updateMetadata, ("{}"));
            attempt(who, address(registry), call, controllers[who] != address(0));
        } else if (kind == 2) {
            attempt(who, address(registry), abi.encodeCall(registry.approveHost, (someone(), !chance(4))), true);
        } else {
            uint256 jobId = find(CLAIMED | COMPLETED);
            if (jobId == 0) return;
            bool may = proofSystem.pinnedBeacon(jobId) == 0 && beaconKnown(jobId);
            if (attempt(stranger, address(proofSystem), abi.encodeCall(proofSystem.pinBeacon, (jobId)), may)) {
                reach("beacon pinned");
            }
        }
    }

    // Anybody.

    /// Waits for the time of release at times, so that payments are as likely as refunds.
    function doRelease(uint256 seed) external seeded(seed) {
        uint256 jobId = find(COMPLETED | DISPUTED);
        if (jobId == 0) return;
        Entry storage job = jobs[jobId];
        if (chance(job.status == JobMarketplace.JobStatus.Disputed ? 6 : 3)) passUntil(job.releaseAt);
        bytes memory call = abi.encodeCall(marketplace.releasePayment, (jobId));
        if (attempt(stranger, address(marketplace), call, block.timestamp >= job.releaseAt)) noteReleased(jobId);
    }

    function doReleaseMany(uint256 seed) external seeded(seed) {
        if (chance(4)) passBy(marketplace.challengeWindow(), 1);
        uint256[] memory jobIds = open;
        uint256 count = 0;
        for (uint256 i = 0; i < jobIds.length; i++) {
            if (isDue(jobIds[i])) count++;
        }
        bytes memory call = abi.encodeCall(marketplace.releasePayments, (jobIds));
        if (!attempt(stranger, address(marketplace), call, count != 0)) return;
        for (uint256 i = 0; i < jobIds.length; i++) {
            if (isDue(jobIds[i])) noteReleased(jobIds[i]);
        }
        if (count > 1) reach("released several at once");
    }

    /// Of several jobs, those that are late; and one that mostly is not, which is refused.
    function doExpire(uint256 seed) external seeded(seed) {
        uint256 jobId = find(POSTED | CLAIMED);
        if (jobId == 0) return;
        if (chance(12)) passUntil(jobs[jobId].deadline);
        expire(jobId);
        uint256[] memory jobIds = open;
        for (uint256 i = 0; i < jobIds.length; i++) {
            bool early = jobs[jobIds[i]].status < JobMarketplace.JobStatus.Completed;
            if (early && block.timestamp >= jobs[jobIds[i]].deadline) expire(jobIds[i]);
        }
    }

    function expire(uint256 jobId) private {
        Entry storage job = jobs[jobId];
        uint256 level = marketplace.breakerLevel();
        bytes memory call = abi.encodeCall(marketplace.expireJob, (jobId));
        if (!attempt(stranger, address(marketplace), call, block.timestamp >= job.deadline)) return;
        if (job.status == JobMarketplace.JobStatus.Claimed) noteMissed(jobId);
        else reach("expired unclaimed");
        noteRefunded(jobId);
        if (marketplace.breakerLevel() <= level) return;
        reach(marketplace.breakerLevel() == 1 ? "breaker at level 1" : "breaker at level 2");
    }

    /// A pause is waited out at times, for little happens meanwhile.
    function doWait(uint256 seed) external seeded(seed) {
        if (chance(3)) passUntil(marketplace.breaker().pausedUntil);
        bool far = chance(12);
        passBy(1 + draw(far ? 6 hours : 5 minutes), 1 + draw(far ? 400 : 20));
    }

    // Those with rights.

    function doDecide(uint256 seed) external seeded(seed) {
        uint256 jobId = find(DISPUTED);
        address judge = marketplace.arbiter();
        if (jobId == 0 || judge == address(0) || chance(4)) return;
        Entry storage job = jobs[jobId];
        bool favorClient = chance(2);
        bool challenged = job.challenger != address(0);
        bytes memory call = abi.encodeCall(marketplace.resolveDispute, (jobId, favorClient));
        attempt(judge, address(marketplace), call, true);
        if (favorClient) {
            noteScore(job.host, -100);
            noteConceded(jobId);
            noteRefunded(jobId);
            reach(challenged ? "challenge upheld" : "dispute upheld");
        } else {
            noteSettled(jobId, ProofSystem.Verdict.Rejected);
            notePaid(jobId);
            reach(challenged ? "challenge rejected" : "dispute rejected");
        }
    }

    /// A guardian pauses, or the owner does one of the things it may.
    function doGovern(uint256 seed) external seeded(seed) {
        uint256 kind = draw(18);
        if (kind == 0) {
            address who = guardians[draw(2)];
            bool may = marketplace.isGuardian(who) && block.timestamp >= marketplace.breaker().pauseAllowedFrom;
            if (attempt(who, address(marketplace), abi.encodeCall(marketplace.pause, ("text")), may)) reach("paused");
        } else if (kind < 6) {
            governRegistry(kind - 1);
        } else if (kind < 9) {
            governMarketplace(kind - 6);
        } else if (kind < 12) {
            governBreaker(kind - 9);
        } else {
            governOthers(kind - 12);
        }
        configured = config();
    }

    function governRegistry(uint256 kind) private {
        if (kind < 3) {
            address who = someone();
            uint256 free = stakes[who] - openJobs[who] * registry.JOB_STAKE();
            uint256 amount = chance(6) ? free : chance(3) ? free + 1 + draw(10e18) : 1 + draw(60e18);
            bytes memory call = abi.encodeCall(registry.slash, (who, amount, "text"));
            if (!attempt(registry.owner(), address(registry), call, amount != 0 && amount <= free)) return;
            stakes[who] -= amount;
            moveFab(address(registry), treasury, amount);
            reach("slashed");
        } else if (kind == 3) {
            bytes memory call = abi.encodeCall(registry.setRegistrationsPerWindow, (uint32(1 + draw(5))));
            attempt(registry.owner(), address(registry), call, true);
        } else if (mayRetire()) {
            bool may = address(registry.successor()) == address(0);
            if (attempt(registry.owner(), address(registry), abi.encodeCall(registry.retire, (next)), may)) {
                reach("registry retired");
            }
        }
    }

    function governMarketplace(uint256 kind) private {
        address by = marketplace.owner();
        if (kind == 0) {
            bool allowed = !chance(4);
            attempt(by, address(marketplace), abi.encodeCall(marketplace.allowToken, (address(usd), allowed)), true);
            if (!allowed) reach("token no longer allowed");
        } else if (kind == 1) {
            address judge = chance(8) ? address(0) : arbiters[draw(2)];
            attempt(by, address(marketplace), abi.encodeCall(marketplace.setArbiter, (judge)), true);
        } else if (mayRetire()) {
            bool may = marketplace.successor() == address(0);
            bytes memory call = abi.encodeCall(marketplace.retire, (address(verifier)));
            if (attempt(by, address(marketplace), call, may)) reach("marketplace retired");
        }
    }

    function governBreaker(uint256 kind) private {
        bytes memory call;
        if (kind == 0 || marketplace.breakerLevel() == 2) {
            call = abi.encodeCall(marketplace.unpause, ());
            if (marketplace.breakerLevel() != 0) reach("unpaused");
        } else if (kind == 1) {
            call = abi.encodeCall(marketplace.setGuardian, (guardians[draw(2)], !chance(4)));
        } else {
            uint32 first = uint32(1 + draw(3));
            call = abi.encodeCall(marketplace.setBreakerThresholds, (first, first + uint32(draw(4))));
        }
        attempt(marketplace.owner(), address(marketplace), call, true);
    }

    function governOthers(uint256 kind) private {
        if (kind == 0) {
            bytes memory call = abi.encodeCall(escrow.setFee, (uint16(draw(1001))));
            attempt(escrow.owner(), address(escrow), call, true);
        } else if (kind == 1) {
            uint96 bond = chance(8) ? 0 : uint96(1 + draw(200e18));
            attempt(
                proofSystem.owner(), address(proofSystem), abi.encodeCall(proofSystem.setChallengeBond, (bond)), true
            );
        } else if (kind == 2) {
            address who = someone();
            uint256 amount = 1 + draw(300);
            bytes memory call = abi.encodeCall(reputation.slash, (who, amount, "text"));
            attempt(reputation.owner(), address(reputation), call, true);
            noteScore(who, -int256(amount));
            reach("reputation slashed");
        } else if (kind == 3) {
            bytes memory call = abi.encodeCall(reputation.setIncentiveThreshold, (draw(1001)));
            attempt(reputation.owner(), address(reputation), call, true);
        } else if (kind == 4) {
            bytes32 id = chance(2) ? CIRCUIT : CIRCUIT2;
            ProofSystem.Circuit memory circuit_ = proofSystem.circuitOf(id);
            circuit_.active = !chance(4);
            bytes memory call = abi.encodeCall(proofSystem.registerCircuit, (id, circuit_));
            attempt(proofSystem.owner(), address(proofSystem), call, true);
            if (!circuit_.active) reach("circuit switched off");
        } else {
            NodeRegistry any = NodeRegistry(suite[draw(suite.length)]);
            address to = owners[draw(2)];
            attempt(any.owner(), address(any), abi.encodeCall(any.transferOwnership, (to)), true);
            reach("ownership handed on");
        }
    }

    // And those without.

    /// Calls what the caller has no right to, several times, and ends what has ended; which must fail.
    function doSteal(uint256 seed) external seeded(seed) {
        for (uint256 n = 0; n < 4; n++) {
            if (trySteal()) reach("theft refused");
        }
        endTwice();
    }

    /// Ends every job, the way its state allows, with no help from its renter, its host or an arbiter; with everything
    /// retired and paused, if `worst`. Then every host leaves with its stake and every payee with its credit.
    function endAll(bool worst) external {
        vm.prank(marketplace.owner());
        marketplace.setArbiter(address(0));
        passBy(60 days, 1);
        if (worst) stopAll();
        for (uint256 jobId = 1; jobId <= jobCount; jobId++) {
            JobMarketplace.JobStatus status = jobs[jobId].status;
            if (status == JobMarketplace.JobStatus.Released || status == JobMarketplace.JobStatus.Refunded) continue;
            vm.prank(stranger);
            if (status < JobMarketplace.JobStatus.Completed) {
                marketplace.expireJob(jobId);
                if (status == JobMarketplace.JobStatus.Claimed) noteMissed(jobId);
                noteRefunded(jobId);
            } else {
                marketplace.releasePayment(jobId);
                noteReleased(jobId);
            }
        }
        configured = config();
        recount();
        check();
        vm.assertEq(open.length, 0, "every job has ended");
        leaveAll(registry);
        leaveAll(next);
        withdrawAll();
        vm.assertEq(fab.balanceOf(address(proofSystem)), 0, "no bond is left");
        vm.assertEq(address(escrow).balance, 0, "no ETH is left");
        vm.assertEq(usd.balanceOf(address(escrow)), 0, "no USD is left");
    }

    function stopAll() private {
        vm.startPrank(marketplace.owner());
        marketplace.setGuardian(guardian, true);
        if (marketplace.successor() == address(0)) marketplace.retire(address(verifier));
        vm.stopPrank();
        vm.prank(guardian);
        marketplace.pause("the end");
        vm.assertEq(marketplace.breakerLevel(), 2, "nothing goes on");
        if (address(registry.successor()) != address(0)) return;
        vm.prank(registry.owner());
        registry.retire(next);
    }

    function leaveAll(NodeRegistry from) private {
        for (uint256 a = 0; a < accounts.length; a++) {
            NodeRegistry.Node memory node = from.getNode(accounts[a]);
            if (node.controller == address(0) || node.unbondedAt != 0) continue;
            vm.prank(accounts[a]);
            from.startUnbonding();
        }
        passBy(from.UNBONDING_TIME(), 1);
        for (uint256 a = 0; a < accounts.length; a++) {
            NodeRegistry.Node memory node = from.getNode(accounts[a]);
            if (node.controller == address(0)) continue;
            uint256 before = fab.balanceOf(accounts[a]);
            vm.prank(accounts[a]);
            from.unregisterNode();
            vm.assertEq(fab.balanceOf(accounts[a]), before + node.stake, "the host has its stake");
        }
        vm.assertEq(fab.balanceOf(address(from)), 0, "no stake is left");
    }

    function withdrawAll() private {
        Picky(payable(accounts[0])).setWilling(true);
        Picky(payable(accounts[1])).setWilling(true);
        for (uint256 a = 0; a < accounts.length; a++) {
            if (escrow.credits(address(0), accounts[a]) == 0) continue;
            vm.prank(accounts[a]);
            escrow.withdraw(address(0), accounts[a]);
        }
    }
}
