// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {JobMarketplace} from "../src/JobMarketplace.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {TestVerifier} from "./lib/TestVerifier.sol";
import {World} from "./lib/World.sol";

contract ProofSystemTest is World {
    address private constant HISTORY = 0x0000F90827F1C53a10cb7A02335B175320002935;

    // Circuits.

    function test_registering_a_circuit_is_the_owners_and_logged_whole() public {
        bytes32 id = keccak256("another");
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, stranger));
        vm.prank(stranger);
        proofSystem.registerCircuit(id, circuit());
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.CircuitRegistered(id, circuit());
        vm.prank(owner);
        proofSystem.registerCircuit(id, circuit());
        vm.assertEq(abi.encode(proofSystem.circuitOf(id)), abi.encode(circuit()));
    }

    function refusesCircuit(bytes32 id, ProofSystem.Circuit memory c, bytes memory refusal) private {
        vm.expectRevert(refusal);
        vm.prank(owner);
        proofSystem.registerCircuit(id, c);
    }

    function test_a_circuit_is_checked() public {
        bytes32 id = keccak256("another");
        ProofSystem.Circuit memory c = circuit();
        c.verifier = stranger;
        refusesCircuit(id, c, abi.encodeWithSelector(ProofSystem.NoVerifierCode.selector, stranger));
        c = circuit();
        c.codehash = bytes32(uint256(1));
        bytes32 actual = address(verifier).codehash;
        refusesCircuit(id, c, abi.encodeWithSelector(ProofSystem.CodehashMismatch.selector, id, c.codehash, actual));
        c = circuit();
        c.spots = 0;
        refusesCircuit(id, c, abi.encodeWithSelector(ProofSystem.SpotsOutOfRange.selector, 0, 1, 64));
        c.spots = 65;
        refusesCircuit(id, c, abi.encodeWithSelector(ProofSystem.SpotsOutOfRange.selector, 65, 1, 64));
        c = circuit();
        c.candidates = 0;
        refusesCircuit(id, c, abi.encodeWithSelector(ProofSystem.CandidatesOutOfRange.selector, 0, 1, 65_535));
    }

    function test_a_circuits_id_fixes_it_but_it_can_be_switched_off() public {
        ProofSystem.Circuit memory c = circuit();
        c.manifest = 0;
        refusesCircuit(CIRCUIT, c, abi.encodeWithSelector(ProofSystem.CircuitFixed.selector, CIRCUIT));
        c = circuit();
        c.active = false;
        vm.prank(owner);
        proofSystem.registerCircuit(CIRCUIT, c);
        refuses(committed(), abi.encodeWithSelector(ProofSystem.CircuitNotActive.selector, CIRCUIT));
    }

    // Commitments.

    function test_a_commitment_is_stored_and_logged() public {
        uint256 jobId = post();
        claim(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ResultCommitted(jobId, host, bytes32("root"), 5, bytes32("result"), bytes32("tokens"));
        vm.prank(host);
        proofSystem.commitResult(jobId, "root", 5, "result", "tokens");
        ProofSystem.Commitment memory c = proofSystem.commitmentOf(jobId);
        vm.assertEq(
            abi.encode(c),
            abi.encode(ProofSystem.Commitment("root", "result", "tokens", uint64(block.number), 5, false))
        );
    }

    function test_only_a_claimed_job_gets_a_commitment() public {
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.NotClaimed.selector, jobId, JobMarketplace.JobStatus.Posted));
        vm.prank(host);
        proofSystem.commitResult(jobId, "root", 5, "result", "tokens");
    }

    function testFuzz_only_the_claimer_commits(address who) public {
        vm.assume(who != host);
        uint256 jobId = post();
        claim(jobId);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.NotHost.selector, jobId, host, who));
        vm.prank(who);
        proofSystem.commitResult(jobId, "root", 5, "result", "tokens");
    }

    /// Reorgs gave the number to another order and back: the claim of the one was mined before what the host had committed
    /// to for the other.
    function test_an_exact_commitment_is_to_a_result_of_the_order_it_names() public {
        uint256 jobId = post();
        claim(jobId);
        for (uint256 part = 0; part < 5; part++) {
            JobMarketplace.JobDetails memory other = details();
            if (part == 0) other.modelId = "sha256:other";
            if (part == 1) other.prompt = "blake3-other";
            if (part == 2) other.maxTokens++;
            if (part == 3) other.temperature++;
            if (part == 4) other.seed++;
            vm.expectRevert(abi.encodeWithSelector(ProofSystem.WrongOrder.selector, jobId, order(details())));
            vm.prank(host);
            proofSystem.commitExactly(jobId, order(other), "root", 5, "result", "tokens");
            vm.assertEq(proofSystem.commitmentOf(jobId).nTokens, 0);
        }
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ResultCommitted(jobId, host, bytes32("root"), 5, bytes32("result"), bytes32("tokens"));
        vm.prank(host);
        proofSystem.commitExactly(jobId, order(details()), "root", 5, "result", "tokens");
    }

    function test_a_commitment_comes_before_the_deadline() public {
        uint256 jobId = post();
        claim(jobId);
        uint256 deadline = marketplace.getJob(jobId).deadline;
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.DeadlinePassed.selector, jobId, deadline, deadline));
        vm.prank(host);
        proofSystem.commitResult(jobId, "root", 5, "result", "tokens");
    }

    function test_the_token_count_is_1_to_the_jobs_maximum() public {
        uint256 jobId = post();
        claim(jobId);
        vm.startPrank(host);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.TokenCountOutOfRange.selector, 0, 1, 100));
        proofSystem.commitResult(jobId, "root", 0, "result", "tokens");
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.TokenCountOutOfRange.selector, 101, 1, 100));
        proofSystem.commitResult(jobId, "root", 101, "result", "tokens");
        proofSystem.commitResult(jobId, "root", 100, "result", "tokens");
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.AlreadyCommitted.selector, jobId));
        proofSystem.commitResult(jobId, "root", 100, "result", "tokens");
    }

    // Beacon.

    function test_the_beacon_is_the_hash_of_the_block_after_the_commitment() public {
        uint256 jobId = committed();
        uint256 block_ = proofSystem.commitmentOf(jobId).atBlock;
        vm.assertEq(proofSystem.beaconOf(jobId), blockhash(block_ + 1));
        vm.roll(block_ + 1);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.BeaconNotReady.selector, jobId, block_ + 2, block_ + 1));
        proofSystem.beaconOf(jobId);
    }

    function test_no_beacon_without_a_commitment() public {
        uint256 jobId = post();
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.NotCommitted.selector, jobId));
        proofSystem.pinBeacon(jobId);
    }

    function test_a_pinned_beacon_outlives_the_chains_memory() public {
        uint256 jobId = committed();
        bytes32 beacon = proofSystem.beaconOf(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.BeaconPinned(jobId, beacon);
        vm.prank(stranger);
        proofSystem.pinBeacon(jobId);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.AlreadyPinned.selector, jobId));
        proofSystem.pinBeacon(jobId);
        pass(100_000);
        vm.assertEq(proofSystem.beaconOf(jobId), beacon);
        complete(jobId);
    }

    function test_a_beacon_that_the_chain_forgot_is_lost() public {
        uint256 jobId = committed();
        uint256 beaconBlock = proofSystem.commitmentOf(jobId).atBlock + 1;
        pass(300);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.BeaconLost.selector, jobId, beaconBlock, block.number));
        proofSystem.beaconOf(jobId);
    }

    function test_the_history_contract_is_asked_after_256_blocks() public {
        uint256 jobId = committed();
        pass(300);
        // Answers keccak256 of what it is asked: CALLDATASIZE, 0, 0, CALLDATACOPY, keccak256(0, 32), return it.
        vm.etch(HISTORY, hex"365f5f3760205f205f5260205ff3");
        bytes32 expected = keccak256(abi.encode(proofSystem.commitmentOf(jobId).atBlock + 1));
        vm.assertEq(proofSystem.beaconOf(jobId), expected);
    }

    // Views against their definitions.

    function testFuzz_positions_and_draws_follow_the_definition(uint32 seed, uint8 spot, uint32 position) public {
        JobMarketplace.JobDetails memory d = details();
        d.seed = seed;
        uint256 jobId = post(d, requirements());
        claim(jobId);
        commit(jobId, 7);
        bytes32 beacon = proofSystem.beaconOf(jobId);
        uint256 expected = uint256(keccak256(abi.encode(beacon, jobId, uint256(spot)))) % 7;
        vm.assertEq(proofSystem.positionOf(jobId, spot), expected);
        expected = uint256(keccak256(abi.encode(uint256(seed), jobId, uint256(position)))) & 4095;
        vm.assertEq(proofSystem.drawOf(jobId, position), expected);
    }

    function test_greedy_jobs_draw_zero() public {
        JobMarketplace.JobDetails memory d = details();
        d.temperature = 0;
        uint256 jobId = post(d, requirements());
        vm.assertEq(proofSystem.drawOf(jobId, 3), 0);
    }

    function test_the_context_is_the_hash_of_fifteen_words() public {
        uint256 jobId = committed();
        ProofSystem.Commitment memory c = proofSystem.commitmentOf(jobId);
        bytes32[15] memory words = [
            keccak256("fabstir.select-v1"),
            bytes32(block.chainid),
            bytes32(uint256(uint160(address(proofSystem)))),
            CIRCUIT,
            bytes32(jobId),
            bytes32(uint256(uint160(host))),
            keccak256(bytes(details().modelId)),
            keccak256(bytes(details().prompt)),
            bytes32(uint256(details().seed)),
            bytes32(details().temperature),
            bytes32(details().maxTokens),
            c.root,
            bytes32(uint256(c.nTokens)),
            c.resultHash,
            c.tokensDigest
        ];
        vm.assertEq(proofSystem.contextOf(jobId, CIRCUIT), uint256(keccak256(abi.encode(words))) % R);
    }

    // Proofs.

    function refuses(uint256 jobId, bytes memory refusal) private {
        refuses(jobId, submission(jobId), refusal);
    }

    function refuses(uint256 jobId, ProofSystem.Submission memory s, bytes memory refusal) private {
        vm.expectRevert(refusal);
        vm.prank(host);
        marketplace.completeJob(jobId, CID, encode(s));
    }

    function testFuzz_an_honest_proof_is_accepted_and_logged(uint32 nTokens) public {
        nTokens = uint32(bound(nTokens, 1, 40));
        uint256 jobId = post();
        claim(jobId);
        commit(jobId, nTokens);
        ProofSystem.Submission memory s = submission(jobId);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ProofSubmitted(jobId, host, keccak256(encode(s)), block.timestamp);
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.ProofVerified(jobId, address(verifier), true);
        complete(jobId);
        vm.assertTrue(proofSystem.commitmentOf(jobId).proven);
        vm.assertEq(verifier.lastCall(), keccak256(abi.encode(s.proof, s.instances)));
    }

    function test_only_the_marketplace_submits() public {
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.OnlyMarketplace.selector, host));
        vm.prank(host);
        proofSystem.submit(single(jobId), proof);
    }

    function testFuzz_bytes_that_are_no_proof_are_refused(bytes calldata junk) public {
        vm.assume(junk.length > 0);
        uint256 jobId = committed();
        try proofSystem.decodeProof(junk) {
            return;
        } catch {}
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.MalformedProof.selector, junk.length));
        vm.prank(host);
        marketplace.completeJob(jobId, CID, junk);
    }

    function test_an_unknown_circuit_is_refused() public {
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        s.circuitId = "other";
        refuses(jobId, s, abi.encodeWithSelector(ProofSystem.CircuitNotActive.selector, bytes32("other")));
    }

    function test_the_instances_are_counted() public {
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        s.instances = new uint256[](12);
        refuses(jobId, s, abi.encodeWithSelector(ProofSystem.InstanceCountMismatch.selector, 12, 11));
    }

    function test_the_paths_are_counted() public {
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        s.paths = new bytes32[](5);
        refuses(jobId, s, abi.encodeWithSelector(ProofSystem.PathCountMismatch.selector, 5, 6));
    }

    function testFuzz_an_error_output_that_is_not_zero_is_refused(uint256 which, uint256 value) public {
        which = bound(which, 3 + 2 * SPOTS, 2 + 4 * SPOTS);
        vm.assume(value != 0);
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        s.instances[which] = value;
        refuses(jobId, s, abi.encodeWithSelector(ProofSystem.RuleViolated.selector, which, value));
    }

    function test_a_proven_job_is_not_proven_again() public {
        uint256 jobId = completed();
        bytes memory proof = prove(jobId);
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.AlreadyProven.selector, jobId));
        vm.prank(address(marketplace));
        proofSystem.submit(single(jobId), proof);
    }

    function test_a_proof_needs_a_commitment() public {
        uint256 jobId = committed();
        bytes memory proof = prove(jobId);
        uint256 other = post();
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.NotCommitted.selector, other));
        vm.prank(address(marketplace));
        proofSystem.submit(single(other), proof);
    }

    function testFuzz_another_context_is_refused(uint256 other) public {
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        uint256 context = s.instances[2 + SPOTS];
        vm.assume(other != context);
        s.instances[2 + SPOTS] = other;
        refuses(jobId, s, abi.encodeWithSelector(ProofSystem.ContextMismatch.selector, jobId, other, context));
    }

    function test_a_proof_of_another_job_is_refused() public {
        uint256 first = committed();
        uint256 second = committed();
        uint256 given = proofSystem.contextOf(first, CIRCUIT);
        uint256 need = proofSystem.contextOf(second, CIRCUIT);
        refuses(
            second, submission(first), abi.encodeWithSelector(ProofSystem.ContextMismatch.selector, second, given, need)
        );
    }

    function test_another_draw_is_refused() public {
        uint256 jobId = committed();
        ProofSystem.Submission memory s = submission(jobId);
        uint256 draw = s.instances[4 + SPOTS];
        s.instances[4 + SPOTS] = draw ^ 1;
        refuses(jobId, s, abi.encodeWithSelector(ProofSystem.DrawMismatch.selector, jobId, 1, draw ^ 1, draw));
    }

    function test_another_record_or_path_is_refused() public {
        uint256 jobId = committed();
        bytes32 root = proofSystem.commitmentOf(jobId).root;
        uint256 position = proofSystem.positionOf(jobId, 0);
        ProofSystem.Submission memory s = submission(jobId);
        bytes32 leaf = keccak256(abi.encodePacked(bytes1(0), uint32(position), digest(position + 1)));
        s.instances[2] = uint256(digest(position + 1));
        refuses(
            jobId,
            s,
            abi.encodeWithSelector(ProofSystem.RootMismatch.selector, jobId, 0, climb(leaf, position, s), root)
        );
        s = submission(jobId);
        s.paths[1] ^= bytes32(uint256(1));
        leaf = keccak256(abi.encodePacked(bytes1(0), uint32(position), digest(position)));
        refuses(
            jobId,
            s,
            abi.encodeWithSelector(ProofSystem.RootMismatch.selector, jobId, 0, climb(leaf, position, s), root)
        );
    }

    function test_what_the_verifier_refuses_is_refused() public {
        uint256 jobId = committed();
        bytes memory refusal = abi.encodeWithSelector(ProofSystem.ProofRejected.selector, address(verifier));
        verifier.set(TestVerifier.Answer.Refuse);
        refuses(jobId, refusal);
        verifier.set(TestVerifier.Answer.Revert);
        refuses(jobId, refusal);
        vm.assertFalse(proofSystem.commitmentOf(jobId).proven);
        verifier.set(TestVerifier.Answer.Accept);
        complete(jobId);
    }

    function test_a_proof_that_is_not_required_must_hold_all_the_same() public {
        JobMarketplace.JobRequirements memory r = requirements();
        r.requiresProof = false;
        uint256 jobId = post(details(), r);
        claim(jobId);
        commit(jobId, 5);
        verifier.set(TestVerifier.Answer.Refuse);
        refuses(jobId, abi.encodeWithSelector(ProofSystem.ProofRejected.selector, address(verifier)));
    }

    /// The root above `leaf` by the first spot's path.
    function climb(bytes32 hash, uint256 position, ProofSystem.Submission memory s) private pure returns (bytes32) {
        for (uint256 level = 0; level < s.paths.length / SPOTS; level++) {
            (bytes32 left, bytes32 right) =
                (position >> level) % 2 == 0 ? (hash, s.paths[level]) : (s.paths[level], hash);
            hash = keccak256(abi.encodePacked(bytes1(0x01), left, right));
        }
        return hash;
    }
}
