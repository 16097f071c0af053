// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {NodeRegistry} from "./NodeRegistry.sol";
import {PaymentEscrow} from "./PaymentEscrow.sol";
import {ProofSystem} from "./ProofSystem.sol";

/// Renters post jobs with their payment, hosts claim and complete them. The owner decides which tokens may pay for new
/// jobs, and nothing about a job that exists.
///
///     Posted ──claimJob──▶ Claimed ──completeJob──▶ Completed ──releasePayment──▶ Released
///       │ cancelJob, expireJob │ expireJob
///       └──────────▶ Refunded ◀┘
///
/// Acting on a job is possible while `block.timestamp < deadline`, expiring it from `deadline` on.
contract JobMarketplace is Ownable, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// New states go after these: the numbers are on the wire.
    enum JobStatus {
        Posted,
        Claimed,
        Completed,
        Released,
        Refunded
    }

    /// What to compute.
    struct JobDetails {
        /// "sha256:" and the 64 hex digits of the model file's digest.
        string modelId;
        /// Content id of the input's bytes; the input itself stays off chain.
        string prompt;
        /// Most output tokens, 1 to 2^20.
        uint256 maxTokens;
        /// In thousandths, 0 (greedy) to 2000.
        uint256 temperature;
        uint32 seed;
        string resultFormat;
    }

    /// What is asked of the host. The first two are advice that hosts read from the log; this contract does not check them.
    struct JobRequirements {
        uint256 minGPUMemory;
        uint256 minReputationScore;
        /// Seconds from posting to the deadline, 30 to 604800.
        uint256 maxTimeToComplete;
        /// Whether completing takes a proof that `ProofSystem` accepts.
        bool requiresProof;
    }

    /// What is stored: four slots. The texts are in the log (`JobTerms`), their hashes here; the money is in the escrow.
    struct Job {
        address renter;
        uint40 deadline;
        JobStatus status;
        bool requiresProof;
        uint16 temperature;
        /// 0 until the job is claimed.
        address host;
        /// From when the payment may be released; 0 until the job is completed.
        uint40 releaseAt;
        uint32 seed;
        uint24 maxTokens;
        bytes32 modelHash;
        bytes32 promptHash;
    }

    uint256 public constant MAX_TOKENS = 1 << 20;
    uint256 public constant MAX_TEMPERATURE = 2000;
    uint256 public constant MIN_TIME_TO_COMPLETE = 30;
    uint256 public constant MAX_TIME_TO_COMPLETE = 7 days;
    uint256 public constant TEXT_MAX_BYTES = 128;
    uint256 public constant MAX_CHALLENGE_WINDOW = 30 days;

    NodeRegistry public immutable registry;
    PaymentEscrow public immutable escrow;
    ProofSystem public immutable proofSystem;
    /// Seconds between a job's completion and its payment.
    uint256 public immutable challengeWindow;

    /// Jobs posted so far, which is also the id of the last one: ids count from 1.
    uint256 public jobCount;
    /// Whether a token may pay for new jobs. ETH always may.
    mapping(address token => bool) public tokenAllowed;
    mapping(uint256 jobId => Job) private _jobs;

    event JobCreated(uint256 indexed jobId, address indexed renter, string modelId, uint256 maxPrice);
    event JobPosted(uint256 indexed jobId, address indexed client, uint256 payment);
    /// The whole job, as posted. `token` is 0 for ETH.
    event JobTerms(
        uint256 indexed jobId,
        address indexed renter,
        address token,
        uint256 payment,
        uint64 deadline,
        JobDetails details,
        JobRequirements requirements
    );
    event JobClaimed(uint256 indexed jobId, address indexed host);
    event JobCompleted(uint256 indexed jobId, string resultCID);
    event JobReleaseDue(uint256 indexed jobId, uint64 releaseAt);
    event PaymentReleased(uint256 indexed jobId, address indexed node, uint256 amount);
    event PaymentRefunded(uint256 indexed jobId, address indexed client, uint256 amount);
    /// The renter took the job back before any claim.
    event JobCancelled(uint256 indexed jobId);
    /// The deadline passed with no claim.
    event JobExpired(uint256 indexed jobId);
    /// The deadline passed with a claim of `host`.
    event JobFailed(uint256 indexed jobId, address indexed host, string reason);
    event TokenAllowed(address indexed token, bool allowed);

    error TextLengthOutOfRange(string field, uint256 length, uint256 min, uint256 max);
    error MaxTokensOutOfRange(uint256 maxTokens, uint256 min, uint256 max);
    error TemperatureTooHigh(uint256 temperature, uint256 max);
    error TimeToCompleteOutOfRange(uint256 maxTimeToComplete, uint256 min, uint256 max);
    error ChallengeWindowTooLong(uint256 challengeWindow, uint256 max);
    error PaymentOutOfRange(uint256 payment, uint256 min, uint256 max);
    error PaymentMismatch(uint256 payment, uint256 sent);
    error TokenNotAllowed(address token);
    error NotAToken(address token);
    error UnknownJob(uint256 jobId);
    error WrongStatus(uint256 jobId, JobStatus have, JobStatus need);
    error NotRenter(uint256 jobId, address renter, address caller);
    error NotHost(uint256 jobId, address host, address caller);
    error HostNotActive(address host);
    error DeadlinePassed(uint256 jobId, uint256 deadline, uint256 time);
    error DeadlineNotReached(uint256 jobId, uint256 deadline, uint256 time);
    error ReleaseNotDue(uint256 jobId, uint256 releaseAt, uint256 time);
    error ResultNotCommitted(uint256 jobId);
    error ResultMismatch(uint256 jobId, bytes32 committed, bytes32 given);
    error ProofRequired(uint256 jobId);

    constructor(
        address owner,
        NodeRegistry registry_,
        PaymentEscrow escrow_,
        ProofSystem proofSystem_,
        uint256 challengeWindow_
    ) Ownable(owner) {
        if (challengeWindow_ > MAX_CHALLENGE_WINDOW) {
            revert ChallengeWindowTooLong(challengeWindow_, MAX_CHALLENGE_WINDOW);
        }
        registry = registry_;
        escrow = escrow_;
        proofSystem = proofSystem_;
        challengeWindow = challengeWindow_;
    }

    /// @notice Posts a job paid in ETH; `payment` wei are sent along and held by the escrow.
    function postJob(JobDetails calldata details, JobRequirements calldata requirements, uint256 payment)
        external
        payable
        nonReentrant
        returns (uint256 jobId)
    {
        if (msg.value != payment) revert PaymentMismatch(payment, msg.value);
        jobId = _post(details, requirements, address(0), payment);
        escrow.create{value: payment}(jobId, msg.sender, address(0), uint96(payment));
    }

    /// @notice Posts a job paid in `token`, of which the caller has approved `payment` to this contract.
    function postJobWithToken(
        JobDetails calldata details,
        JobRequirements calldata requirements,
        address token,
        uint256 payment
    ) external nonReentrant returns (uint256 jobId) {
        if (!tokenAllowed[token]) revert TokenNotAllowed(token);
        jobId = _post(details, requirements, token, payment);
        uint256 before = IERC20(token).balanceOf(address(escrow));
        IERC20(token).safeTransferFrom(msg.sender, address(escrow), payment);
        uint256 arrived = IERC20(token).balanceOf(address(escrow)) - before;
        if (arrived != payment) revert PaymentMismatch(payment, arrived);
        escrow.create(jobId, msg.sender, token, uint96(payment));
    }

    /// @notice Takes a posted job. The caller must be an active host.
    function claimJob(uint256 jobId) external nonReentrant {
        Job storage job = _inStatus(jobId, JobStatus.Posted);
        _beforeDeadline(jobId, job);
        if (!registry.isActive(msg.sender)) revert HostNotActive(msg.sender);
        job.status = JobStatus.Claimed;
        job.host = msg.sender;
        emit JobClaimed(jobId, msg.sender);
        registry.jobOpened(msg.sender);
    }

    /// @notice Completes a claimed job with the result the caller committed to before (`ProofSystem.commitResult`).
    /// @param resultCID Content id of the result's bytes, 1 to 128 bytes of text.
    /// @param proof As `ProofSystem.submit` takes it; may be empty unless the job requires a proof. If present it must hold.
    function completeJob(uint256 jobId, string calldata resultCID, bytes calldata proof) external nonReentrant {
        Job storage job = _inStatus(jobId, JobStatus.Claimed);
        if (msg.sender != job.host) revert NotHost(jobId, job.host, msg.sender);
        _beforeDeadline(jobId, job);
        _checkText("resultCID", resultCID, 1);
        ProofSystem.Commitment memory commitment = proofSystem.commitmentOf(jobId);
        if (commitment.nTokens == 0) revert ResultNotCommitted(jobId);
        bytes32 given = keccak256(bytes(resultCID));
        if (given != commitment.resultHash) revert ResultMismatch(jobId, commitment.resultHash, given);
        if (job.requiresProof && proof.length == 0) revert ProofRequired(jobId);

        if (proof.length != 0) proofSystem.submit(jobId, proof);
        uint256 releaseAt = block.timestamp + challengeWindow;
        job.status = JobStatus.Completed;
        job.releaseAt = uint40(releaseAt);
        emit JobCompleted(jobId, resultCID);
        emit JobReleaseDue(jobId, uint64(releaseAt));
    }

    /// @notice Pays the host of a completed job once the challenge window is over. Anyone may call.
    function releasePayment(uint256 jobId) external nonReentrant {
        Job storage job = _inStatus(jobId, JobStatus.Completed);
        if (block.timestamp < job.releaseAt) revert ReleaseNotDue(jobId, job.releaseAt, block.timestamp);
        job.status = JobStatus.Released;
        address host = job.host;
        registry.jobClosed(host);
        emit PaymentReleased(jobId, host, escrow.release(jobId, host));
    }

    /// @notice Returns the payment of a job that was not completed by its deadline to the renter. Anyone may call.
    function expireJob(uint256 jobId) external nonReentrant {
        Job storage job = _known(jobId);
        JobStatus status = job.status;
        if (status > JobStatus.Claimed) revert WrongStatus(jobId, status, JobStatus.Claimed);
        if (block.timestamp < job.deadline) revert DeadlineNotReached(jobId, job.deadline, block.timestamp);
        if (status == JobStatus.Claimed) {
            emit JobFailed(jobId, job.host, "deadline passed");
            registry.jobClosed(job.host);
        } else {
            emit JobExpired(jobId);
        }
        _refund(jobId, job);
    }

    /// @notice Takes back the caller's job before any host claims it, for a full refund.
    function cancelJob(uint256 jobId) external nonReentrant {
        Job storage job = _inStatus(jobId, JobStatus.Posted);
        if (msg.sender != job.renter) revert NotRenter(jobId, job.renter, msg.sender);
        emit JobCancelled(jobId);
        _refund(jobId, job);
    }

    /// @notice Lets `token` pay for new jobs, or no longer. Jobs already posted are not affected.
    function allowToken(address token, bool allowed) external onlyOwner {
        if (token.code.length == 0) revert NotAToken(token);
        tokenAllowed[token] = allowed;
        emit TokenAllowed(token, allowed);
    }

    /// @notice What is stored of a job. Its token and payment: `escrow.getEscrow(jobId)`; its commitment:
    /// `proofSystem.commitmentOf(jobId)`.
    function getJob(uint256 jobId) external view returns (Job memory) {
        return _known(jobId);
    }

    function _post(JobDetails calldata details, JobRequirements calldata requirements, address token, uint256 payment)
        private
        returns (uint256 jobId)
    {
        _checkTerms(details, requirements, payment);
        uint256 deadline = block.timestamp + requirements.maxTimeToComplete;
        jobId = ++jobCount;
        Job storage job = _jobs[jobId];
        job.renter = msg.sender;
        job.deadline = uint40(deadline);
        job.requiresProof = requirements.requiresProof;
        job.temperature = uint16(details.temperature);
        job.seed = details.seed;
        job.maxTokens = uint24(details.maxTokens);
        job.modelHash = keccak256(bytes(details.modelId));
        job.promptHash = keccak256(bytes(details.prompt));
        emit JobCreated(jobId, msg.sender, details.modelId, payment);
        emit JobPosted(jobId, msg.sender, payment);
        emit JobTerms(jobId, msg.sender, token, payment, uint64(deadline), details, requirements);
    }

    function _refund(uint256 jobId, Job storage job) private {
        job.status = JobStatus.Refunded;
        (address renter, uint256 amount) = escrow.refund(jobId);
        emit PaymentRefunded(jobId, renter, amount);
    }

    function _known(uint256 jobId) private view returns (Job storage job) {
        job = _jobs[jobId];
        if (job.renter == address(0)) revert UnknownJob(jobId);
    }

    function _inStatus(uint256 jobId, JobStatus need) private view returns (Job storage job) {
        job = _known(jobId);
        if (job.status != need) revert WrongStatus(jobId, job.status, need);
    }

    function _beforeDeadline(uint256 jobId, Job storage job) private view {
        if (block.timestamp >= job.deadline) revert DeadlinePassed(jobId, job.deadline, block.timestamp);
    }

    function _checkTerms(JobDetails calldata details, JobRequirements calldata requirements, uint256 payment)
        private
        pure
    {
        _checkText("modelId", details.modelId, 1);
        _checkText("prompt", details.prompt, 1);
        _checkText("resultFormat", details.resultFormat, 0);
        if (details.maxTokens == 0 || details.maxTokens > MAX_TOKENS) {
            revert MaxTokensOutOfRange(details.maxTokens, 1, MAX_TOKENS);
        }
        if (details.temperature > MAX_TEMPERATURE) revert TemperatureTooHigh(details.temperature, MAX_TEMPERATURE);
        uint256 time = requirements.maxTimeToComplete;
        if (time < MIN_TIME_TO_COMPLETE || time > MAX_TIME_TO_COMPLETE) {
            revert TimeToCompleteOutOfRange(time, MIN_TIME_TO_COMPLETE, MAX_TIME_TO_COMPLETE);
        }
        if (payment == 0 || payment > type(uint96).max) revert PaymentOutOfRange(payment, 1, type(uint96).max);
    }

    function _checkText(string memory field, string calldata text, uint256 min) private pure {
        uint256 length = bytes(text).length;
        if (length < min || length > TEXT_MAX_BYTES) revert TextLengthOutOfRange(field, length, min, TEXT_MAX_BYTES);
    }
}
