// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {PaymentEscrow} from "../src/PaymentEscrow.sol";
import {Handler} from "./lib/Handler.sol";
import {World} from "./lib/World.sol";

contract MoneyInvariants is World {
    Handler private handler;
    address[2] private tokens;

    function setUp() public override {
        super.setUp();
        handler = new Handler(fab, usd, registry, escrow, marketplace, proofSystem);
        tokens = [address(0), address(usd)];
        for (uint256 i = 0; i < handler.ACCOUNTS(); i++) {
            fab.transfer(handler.accounts(i), 1e24);
            usd.transfer(handler.accounts(i), handler.USD_GIVEN());
            handler.registerOrUnregister(i);
        }
    }

    /// Which contracts the fuzzer calls.
    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    struct Selectors {
        address target;
        bytes4[] selectors;
    }

    function targetSelectors() public view returns (Selectors[] memory targets) {
        bytes4[11] memory actions = [
            Handler.postEth.selector,
            Handler.postUsd.selector,
            Handler.registerOrUnregister.selector,
            Handler.claim.selector,
            Handler.complete.selector,
            Handler.release.selector,
            Handler.expire.selector,
            Handler.cancel.selector,
            Handler.withdraw.selector,
            Handler.setWilling.selector,
            Handler.wait.selector
        ];
        targets = new Selectors[](1);
        targets[0] = Selectors(address(handler), new bytes4[](actions.length));
        for (uint256 i = 0; i < actions.length; i++) {
            targets[0].selectors[i] = actions[i];
        }
    }

    /// What the jobs say, by token (0: ETH, 1: USD) and account.
    struct Books {
        uint256[2] held;
        uint256[2] fees;
        uint256[4][2] earned;
        uint256[4][2] spent;
        uint256[4] openJobs;
    }

    /// The escrow has what it holds for jobs plus what it credits, each account what its jobs say (so nobody is paid twice,
    /// or for another's job), the registry every stake and the number of each host's jobs that have not ended.
    function invariant_all_money_is_where_the_jobs_say() public view {
        Books memory books = read();
        address[4] memory accounts = everyone();
        uint256 stakes = 2 * registry.MIN_STAKE();
        for (uint256 a = 0; a < 4; a++) {
            stakes += registry.getNode(accounts[a]).stake;
            vm.assertEq(registry.getNode(accounts[a]).openJobs, books.openJobs[a]);
        }
        vm.assertEq(fab.balanceOf(address(registry)), stakes);

        for (uint256 t = 0; t < 2; t++) {
            uint256 owed = books.held[t];
            uint256 given = t == 0 ? handler.ETH_GIVEN() : handler.USD_GIVEN();
            for (uint256 a = 0; a < 4; a++) {
                uint256 credit = escrow.credits(tokens[t], accounts[a]);
                owed += credit;
                uint256 has = balance(t, accounts[a]) + credit;
                vm.assertEq(has, given + books.earned[t][a] - books.spent[t][a]);
            }
            vm.assertEq(balance(t, treasury), books.fees[t]);
            vm.assertEq(balance(t, address(escrow)), owed);
        }
    }

    /// However a run went, every job can end, after which no money is held and every host can leave.
    function afterInvariant() public {
        handler.endAll();
        invariant_all_money_is_where_the_jobs_say();
        Books memory books = read();
        vm.assertEq(books.held[0] + books.held[1], 0);
        for (uint256 a = 0; a < 4; a++) {
            vm.assertEq(books.openJobs[a], 0);
        }
    }

    function read() private view returns (Books memory books) {
        address[4] memory accounts = everyone();
        uint256 count = marketplace.jobCount();
        for (uint256 jobId = 1; jobId <= count; jobId++) {
            PaymentEscrow.Escrow memory e = escrow.getEscrow(jobId);
            JobMarketplace.Job memory job = marketplace.getJob(jobId);
            uint256 t = e.token == address(0) ? 0 : 1;
            uint256 fee = uint256(e.amount) * FEE_BPS / 10_000;
            if (job.status < JobMarketplace.JobStatus.Released) books.held[t] += e.amount;
            if (job.status == JobMarketplace.JobStatus.Released) books.fees[t] += fee;
            for (uint256 a = 0; a < 4; a++) {
                if (job.renter == accounts[a] && job.status != JobMarketplace.JobStatus.Refunded) {
                    books.spent[t][a] += e.amount;
                }
                if (job.host != accounts[a]) continue;
                if (job.status == JobMarketplace.JobStatus.Released) books.earned[t][a] += e.amount - fee;
                if (job.status < JobMarketplace.JobStatus.Released) books.openJobs[a]++;
            }
        }
    }

    function everyone() private view returns (address[4] memory accounts) {
        for (uint256 a = 0; a < 4; a++) {
            accounts[a] = handler.accounts(a);
        }
    }

    function balance(uint256 t, address account) private view returns (uint256) {
        return t == 0 ? account.balance : usd.balanceOf(account);
    }
}
