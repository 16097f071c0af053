#!/usr/bin/env bash
# Brings a checkout to where it builds and tests: system packages, the contracts' tools, EZKL, the verifier contract.
# Each step runs again only when what it depends on has changed, so a second run takes no time.
# It installs packages on Debian and Ubuntu as root or with sudo; elsewhere it names what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
stamps=$PWD/.fabstir/stamps
mkdir -p "$stamps"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }

# step NAME OUTPUT INPUT… -- COMMAND…: runs COMMAND unless OUTPUT is there and was made of these very INPUTs (files,
# folders, or words; the checkout's place counts too, since a virtual environment cannot be moved).
step() {
  local name=$1 output=$2 inputs=() stamp
  shift 2
  while [ "$1" != -- ]; do inputs+=("$1"); shift; done
  shift
  stamp=$({
    printf '%s\n' "$PWD" "$@" "${inputs[@]}"
    for input in "${inputs[@]}"; do [ ! -e "$input" ] || find "$input" -type f -print0 | sort -z | xargs -0 sha256sum; done
  } | sha256sum)
  [ -e "$output" ] && [ "$(cat "$stamps/$name" 2>/dev/null)" = "$stamp" ] && return
  say "$name"
  "$@"
  [ -e "$output" ] || fail "$name: $* succeeded and left no $output"
  echo "$stamp" >"$stamps/$name"
}

# The Debian packages that this machine lacks: by the command or file each is for, so that other sources of it count.
missing_packages() {
  local command
  for command in cmake clang ccache pkg-config git curl; do has $command || echo $command; done
  compgen -G '/usr/lib/llvm*/lib*/libclang*.so*' >/dev/null || compgen -G '/usr/lib*/libclang*.so*' >/dev/null || echo libclang-dev
  has c++ && has make || echo build-essential
  has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  has node || echo nodejs
  has npm || echo npm
}

system_packages() {
  local missing sudo=
  missing=$(missing_packages | tr '\n' ' ')
  if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || sudo=sudo
    local install="apt-get install -y --no-install-recommends $missing"
    if ! has apt-get || ! { [ -z "$sudo" ] || sudo -n true 2>/dev/null; }; then
      fail "missing: $missing" "install with: ${sudo:+$sudo }$install   (Debian's names; then run this again)"
    fi
    say "installing $missing"
    $sudo rm -f /var/lib/man-db/auto-update # the manual's index is most of the install's time
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo $install -qq
  fi
  local node; node=$(node --version)
  [ "$(grep -o '[0-9]*' <<<"$node" | head -1)" -ge 18 ] || fail "node $node is too old: the contracts' tools need 18 or newer"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$(python3 --version) is too old: EZKL's packages need 3.11 or newer"
  has cargo || fail "missing: cargo" "install with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" \
    "then open a new shell, and run this again"
}

contract_tools() {
  # npm carries Foundry's programs (the development dependencies) for this platform only; elsewhere its own installer does.
  local omit=--omit=dev
  [ "$(uname -sm)" = "Linux x86_64" ] && omit=
  npm --prefix contracts ci $omit --no-audit --no-fund --loglevel=error
  local tool
  for tool in anvil forge cast; do
    [ -x contracts/node_modules/.bin/$tool ] || has $tool ||
      fail "missing: $tool (npm has none for $(uname -sm))" "install Foundry 1.7.1: curl -L https://foundry.paradigm.xyz | bash && foundryup -i v1.7.1"
  done
}

prover_python() {
  rm -rf .fabstir/venv
  python3 -m venv .fabstir/venv
  .fabstir/venv/bin/pip install --quiet --disable-pip-version-check -r src/prover/select-v1/requirements.txt
}

verifier_contract() {
  mkdir -p contracts/generated
  cargo run --quiet -- prover verifier contracts/generated/SelectV1J1S2K8.sol
}

build_contracts() { npm --prefix contracts run --silent build; }

system_packages
# As the Makefile does, which could not on a machine where ccache was just installed.
export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
step contract-tools contracts/node_modules/solc contracts/package-lock.json -- contract_tools
step prover-python .fabstir/venv/bin/python src/prover/select-v1/requirements.txt "$(python3 --version)" -- prover_python
step verifier-contract contracts/generated/SelectV1J1S2K8.sol src/prover/select-v1 .fabstir/venv/pyvenv.cfg -- verifier_contract
step contracts contracts/out contracts/src contracts/test contracts/script contracts/generated contracts/foundry.toml contracts/package-lock.json -- build_contracts
