// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {ProofSystem} from "../src/ProofSystem.sol";
import {TestVerifier} from "./lib/TestVerifier.sol";
import {Vm} from "./lib/Vm.sol";
import {World} from "./lib/World.sol";

/// Proofs of several jobs at once: every word of the statement is the chain's, or is refused with the job it is wrong for.
contract BatchProofsTest is World {
    bytes32 private constant BATCH = keccak256("select-v1/J3S2K8");
    uint256 private constant JOBS = 3;
    uint256 private constant ALL = JOBS * SPOTS;

    function setUp() public override {
        super.setUp();
        ProofSystem.Circuit memory c = circuit();
        c.jobs = uint16(JOBS);
        vm.prank(owner);
        proofSystem.registerCircuit(BATCH, c);
    }

    /// Three committed jobs with one, five and eight tokens: paths of no, three and three siblings.
    function committedBatch() private returns (uint256[] memory jobIds) {
        jobIds = new uint256[](JOBS);
        uint32[3] memory tokens = [uint32(1), 5, 8];
        for (uint256 i = 0; i < JOBS; i++) {
            JobMarketplace.JobDetails memory d = details();
            d.seed = uint32(i);
            jobIds[i] = post(d, requirements());
            claim(jobIds[i]);
            commit(jobIds[i], tokens[i]);
        }
    }

    function cids(uint256 count) private pure returns (string[] memory all) {
        all = new string[](count);
        for (uint256 i = 0; i < count; i++) {
            all[i] = CID;
        }
    }

    function refuses(uint256[] memory jobIds, ProofSystem.Submission memory s, bytes memory refusal) private {
        vm.expectRevert(refusal);
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids(jobIds.length), encode(s));
    }

    function test_one_proof_completes_several_jobs_and_says_so_of_each() public {
        uint256[] memory jobIds = committedBatch();
        ProofSystem.Submission memory s = submission(jobIds, BATCH, SPOTS);
        vm.assertEq(s.instances.length, 2 + JOBS + 4 * ALL);
        vm.assertEq(s.paths.length, SPOTS * (0 + 3 + 3));
        bool[] memory results = new bool[](JOBS);
        for (uint256 i = 0; i < JOBS; i++) {
            results[i] = true;
            vm.expectEmit(address(proofSystem));
            emit ProofSystem.ProofSubmitted(jobIds[i], host, keccak256(encode(s)), block.timestamp);
            vm.expectEmit(address(proofSystem));
            emit ProofSystem.ProofVerified(jobIds[i], address(verifier), true);
        }
        vm.expectEmit(address(proofSystem));
        emit ProofSystem.BatchVerificationCompleted(jobIds, results, block.timestamp);
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids(JOBS), encode(s));
        for (uint256 i = 0; i < JOBS; i++) {
            vm.assertTrue(proofSystem.commitmentOf(jobIds[i]).proven);
            assertStatus(jobIds[i], JobMarketplace.JobStatus.Completed);
        }
        vm.assertEq(verifier.lastCall(), keccak256(abi.encode(s.proof, s.instances)));
    }

    function test_a_proof_of_one_job_is_no_batch_on_the_log() public {
        uint256 jobId = committed();
        vm.recordLogs();
        complete(jobId);
        bytes32 topic = ProofSystem.BatchVerificationCompleted.selector;
        Vm.Log[] memory logs = vm.getRecordedLogs();
        vm.assertTrue(logs.length > 0);
        for (uint256 i = 0; i < logs.length; i++) {
            vm.assertTrue(logs[i].topics[0] != topic);
        }
    }

    function test_the_statement_is_laid_out_job_after_job() public {
        uint256[] memory jobIds = committedBatch();
        ProofSystem.Submission memory s = submission(jobIds, BATCH, SPOTS);
        for (uint256 i = 0; i < JOBS; i++) {
            vm.assertEq(s.instances[2 + ALL + i], proofSystem.contextOf(jobIds[i], BATCH));
            uint256 position = proofSystem.positionOf(jobIds[i], 1);
            vm.assertEq(s.instances[2 + i * SPOTS + 1], uint256(digest(position)));
            vm.assertEq(s.instances[2 + ALL + JOBS + i * SPOTS + 1], proofSystem.drawOf(jobIds[i], position));
        }
        vm.prank(host);
        marketplace.completeJobs(jobIds, cids(JOBS), encode(s));
    }

    function testFuzz_each_wrong_word_is_refused_with_its_job(uint256 which, uint256 value) public {
        uint256[] memory jobIds = committedBatch();
        ProofSystem.Submission memory s = submission(jobIds, BATCH, SPOTS);
        which = bound(which, 2, s.instances.length - 1);
        uint256 right = s.instances[which];
        vm.assume(value != right);
        s.instances[which] = value;
        refuses(jobIds, s, refusalOf(jobIds, s, which, right));
    }

    /// The refusal of a statement whose word `which` is not `right`.
    function refusalOf(uint256[] memory jobIds, ProofSystem.Submission memory s, uint256 which, uint256 right)
        private
        view
        returns (bytes memory)
    {
        uint256 value = s.instances[which];
        if (which < 2 + ALL) {
            (uint256 job, uint256 spot) = ((which - 2) / SPOTS, (which - 2) % SPOTS);
            return abi.encodeWithSelector(
                ProofSystem.RootMismatch.selector,
                jobIds[job],
                spot,
                climb(jobIds[job], spot, bytes32(value)),
                proofSystem.commitmentOf(jobIds[job]).root
            );
        }
        if (which < 2 + ALL + JOBS) {
            uint256 jobId = jobIds[which - 2 - ALL];
            return abi.encodeWithSelector(ProofSystem.ContextMismatch.selector, jobId, value, right);
        }
        if (which < 2 + 2 * ALL + JOBS) {
            uint256 place = which - 2 - ALL - JOBS;
            return abi.encodeWithSelector(
                ProofSystem.DrawMismatch.selector, jobIds[place / SPOTS], place % SPOTS, value, right
            );
        }
        return abi.encodeWithSelector(ProofSystem.RuleViolated.selector, which, value);
    }

    /// The root above a record with `wrong` digest at the position of a job's spot.
    function climb(uint256 jobId, uint256 spot, bytes32 wrong) private view returns (bytes32 hash) {
        uint256 position = proofSystem.positionOf(jobId, spot);
        bytes32[] memory path = pathOf(jobId, position);
        hash = keccak256(abi.encodePacked(bytes1(0), uint32(position), wrong));
        for (uint256 level = 0; level < path.length; level++) {
            hash = (position >> level) % 2 == 0
                ? keccak256(abi.encodePacked(bytes1(0x01), hash, path[level]))
                : keccak256(abi.encodePacked(bytes1(0x01), path[level], hash));
        }
    }

    function testFuzz_each_wrong_sibling_is_refused_with_its_job(uint256 which, bytes32 value) public {
        uint256[] memory jobIds = committedBatch();
        ProofSystem.Submission memory s = submission(jobIds, BATCH, SPOTS);
        which = bound(which, 0, s.paths.length - 1);
        vm.assume(value != s.paths[which]);
        s.paths[which] = value;
        // The first job has none: its only record is the root.
        (uint256 jobId, uint256 spot, uint256 level) = (jobIds[1 + which / (3 * SPOTS)], which / 3 % SPOTS, which % 3);
        uint256 position = proofSystem.positionOf(jobId, spot);
        bytes32 hash = node(proofSystem.commitmentOf(jobId).nTokens, level, position >> level);
        bytes32[] memory path = pathOf(jobId, position);
        path[level] = value;
        for (; level < 3; level++) {
            hash = (position >> level) % 2 == 0
                ? keccak256(abi.encodePacked(bytes1(0x01), hash, path[level]))
                : keccak256(abi.encodePacked(bytes1(0x01), path[level], hash));
        }
        bytes32 root = proofSystem.commitmentOf(jobId).root;
        refuses(jobIds, s, abi.encodeWithSelector(ProofSystem.RootMismatch.selector, jobId, spot, hash, root));
    }

    function test_the_paths_of_all_jobs_are_counted() public {
        uint256[] memory jobIds = committedBatch();
        ProofSystem.Submission memory s = submission(jobIds, BATCH, SPOTS);
        bytes32[] memory paths = s.paths;
        s.paths = new bytes32[](5);
        refuses(jobIds, s, abi.encodeWithSelector(ProofSystem.PathCountMismatch.selector, 5, 6));
        s.paths = append(paths, new bytes32[](1));
        refuses(jobIds, s, abi.encodeWithSelector(ProofSystem.PathCountMismatch.selector, 13, 12));
    }

    function test_the_jobs_are_in_the_proofs_order() public {
        uint256[] memory jobIds = committedBatch();
        ProofSystem.Submission memory s = submission(jobIds, BATCH, SPOTS);
        uint256 given = s.instances[2 + ALL];
        (jobIds[0], jobIds[1]) = (jobIds[1], jobIds[0]);
        uint256 need = proofSystem.contextOf(jobIds[0], BATCH);
        refuses(jobIds, s, abi.encodeWithSelector(ProofSystem.ContextMismatch.selector, jobIds[0], given, need));
    }

    function test_a_circuit_proves_as_many_jobs_as_it_is_made_for() public {
        uint256[] memory jobIds = committedBatch();
        uint256[] memory two = new uint256[](2);
        (two[0], two[1]) = (jobIds[0], jobIds[1]);
        refuses(
            two, submission(two, BATCH, SPOTS), abi.encodeWithSelector(ProofSystem.JobCountMismatch.selector, 2, JOBS)
        );
        refuses(
            two, submission(two, CIRCUIT, SPOTS), abi.encodeWithSelector(ProofSystem.JobCountMismatch.selector, 2, 1)
        );
        refuses(
            new uint256[](0),
            submission(two, BATCH, SPOTS),
            abi.encodeWithSelector(ProofSystem.JobCountMismatch.selector, 0, JOBS)
        );
        bytes memory proof = encode(submission(jobIds, BATCH, SPOTS));
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.JobCountMismatch.selector, 1, JOBS));
        vm.prank(host);
        marketplace.completeJob(jobIds[0], CID, proof);
    }

    function test_a_job_proven_twice_in_one_proof_is_refused() public {
        uint256[] memory jobIds = committedBatch();
        jobIds[2] = jobIds[1];
        bytes memory proof = encode(submission(jobIds, BATCH, SPOTS));
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.AlreadyProven.selector, jobIds[1]));
        vm.prank(address(marketplace));
        proofSystem.submit(jobIds, proof);
    }

    function test_what_the_verifier_refuses_completes_no_job_of_the_batch() public {
        uint256[] memory jobIds = committedBatch();
        verifier.set(TestVerifier.Answer.Refuse);
        refuses(
            jobIds,
            submission(jobIds, BATCH, SPOTS),
            abi.encodeWithSelector(ProofSystem.ProofRejected.selector, address(verifier))
        );
        for (uint256 i = 0; i < JOBS; i++) {
            vm.assertFalse(proofSystem.commitmentOf(jobIds[i]).proven);
            assertStatus(jobIds[i], JobMarketplace.JobStatus.Claimed);
        }
    }

    function test_all_jobs_together_have_64_spots_at_most() public {
        ProofSystem.Circuit memory c = circuit();
        bytes32 id = keccak256("another");
        bytes4 jobs = ProofSystem.JobsOutOfRange.selector;
        bytes4 spots = ProofSystem.SpotsOutOfRange.selector;
        vm.startPrank(owner);
        c.jobs = 0;
        vm.expectRevert(abi.encodeWithSelector(jobs, 0, 1, 64));
        proofSystem.registerCircuit(id, c);
        c.jobs = 65;
        vm.expectRevert(abi.encodeWithSelector(jobs, 65, 1, 64));
        proofSystem.registerCircuit(id, c);
        (c.jobs, c.spots) = (3, 22);
        vm.expectRevert(abi.encodeWithSelector(spots, 22, 1, 21));
        proofSystem.registerCircuit(id, c);
        (c.jobs, c.spots) = (64, 1);
        proofSystem.registerCircuit(id, c);
        vm.assertEq(proofSystem.circuitOf(id).jobs, 64);
    }

    function test_only_the_marketplace_discards_and_nothing_is_left_to_discard_before_a_commitment() public {
        uint256 jobId = committed();
        vm.expectRevert(abi.encodeWithSelector(ProofSystem.OnlyMarketplace.selector, host));
        vm.prank(host);
        proofSystem.discard(jobId);
        uint256 bare = post();
        vm.recordLogs();
        vm.startPrank(address(marketplace));
        proofSystem.discard(bare);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        proofSystem.discard(jobId);
        vm.assertEq(vm.getRecordedLogs().length, 1);
        vm.assertEq(
            abi.encode(proofSystem.commitmentOf(jobId)), abi.encode(ProofSystem.Commitment(0, 0, 0, 0, 0, false))
        );
    }
}
