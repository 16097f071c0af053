//! Whether the code at a contract's address knows the functions that this program calls there: a wrong address, or another version of
//! a contract, is found out at the start and not by a transaction that reverts.
//!
//! Looks for the selectors that the compiler pushes to compare a call with (`PUSH4`, or a shorter push where it begins with zeros).
//! A function that is found may still do something else: only the code's hash would tell.

use alloy::primitives::{Address, B256, U256, b256, hex};
use alloy::providers::Provider;
use alloy::sol_types::SolCall;
use anyhow::{Context, Result, bail};

use super::Chain;
use super::abi::{Erc20, JobMarketplace, NodeRegistry, PaymentEscrow, ProofSystem, ReputationSystem};

/// Where a proxy keeps the address of its code. Source: ERC-1967, <https://eips.ethereum.org/EIPS/eip-1967>.
const IMPLEMENTATION: B256 = b256!("360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc");
/// The code of a minimal proxy, before and after the address of the real one. Source: ERC-1167,
/// <https://eips.ethereum.org/EIPS/eip-1167>.
const MINIMAL_PROXY: (&[u8], &[u8]) = (&hex!("363d3d373d3d3d363d73"), &hex!("5af43d82803e903d91602b57fd5bf3"));
/// `PUSH0`; `PUSHn` is as many after it.
const PUSH0: u8 = 0x5f;

/// A function by its signature and its selector.
type Function = (&'static str, [u8; 4]);

fn function<C: SolCall>() -> Function {
    (C::SIGNATURE, C::SELECTOR)
}

macro_rules! functions {
    ($contract:ident: $($call:ident),* $(,)?) => { vec![$(function::<$contract::$call>()),*] };
}

/// Returns what this program calls at the contract of that name in the configuration.
fn called(name: &str) -> Vec<Function> {
    match name {
        "governance_token" => functions!(Erc20: balanceOfCall, allowanceCall, approveCall, transferCall),
        "node_registry" => {
            functions!(NodeRegistry: isActiveCall, getNodeCall, JOB_STAKECall, MIN_STAKECall, addStakeCall,
            updateMetadataCall, startUnbondingCall, cancelUnbondingCall, unregisterNodeCall, registerNodeCall)
        }
        "payment_escrow" => functions!(PaymentEscrow: withdrawCall, getEscrowCall, feeBpsCall),
        "job_marketplace" => {
            functions!(JobMarketplace: jobCountCall, getJobCall, breakerLevelCall, claimExactlyCall, completeJobCall,
            completeJobsCall, releasePaymentCall, releasePaymentsCall, expireJobCall, cancelJobCall, failExactlyCall, disputeJobCall,
            resolveDisputeCall, pauseCall, postJobCall, postJobsCall, postJobWithTokenCall)
        }
        "proof_system" => {
            functions!(ProofSystem: commitmentOfCall, contextOfCall, circuitOfCall, commitExactlyCall, challengeCall,
            registerCircuitCall)
        }
        "reputation_system" => functions!(ReputationSystem: scoreOfCall, rateCall),
        // Their logs are read, and nothing is asked of them.
        _ => Vec::new(),
    }
}

impl Chain {
    /// Checks that the code at every contract knows the functions that this program calls there.
    pub(super) async fn check_functions(&self, name: &str, address: Address, code: &[u8]) -> Result<()> {
        let wanted = called(name);
        let lacks = |code: &[u8]| wanted.iter().copied().filter(|(_, selector)| !knows(code, *selector)).collect();
        let mut lacking: Vec<Function> = lacks(code);
        let mut at = String::new();
        if !lacking.is_empty()
            && let Some(behind) = self.behind(address, code).await?
        {
            let code = self.provider.get_code_at(behind).await.with_context(|| format!("read code at {behind}"))?;
            lacking.retain(|(_, selector)| !knows(&code, *selector));
            at = format!(", a proxy for {behind},");
        }
        let Some((signature, selector)) = lacking.first() else { return Ok(()) };
        let more = match lacking.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more of {}", wanted.len()),
        };
        bail!(
            "contracts.{name} = {address}{at} does not know {signature} (selector 0x{}){more}: it is another contract, or another \
             version of it than this program speaks",
            hex::encode(selector)
        )
    }

    /// Returns where a proxy's code is, or `None` of a contract that is no proxy of a kind we know.
    async fn behind(&self, address: Address, code: &[u8]) -> Result<Option<Address>> {
        if let Some(behind) = minimal(code) {
            return Ok(Some(behind));
        }
        let slot = self.provider.get_storage_at(address, U256::from_be_bytes(IMPLEMENTATION.0)).await;
        let slot = slot.with_context(|| format!("read which code the contract {address} is a proxy for"))?;
        Ok(Some(Address::from_word(slot.into())).filter(|behind| !behind.is_zero()))
    }
}

fn minimal(code: &[u8]) -> Option<Address> {
    let (before, after) = MINIMAL_PROXY;
    let address = code.strip_prefix(before)?.strip_suffix(after)?;
    Address::try_from(address).ok()
}

/// Returns whether code pushes that selector anywhere.
fn knows(code: &[u8], selector: [u8; 4]) -> bool {
    let zeros = selector.iter().take_while(|byte| **byte == 0).count();
    let significant = &selector[zeros..];
    let shortest = [&[PUSH0 + significant.len() as u8], significant].concat();
    let whole = [&[PUSH0 + 4], &selector[..]].concat();
    [whole, shortest].iter().any(|push| code.windows(push.len()).any(|bytes| bytes == push))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_selector_is_found_where_it_is_pushed() {
        let code = hex!("6080604052 63a9059cbb 14 62123456 14");
        assert!(knows(&code, hex!("a9059cbb")));
        assert!(knows(&code, hex!("00123456")), "zeros are not pushed");
        assert!(!knows(&code, hex!("059cbb14")) && !knows(&code, hex!("12345614")), "inside another");
        assert!(!knows(&[], [0; 4]));
    }

    #[test]
    fn a_minimal_proxy_says_whose_code_it_runs() {
        let behind = Address::repeat_byte(0xbe);
        let code = [MINIMAL_PROXY.0, behind.as_slice(), MINIMAL_PROXY.1].concat();
        assert_eq!(code.len(), 45);
        assert_eq!(minimal(&code), Some(behind));
        assert_eq!(minimal(&code[..44]), None);
        assert_eq!(minimal(b""), None);
    }

    /// Every call that the sources of this room name is looked for.
    #[test]
    fn no_call_is_forgotten() {
        let sources =
            [include_str!("mod.rs"), include_str!("call.rs"), include_str!("record.rs"), include_str!("follow.rs")];
        let here = include_str!("spoken.rs");
        let mut calls = BTreeSet::new();
        for source in sources {
            let words = source.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            let paths = words.map(|word| word.strip_prefix("abi::").unwrap_or(word));
            // A contract's call, and no module's.
            let ours = |path: &&str| path.starts_with(char::is_uppercase) && path.matches("::").count() == 1;
            calls.extend(paths.filter(|path| path.ends_with("Call")).filter(ours));
        }
        assert!(calls.len() > 30, "{calls:?}");
        for call in calls {
            let (contract, name) = call.split_once("::").expect("a path");
            let listed = here.split(&format!("functions!({contract}:")).nth(1).and_then(|rest| rest.split(')').next());
            // A signature is asked of accounts, not of a contract of the configuration.
            assert!(
                contract == "Erc1271"
                    || listed.is_some_and(|names| names.split(',').any(|listed| listed.trim() == name)),
                "{call} is not looked for"
            );
        }
    }
}
