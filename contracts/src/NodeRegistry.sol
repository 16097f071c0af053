// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// Who may claim jobs, and the FAB each host has at stake. It never decides about jobs: the marketplace tells it when a
/// host takes one and how that one has ended, and until then the stake stays.
///
/// Each open job has `JOB_STAKE` at risk, and a host's open jobs together never more than its stake. The owner may slash
/// what is not at risk, and change how many hosts a controller registers in a window; it cannot take anything out.
contract NodeRegistry is Ownable {
    using SafeERC20 for IERC20;

    /// Two slots. A host is registered exactly when `controller` is not 0.
    struct Node {
        uint128 stake;
        uint32 openJobs;
        /// From when the stake may be withdrawn; 0 unless the host is leaving.
        uint40 unbondedAt;
        /// Who answers for the host: itself, unless it registered under another account that agreed.
        address controller;
    }

    /// Registrations of a controller in the day numbered `window` (days since 1970).
    struct Registrations {
        uint32 window;
        uint32 count;
    }

    /// FAB that registering locks, and the least an active host has.
    uint256 public constant MIN_STAKE = 1000e18;
    /// What a host loses of its stake with a job it claimed and missed, or lost to a challenge.
    uint256 public constant JOB_STAKE = MIN_STAKE / 100;
    /// Longer than a proposal takes from its vote to its execution, so that a host cannot leave before it is slashed.
    uint256 public constant UNBONDING_TIME = 14 days;
    uint256 public constant REGISTRATION_WINDOW = 1 days;
    uint256 public constant METADATA_MAX_BYTES = 2048;
    uint256 public constant REASON_MAX_BYTES = 128;

    IERC20 public immutable token;
    address public immutable marketplace;
    /// Where slashed stake goes.
    address public immutable treasury;
    /// The registry whose hosts may bring their stake here, 0 when there was none.
    NodeRegistry public immutable predecessor;

    /// Hosts that one controller may register in a window; at least 1.
    uint32 public registrationsPerWindow;
    /// The registry that replaces this one; 0 while this one takes new hosts.
    NodeRegistry public successor;

    mapping(address host => Node) private _nodes;
    mapping(address controller => Registrations) private _registrations;
    /// Whether `controller` agreed to answer for `host`.
    mapping(address controller => mapping(address host => bool)) public approved;

    event NodeRegistered(address indexed operator, uint256 stakedAmount, string metadata);
    /// Follows every `NodeRegistered`. `window` is the day (since 1970) in which it counts against the controller's limit.
    event NodeController(address indexed operator, address indexed controller, uint32 window);
    event NodeUnregistered(address indexed operator, uint256 returnedAmount);
    event StakeAdded(address indexed operator, uint256 additionalAmount);
    event MetadataUpdated(address indexed operator, string newMetadata);
    event NodeSlashed(address indexed node, uint256 amount, string reason);
    event UnbondingStarted(address indexed operator, uint64 unbondedAt);
    event UnbondingCancelled(address indexed operator);
    event HostApproved(address indexed controller, address indexed operator, bool approved);
    event RegistrationsPerWindowChanged(uint32 registrationsPerWindow);
    event Retired(address indexed successor);
    /// The host left with its stake for the successor.
    event StakeMoved(address indexed operator, address indexed successor, uint256 amount);

    error AlreadyRegistered(address host);
    error NotRegistered(address host);
    error HostNotActive(address host);
    error StakeTooSmall(address host, uint256 stake, uint256 need);
    error HasOpenJobs(address host, uint256 openJobs);
    error AlreadyUnbonding(address host, uint256 unbondedAt);
    error NotUnbonded(address host, uint256 unbondedAt, uint256 time);
    error NotApproved(address controller, address host);
    error TooManyRegistrations(address controller, uint256 max);
    error StakeOutOfRange(uint256 amount, uint256 min, uint256 max);
    error MetadataLengthOutOfRange(uint256 length, uint256 min, uint256 max);
    error ReasonTooLong(uint256 length, uint256 max);
    error LimitOutOfRange(uint256 limit, uint256 min);
    error OnlyMarketplace(address caller);
    error OnlyPredecessor(address caller);
    error IsRetired(address successor);
    error NotRetired();
    error NotASuccessor(address successor);
    error NoTreasury();

    modifier onlyMarketplace() {
        if (msg.sender != marketplace) revert OnlyMarketplace(msg.sender);
        _;
    }

    constructor(address owner, IERC20 token_, address marketplace_, address treasury_, NodeRegistry predecessor_)
        Ownable(owner)
    {
        if (treasury_ == address(0)) revert NoTreasury();
        token = token_;
        // Deployed after this one; a deployment is checked as a whole (script/lib/Inspection.sol).
        // slither-disable-next-line missing-zero-check
        marketplace = marketplace_;
        treasury = treasury_;
        predecessor = predecessor_;
        _limit(5);
    }

    /// @notice Registers the caller as a host that answers for itself, and pulls `MIN_STAKE` FAB, which it approved before.
    /// @param metadata JSON of what the host says of itself (models, prices, region, peer id, addresses, proof circuits):
    /// 1 to 2048 bytes, kept in the log only.
    function registerNode(string calldata metadata) external {
        _register(metadata, msg.sender);
    }

    /// @notice As `registerNode`, under `controller`, which agreed with `approveHost`.
    function registerControlledNode(string calldata metadata, address controller) external {
        if (!approved[controller][msg.sender]) revert NotApproved(controller, msg.sender);
        _register(metadata, controller);
    }

    /// @notice Agrees that `host` registers under the caller, or no longer. Registered hosts are not affected.
    function approveHost(address host, bool approve) external {
        approved[msg.sender][host] = approve;
        emit HostApproved(msg.sender, host, approve);
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

    /// @notice Starts to end the caller's registration: it claims no more, and withdraws its stake after `UNBONDING_TIME`.
    function startUnbonding() external {
        Node storage node = _registered(msg.sender);
        if (node.unbondedAt != 0) revert AlreadyUnbonding(msg.sender, node.unbondedAt);
        uint256 unbondedAt = block.timestamp + UNBONDING_TIME;
        node.unbondedAt = uint40(unbondedAt);
        emit UnbondingStarted(msg.sender, uint64(unbondedAt));
    }

    /// @notice Stays after all.
    function cancelUnbonding() external {
        Node storage node = _registered(msg.sender);
        if (node.unbondedAt == 0) revert NotUnbonded(msg.sender, 0, block.timestamp);
        node.unbondedAt = 0;
        emit UnbondingCancelled(msg.sender);
    }

    /// @notice Ends the caller's registration and returns the whole stake, once unbonding is over and every job of the caller
    /// has ended (released or refunded). The caller may register again.
    function unregisterNode() external {
        Node storage node = _registered(msg.sender);
        if (node.unbondedAt == 0 || block.timestamp < node.unbondedAt) {
            revert NotUnbonded(msg.sender, node.unbondedAt, block.timestamp);
        }
        uint256 stake = _leave(node);
        emit NodeUnregistered(msg.sender, stake);
        token.safeTransfer(msg.sender, stake);
    }

    /// @notice Takes the caller's whole stake to the successor and registers it there, without unbonding, once every job of
    /// the caller here has ended.
    function moveStake(string calldata metadata) external {
        NodeRegistry to = successor;
        if (address(to) == address(0)) revert NotRetired();
        Node storage node = _registered(msg.sender);
        address controller = node.controller;
        uint256 stake = _leave(node);
        emit StakeMoved(msg.sender, address(to), stake);
        token.forceApprove(address(to), stake);
        to.acceptStake(msg.sender, controller, uint128(stake), metadata);
    }

    /// @notice Called by the predecessor for a host that moves here.
    function acceptStake(address host, address controller, uint128 stake, string calldata metadata) external {
        if (msg.sender != address(predecessor)) revert OnlyPredecessor(msg.sender);
        _enter(host, controller, stake, metadata);
        emit NodeController(host, controller, 0);
        token.safeTransferFrom(msg.sender, address(this), stake);
    }

    /// @notice Called by the marketplace when `host` claims a job.
    /// @return controller Who answers for the host.
    function jobOpened(address host) external onlyMarketplace returns (address controller) {
        if (!isActive(host)) revert HostNotActive(host);
        Node storage node = _nodes[host];
        uint256 need = (uint256(node.openJobs) + 1) * JOB_STAKE;
        if (node.stake < need) revert StakeTooSmall(host, node.stake, need);
        node.openJobs++;
        return node.controller;
    }

    /// @notice Called by the marketplace when a job that `host` claimed has ended, and the host keeps its stake.
    function jobClosed(address host) external onlyMarketplace {
        _nodes[host].openJobs--;
    }

    /// @notice Called by the marketplace when a job that `host` claimed has ended, and `JOB_STAKE` with it.
    /// @param reward Half of it goes to this account, which showed the fault; 0 for nobody. The rest goes to the treasury.
    function jobForfeited(address host, address reward, string calldata reason) external onlyMarketplace {
        Node storage node = _nodes[host];
        node.openJobs--;
        node.stake -= uint128(JOB_STAKE);
        emit NodeSlashed(host, JOB_STAKE, reason);
        uint256 share = reward == address(0) ? 0 : JOB_STAKE / 2;
        if (share != 0) token.safeTransfer(reward, share);
        token.safeTransfer(treasury, JOB_STAKE - share);
    }

    /// @notice Takes `amount` of a host's stake to the treasury: not what its open jobs have at risk.
    function slash(address host, uint256 amount, string calldata reason) external onlyOwner {
        Node storage node = _registered(host);
        if (bytes(reason).length > REASON_MAX_BYTES) revert ReasonTooLong(bytes(reason).length, REASON_MAX_BYTES);
        uint256 free = node.stake - node.openJobs * JOB_STAKE;
        if (amount == 0 || amount > free) revert StakeOutOfRange(amount, 1, free);
        node.stake -= uint128(amount);
        emit NodeSlashed(host, amount, reason);
        token.safeTransfer(treasury, amount);
    }

    /// @notice Sets how many hosts a controller may register in a window.
    function setRegistrationsPerWindow(uint32 limit) external onlyOwner {
        _limit(limit);
    }

    /// @notice Takes no new hosts from now on, for ever, and lets the present ones move to `to`. They may claim what is
    /// posted in this registry's marketplace, and leave, as before.
    function retire(NodeRegistry to) external onlyOwner {
        if (address(successor) != address(0)) revert IsRetired(address(successor));
        if (address(to).code.length == 0 || address(to.predecessor()) != address(this)) {
            revert NotASuccessor(address(to));
        }
        successor = to;
        emit Retired(address(to));
    }

    /// @notice Whether `host` is registered with its stake whole, and not leaving, so that it may claim.
    function isActive(address host) public view returns (bool) {
        Node storage node = _nodes[host];
        return node.stake >= MIN_STAKE && node.unbondedAt == 0;
    }

    /// @notice What is stored of `host`; all zero when it is not registered.
    function getNode(address host) external view returns (Node memory) {
        return _nodes[host];
    }

    /// @notice The last window in which `controller` registered hosts, and how many.
    function registrationsOf(address controller) external view returns (Registrations memory) {
        return _registrations[controller];
    }

    function _register(string calldata metadata, address controller) private {
        if (address(successor) != address(0)) revert IsRetired(address(successor));
        uint32 window = uint32(block.timestamp / REGISTRATION_WINDOW);
        Registrations memory past = _registrations[controller];
        uint32 count = past.window == window ? past.count : 0;
        if (count >= registrationsPerWindow) revert TooManyRegistrations(controller, registrationsPerWindow);
        _registrations[controller] = Registrations(window, count + 1);
        _enter(msg.sender, controller, uint128(MIN_STAKE), metadata);
        emit NodeController(msg.sender, controller, window);
        token.safeTransferFrom(msg.sender, address(this), MIN_STAKE);
    }

    function _enter(address host, address controller, uint128 stake, string calldata metadata) private {
        if (_nodes[host].controller != address(0)) revert AlreadyRegistered(host);
        _checkMetadata(metadata);
        _nodes[host] = Node(stake, 0, 0, controller);
        emit NodeRegistered(host, stake, metadata);
    }

    function _leave(Node storage node) private returns (uint256 stake) {
        if (node.openJobs != 0) revert HasOpenJobs(msg.sender, node.openJobs);
        stake = node.stake;
        delete _nodes[msg.sender];
    }

    function _limit(uint32 limit) private {
        if (limit == 0) revert LimitOutOfRange(limit, 1);
        registrationsPerWindow = limit;
        emit RegistrationsPerWindowChanged(limit);
    }

    function _registered(address host) private view returns (Node storage node) {
        node = _nodes[host];
        if (node.controller == address(0)) revert NotRegistered(host);
    }

    function _checkMetadata(string calldata metadata) private pure {
        uint256 length = bytes(metadata).length;
        if (length == 0 || length > METADATA_MAX_BYTES) revert MetadataLengthOutOfRange(length, 1, METADATA_MAX_BYTES);
    }
}
