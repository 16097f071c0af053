// Writes ../abi/<Contract>.json, what the Rust side decodes with, from forge's artifacts; with --check it writes nothing and
// fails when a file differs. Entries are sorted by kind and name, so that moving code does not change the files.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";

const contracts = [
  "BaseAccountIntegration",
  "Governance",
  "GovernanceToken",
  "JobMarketplace",
  "MarketAccount",
  "NodeRegistry",
  "PaymentEscrow",
  "ProofSystem",
  "ReputationSystem",
  "TimelockController",
];
const root = new URL("../", import.meta.url);
const check = process.argv.includes("--check");

const key = (entry) => `${entry.type} ${entry.name ?? ""}(${(entry.inputs ?? []).map((input) => input.type)})`;
const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);

const drifted = [];
mkdirSync(new URL("../abi/", root), { recursive: true });
for (const name of contracts) {
  const { abi } = JSON.parse(readFileSync(new URL(`out/${name}.sol/${name}.json`, root), "utf8"));
  const text = JSON.stringify(abi.sort(compare), null, 2) + "\n";
  const file = new URL(`../abi/${name}.json`, root);
  if (existsSync(file) && readFileSync(file, "utf8") === text) continue;
  if (check) drifted.push(`abi/${name}.json`);
  else writeFileSync(file, text);
}
if (drifted.length) {
  console.error(`${drifted.join(", ")} differ from contracts/src: run \`npm run abi\` in contracts/ and commit the result`);
  process.exit(1);
}
