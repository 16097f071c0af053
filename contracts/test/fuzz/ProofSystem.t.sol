// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Fuzz} from "../lib/Fuzz.sol";

contract ProofSystemFuzz is Fuzz {
    function testFuzz_registerCircuit_is_the_owners_for_shapes_in_range(
        address who,
        bool byOwner,
        bytes32 id,
        uint16[3] memory shape,
        bool active,
        bytes32 manifest,
        uint8 wrong
    ) public {
        who = oneOr(owner, who, byOwner);
        vm.assume(id != CIRCUIT);
        ProofSystem.Circuit memory c = circuit();
        c.jobs = uint16(bound(shape[0], 0, 66));
        c.spots = uint16(bound(shape[1], 0, 66));
        c.candidates = shape[2];
        (c.active, c.manifest) = (active, manifest);
        if (wrong % 4 == 0) c.codehash = manifest;
        if (wrong % 4 == 1) c.verifier = account(who);
        bool fits = byOwner && wrong % 4 > 1 && c.jobs != 0 && c.spots != 0 && uint256(c.jobs) * c.spots <= 64
            && c.candidates != 0;
        same(tries(who, address(proofSystem), abi.encodeCall(proofSystem.registerCircuit, (id, c))), fits);
        ProofSystem.Circuit memory none;
        vm.assertEq(abi.encode(proofSystem.circuitOf(id)), abi.encode(fits ? c : none));
    }

    function testFuzz_commitResult_is_the_hosts_once_in_time_for_the_jobs_token_count(
        address who,
        bool byHost,
        uint8 status,
        uint32 nTokens,
        uint32 later,
        bytes32[3] memory words
    ) public {
        who = oneOr(host, who, byHost);
        nTokens = uint32(bound(nTokens, 0, 101));
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        ProofSystem.Commitment memory before = proofSystem.commitmentOf(jobId);
        vm.warp(block.timestamp + bound(later, 0, 2 * TIME));
        bool fits = who == host && job.status == JobMarketplace.JobStatus.Claimed && nTokens != 0 && nTokens <= 100
            && block.timestamp < job.deadline;
        bytes memory data = abi.encodeCall(proofSystem.commitResult, (jobId, words[0], nTokens, words[1], words[2]));
        same(tries(who, address(proofSystem), data), fits);
        ProofSystem.Commitment memory after_ = proofSystem.commitmentOf(jobId);
        if (!fits) {
            vm.assertEq(abi.encode(after_), abi.encode(before));
            return;
        }
        vm.assertEq(
            abi.encode(after_),
            abi.encode(ProofSystem.Commitment(words[0], words[1], words[2], uint64(block.number), nTokens, false))
        );
        same(tries(who, address(proofSystem), data), false);
    }

    function testFuzz_commitExactly_is_a_commitment_for_the_order_that_it_names(
        address who,
        bool byHost,
        uint8 status,
        uint32 nTokens,
        uint32 seed,
        bool right
    ) public {
        who = oneOr(host, who, byHost);
        nTokens = uint32(bound(nTokens, 0, 101));
        uint256 jobId = inState(anyStatus(status));
        bool claimed = marketplace.getJob(jobId).status == JobMarketplace.JobStatus.Claimed;
        bytes memory before = abi.encode(proofSystem.commitmentOf(jobId));
        JobMarketplace.JobDetails memory d = details();
        if (!right) d.seed = seed;
        bool fits = who == host && claimed && nTokens != 0 && nTokens <= 100 && d.seed == details().seed;
        bytes memory data =
            abi.encodeCall(proofSystem.commitExactly, (jobId, order(d), "root", nTokens, "result", "tokens"));
        same(tries(who, address(proofSystem), data), fits);
        ProofSystem.Commitment memory made =
            ProofSystem.Commitment("root", "result", "tokens", uint64(block.number), nTokens, false);
        vm.assertEq(abi.encode(proofSystem.commitmentOf(jobId)), fits ? abi.encode(made) : before);
    }

    function testFuzz_pinBeacon_is_anybodys_once_while_the_chain_knows_the_block(address who, uint16 blocks) public {
        uint256 jobId = committed(); // two blocks ago
        uint256 beaconBlock = proofSystem.commitmentOf(jobId).atBlock + 1;
        vm.roll(beaconBlock + bound(blocks, 0, 300));
        bool fits = block.number > beaconBlock && block.number <= beaconBlock + 256;
        bytes32 hash = blockhash(beaconBlock);
        bytes memory data = abi.encodeCall(proofSystem.pinBeacon, (jobId));
        same(tries(account(who), address(proofSystem), data), fits);
        vm.assertEq(proofSystem.pinnedBeacon(jobId), fits ? hash : bytes32(0));
        same(hash != 0, fits);
        if (fits) same(tries(account(who), address(proofSystem), data), false);
    }

    function testFuzz_submit_is_the_marketplaces_for_an_unbroken_proof(
        address who,
        bool byMarketplace,
        uint16 byte_,
        bytes1 flip
    ) public {
        who = byMarketplace ? address(marketplace) : account(who);
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        bytes memory words = abi.encode(s.instances);
        // Not the array's head, nor the two unused digests.
        uint256 at_ = bound(byte_, 64 + 64, words.length - 1);
        words[at_] ^= flip;
        s.instances = abi.decode(words, (uint256[]));
        bool fits = byMarketplace && flip == 0;
        bytes memory data = abi.encodeCall(proofSystem.submit, (single(jobId), encode(s)));
        same(tries(who, address(proofSystem), data), fits);
        same(proofSystem.commitmentOf(jobId).proven, fits);
    }

    function testFuzz_discard_is_the_marketplaces(address who, bool byMarketplace, bool hasOne) public {
        who = byMarketplace ? address(marketplace) : account(who);
        uint256 jobId = hasOne ? committed() : post();
        if (hasOne) proofSystem.pinBeacon(jobId);
        same(tries(who, address(proofSystem), abi.encodeCall(proofSystem.discard, (jobId))), byMarketplace);
        bool stays = hasOne && !byMarketplace;
        same(proofSystem.commitmentOf(jobId).nTokens != 0, stays);
        same(proofSystem.pinnedBeacon(jobId) != 0, stays);
    }

    function testFuzz_challenge_is_anybodys_with_the_bond_within_the_window(
        address who,
        uint8 status,
        uint96 bond,
        uint96 balance,
        uint32 later
    ) public {
        who = account(who);
        bond = uint96(bound(bond, 0, 1e24));
        uint256 has = bound(balance, 0, 1e24);
        vm.prank(owner);
        proofSystem.setChallengeBond(bond);
        uint256 jobId = inState(anyStatus(status));
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        fab.transfer(who, has);
        vm.prank(who);
        fab.approve(address(proofSystem), has);
        vm.warp(block.timestamp + bound(later, 0, 2 * WINDOW));
        bool fits = job.status == JobMarketplace.JobStatus.Completed && block.timestamp < job.releaseAt && has >= bond;
        bytes memory data = abi.encodeCall(proofSystem.challenge, (jobId, "evidence"));
        same(tries(who, address(proofSystem), data), fits);
        vm.assertEq(fab.balanceOf(who), fits ? has - bond : has);
        vm.assertEq(fab.balanceOf(address(proofSystem)), fits ? bond : 0);
        vm.assertEq(proofSystem.challengeOf(jobId).challenger, fits ? who : address(0));
    }

    function testFuzz_settle_is_the_marketplaces_and_pays_the_bond_out_once(
        address who,
        bool byMarketplace,
        uint8 verdict,
        uint96 bond
    ) public {
        who = byMarketplace ? address(marketplace) : account(who);
        ProofSystem.Verdict v = ProofSystem.Verdict(verdict % 3);
        bond = uint96(bound(bond, 0, 1e24));
        vm.prank(owner);
        proofSystem.setChallengeBond(bond);
        uint256 jobId = completed();
        challenge(stranger, jobId);
        bytes memory data = abi.encodeCall(proofSystem.settle, (jobId, v, host));
        same(tries(who, address(proofSystem), data), byMarketplace);
        same(tries(who, address(proofSystem), data), byMarketplace); // nothing is left to settle
        bool rejected = v == ProofSystem.Verdict.Rejected;
        vm.assertEq(fab.balanceOf(address(proofSystem)), byMarketplace ? 0 : bond);
        vm.assertEq(fab.balanceOf(stranger), byMarketplace && !rejected ? bond : 0);
        vm.assertEq(fab.balanceOf(host), byMarketplace && rejected ? bond / 2 : 0);
        vm.assertEq(fab.balanceOf(treasury), byMarketplace && rejected ? bond - bond / 2 : 0);
    }

    function testFuzz_setChallengeBond_is_the_owners(address who, bool byOwner, uint96 bond) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(proofSystem), abi.encodeCall(proofSystem.setChallengeBond, (bond))), byOwner);
        vm.assertEq(proofSystem.challengeBond(), byOwner ? bond : 100e18);
    }

    function testFuzz_transferOwnership_is_the_owners(address who, bool byOwner, address next) public {
        who = oneOr(owner, who, byOwner);
        next = account(next);
        same(tries(who, address(proofSystem), abi.encodeCall(proofSystem.transferOwnership, (next))), byOwner);
        vm.assertEq(proofSystem.owner(), byOwner ? next : owner);
    }

    function testFuzz_renounceOwnership_is_the_owners(address who, bool byOwner) public {
        who = oneOr(owner, who, byOwner);
        same(tries(who, address(proofSystem), abi.encodeCall(proofSystem.renounceOwnership, ())), byOwner);
        vm.assertEq(proofSystem.owner(), byOwner ? address(0) : owner);
    }
}
