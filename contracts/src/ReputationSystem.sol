// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {JobMarketplace} from "./JobMarketplace.sol";

/// What a host's past says of it: a score from 0 to 1000 that starts at 500, moves with each job's outcome and its renter's
/// rating, and sinks back towards 500, but never below it, while nothing happens. Hosts can be ranked from the log alone: the
/// last `ReputationUpdated` of a host has the score of its moment, and `decayed` says what is left of it.
contract ReputationSystem is Ownable {
    /// How a claimed job ended. The numbers are on the wire.
    enum Outcome {
        /// The host was paid.
        Paid,
        /// The host gave the job back before its deadline.
        GivenUp,
        /// The deadline passed.
        Missed,
        /// The arbiter decided for the renter.
        DisputeLost
    }

    /// One slot. `updatedAt` is 0 for a host nothing is known of.
    struct Record {
        uint16 score;
        uint40 updatedAt;
    }

    uint256 public constant SCORE_START = 500;
    uint256 public constant SCORE_MAX = 1000;
    /// After this long without an event a score above the start loses `DECAY`, and again after as long.
    uint256 public constant DECAY_PERIOD = 7 days;
    uint256 public constant DECAY = 10;
    uint256 public constant FEEDBACK_MAX_BYTES = 256;
    uint256 public constant REASON_MAX_BYTES = 128;

    JobMarketplace public immutable marketplace;
    /// Where the scores of hosts that are not known here come from; 0 when there was no system before.
    ReputationSystem public immutable predecessor;

    /// Hosts with at least this score qualify for incentives.
    uint256 public incentiveThreshold;
    mapping(address host => Record) private _records;
    /// The rating of a job by its renter; 0 until there is one.
    mapping(uint256 jobId => uint8) public ratingOf;

    /// `newScore` is the score after `change`.
    event ReputationUpdated(address indexed host, int256 change, uint256 newScore);
    event QualityReported(address indexed host, address indexed renter, uint8 rating, string feedback);
    /// Follows every `QualityReported`.
    event JobRated(uint256 indexed jobId, uint8 rating);
    event ReputationSlashed(address indexed host, uint256 amount, string reason);
    event IncentiveThresholdChanged(uint256 threshold);

    error OnlyMarketplace(address caller);
    error NotRenter(uint256 jobId, address renter, address caller);
    error NotPaid(uint256 jobId, JobMarketplace.JobStatus status);
    error AlreadyRated(uint256 jobId, uint8 rating);
    error RatingOutOfRange(uint8 rating, uint8 min, uint8 max);
    error TextTooLong(uint256 length, uint256 max);
    error ScoreOutOfRange(uint256 amount, uint256 max);

    constructor(address owner, JobMarketplace marketplace_, ReputationSystem predecessor_) Ownable(owner) {
        marketplace = marketplace_;
        predecessor = predecessor_;
        _setThreshold(700);
    }

    /// @notice Called by the marketplace when a job that `host` claimed has ended for it.
    function jobEnded(address host, Outcome outcome) external {
        if (msg.sender != address(marketplace)) revert OnlyMarketplace(msg.sender);
        if (outcome == Outcome.Paid) _change(host, 10);
        else if (outcome == Outcome.GivenUp) _change(host, -20);
        else if (outcome == Outcome.Missed) _change(host, -50);
        else _change(host, -100);
    }

    /// @notice Rates the host of a job that the caller paid for, once: 1 (worst) to 5.
    /// @param feedback At most 256 bytes, kept in the log only.
    function rate(uint256 jobId, uint8 rating, string calldata feedback) external {
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        if (msg.sender != job.renter) revert NotRenter(jobId, job.renter, msg.sender);
        if (job.status != JobMarketplace.JobStatus.Released) revert NotPaid(jobId, job.status);
        if (ratingOf[jobId] != 0) revert AlreadyRated(jobId, ratingOf[jobId]);
        if (rating == 0 || rating > 5) revert RatingOutOfRange(rating, 1, 5);
        if (bytes(feedback).length > FEEDBACK_MAX_BYTES) {
            revert TextTooLong(bytes(feedback).length, FEEDBACK_MAX_BYTES);
        }
        ratingOf[jobId] = rating;
        emit QualityReported(job.host, msg.sender, rating, feedback);
        emit JobRated(jobId, rating);
        _change(job.host, (int256(uint256(rating)) - 3) * 4);
    }

    /// @notice Takes `amount` off a host's score.
    function slash(address host, uint256 amount, string calldata reason) external onlyOwner {
        if (bytes(reason).length > REASON_MAX_BYTES) revert TextTooLong(bytes(reason).length, REASON_MAX_BYTES);
        if (amount == 0 || amount > SCORE_MAX) revert ScoreOutOfRange(amount, SCORE_MAX);
        emit ReputationSlashed(host, amount, reason);
        _change(host, -int256(amount));
    }

    /// @notice Sets the score from which hosts qualify for incentives.
    function setIncentiveThreshold(uint256 threshold) external onlyOwner {
        _setThreshold(threshold);
    }

    /// @notice The score of `host` now.
    function scoreOf(address host) public view returns (uint256) {
        Record memory record = recordOf(host);
        return record.updatedAt == 0 ? SCORE_START : decayed(record.score, record.updatedAt, block.timestamp);
    }

    /// @notice Whether `host` qualifies for incentives now.
    function isIncentivized(address host) external view returns (bool) {
        return scoreOf(host) >= incentiveThreshold;
    }

    /// @notice The last score of `host` and when it was; `updatedAt` is 0 for a host nothing is known of.
    function recordOf(address host) public view returns (Record memory record) {
        record = _records[host];
        if (record.updatedAt == 0 && address(predecessor) != address(0)) return predecessor.recordOf(host);
    }

    /// @notice What is left at `time` of a score that was set at `updatedAt`.
    function decayed(uint256 score, uint256 updatedAt, uint256 time) public pure returns (uint256) {
        if (score <= SCORE_START) return score;
        // Whole periods count.
        // slither-disable-next-line divide-before-multiply
        uint256 loss = (time - updatedAt) / DECAY_PERIOD * DECAY;
        return score - SCORE_START <= loss ? SCORE_START : score - loss;
    }

    function _change(address host, int256 change) private {
        uint256 past = recordOf(host).score;
        uint256 score = scoreOf(host);
        if (past > score) emit ReputationUpdated(host, int256(score) - int256(past), score);
        int256 wanted = int256(score) + change;
        uint256 next = wanted < 0 ? 0 : wanted > int256(SCORE_MAX) ? SCORE_MAX : uint256(wanted);
        _records[host] = Record(uint16(next), uint40(block.timestamp));
        emit ReputationUpdated(host, int256(next) - int256(score), next);
    }

    function _setThreshold(uint256 threshold) private {
        if (threshold > SCORE_MAX) revert ScoreOutOfRange(threshold, SCORE_MAX);
        incentiveThreshold = threshold;
        emit IncentiveThresholdChanged(threshold);
    }
}
