// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {CircuitBreaker} from "./CircuitBreaker.sol";
import {NodeRegistry} from "./NodeRegistry.sol";
import {PaymentEscrow} from "./PaymentEscrow.sol";
import {ProofSystem} from "./ProofSystem.sol";
import {ReputationSystem} from "./ReputationSystem.sol";

/// A digest of all that a job's output follows from, beside its number.
function orderOf(JobMarketplace.Job memory job) pure returns (bytes32) {
    uint32 maxTokens = job.maxTokens;
    uint32 temperature = job.temperature;
    return keccak256(abi.encodePacked(job.modelHash, job.promptHash, maxTokens, temperature, job.seed));
}

/// Renters post jobs with their payment, hosts claim and complete them.
///
///                  ┌──────────────────failJob──────────────────┐
///                  ▼                                           │
///     ──postJob──▶ Posted ──claimJob──▶ Claimed ──completeJob──┼──▶ Completed ──releasePayment──▶ Released
///                  │ cancelJob          │ expireJob            │    │      │ disputeJob               ▲
///                  │ expireJob          │ failJob, agreeRefund │    │      ▼ ProofSystem.challenge    │
///                  │                    │                           │  Disputed ──resolveDispute──────┤
///                  │                    │                           │      │     releasePayment       ┘
///                  └────────▶ Refunded ◀┴──────agreeRefund──────────┴──────┴──resolveDispute
///
/// Acting on a job is possible while `block.timestamp < deadline`, expiring it from `deadline` on. Every job can end
/// without the help of any one party: before its deadline by its host, after it by anyone, a dispute the arbiter leaves
/// open by anyone after `ARBITRATION_TIME`, as though nobody had disputed.
///
/// A reorg can give a job's number to another order. What was signed for the one may then reach the other, unless it names
/// what it is for: `claimExactly` and `failExactly` do, and `ProofSystem.commitExactly`. A completion hands in what was
/// committed to.
///
/// The owner decides which tokens may pay for new jobs and who arbitrates, and may retire this marketplace: then no job is
/// posted any more, and those that are end by the same rules. Nobody moves money but by these rules; the arbiter only
/// decides for which of its two parties a disputed job ends.
contract JobMarketplace is CircuitBreaker, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// New states go after these: the numbers are on the wire.
    enum JobStatus {
        Posted,
        Claimed,
        Completed,
        Released,
        Refunded,
        Disputed
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

    /// What is asked of the host.
    struct JobRequirements {
        /// Advice that hosts read from the log; no contract can check it.
        uint256 minGPUMemory;
        /// Least score in `ReputationSystem` of a host that claims, at most 1000.
        uint256 minReputationScore;
        /// Seconds from posting to the deadline, 30 to 604800.
        uint256 maxTimeToComplete;
        /// Whether completing takes a proof that `ProofSystem` accepts.
        bool requiresProof;
    }

    /// One job of a batch.
    struct Posting {
        JobDetails details;
        JobRequirements requirements;
        /// 0 for ETH.
        address token;
        uint256 payment;
        /// The only host that may claim it; 0 for any.
        address reservedFor;
    }

    /// What is stored: four slots. The texts are in the log (`JobTerms`), their hashes here; the money is in the escrow.
    struct Job {
        address renter;
        uint40 deadline;
        JobStatus status;
        bool requiresProof;
        uint16 temperature;
        uint16 minReputation;
        bool reserved;
        /// Until the job is claimed: the host it is reserved for, 0 for any.
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
    uint256 public constant MAX_REPUTATION = 1000;
    uint256 public constant MIN_TIME_TO_COMPLETE = 30;
    uint256 public constant MAX_TIME_TO_COMPLETE = 7 days;
    uint256 public constant TEXT_MAX_BYTES = 128;
    uint256 public constant MAX_CHALLENGE_WINDOW = 30 days;
    /// How long the arbiter has to decide a dispute.
    uint256 public constant ARBITRATION_TIME = 7 days;

    NodeRegistry public immutable registry;
    PaymentEscrow public immutable escrow;
    ProofSystem public immutable proofSystem;
    ReputationSystem public immutable reputation;
    /// Seconds between a job's completion and its payment.
    uint256 public immutable challengeWindow;

    /// Jobs posted so far, which is also the id of the last one: ids count from 1.
    uint256 public jobCount;
    /// Who decides disputes; 0 for nobody.
    address public arbiter;
    /// The marketplace that replaces this one; 0 while this one takes new jobs.
    address public successor;
    /// Whether a token may pay for new jobs. ETH always may.
    mapping(address token => bool) public tokenAllowed;
    mapping(uint256 jobId => Job) private _jobs;
    /// Whether a host of `controller` gave the job up, so that none of its hosts may claim it again.
    mapping(uint256 jobId => mapping(address controller => bool)) public gaveUp;

    event JobCreated(uint256 indexed jobId, address indexed renter, string modelId, uint256 maxPrice);
    event JobPosted(uint256 indexed jobId, address indexed client, uint256 payment);
    /// The whole job, as posted. `token` is 0 for ETH, `reservedFor` 0 for any host.
    event JobTerms(
        uint256 indexed jobId,
        address indexed renter,
        address token,
        uint256 payment,
        uint64 deadline,
        address reservedFor,
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
    /// `host` gave the job up, or its deadline passed (then `DeadlineMissed` follows).
    event JobFailed(uint256 indexed jobId, address indexed host, string reason);
    event DeadlineMissed(uint256 indexed jobId, address indexed host);
    /// The job that failed may be claimed again, by hosts of other controllers than `controller`.
    event JobReopened(uint256 indexed jobId, address indexed controller);
    /// The host agreed to the refund that the renter asked for.
    event RefundAgreed(uint256 indexed jobId, address indexed host);
    event JobDisputed(uint256 indexed jobId, address indexed disputer, bytes32 evidenceHash);
    event EvidenceAdded(uint256 indexed jobId, address indexed by, bytes32 evidenceHash);
    event DisputeResolved(uint256 indexed jobId, bool favorClient);
    /// The arbiter did not decide in time.
    event DisputeLapsed(uint256 indexed jobId);
    event TokenAllowed(address indexed token, bool allowed);
    event ArbiterChanged(address indexed arbiter);
    event Retired(address indexed successor);

    error TextLengthOutOfRange(string field, uint256 length, uint256 min, uint256 max);
    error MaxTokensOutOfRange(uint256 maxTokens, uint256 min, uint256 max);
    error TemperatureTooHigh(uint256 temperature, uint256 max);
    error MinReputationTooHigh(uint256 minReputation, uint256 max);
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
    error ReservedFor(uint256 jobId, address host);
    error ControllerGaveUp(uint256 jobId, address controller);
    error ReputationTooLow(uint256 jobId, uint256 score, uint256 need);
    error DeadlinePassed(uint256 jobId, uint256 deadline, uint256 time);
    error DeadlineNotReached(uint256 jobId, uint256 deadline, uint256 time);
    error ReleaseNotDue(uint256 jobId, uint256 releaseAt, uint256 time);
    error DisputeTooLate(uint256 jobId, uint256 releaseAt, uint256 time);
    error ResultNotCommitted(uint256 jobId);
    error ResultMismatch(uint256 jobId, bytes32 committed, bytes32 given);
    error ProofRequired(uint256 jobId);
    error LengthMismatch(uint256 jobs, uint256 results);
    error NothingDue();
    error RefundNotRequested(uint256 jobId);
    error NotArbiter(address caller);
    error OnlyProofSystem(address caller);
    error OrderDiffers(uint256 jobId, bytes32 deal);
    error IsRetired(address successor);
    error NotASuccessor(address successor);

    constructor(
        address owner,
        NodeRegistry registry_,
        PaymentEscrow escrow_,
        ProofSystem proofSystem_,
        ReputationSystem reputation_,
        uint256 challengeWindow_
    ) Ownable(owner) {
        if (challengeWindow_ > MAX_CHALLENGE_WINDOW) {
            revert ChallengeWindowTooLong(challengeWindow_, MAX_CHALLENGE_WINDOW);
        }
        registry = registry_;
        escrow = escrow_;
        proofSystem = proofSystem_;
        reputation = reputation_;
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
        return _post(details, requirements, address(0), payment, address(0));
    }

    /// @notice Posts a job paid in `token`, of which the caller has approved `payment` to this contract.
    function postJobWithToken(
        JobDetails calldata details,
        JobRequirements calldata requirements,
        address token,
        uint256 payment
    ) external nonReentrant returns (uint256 jobId) {
        if (token == address(0)) revert TokenNotAllowed(token);
        return _post(details, requirements, token, payment, address(0));
    }

    /// @notice Posts several jobs, or one that is reserved for a host. The ETH sent is the sum of the payments in ETH; of
    /// each token the caller has approved the sum of its payments.
    /// @return firstId The first job's id; the others follow.
    function postJobs(Posting[] calldata postings) external payable nonReentrant returns (uint256 firstId) {
        firstId = jobCount + 1;
        uint256 sent = msg.value;
        uint256 sum = 0;
        for (uint256 i = 0; i < postings.length; i++) {
            Posting calldata p = postings[i];
            if (p.token == address(0)) {
                sum += p.payment;
                if (sum > sent) revert PaymentMismatch(sum, sent);
            }
            _post(p.details, p.requirements, p.token, p.payment, p.reservedFor);
        }
        if (sum != sent) revert PaymentMismatch(sum, sent);
    }

    /// @notice Takes a posted job. The caller must be an active host with enough stake and reputation.
    function claimJob(uint256 jobId) external nonReentrant {
        _claim(jobId, _inStatus(jobId, JobStatus.Posted));
    }

    /// @notice As `claimJob`, but only if the job is the order that the caller judged: a reorg may have given its number to
    /// another.
    /// @param deal What `dealOf` said of that order.
    function claimExactly(uint256 jobId, bytes32 deal) external nonReentrant {
        Job storage job = _inStatus(jobId, JobStatus.Posted);
        _checkDeal(jobId, job, deal);
        _claim(jobId, job);
    }

    /// @notice Completes a claimed job with the result the caller committed to before (`ProofSystem.commitResult`).
    /// @param resultCID Content id of the result's bytes, 1 to 128 bytes of text.
    /// @param proof As `ProofSystem.submit` takes it; may be empty unless the job requires a proof. If present it must hold.
    function completeJob(uint256 jobId, string calldata resultCID, bytes calldata proof) external nonReentrant {
        _complete(jobId, resultCID, proof.length != 0);
        if (proof.length == 0) return;
        uint256[] memory jobIds = new uint256[](1);
        jobIds[0] = jobId;
        proofSystem.submit(jobIds, proof);
    }

    /// @notice Completes several jobs of the caller, as `completeJob` does, with one proof of all of them.
    function completeJobs(uint256[] calldata jobIds, string[] calldata resultCIDs, bytes calldata proof)
        external
        nonReentrant
    {
        if (jobIds.length != resultCIDs.length) revert LengthMismatch(jobIds.length, resultCIDs.length);
        for (uint256 i = 0; i < jobIds.length; i++) {
            _complete(jobIds[i], resultCIDs[i], proof.length != 0);
        }
        if (proof.length != 0) proofSystem.submit(jobIds, proof);
    }

    /// @notice Gives a claimed job up before its deadline. It can be claimed again by hosts of other controllers; a job that
    /// is reserved for the caller, or whose renter asked for a refund, is refunded.
    function failJob(uint256 jobId, string calldata reason) external nonReentrant {
        _fail(jobId, _ofHost(jobId, JobStatus.Claimed), reason);
    }

    /// @notice As `failJob`, but only if the job is the order that the caller gives up: a reorg may have given its number to
    /// another.
    /// @param deal What `dealOf` said of that order.
    function failExactly(uint256 jobId, bytes32 deal, string calldata reason) external nonReentrant {
        Job storage job = _ofHost(jobId, JobStatus.Claimed);
        _checkDeal(jobId, job, deal);
        _fail(jobId, job, reason);
    }

    /// @notice Pays the host of a completed job once the challenge window is over, or once the arbiter left a dispute about
    /// it undecided for `ARBITRATION_TIME`. Anyone may call.
    function releasePayment(uint256 jobId) external nonReentrant {
        Job storage job = _known(jobId);
        JobStatus status = job.status;
        if (status != JobStatus.Disputed && status != JobStatus.Completed) {
            revert WrongStatus(jobId, status, JobStatus.Completed);
        }
        if (block.timestamp < job.releaseAt) revert ReleaseNotDue(jobId, job.releaseAt, block.timestamp);
        _releaseDue(jobId, job);
    }

    /// @notice As `releasePayment` for each of the jobs that is due; the others are left as they are.
    /// @return released How many were due; not 0.
    // Each job is written before anything is called for it, and nothing is entered again.
    // slither-disable-next-line reentrancy-no-eth
    function releasePayments(uint256[] calldata jobIds) external nonReentrant returns (uint256 released) {
        for (uint256 i = 0; i < jobIds.length; i++) {
            Job storage job = _known(jobIds[i]);
            JobStatus status = job.status;
            if (status != JobStatus.Disputed && status != JobStatus.Completed) continue;
            if (block.timestamp < job.releaseAt) continue;
            _releaseDue(jobIds[i], job);
            released++;
        }
        if (released == 0) revert NothingDue();
    }

    /// @notice Returns the payment of a job that was not completed by its deadline to the renter. Anyone may call. A host
    /// that missed it loses stake and reputation.
    function expireJob(uint256 jobId) external nonReentrant {
        Job storage job = _known(jobId);
        JobStatus status = job.status;
        if (status > JobStatus.Claimed) revert WrongStatus(jobId, status, JobStatus.Claimed);
        if (block.timestamp < job.deadline) revert DeadlineNotReached(jobId, job.deadline, block.timestamp);
        if (status == JobStatus.Claimed) {
            address host = job.host;
            emit JobFailed(jobId, host, "deadline passed");
            emit DeadlineMissed(jobId, host);
            _count(true);
            registry.jobForfeited(host, address(0), "deadline missed");
            reputation.jobEnded(host, ReputationSystem.Outcome.Missed);
        } else {
            emit JobExpired(jobId);
        }
        _refund(jobId, job);
    }

    /// @notice Takes back the caller's job before any host claims it, for a full refund.
    function cancelJob(uint256 jobId) external nonReentrant {
        Job storage job = _ofRenter(jobId);
        if (job.status != JobStatus.Posted) revert WrongStatus(jobId, job.status, JobStatus.Posted);
        emit JobCancelled(jobId);
        _refund(jobId, job);
    }

    /// @notice Asks the host of a job that has not ended to agree to a refund.
    function requestRefund(uint256 jobId) external nonReentrant {
        Job storage job = _ofRenter(jobId);
        JobStatus status = job.status;
        if (status != JobStatus.Claimed && status != JobStatus.Completed && status != JobStatus.Disputed) {
            revert WrongStatus(jobId, status, JobStatus.Claimed);
        }
        escrow.requestRefund(jobId);
    }

    /// @notice Agrees to the refund that the renter asked for. It costs the host nothing but the payment, and what a challenge
    /// puts at stake where there is one.
    function agreeRefund(uint256 jobId) external nonReentrant {
        Job storage job = _known(jobId);
        if (msg.sender != job.host) revert NotHost(jobId, job.host, msg.sender);
        JobStatus status = job.status;
        if (status != JobStatus.Claimed && status != JobStatus.Completed && status != JobStatus.Disputed) {
            revert WrongStatus(jobId, status, JobStatus.Claimed);
        }
        if (!escrow.getEscrow(jobId).refundRequested) revert RefundNotRequested(jobId);
        emit RefundAgreed(jobId, msg.sender);
        if (status == JobStatus.Disputed) _concede(jobId, msg.sender);
        else registry.jobClosed(msg.sender);
        _refund(jobId, job);
    }

    /// @notice Puts a completed job of the caller before the arbiter, within its challenge window.
    /// @param evidenceHash Digest of what the renter shows the arbiter.
    function disputeJob(uint256 jobId, bytes32 evidenceHash) external nonReentrant {
        _ofRenter(jobId);
        _dispute(jobId, msg.sender, evidenceHash);
    }

    /// @notice Notes what the caller shows the arbiter of a disputed job. Anyone may, so that a dispute which one account
    /// opened, be it for the host, silences nobody.
    function addEvidence(uint256 jobId, bytes32 evidenceHash) external {
        _inStatus(jobId, JobStatus.Disputed);
        emit EvidenceAdded(jobId, msg.sender, evidenceHash);
    }

    /// @notice Called by the proof system for an account that challenges a completed job and put up a bond.
    function challengeJob(uint256 jobId, address challenger, bytes32 evidenceHash) external nonReentrant {
        if (msg.sender != address(proofSystem)) revert OnlyProofSystem(msg.sender);
        _dispute(jobId, challenger, evidenceHash);
    }

    /// @notice Ends a dispute: refunds the renter if `favorClient`, else pays the host. Only the arbiter may call.
    function resolveDispute(uint256 jobId, bool favorClient) external nonReentrant {
        if (msg.sender != arbiter) revert NotArbiter(msg.sender);
        Job storage job = _inStatus(jobId, JobStatus.Disputed);
        emit DisputeResolved(jobId, favorClient);
        address host = job.host;
        if (!favorClient) {
            // Who challenged matters only where the host loses.
            // slither-disable-next-line unused-return
            proofSystem.settle(jobId, ProofSystem.Verdict.Rejected, host);
            _release(jobId, job);
            return;
        }
        _concede(jobId, host);
        reputation.jobEnded(host, ReputationSystem.Outcome.DisputeLost);
        _refund(jobId, job);
    }

    /// @notice Lets `token` pay for new jobs, or no longer. Jobs already posted are not affected.
    function allowToken(address token, bool allowed) external onlyOwner {
        if (token.code.length == 0) revert NotAToken(token);
        tokenAllowed[token] = allowed;
        emit TokenAllowed(token, allowed);
    }

    /// @notice Sets who decides disputes; 0 for nobody.
    // slither-disable-next-line missing-zero-check
    function setArbiter(address arbiter_) external onlyOwner {
        arbiter = arbiter_;
        emit ArbiterChanged(arbiter_);
    }

    /// @notice Takes no new jobs from now on, for ever. Those posted before end by the same rules.
    function retire(address to) external onlyOwner {
        if (successor != address(0)) revert IsRetired(successor);
        if (to.code.length == 0) revert NotASuccessor(to);
        successor = to;
        emit Retired(to);
    }

    /// @notice What is stored of a job. Its token and payment: `escrow.getEscrow(jobId)`; its commitment:
    /// `proofSystem.commitmentOf(jobId)`.
    function getJob(uint256 jobId) external view returns (Job memory) {
        return _known(jobId);
    }

    /// @notice A digest of what a host that claims the job agrees to: for whom it computes what, and for how much. Left out are
    /// the deadline, which moves with the block of the posting; what a claim checks by itself (reputation, reservation); and
    /// what no contract can check.
    /// @return `keccak256(abi.encode(renter, order, token, payment, requiresProof))`, where `order` is
    /// `keccak256(abi.encodePacked(modelHash, promptHash, uint32(maxTokens), uint32(temperature), seed))`.
    function dealOf(uint256 jobId) external view returns (bytes32) {
        return _deal(jobId, _known(jobId));
    }

    function _post(
        JobDetails calldata details,
        JobRequirements calldata requirements,
        address token,
        uint256 payment,
        address reservedFor
    ) private returns (uint256 jobId) {
        if (successor != address(0)) revert IsRetired(successor);
        _checkLevelBelow(1);
        _checkTerms(details, requirements, payment);
        if (token != address(0) && !tokenAllowed[token]) revert TokenNotAllowed(token);
        uint256 deadline = block.timestamp + requirements.maxTimeToComplete;
        jobId = ++jobCount;
        Job storage job = _jobs[jobId];
        job.renter = msg.sender;
        job.deadline = uint40(deadline);
        job.requiresProof = requirements.requiresProof;
        job.temperature = uint16(details.temperature);
        job.minReputation = uint16(requirements.minReputationScore);
        job.reserved = reservedFor != address(0);
        job.host = reservedFor;
        job.seed = details.seed;
        job.maxTokens = uint24(details.maxTokens);
        job.modelHash = keccak256(bytes(details.modelId));
        job.promptHash = keccak256(bytes(details.prompt));
        emit JobCreated(jobId, msg.sender, details.modelId, payment);
        emit JobPosted(jobId, msg.sender, payment);
        emit JobTerms(jobId, msg.sender, token, payment, uint64(deadline), reservedFor, details, requirements);
        _lock(jobId, token, payment, reservedFor);
    }

    /// Moves the caller's payment of a job into the escrow.
    function _lock(uint256 jobId, address token, uint256 payment, address reservedFor) private {
        if (token == address(0)) {
            escrow.create{value: payment}(jobId, msg.sender, reservedFor, token, uint96(payment));
            return;
        }
        uint256 before = IERC20(token).balanceOf(address(escrow));
        IERC20(token).safeTransferFrom(msg.sender, address(escrow), payment);
        uint256 arrived = IERC20(token).balanceOf(address(escrow)) - before;
        if (arrived != payment) revert PaymentMismatch(payment, arrived);
        escrow.create(jobId, msg.sender, reservedFor, token, uint96(payment));
    }

    /// Everything about claiming but what the caller judged.
    function _claim(uint256 jobId, Job storage job) private {
        _checkLevelBelow(2);
        _beforeDeadline(jobId, job);
        if (job.reserved && msg.sender != job.host) revert ReservedFor(jobId, job.host);
        if (job.minReputation != 0) {
            uint256 score = reputation.scoreOf(msg.sender);
            if (score < job.minReputation) revert ReputationTooLow(jobId, score, job.minReputation);
        }
        job.status = JobStatus.Claimed;
        job.host = msg.sender;
        emit JobClaimed(jobId, msg.sender);
        address controller = registry.jobOpened(msg.sender);
        if (gaveUp[jobId][controller]) revert ControllerGaveUp(jobId, controller);
    }

    /// Everything about giving up but whose it is and of which order.
    function _fail(uint256 jobId, Job storage job, string calldata reason) private {
        _beforeDeadline(jobId, job);
        _checkText("reason", reason, 1);
        address controller = registry.getNode(msg.sender).controller;
        bool reopens = !job.reserved && !escrow.getEscrow(jobId).refundRequested;
        emit JobFailed(jobId, msg.sender, reason);
        if (reopens) {
            job.status = JobStatus.Posted;
            job.host = address(0);
            gaveUp[jobId][controller] = true;
            emit JobReopened(jobId, controller);
        }
        registry.jobClosed(msg.sender);
        reputation.jobEnded(msg.sender, ReputationSystem.Outcome.GivenUp);
        if (reopens) proofSystem.discard(jobId);
        else _refund(jobId, job);
    }

    /// Everything about completing but the proof.
    function _complete(uint256 jobId, string calldata resultCID, bool proves) private {
        Job storage job = _ofHost(jobId, JobStatus.Claimed);
        _beforeDeadline(jobId, job);
        _checkText("resultCID", resultCID, 1);
        ProofSystem.Commitment memory commitment = proofSystem.commitmentOf(jobId);
        if (commitment.nTokens == 0) revert ResultNotCommitted(jobId);
        bytes32 given = keccak256(bytes(resultCID));
        if (given != commitment.resultHash) revert ResultMismatch(jobId, commitment.resultHash, given);
        if (job.requiresProof && !proves) revert ProofRequired(jobId);
        uint256 releaseAt = block.timestamp + challengeWindow;
        job.status = JobStatus.Completed;
        job.releaseAt = uint40(releaseAt);
        emit JobCompleted(jobId, resultCID);
        emit JobReleaseDue(jobId, uint64(releaseAt));
    }

    function _dispute(uint256 jobId, address disputer, bytes32 evidenceHash) private {
        Job storage job = _inStatus(jobId, JobStatus.Completed);
        if (block.timestamp >= job.releaseAt) revert DisputeTooLate(jobId, job.releaseAt, block.timestamp);
        uint256 releaseAt = block.timestamp + ARBITRATION_TIME;
        job.status = JobStatus.Disputed;
        job.releaseAt = uint40(releaseAt);
        emit JobDisputed(jobId, disputer, evidenceHash);
        emit JobReleaseDue(jobId, uint64(releaseAt));
        escrow.dispute(jobId, disputer);
    }

    /// Ends the host's side of a dispute it lost: the stake of the job goes only to a challenger who put up a bond.
    function _concede(uint256 jobId, address host) private {
        address challenger = proofSystem.settle(jobId, ProofSystem.Verdict.Upheld, host);
        if (challenger == address(0)) registry.jobClosed(host);
        else registry.jobForfeited(host, challenger, "challenge lost");
    }

    function _releaseDue(uint256 jobId, Job storage job) private {
        if (job.status == JobStatus.Disputed) {
            emit DisputeLapsed(jobId);
            // Who challenged matters only where the host loses.
            // slither-disable-next-line unused-return
            proofSystem.settle(jobId, ProofSystem.Verdict.Undecided, job.host);
        }
        _release(jobId, job);
    }

    function _release(uint256 jobId, Job storage job) private {
        job.status = JobStatus.Released;
        address host = job.host;
        _count(false);
        registry.jobClosed(host);
        reputation.jobEnded(host, ReputationSystem.Outcome.Paid);
        emit PaymentReleased(jobId, host, escrow.release(jobId, host));
    }

    function _refund(uint256 jobId, Job storage job) private {
        job.status = JobStatus.Refunded;
        (address renter, uint256 amount) = escrow.refund(jobId);
        emit PaymentRefunded(jobId, renter, amount);
    }

    function _deal(uint256 jobId, Job memory job) private view returns (bytes32) {
        PaymentEscrow.Escrow memory paid = escrow.getEscrow(jobId);
        return keccak256(abi.encode(job.renter, orderOf(job), paid.token, paid.amount, job.requiresProof));
    }

    function _checkDeal(uint256 jobId, Job storage job, bytes32 deal) private view {
        bytes32 there = _deal(jobId, job);
        if (there != deal) revert OrderDiffers(jobId, there);
    }

    function _known(uint256 jobId) private view returns (Job storage job) {
        job = _jobs[jobId];
        if (job.renter == address(0)) revert UnknownJob(jobId);
    }

    function _inStatus(uint256 jobId, JobStatus need) private view returns (Job storage job) {
        job = _known(jobId);
        if (job.status != need) revert WrongStatus(jobId, job.status, need);
    }

    function _ofHost(uint256 jobId, JobStatus need) private view returns (Job storage job) {
        job = _inStatus(jobId, need);
        if (msg.sender != job.host) revert NotHost(jobId, job.host, msg.sender);
    }

    function _ofRenter(uint256 jobId) private view returns (Job storage job) {
        job = _known(jobId);
        if (msg.sender != job.renter) revert NotRenter(jobId, job.renter, msg.sender);
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
        if (requirements.minReputationScore > MAX_REPUTATION) {
            revert MinReputationTooHigh(requirements.minReputationScore, MAX_REPUTATION);
        }
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
