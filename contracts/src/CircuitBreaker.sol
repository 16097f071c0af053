// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";

/// Stops new risk and nothing else: whatever the level, claimed jobs can be completed, and every job can end.
///
///     level 0  everything goes on
///     level 1  no new jobs are posted
///     level 2  and none are claimed
///
/// The level rises by itself when most of the jobs that ended in the last hour were missed, and falls by itself an hour
/// later. A guardian can raise it to 2 for three days, and no guardian again before two weeks have passed since; the owner
/// can lower it. Nobody can do anything else with it.
abstract contract CircuitBreaker is Ownable {
    /// One slot.
    struct Breaker {
        uint40 windowStart;
        /// Jobs that were paid or missed since then.
        uint32 ended;
        uint32 missed;
        /// The level that missed jobs raised, and until when it holds.
        uint8 level;
        uint40 levelUntil;
        uint40 pausedUntil;
        /// From when a guardian may pause again.
        uint40 pauseAllowedFrom;
    }

    uint256 public constant BREAKER_WINDOW = 1 hours;
    uint256 public constant PAUSE_TIME = 3 days;
    uint256 public constant PAUSE_COOLDOWN = 14 days;
    uint256 private constant REASON_BYTES_MAX = 128;

    Breaker private _breaker;
    /// Missed jobs in a window that raise the level to 1 and to 2, if they are at least half of the jobs that ended.
    uint32 public missesForLevel1;
    uint32 public missesForLevel2;
    mapping(address account => bool) public isGuardian;

    event EmergencyPause(address by, string reason);
    event EmergencyUnpause(address by);
    event CircuitBreakerTriggered(string reason, uint256 level);
    event GuardianSet(address indexed guardian, bool allowed);
    event BreakerThresholdsChanged(uint32 missesForLevel1, uint32 missesForLevel2);

    error NotGuardian(address caller);
    error PauseTooSoon(uint256 allowedFrom, uint256 time);
    error PauseReasonTooLong(uint256 length, uint256 max);
    error ThresholdsOutOfOrder(uint256 missesForLevel1, uint256 missesForLevel2);
    error Stopped(uint256 level);

    constructor() {
        _setThresholds(10, 30);
    }

    /// @notice Raises the level to 2 for three days.
    function pause(string calldata reason) external {
        if (!isGuardian[msg.sender]) revert NotGuardian(msg.sender);
        if (bytes(reason).length > REASON_BYTES_MAX) revert PauseReasonTooLong(bytes(reason).length, REASON_BYTES_MAX);
        Breaker storage breaker_ = _breaker;
        if (block.timestamp < breaker_.pauseAllowedFrom) {
            revert PauseTooSoon(breaker_.pauseAllowedFrom, block.timestamp);
        }
        breaker_.pausedUntil = uint40(block.timestamp + PAUSE_TIME);
        breaker_.pauseAllowedFrom = uint40(block.timestamp + PAUSE_TIME + PAUSE_COOLDOWN);
        emit EmergencyPause(msg.sender, reason);
        emit CircuitBreakerTriggered(reason, 2);
    }

    /// @notice Lowers the level to 0, whoever raised it, and forgets the jobs that were missed.
    function unpause() external onlyOwner {
        uint40 pauseAllowedFrom = _breaker.pauseAllowedFrom;
        delete _breaker;
        _breaker.pauseAllowedFrom = pauseAllowedFrom;
        emit EmergencyUnpause(msg.sender);
    }

    /// @notice Makes `guardian` one that may pause, or no longer.
    function setGuardian(address guardian, bool allowed) external onlyOwner {
        isGuardian[guardian] = allowed;
        emit GuardianSet(guardian, allowed);
    }

    /// @notice Sets how many missed jobs in an hour raise the level: the first at least 1, the second no less.
    function setBreakerThresholds(uint32 level1, uint32 level2) external onlyOwner {
        _setThresholds(level1, level2);
    }

    /// @notice The level now.
    function breakerLevel() public view returns (uint256) {
        Breaker storage breaker_ = _breaker;
        if (block.timestamp < breaker_.pausedUntil) return 2;
        return block.timestamp < breaker_.levelUntil ? breaker_.level : 0;
    }

    /// @notice What the level follows from.
    function breaker() external view returns (Breaker memory) {
        return _breaker;
    }

    /// Reverts at level `least` and above.
    function _checkLevelBelow(uint256 least) internal view {
        uint256 level = breakerLevel();
        if (level >= least) revert Stopped(level);
    }

    /// Counts a job that was paid or `missed`.
    function _count(bool missed) internal {
        Breaker memory now_ = _breaker;
        if (block.timestamp >= uint256(now_.windowStart) + BREAKER_WINDOW) {
            (now_.windowStart, now_.ended, now_.missed) = (uint40(block.timestamp), 0, 0);
        }
        now_.ended++;
        if (missed) {
            now_.missed++;
            uint8 level = now_.missed >= missesForLevel2 ? 2 : now_.missed >= missesForLevel1 ? 1 : 0;
            uint8 held = block.timestamp < now_.levelUntil ? now_.level : 0;
            if (level > held && 2 * uint256(now_.missed) >= now_.ended) {
                (now_.level, now_.levelUntil) = (level, uint40(block.timestamp + BREAKER_WINDOW));
                emit CircuitBreakerTriggered("deadlines missed", level);
            }
        }
        _breaker = now_;
    }

    function _setThresholds(uint32 level1, uint32 level2) private {
        if (level1 == 0 || level2 < level1) revert ThresholdsOutOfOrder(level1, level2);
        (missesForLevel1, missesForLevel2) = (level1, level2);
        emit BreakerThresholdsChanged(level1, level2);
    }
}
