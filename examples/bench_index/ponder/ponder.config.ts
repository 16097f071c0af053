import { readFileSync } from "node:fs";
import { createConfig } from "ponder";

// bench_index says where the chain is, which of its blocks are wanted, and which contract is at which address.
const { url, id, first, last, database, contracts } = JSON.parse(process.env.BENCH_PONDER!);

// All but the token, whose logs are no events of ours.
const abis = {
  node_registry: "NodeRegistry",
  payment_escrow: "PaymentEscrow",
  job_marketplace: "JobMarketplace",
  proof_system: "ProofSystem",
  reputation_system: "ReputationSystem",
  governance: "Governance",
  timelock: "TimelockController",
  account_factory: "BaseAccountIntegration",
};

const contract = ([name, file]: [string, string]) => {
  const abi = JSON.parse(readFileSync(`../../../abi/${file}.json`, "utf8"));
  return [name, { chain: "local", abi, address: contracts[name], startBlock: first, endBlock: last }];
};

export default createConfig({
  chains: { local: { id, rpc: url } },
  database: { kind: "pglite", directory: database },
  contracts: Object.fromEntries(Object.entries(abis).map(contract)),
});
