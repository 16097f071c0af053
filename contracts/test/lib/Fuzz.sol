// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../../src/JobMarketplace.sol";
import {World} from "./World.sol";

/// What the tests in `test/fuzz` share. There each function that changes state has a test of its own, named after it: for
/// random callers, arguments and times it succeeds exactly when the rules let it, and then does what they say.
abstract contract Fuzz is World {
    /// An ordinary account.
    function account(address seed) internal view returns (address who) {
        // Below are precompiles and the world's own accounts.
        who = uint160(seed) < 1 << 20 ? address(uint160(seed) + (1 << 20)) : seed;
        vm.assume(who.code.length == 0 && who != address(marketplace));
    }

    /// `one`, or an ordinary account.
    function oneOr(address one, address seed, bool pick) internal view returns (address) {
        return pick ? one : account(seed);
    }

    /// Calls as `who`.
    function tries(address who, address to, bytes memory data) internal returns (bool ok) {
        return tries(who, to, 0, data);
    }

    function tries(address who, address to, uint256 value, bytes memory data) internal returns (bool ok) {
        vm.prank(who);
        (ok,) = to.call{value: value}(data);
    }

    /// A job in the given state: of ETH, claimed by the host where it was claimed.
    function inState(JobMarketplace.JobStatus status) internal returns (uint256 jobId) {
        jobId = post();
        if (status == JobMarketplace.JobStatus.Posted) return jobId;
        if (status == JobMarketplace.JobStatus.Refunded) {
            vm.prank(renter);
            marketplace.cancelJob(jobId);
            return jobId;
        }
        claim(jobId);
        if (status == JobMarketplace.JobStatus.Claimed) return jobId;
        commit(jobId, 5);
        complete(jobId);
        if (status == JobMarketplace.JobStatus.Released) release(jobId);
        if (status == JobMarketplace.JobStatus.Disputed) dispute(jobId);
    }

    function anyStatus(uint8 seed) internal pure returns (JobMarketplace.JobStatus) {
        return JobMarketplace.JobStatus(seed % 6);
    }

    function same(bool have, bool need) internal pure {
        vm.assertEq(have ? 1 : 0, need ? uint256(1) : 0);
    }
}
