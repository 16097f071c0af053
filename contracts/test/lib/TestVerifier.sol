// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IVerifier} from "../../src/ProofSystem.sol";

/// Answers as its owner, the test, says: what is tested with it is everything around the EZKL proof, which the node's tests
/// make and check for real.
contract TestVerifier is IVerifier {
    enum Answer {
        Accept,
        Refuse,
        Revert
    }

    error Refused();

    Answer public answer;
    bytes32 public lastCall;

    function set(Answer answer_) external {
        answer = answer_;
    }

    function verifyProof(bytes calldata proof, uint256[] calldata instances) external returns (bool) {
        if (answer == Answer.Revert) revert Refused();
        lastCall = keccak256(abi.encode(proof, instances));
        return answer == Answer.Accept;
    }
}
