// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// Who may claim jobs, and the FAB each host has at stake. It never decides about jobs: the marketplace tells it when a
/// host takes one and when that one has ended, and until then the stake stays.
contract NodeRegistry {
    using SafeERC20 for IERC20;

    /// One slot. A host is registered exactly when `stake` is not 0.
    struct Node {
        uint128 stake;
        uint32 openJobs;
    }

    /// FAB that registering locks, and the least an active host has.
    uint256 public constant MIN_STAKE = 1000e18;
    uint256 public constant METADATA_MAX_BYTES = 2048;

    IERC20 public immutable token;
    address public immutable marketplace;

    mapping(address host => Node) private _nodes;

    event NodeRegistered(address indexed operator, uint256 stakedAmount, string metadata);
    event NodeUnregistered(address indexed operator, uint256 returnedAmount);
    event StakeAdded(address indexed operator, uint256 additionalAmount);
    event MetadataUpdated(address indexed operator, string newMetadata);

    error AlreadyRegistered(address host);
    error NotRegistered(address host);
    error HasOpenJobs(address host, uint256 openJobs);
    error StakeOutOfRange(uint256 amount, uint256 min, uint256 max);
    error MetadataLengthOutOfRange(uint256 length, uint256 min, uint256 max);
    error OnlyMarketplace(address caller);

    modifier onlyMarketplace() {
        if (msg.sender != marketplace) revert OnlyMarketplace(msg.sender);
        _;
    }

    constructor(IERC20 token_, address marketplace_) {
        token = token_;
        marketplace = marketplace_;
    }

    /// @notice Registers the caller as a host and pulls `MIN_STAKE` FAB, which the caller approved before.
    /// @param metadata What the host says of itself (where to reach it, models, prices): 1 to 2048 bytes, kept in the log only.
    function registerNode(string calldata metadata) external {
        if (_nodes[msg.sender].stake != 0) revert AlreadyRegistered(msg.sender);
        _checkMetadata(metadata);
        _nodes[msg.sender].stake = uint128(MIN_STAKE);
        emit NodeRegistered(msg.sender, MIN_STAKE, metadata);
        token.safeTransferFrom(msg.sender, address(this), MIN_STAKE);
    }

    /// @notice Adds `amount` (FAB wei, not 0) to the caller's stake; approved before.
    function addStake(uint256 amount) external {
        Node storage node = _registered(msg.sender);
        uint256 room = type(uint128).max - node.stake;
        if (amount == 0 || amount > room) revert StakeOutOfRange(amount, 1, room);
        node.stake += uint128(amount);
        emit StakeAdded(msg.sender, amount);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @notice Replaces what the caller says of itself: 1 to 2048 bytes.
    function updateMetadata(string calldata metadata) external {
        _registered(msg.sender);
        _checkMetadata(metadata);
        emit MetadataUpdated(msg.sender, metadata);
    }

    /// @notice Ends the caller's registration and returns the whole stake. Refused while a job of the caller has not ended
    /// (released or refunded). The caller may register again.
    function unregisterNode() external {
        Node storage node = _registered(msg.sender);
        if (node.openJobs != 0) revert HasOpenJobs(msg.sender, node.openJobs);
        uint256 stake = node.stake;
        delete _nodes[msg.sender];
        emit NodeUnregistered(msg.sender, stake);
        token.safeTransfer(msg.sender, stake);
    }

    /// @notice Called by the marketplace when `host`, which it knows to be active, claims a job.
    function jobOpened(address host) external onlyMarketplace {
        _nodes[host].openJobs++;
    }

    /// @notice Called by the marketplace when a job that `host` claimed was released or refunded.
    function jobClosed(address host) external onlyMarketplace {
        _nodes[host].openJobs--;
    }

    /// @notice Whether `host` is registered with its stake whole, so that it may claim.
    function isActive(address host) external view returns (bool) {
        return _nodes[host].stake >= MIN_STAKE;
    }

    /// @notice The stake of `host` (FAB wei, 0 when not registered) and how many jobs it claimed that have not ended.
    function getNode(address host) external view returns (Node memory) {
        return _nodes[host];
    }

    function _registered(address host) private view returns (Node storage node) {
        node = _nodes[host];
        if (node.stake == 0) revert NotRegistered(host);
    }

    function _checkMetadata(string calldata metadata) private pure {
        uint256 length = bytes(metadata).length;
        if (length == 0 || length > METADATA_MAX_BYTES) revert MetadataLengthOutOfRange(length, 1, METADATA_MAX_BYTES);
    }
}
