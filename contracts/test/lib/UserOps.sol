// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IEntryPointExtra} from "@openzeppelin/contracts/account/utils/ERC4337Utils.sol";
import {IEntryPoint, IPaymaster, PackedUserOperation} from "@openzeppelin/contracts/interfaces/IERC4337.sol";
import {Vm} from "./Vm.sol";

/// Makes, signs and submits user operations, the last to the ERC-4337 reference entry point, v0.8.
library UserOps {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    /// The build its authors publish; its licence is GPL-3.0, so nothing outside the tests may take its source in.
    string private constant ENTRY_POINT = "node_modules/@account-abstraction/contracts/artifacts/EntryPoint.json";

    uint128 internal constant VERIFICATION_GAS = 1_000_000;
    uint128 internal constant CALL_GAS = 1_000_000;
    uint128 internal constant PRE_VERIFICATION_GAS = 50_000;
    uint128 internal constant PAYMASTER_GAS = 100_000;
    uint128 internal constant FEE = 1 gwei;
    /// The most that an operation made here costs its account.
    uint256 internal constant COST_MAX = uint256(VERIFICATION_GAS + CALL_GAS + PRE_VERIFICATION_GAS) * FEE;

    address payable internal constant BUNDLER = payable(address(0xB0));

    function deployEntryPoint() internal returns (IEntryPoint entryPoint) {
        bytes memory code = vm.getCode(ENTRY_POINT);
        assembly ("memory-safe") {
            entryPoint := create(0, add(code, 32), mload(code))
        }
        vm.assertTrue(address(entryPoint) != address(0));
    }

    /// An operation that pays for itself, unsigned.
    function pack(IEntryPoint entryPoint, address sender, bytes memory callData)
        internal
        view
        returns (PackedUserOperation memory op)
    {
        op.sender = sender;
        op.nonce = entryPoint.getNonce(sender, 0);
        op.callData = callData;
        op.accountGasLimits = bytes32(abi.encodePacked(VERIFICATION_GAS, CALL_GAS));
        op.preVerificationGas = PRE_VERIFICATION_GAS;
        op.gasFees = bytes32(abi.encodePacked(FEE, FEE));
    }

    function sponsor(PackedUserOperation memory op, address paymaster) internal pure {
        op.paymasterAndData = abi.encodePacked(paymaster, PAYMASTER_GAS, PAYMASTER_GAS);
    }

    function sign(PackedUserOperation memory op, IEntryPoint entryPoint, uint256 key) internal view {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, hash(op, entryPoint));
        op.signature = abi.encodePacked(r, s, v);
    }

    function hash(PackedUserOperation memory op, IEntryPoint entryPoint) internal view returns (bytes32) {
        return IEntryPointExtra(address(entryPoint)).getUserOpHash(op);
    }

    /// One call, so that a test may expect it to revert.
    function submit(PackedUserOperation memory op, IEntryPoint entryPoint) internal {
        PackedUserOperation[] memory ops = new PackedUserOperation[](1);
        ops[0] = op;
        entryPoint.handleOps(ops, BUNDLER);
    }
}

/// Pays for every operation.
contract TestPaymaster is IPaymaster {
    function validatePaymasterUserOp(PackedUserOperation calldata, bytes32, uint256)
        external
        pure
        returns (bytes memory context, uint256 validationData)
    {
        return ("", 0);
    }

    function postOp(PostOpMode, bytes calldata, uint256, uint256) external pure {}
}
