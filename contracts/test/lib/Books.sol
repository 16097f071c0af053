// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace, orderOf} from "../../src/JobMarketplace.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {PaymentEscrow} from "../../src/PaymentEscrow.sol";
import {ProofSystem} from "../../src/ProofSystem.sol";
import {Picky} from "./Tokens.sol";
import {World} from "./World.sol";

/// Second books of the whole suite: what each account, job, host and contract has by the rules, kept from what happened and
/// not read from the suite; `check` compares them with it. Whether an action may happen is asked of the suite only where it
/// hangs on the breaker's level, on limits, or on who agreed to whom, whose getters the fold of the logs checks.
abstract contract Books is World {
    /// A job.
    struct Entry {
        address renter;
        address host;
        /// What it is paid in: 0 ETH, 1 USD.
        uint256 t;
        uint256 amount;
        uint256 feeBps;
        uint256 deadline;
        uint256 releaseAt;
        uint256 minReputation;
        uint256 maxTokens;
        uint256 nTokens;
        address challenger;
        uint256 bond;
        JobMarketplace.JobStatus status;
        bool reserved;
        bool reopened;
        bool requiresProof;
        bool refundRequested;
        bool rated;
        bool proven;
    }

    struct Score {
        uint256 value;
        uint256 since;
    }

    /// Stands for a block header: what follows is logged in this block.
    event NewBlock(uint256 number, uint256 time);

    bytes32 internal constant CIRCUIT2 = keccak256("select-v1/J2S2K8");
    uint256 internal constant ETH_GIVEN = 1e24;
    uint256 internal constant USD_GIVEN = 1e14;
    uint256 internal constant FAB_GIVEN = 1e24;
    /// So that hosts find time for each job, and a check is quick.
    uint256 internal constant OPEN_MAX = 12;
    /// Retiring ends a run's interesting part, so it comes late.
    uint256 internal constant RETIRE_AFTER = 300;

    /// Sets of states.
    uint256 internal constant POSTED = 1 << uint256(JobMarketplace.JobStatus.Posted);
    uint256 internal constant CLAIMED = 1 << uint256(JobMarketplace.JobStatus.Claimed);
    uint256 internal constant COMPLETED = 1 << uint256(JobMarketplace.JobStatus.Completed);
    uint256 internal constant DISPUTED = 1 << uint256(JobMarketplace.JobStatus.Disputed);

    /// The successor of the registry.
    NodeRegistry public next;
    address[] public accounts;
    address[2] internal guardians;
    address[2] internal arbiters;
    address[2] internal owners;
    /// The contracts that have an owner.
    address[] public suite;

    uint256 public calls;
    uint256 private random;
    /// How often each outcome was reached.
    mapping(string outcome => uint256) public reached;

    uint256 public jobCount;
    mapping(uint256 jobId => Entry) internal jobs;
    uint256[] internal open;
    /// Those that ended with a payment to the host.
    uint256[] internal paid;
    mapping(uint256 jobId => mapping(address controller => bool)) internal gaveUp;
    /// What each account has, and may withdraw, of ETH (0) and USD (1).
    mapping(address account => uint256)[2] internal due;
    /// What the escrow holds of open jobs.
    uint256[2] internal held;
    mapping(address account => uint256) internal fabDue;
    mapping(address host => uint256) internal stakes;
    mapping(address host => uint256) internal openJobs;
    /// Of hosts that are registered in `registry`; else 0.
    mapping(address host => address) internal controllers;
    mapping(address host => Score) private scores;
    /// Digest of every role and parameter, as the owner left them.
    bytes32 internal configured;

    error Surprise(string what, address by, address target, bytes call, bytes answer);

    modifier seeded(uint256 seed) {
        random = seed;
        calls++;
        _;
    }

    function setUp() public virtual override {
        super.setUp();
        emit NewBlock(block.number, block.timestamp);
        next = new NodeRegistry(owner, fab, address(verifier), treasury, registry);
        suite = [address(registry), address(escrow), address(proofSystem), address(reputation), address(marketplace)];
        suite.push(address(next));
        guardians = [guardian, address(0x1A4)];
        arbiters = [arbiter, address(0x1A3)];
        owners = [owner, address(0x1A1)];
        ProofSystem.Circuit memory two = circuit();
        two.jobs = 2;
        vm.startPrank(owner);
        proofSystem.registerCircuit(CIRCUIT2, two);
        vm.stopPrank();
        vm.deal(treasury, 0);
        accounts = [address(new Picky()), address(new Picky()), host, rival, renter];
        fabDue[address(registry)] = 2 * registry.MIN_STAKE();
        for (uint256 a = 0; a < accounts.length; a++) {
            endow(accounts[a]);
        }
        for (uint256 a = 2; a < 4; a++) {
            (stakes[accounts[a]], controllers[accounts[a]]) = (registry.MIN_STAKE(), accounts[a]);
        }
        tryRegister(accounts[0]);
        tryRegister(accounts[1]);
        configured = config();
    }

    function endow(address account) private {
        vm.deal(account, ETH_GIVEN);
        usd.transfer(account, USD_GIVEN);
        fab.transfer(account, FAB_GIVEN);
        (due[0][account], due[1][account], fabDue[account]) = (ETH_GIVEN, USD_GIVEN, FAB_GIVEN);
        scores[account] = Score(500, block.timestamp);
        vm.startPrank(account);
        fab.approve(address(registry), type(uint256).max);
        fab.approve(address(proofSystem), type(uint256).max);
        usd.approve(address(marketplace), type(uint256).max);
        vm.stopPrank();
    }

    // What is compared after every action.

    function check() public view {
        checkHosts();
        checkMoney(0, address(0));
        checkMoney(1, address(usd));
        checkJobs();
        vm.assertEq(config(), configured, "roles and parameters change only as the owner says");
    }

    function checkHosts() private view {
        uint256 sum = 0;
        uint256 moved = 0;
        for (uint256 a = 0; a < accounts.length; a++) {
            address account = accounts[a];
            NodeRegistry.Node memory node = registry.getNode(account);
            vm.assertEq(node.stake, stakes[account], "a host has the stake it put in, less what it lost");
            vm.assertEq(node.openJobs, openJobs[account], "a host's open jobs are those it claimed and that go on");
            vm.assertEq(node.controller, controllers[account], "a host's controller is whom it registered under");
            vm.assertTrue(node.stake >= node.openJobs * registry.JOB_STAKE(), "the stake covers the open jobs");
            vm.assertEq(fab.balanceOf(account), fabDue[account], "an account has its FAB");
            uint256 score_ = reputation.scoreOf(account);
            vm.assertEq(score_, scoreNow(account), "a score moves with outcomes and ratings only");
            vm.assertTrue(score_ <= 1000, "a score is at most 1000");
            sum += node.stake;
            moved += next.getNode(account).stake;
        }
        vm.assertEq(fab.balanceOf(address(registry)), sum, "the registry has the stakes");
        vm.assertEq(fab.balanceOf(address(next)), moved, "the next registry has the stakes that moved");
        vm.assertEq(fab.balanceOf(address(next)), fabDue[address(next)], "what moved is what was staked");
        vm.assertEq(fab.balanceOf(address(proofSystem)), fabDue[address(proofSystem)], "the bonds are there");
        vm.assertEq(fab.balanceOf(treasury), fabDue[treasury], "the treasury has what was forfeited");
        vm.assertEq(fab.balanceOf(stranger), 0, "a thief has no FAB");
    }

    function checkMoney(uint256 t, address token) private view {
        uint256 owed = held[t];
        for (uint256 a = 0; a < accounts.length; a++) {
            uint256 credit = escrow.credits(token, accounts[a]);
            owed += credit;
            vm.assertEq(balance(t, accounts[a]) + credit, due[t][accounts[a]], "each account has what its jobs say");
        }
        vm.assertEq(balance(t, address(escrow)), owed, "the escrow has what it holds and owes");
        vm.assertEq(balance(t, treasury), due[t][treasury], "the treasury has the fees");
        vm.assertEq(balance(t, stranger) + escrow.credits(token, stranger), 0, "a thief has nothing");
    }

    function checkJobs() private view {
        vm.assertEq(marketplace.jobCount(), jobCount, "jobs are posted by renters");
        for (uint256 i = 0; i < open.length; i++) {
            checkJob(open[i]);
        }
    }

    function checkJob(uint256 jobId) private view {
        JobMarketplace.Job memory job = marketplace.getJob(jobId);
        vm.assertEq(uint256(job.status), uint256(jobs[jobId].status), "a job is in the state that was reached");
        vm.assertEq(job.host, jobs[jobId].host, "a job is the host's that claimed it");
        vm.assertEq(job.releaseAt, jobs[jobId].releaseAt, "a job is released when it is due");
    }

    // What is compared at times: every job there ever was, and sums of what the suite itself says.

    function recount() public view {
        uint256[2] memory holds;
        uint256[2] memory fees;
        uint256 bonds = 0;
        uint256 claims = 0;
        for (uint256 jobId = 1; jobId <= jobCount; jobId++) {
            checkJob(jobId);
            checkEscrow(jobId);
            PaymentEscrow.Escrow memory e = escrow.getEscrow(jobId);
            uint256 t = e.token == address(0) ? 0 : 1;
            if (e.state == PaymentEscrow.State.Released) fees[t] += uint256(e.amount) * e.feeBps / 10_000;
            else if (e.state != PaymentEscrow.State.Refunded) holds[t] += e.amount;
            bonds += proofSystem.challengeOf(jobId).bond;
            JobMarketplace.JobStatus status = marketplace.getJob(jobId).status;
            if (
                status == JobMarketplace.JobStatus.Claimed || status == JobMarketplace.JobStatus.Completed
                    || status == JobMarketplace.JobStatus.Disputed
            ) claims++;
        }
        vm.assertEq(fab.balanceOf(address(proofSystem)), bonds, "the proof system has the open bonds");
        uint256 counted = 0;
        for (uint256 a = 0; a < accounts.length; a++) {
            counted += registry.getNode(accounts[a]).openJobs;
            holds[0] += escrow.credits(address(0), accounts[a]);
        }
        vm.assertEq(counted, claims, "open jobs are the claimed ones that go on");
        vm.assertEq(address(escrow).balance, holds[0], "the escrow has the ETH of its jobs and credits");
        vm.assertEq(usd.balanceOf(address(escrow)), holds[1], "the escrow has the USD of its jobs");
        vm.assertEq(treasury.balance, fees[0], "the treasury has the fees in ETH");
        vm.assertEq(usd.balanceOf(treasury), fees[1], "the treasury has the fees in USD");
    }

    function checkEscrow(uint256 jobId) private view {
        Entry storage job = jobs[jobId];
        PaymentEscrow.Escrow memory e = escrow.getEscrow(jobId);
        vm.assertEq(e.renter, job.renter, "the money is the renter's");
        vm.assertEq(e.amount, job.amount, "the amount is the posted one");
        vm.assertEq(e.feeBps, job.feeBps, "the fee is that of the time of posting");
        vm.assertTrue(e.refundRequested == job.refundRequested, "the renter asks for a refund");
        PaymentEscrow.State state = job.status == JobMarketplace.JobStatus.Released
            ? PaymentEscrow.State.Released
            : job.status == JobMarketplace.JobStatus.Refunded
                ? PaymentEscrow.State.Refunded
                : job.status == JobMarketplace.JobStatus.Disputed
                    ? PaymentEscrow.State.Disputed
                    : PaymentEscrow.State.Held;
        vm.assertEq(uint256(e.state), uint256(state), "the money's state is the job's");
        ProofSystem.Challenge memory challenge = proofSystem.challengeOf(jobId);
        vm.assertEq(challenge.challenger, job.challenger, "the challenger is who put up the bond");
        vm.assertEq(challenge.bond, job.bond, "the bond is what was put up");
        ProofSystem.Commitment memory commitment = proofSystem.commitmentOf(jobId);
        vm.assertEq(commitment.nTokens, job.nTokens, "a job has the commitment of its host");
        vm.assertTrue(commitment.proven == job.proven, "a job is proven if a proof was accepted");
        vm.assertEq(reputation.ratingOf(jobId) == 0 ? 0 : 1, job.rated ? 1 : 0, "a job is rated once it was");
    }

    /// Digest of every role and parameter.
    function config() internal view returns (bytes32) {
        address[] memory has = new address[](suite.length);
        for (uint256 i = 0; i < suite.length; i++) {
            has[i] = NodeRegistry(suite[i]).owner();
        }
        bytes memory roles = abi.encode(
            has,
            marketplace.arbiter(),
            marketplace.isGuardian(guardians[0]),
            marketplace.isGuardian(guardians[1]),
            marketplace.isGuardian(stranger),
            marketplace.successor(),
            registry.successor(),
            next.successor()
        );
        bytes memory limits = abi.encode(
            escrow.feeBps(),
            proofSystem.challengeBond(),
            marketplace.missesForLevel1(),
            marketplace.missesForLevel2(),
            registry.registrationsPerWindow(),
            next.registrationsPerWindow(),
            reputation.incentiveThreshold()
        );
        bytes memory lists = abi.encode(
            marketplace.tokenAllowed(address(usd)),
            marketplace.tokenAllowed(address(fab)),
            proofSystem.circuitOf(CIRCUIT),
            proofSystem.circuitOf(CIRCUIT2),
            proofSystem.circuitOf(0)
        );
        return keccak256(abi.encode(roles, limits, lists));
    }

    // What is written down.

    function notePosted(address who, JobMarketplace.Posting memory p, uint256 feeBps) internal {
        Entry storage job = jobs[++jobCount];
        job.renter = who;
        job.host = p.reservedFor;
        job.reserved = p.reservedFor != address(0);
        job.t = p.token == address(0) ? 0 : 1;
        job.amount = p.payment;
        job.feeBps = feeBps;
        job.deadline = block.timestamp + p.requirements.maxTimeToComplete;
        job.minReputation = p.requirements.minReputationScore;
        job.maxTokens = p.details.maxTokens;
        job.requiresProof = p.requirements.requiresProof;
        due[job.t][who] -= p.payment;
        held[job.t] += p.payment;
        open.push(jobCount);
        reach(job.reserved ? "posted for a host" : job.t == 0 ? "posted in ETH" : "posted in USD");
    }

    function noteCompleted(uint256 jobId, bool proven) internal {
        Entry storage job = jobs[jobId];
        job.status = JobMarketplace.JobStatus.Completed;
        job.releaseAt = block.timestamp + WINDOW;
        job.proven = proven;
    }

    /// A job was released because its time had come.
    function noteReleased(uint256 jobId) internal {
        if (jobs[jobId].status == JobMarketplace.JobStatus.Disputed) {
            reach(jobs[jobId].challenger == address(0) ? "dispute lapsed" : "challenge lapsed");
            noteSettled(jobId, ProofSystem.Verdict.Undecided);
        }
        notePaid(jobId);
    }

    function notePaid(uint256 jobId) internal {
        Entry storage job = jobs[jobId];
        uint256 fee = job.amount * job.feeBps / 10_000;
        held[job.t] -= job.amount;
        due[job.t][job.host] += job.amount - fee;
        due[job.t][treasury] += fee;
        openJobs[job.host]--;
        noteScore(job.host, 10);
        if (job.t == 0 && !takesEth(job.host)) reach("payee credited");
        paid.push(jobId);
        noteEnded(jobId, JobMarketplace.JobStatus.Released);
        reach("paid");
    }

    function noteRefunded(uint256 jobId) internal {
        Entry storage job = jobs[jobId];
        held[job.t] -= job.amount;
        due[job.t][job.renter] += job.amount;
        if (job.t == 0 && !takesEth(job.renter)) reach("renter credited");
        noteEnded(jobId, JobMarketplace.JobStatus.Refunded);
        reach("refunded");
    }

    function noteMissed(uint256 jobId) internal {
        address who = jobs[jobId].host;
        noteForfeited(who, address(0));
        noteScore(who, -50);
        reach("missed");
    }

    /// The host gives in: it loses a stake only to a challenger.
    function noteConceded(uint256 jobId) internal {
        Entry storage job = jobs[jobId];
        address challenger = job.challenger;
        noteSettled(jobId, ProofSystem.Verdict.Upheld);
        if (challenger == address(0)) openJobs[job.host]--;
        else noteForfeited(job.host, challenger);
    }

    function noteSettled(uint256 jobId, ProofSystem.Verdict verdict) internal {
        Entry storage job = jobs[jobId];
        if (job.challenger == address(0)) return;
        uint256 half = verdict == ProofSystem.Verdict.Rejected ? job.bond / 2 : 0;
        moveFab(address(proofSystem), half == 0 ? job.challenger : job.host, half == 0 ? job.bond : half);
        if (half != 0) moveFab(address(proofSystem), treasury, job.bond - half);
        (job.challenger, job.bond) = (address(0), 0);
    }

    function noteForfeited(address who, address reward) private {
        uint256 lost = 10e18;
        openJobs[who]--;
        stakes[who] -= lost;
        if (reward != address(0)) moveFab(address(registry), reward, lost / 2);
        moveFab(address(registry), treasury, reward == address(0) ? lost : lost / 2);
    }

    function noteEnded(uint256 jobId, JobMarketplace.JobStatus status) private {
        jobs[jobId].status = status;
        for (uint256 i = 0; i < open.length; i++) {
            if (open[i] != jobId) continue;
            open[i] = open[open.length - 1];
            open.pop();
            return;
        }
    }

    function moveFab(address from, address to, uint256 amount) internal {
        fabDue[from] -= amount;
        fabDue[to] += amount;
    }

    function noteScore(address who, int256 change) internal {
        int256 value = int256(scoreNow(who)) + change;
        scores[who] = Score(value < 0 ? 0 : value > 1000 ? 1000 : uint256(value), block.timestamp);
    }

    /// Ten points of what is above 500 are lost per whole week without an event.
    function scoreNow(address who) private view returns (uint256) {
        Score memory s = scores[who];
        uint256 loss = 10 * ((block.timestamp - s.since) / 7 days);
        return s.value <= 500 ? s.value : s.value < 500 + loss ? 500 : s.value - loss;
    }

    function reach(string memory outcome) internal {
        reached[outcome]++;
    }

    // What may happen, by the rules.

    function mayPost(JobMarketplace.Posting memory p) internal view returns (bool) {
        return marketplace.successor() == address(0) && marketplace.breakerLevel() == 0
            && (p.token == address(0) || marketplace.tokenAllowed(p.token));
    }

    function mayClaim(uint256 jobId, address who) internal view returns (bool) {
        Entry storage job = jobs[jobId];
        if (marketplace.breakerLevel() == 2 || block.timestamp >= job.deadline) return false;
        if (job.reserved && who != job.host) return false;
        if (gaveUp[jobId][controllers[who]] || scoreNow(who) < job.minReputation) return false;
        return
            stakes[who] >= 1000e18 && registry.getNode(who).unbondedAt == 0
                && stakes[who] >= (openJobs[who] + 1) * 10e18;
    }

    /// Whether the job's time of release has come.
    function isDue(uint256 jobId) internal view returns (bool) {
        Entry storage job = jobs[jobId];
        bool waits = job.status == JobMarketplace.JobStatus.Completed || job.status == JobMarketplace.JobStatus.Disputed;
        return waits && block.timestamp >= job.releaseAt;
    }

    function mayRetire() internal returns (bool) {
        return calls > RETIRE_AFTER && chance(3);
    }

    function takesEth(address who) internal view returns (bool) {
        return (who != accounts[0] && who != accounts[1]) || Picky(payable(who)).willing();
    }

    function balance(uint256 t, address account) private view returns (uint256) {
        return t == 0 ? account.balance : usd.balanceOf(account);
    }

    // Actions that are parts of others.

    /// Who tries to claim a job: one that gave it up, one that may, or any, which adds to its stake first if it must.
    function claimant(uint256 jobId) internal returns (address) {
        uint256 first = draw(accounts.length);
        for (uint256 i = 0; i < accounts.length; i++) {
            address who = accounts[(first + i) % accounts.length];
            if (gaveUp[jobId][controllers[who]] && chance(2)) return who;
            if (mayClaim(jobId, who) && !chance(6)) return who;
        }
        address any = accounts[first];
        if (stakes[any] != 0 && stakes[any] < 1000e18) tryStake(any, 1000e18 - stakes[any]);
        return any;
    }

    function tryRegister(address who) internal {
        address controller = who;
        bytes memory call = abi.encodeCall(registry.registerNode, ("{}"));
        bool may = address(registry.successor()) == address(0);
        if (chance(2)) {
            controller = someone();
            if (!chance(3)) {
                attempt(controller, address(registry), abi.encodeCall(registry.approveHost, (who, true)), true);
            }
            call = abi.encodeCall(registry.registerControlledNode, ("{}", controller));
            may = may && registry.approved(controller, who);
        }
        NodeRegistry.Registrations memory past = registry.registrationsOf(controller);
        bool full = past.window == block.timestamp / 1 days && past.count >= registry.registrationsPerWindow();
        if (!attempt(who, address(registry), call, may && !full)) return;
        (stakes[who], controllers[who]) = (1000e18, controller);
        moveFab(who, address(registry), 1000e18);
        reach(controller == who ? "registered" : "registered under a controller");
    }

    function tryUnregister(address who, bool may) internal {
        if (!attempt(who, address(registry), abi.encodeCall(registry.unregisterNode, ()), may)) return;
        moveFab(address(registry), who, stakes[who]);
        (stakes[who], controllers[who]) = (0, address(0));
        reach("unregistered");
    }

    function tryStake(address who, uint256 amount) internal {
        bytes memory call = abi.encodeCall(registry.addStake, (amount));
        if (!attempt(who, address(registry), call, controllers[who] != address(0))) return;
        stakes[who] += amount;
        moveFab(who, address(registry), amount);
        reach("stake added");
    }

    /// Has the host commit to the job's result, unless it did or is late, and lets the beacon's block pass.
    function commitTo(uint256 jobId) internal returns (bool) {
        Entry storage job = jobs[jobId];
        if (job.nTokens != 0) return true;
        uint32 nTokens = uint32(1 + draw(job.maxTokens < 5 ? job.maxTokens : 5));
        bytes32 root = node(nTokens, depth(nTokens), 0);
        (bytes32 result, bytes32 tokens) = (keccak256(bytes(CID)), keccak256("tokens"));
        bytes memory call = abi.encodeCall(proofSystem.commitResult, (jobId, root, nTokens, result, tokens));
        if (chance(2)) {
            bytes32 order = orderOf(marketplace.getJob(jobId));
            call = abi.encodeCall(proofSystem.commitExactly, (jobId, order, root, nTokens, result, tokens));
        }
        if (!attempt(job.host, address(proofSystem), call, block.timestamp < job.deadline)) return false;
        job.nTokens = nTokens;
        passBy(4, 2);
        return true;
    }

    /// Two claimed jobs of one host; none if no host has two.
    function pair() internal returns (uint256[] memory jobIds) {
        uint256 first = find(CLAIMED);
        for (uint256 i = 0; i < open.length; i++) {
            Entry storage job = jobs[open[i]];
            if (open[i] == first || job.status != JobMarketplace.JobStatus.Claimed || job.host != jobs[first].host) {
                continue;
            }
            jobIds = new uint256[](2);
            (jobIds[0], jobIds[1]) = (first, open[i]);
            return jobIds;
        }
    }

    function beaconKnown(uint256 jobId) internal view returns (bool) {
        try proofSystem.beaconOf(jobId) returns (bytes32) {
            return true;
        } catch {
            return false;
        }
    }

    function provable(uint256 jobId, bytes32 circuitId) internal view returns (bool) {
        return proofSystem.circuitOf(circuitId).active && beaconKnown(jobId);
    }

    /// What an honest host submits for jobs it committed to.
    function proofOf(uint256[] memory jobIds, bytes32 circuitId) internal view returns (bytes memory) {
        ProofSystem.Submission memory s;
        s.circuitId = circuitId;
        s.proof = "proof";
        s.instances = new uint256[](2 + jobIds.length * (1 + 4 * SPOTS));
        uint256 paths = 0;
        for (uint256 i = 0; i < jobIds.length; i++) {
            paths += SPOTS * depth(jobs[jobIds[i]].nTokens);
        }
        s.paths = new bytes32[](paths);
        paths = 0;
        for (uint256 i = 0; i < jobIds.length; i++) {
            s.instances[2 + jobIds.length * SPOTS + i] = proofSystem.contextOf(jobIds[i], circuitId);
            for (uint256 spot = 0; spot < SPOTS; spot++) {
                paths = openSpot(s, jobIds.length, i, jobIds[i], spot, paths);
            }
        }
        return encode(s);
    }

    /// Opens one spot of job `i` of `count`.
    function openSpot(
        ProofSystem.Submission memory s,
        uint256 count,
        uint256 i,
        uint256 jobId,
        uint256 spot,
        uint256 path
    ) private view returns (uint256) {
        uint256 position = proofSystem.positionOf(jobId, spot);
        s.instances[2 + i * SPOTS + spot] = uint256(digest(position));
        s.instances[2 + count * (SPOTS + 1) + i * SPOTS + spot] = proofSystem.drawOf(jobId, position);
        uint256 nTokens = jobs[jobId].nTokens;
        for (uint256 level = 0; level < depth(nTokens); level++) {
            s.paths[path++] = node(nTokens, level, (position >> level) ^ 1);
        }
        return path;
    }

    /// Has `by` call `target` and answers whether that went well, which it must exactly if it `may`.
    function attempt(address by, address target, uint256 value, bytes memory call, bool may) internal returns (bool) {
        calling();
        vm.prank(by);
        (bool ok, bytes memory answer) = target.call{value: value}(call);
        called(ok);
        if (ok != may) {
            revert Surprise(may ? "refused what it must allow" : "must be refused", by, target, call, answer);
        }
        return ok;
    }

    function attempt(address by, address target, bytes memory call, bool may) internal returns (bool) {
        return attempt(by, target, 0, call, may);
    }

    /// What a test wants to do before and after each attempt.
    function calling() internal virtual {}

    function called(bool ok) internal virtual {}

    /// Moves the chain on.
    function passBy(uint256 time, uint256 blocks) internal {
        uint256 number = block.number + blocks;
        uint256 until = block.timestamp + time;
        vm.roll(number);
        vm.warp(until);
        emit NewBlock(number, until);
    }

    function passUntil(uint256 time) internal {
        if (block.timestamp < time) passBy(time - block.timestamp, 1);
    }

    // What is drawn.

    /// A random number below `n`.
    function draw(uint256 n) internal returns (uint256) {
        random = uint256(keccak256(abi.encode(random)));
        return random % n;
    }

    /// True one time in `n`.
    function chance(uint256 n) internal returns (bool) {
        return draw(n) == 0;
    }

    function someone() internal returns (address) {
        return accounts[draw(accounts.length)];
    }

    /// A random one of the open jobs that are in one of these states; 0 when there is none.
    function find(uint256 states) internal returns (uint256) {
        uint256 count = open.length;
        uint256 first = count == 0 ? 0 : draw(count);
        for (uint256 i = 0; i < count; i++) {
            uint256 jobId = open[(first + i) % count];
            if (states >> uint256(jobs[jobId].status) & 1 == 1) return jobId;
        }
        return 0;
    }

    function posting() internal returns (JobMarketplace.Posting memory p) {
        p.details = details();
        p.details.maxTokens = 1 + draw(100);
        p.details.temperature = chance(2) ? 0 : draw(2001);
        p.details.seed = uint32(draw(1 << 32));
        p.requirements.minReputationScore = chance(4) ? draw(700) : 0;
        p.requirements.maxTimeToComplete = 30 + draw(chance(4) ? 100 : chance(2) ? 2 hours : 3 days);
        p.requirements.requiresProof = chance(3);
        p.token = chance(2) ? address(usd) : address(0);
        p.payment = 1 + draw(p.token == address(0) ? 1e20 : 1e10);
        p.reservedFor = chance(4) ? someone() : address(0);
    }

    function bubble(bytes memory answer) internal pure {
        assembly ("memory-safe") {
            revert(add(answer, 32), mload(answer))
        }
    }
}
