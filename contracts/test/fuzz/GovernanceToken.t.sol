// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Fuzz} from "../lib/Fuzz.sol";

contract GovernanceTokenFuzz is Fuzz {
    bytes32 private constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    bytes32 private constant DELEGATION = keccak256("Delegation(address delegatee,uint256 nonce,uint256 expiry)");

    /// Some FAB of `who`, and an account that has none.
    function holder(address who, address to, uint256 has) private returns (address, address, uint256) {
        (who, to, has) = (account(who), account(to), bound(has, 0, 1e24));
        vm.assume(fab.balanceOf(who) == 0 && fab.balanceOf(to) == 0 && who != to);
        fab.transfer(who, has);
        return (who, to, has);
    }

    function testFuzz_transfer_moves_what_the_caller_has_and_its_votes(
        address who,
        address to,
        uint256 has,
        uint256 amount
    ) public {
        (who, to, has) = holder(who, to, has);
        amount = bound(amount, 0, 2e24);
        vm.prank(who);
        fab.delegate(who);
        bool fits = amount <= has;
        same(tries(who, address(fab), abi.encodeCall(fab.transfer, (to, amount))), fits);
        vm.assertEq(fab.balanceOf(who), fits ? has - amount : has);
        vm.assertEq(fab.balanceOf(to), fits ? amount : 0);
        vm.assertEq(fab.getVotes(who), fab.balanceOf(who));
        vm.assertEq(fab.totalSupply(), 1_000_000_000e18);
    }

    function testFuzz_transferFrom_moves_what_was_approved(
        address who,
        address to,
        uint256 has,
        uint256 approved,
        uint256 amount
    ) public {
        (who, to, has) = holder(who, to, has);
        amount = bound(amount, 0, 2e24);
        approved = bound(approved, 0, 2e24);
        vm.prank(who);
        fab.approve(stranger, approved);
        bool fits = amount <= has && amount <= approved;
        same(tries(stranger, address(fab), abi.encodeCall(fab.transferFrom, (who, to, amount))), fits);
        vm.assertEq(fab.balanceOf(to), fits ? amount : 0);
        vm.assertEq(fab.allowance(who, stranger), fits ? approved - amount : approved);
    }

    function testFuzz_approve_speaks_for_its_sender_only(address who, address spender, uint256 amount) public {
        (who, spender) = (account(who), account(spender));
        vm.assume(who != spender);
        same(tries(who, address(fab), abi.encodeCall(fab.approve, (spender, amount))), true);
        vm.assertEq(fab.allowance(who, spender), amount);
        vm.assertEq(fab.allowance(spender, who), 0);
    }

    function sign(uint256 key, bytes32 what) private view returns (uint8 v, bytes32 r, bytes32 s) {
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", fab.DOMAIN_SEPARATOR(), what)));
    }

    function testFuzz_permit_takes_the_owners_signature_in_time(
        uint64 key,
        uint64 otherKey,
        uint256 amount,
        uint32 late,
        bool ownKey
    ) public {
        uint256 signer = bound(ownKey ? key : otherKey, 1, type(uint64).max - 1);
        address who = vm.addr(bound(key, 1, type(uint64).max - 1));
        uint256 deadline = block.timestamp + 1 hours;
        bytes32 what = keccak256(abi.encode(PERMIT, who, stranger, amount, 0, deadline));
        (uint8 v, bytes32 r, bytes32 s) = sign(signer, what);
        vm.warp(block.timestamp + bound(late, 0, 2 hours));
        bool fits = vm.addr(signer) == who && block.timestamp <= deadline;
        bytes memory data = abi.encodeCall(fab.permit, (who, stranger, amount, deadline, v, r, s));
        same(tries(renter, address(fab), data), fits);
        vm.assertEq(fab.allowance(who, stranger), fits ? amount : 0);
        same(tries(renter, address(fab), data), false);
    }

    function testFuzz_delegate_gives_the_callers_votes(address who, address to, uint256 has) public {
        (who, to, has) = holder(who, to, has);
        same(tries(who, address(fab), abi.encodeCall(fab.delegate, (to))), true);
        vm.assertEq(fab.getVotes(to), has);
        vm.assertEq(fab.getVotes(who), 0);
        vm.assertEq(fab.delegates(who), to);
    }

    function testFuzz_delegateBySig_gives_the_signers_votes_in_time_once(
        uint64 key,
        address to,
        uint256 has,
        uint32 late
    ) public {
        uint256 signer = bound(key, 1, type(uint64).max - 1);
        address who;
        (who, to, has) = holder(vm.addr(signer), to, has);
        uint256 expiry = block.timestamp + 1 hours;
        (uint8 v, bytes32 r, bytes32 s) = sign(signer, keccak256(abi.encode(DELEGATION, to, 0, expiry)));
        vm.warp(block.timestamp + bound(late, 0, 2 hours));
        bool fits = block.timestamp <= expiry;
        bytes memory data = abi.encodeCall(fab.delegateBySig, (to, 0, expiry, v, r, s));
        same(tries(renter, address(fab), data), fits);
        vm.assertEq(fab.getVotes(to), fits ? has : 0);
        same(tries(renter, address(fab), data), false);
    }
}
