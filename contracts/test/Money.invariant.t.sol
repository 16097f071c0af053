// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Handler} from "./lib/Handler.sol";
import {Test} from "./lib/Test.sol";

/// Whatever renters, hosts, challengers, guardians, the arbiter, the owner, thieves and time do in any order, the suite
/// has what the second books say, and every job can end.
contract MoneyInvariants is Test {
    struct Selectors {
        address target;
        bytes4[] selectors;
    }

    /// What `forge test -vv` prints.
    // forge-lint: disable-next-line(mixed-case-function)
    event log_named_uint(string key, uint256 val);

    /// Actions between two recounts of every job there ever was.
    uint256 private constant RECOUNT = 50;

    Handler private handler;

    function setUp() public {
        handler = new Handler();
        handler.setUp();
        handler.tighten();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function targetSelectors() public view returns (Selectors[] memory targets) {
        targets = new Selectors[](1);
        targets[0] = Selectors(address(handler), handler.actions());
    }

    /// One function, because each is a campaign of its own. Balances, stakes, scores, roles, parameters and the jobs that go
    /// on are compared after every action, every job of the run after every 50th and at its end.
    function invariant_the_suite_has_what_the_books_say() public view {
        handler.check();
        if (handler.calls() % RECOUNT == 0) handler.recount();
    }

    /// However a run went, every job can end, after which no money is held and every host can leave.
    function afterInvariant() public {
        handler.recount();
        handler.endAll(handler.jobCount() % 2 == 0);
    }

    /// The books are worth as much as the runs that they were kept of.
    function test_the_handler_reaches_every_state() public {
        vm.pauseGasMetering();
        string[51] memory outcomes = [
            "posted in ETH",
            "posted in USD",
            "posted for a host",
            "posted in a batch",
            "claimed",
            "claimed again",
            "reserved job claimed",
            "completed",
            "completed with a proof",
            "batch completed",
            "batch completed with one proof",
            "paid",
            "refunded",
            "payee credited",
            "renter credited",
            "credit withdrawn",
            "released several at once",
            "given up and reopened",
            "given up and refunded",
            "missed",
            "expired unclaimed",
            "cancelled",
            "refund requested",
            "refund agreed",
            "refund of a disputed job agreed",
            "refund of a challenged job agreed",
            "disputed",
            "challenged",
            "dispute upheld",
            "dispute rejected",
            "dispute lapsed",
            "challenge upheld",
            "challenge rejected",
            "challenge lapsed",
            "rated",
            "registered",
            "registered under a controller",
            "unbonding cancelled",
            "unregistered",
            "stake added",
            "stake moved",
            "slashed",
            "reputation slashed",
            "beacon pinned",
            "paused",
            "breaker at level 1",
            "breaker at level 2",
            "unpaused",
            "ownership handed on",
            "theft refused",
            "second end refused"
        ];
        string[5] memory more =
            ["registry retired", "marketplace retired", "token no longer allowed", "circuit switched off", "unbonding"];
        uint256[] memory counts = new uint256[](outcomes.length + more.length);
        for (uint256 run = 0; run < 12; run++) {
            setUp();
            for (uint256 i = 0; i < 500; i++) {
                handler.act(uint256(keccak256(abi.encode(run, i))));
                handler.check();
            }
            for (uint256 i = 0; i < counts.length; i++) {
                counts[i] += handler.reached(i < outcomes.length ? outcomes[i] : more[i - outcomes.length]);
            }
            handler.recount();
            handler.endAll(run % 2 == 0);
        }
        for (uint256 i = 0; i < counts.length; i++) {
            emit log_named_uint(i < outcomes.length ? outcomes[i] : more[i - outcomes.length], counts[i]);
        }
        for (uint256 i = 0; i < counts.length; i++) {
            vm.assertTrue(counts[i] != 0, i < outcomes.length ? outcomes[i] : more[i - outcomes.length]);
        }
    }
}
