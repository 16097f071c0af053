#!/usr/bin/env bash
# A container engine for the tests, on machines that have none and reach no image registry.
#
#   tools/engine.sh up         find or start one; prints the `export` lines to eval
#   tools/engine.sh down       stop the one `up` started, and its containers (its images stay for the next time)
#   tools/engine.sh run CMD…   up, CMD, down: also when CMD fails or is interrupted
#
# An engine that answers already is used as it is and never stopped. Ours is Debian's, started by root only. It
# publishes on loopback, touches no iptables and reaches no network, so the two images the tests name are made here:
# the base from this machine's own distribution, and Foundry's from npm's anvil.
# FABSTIR_BASE_IMAGE is the sign to the tests that an engine is there: a base on which a program built here runs.
set -euo pipefail
cd "$(dirname "$0")/.."
state=$PWD/.fabstir/engine
anvil_image=ghcr.io/foundry-rs/foundry:v1.7.1
. /etc/os-release

case $ID in
  debian) base_image=debian:$VERSION_CODENAME-slim ;;
  ubuntu) base_image=ubuntu:$VERSION_ID ;;
  *) base_image=${FABSTIR_BASE_IMAGE:-debian:bookworm-slim} ;;
esac

say() { printf 'engine: %s\n' "$*" >&2; }

answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Our engine, if it runs still: its address, or nothing.
ours() {
  [ -f "$state/run/pid" ] && kill -0 "$(cat "$state/run/pid")" 2>/dev/null && cat "$state/run/address"
}

install() { # PACKAGE…
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

start() {
  if ! command -v dockerd >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "no engine answers, and only root on Debian or Ubuntu can start one"; return 1; }
    say "installing Docker"
    rm -f /var/lib/man-db/auto-update # the manual's index is most of the install's time
    install docker.io iptables mmdebstrap
    command -v docker >/dev/null || install docker-cli # a package of its own since Debian 13
  fi
  [ "$(id -u)" = 0 ] || { say "no engine answers, and only root can start one"; return 1; }

  # A short path: the sockets below it may have 107 bytes.
  local run; run=$(mktemp -dt fabstir-engine.XXXXXX)
  mkdir -p "$state"; ln -sfn "$run" "$state/run"
  : >"$run/log"
  # TCP on loopback and not a socket: where /.dockerenv exists, testcontainers takes a socket to mean that it runs
  # inside the engine, and connects to the bridge instead of to the published port. The system picks the port.
  setsid dockerd --host tcp://127.0.0.1:0 --tls=false --ip 127.0.0.1 --iptables=false --ip-forward=false --ip-masq=false \
    --data-root "$state/data" --exec-root "$run/exec" --pidfile "$run/pid" >"$run/log" 2>&1 </dev/null &
  local child=$! port=
  for _ in $(seq 300); do
    port=$(sed -n 's/.*API listen on 127.0.0.1:\([0-9]*\).*/\1/p' "$run/log")
    [ -z "$port" ] || break
    kill -0 $child 2>/dev/null || break
    sleep 0.1
  done
  [ -n "$port" ] || { kill $child 2>/dev/null; say "dockerd did not start:"; tail -20 "$run/log" >&2; return 1; }
  echo "tcp://127.0.0.1:$port" >"$run/address"
  say "up at 127.0.0.1:$port"
}

images() {
  local cache=${FABSTIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}}/fabstir
  if ! docker image inspect "$base_image" >/dev/null 2>&1; then
    local tar=$cache/base-$ID-$VERSION_CODENAME-$(dpkg --print-architecture).tar
    if [ ! -f "$tar" ]; then
      say "making $base_image out of $VERSION_CODENAME's packages"
      command -v mmdebstrap >/dev/null || install mmdebstrap
      mkdir -p "$cache"
      mmdebstrap --quiet --mode=root --variant=apt --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$VERSION_CODENAME" "$tar.$$.tar" >&2
      mv "$tar.$$.tar" "$tar"
    fi
    docker import --change 'CMD ["/bin/sh"]' "$tar" "$base_image" >/dev/null
  fi
  if ! docker image inspect "$anvil_image" >/dev/null 2>&1; then
    local context; context=$(mktemp -d)
    cp -L contracts/node_modules/.bin/{anvil,cast} "$context"
    mkdir -p "$context/certs" # cast, which the health check calls, does not start without any
    [ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp -L /etc/ssl/certs/ca-certificates.crt "$context/certs/"
    # The entry point is that of Foundry's own image.
    printf '%s\n' "FROM $base_image" 'COPY anvil cast /usr/local/bin/' 'COPY certs /etc/ssl/certs' 'USER 1000' 'EXPOSE 8545' \
      'ENTRYPOINT ["/bin/sh", "-c"]' >"$context/Dockerfile"
    docker build --quiet --tag "$anvil_image" "$context" >/dev/null
    rm -r "$context"
  fi
}

up() {
  local address
  if address=$(ours); then
    export DOCKER_HOST=$address
  elif ! answers; then
    start
    address=$(cat "$state/run/address")
    export DOCKER_HOST=$address
  fi
  # An engine of the user's own pulls its images; ours cannot.
  if [ -n "$address" ]; then
    images
    echo "export DOCKER_HOST=$address"
  fi
  echo "export FABSTIR_BASE_IMAGE=$base_image"
}

down() {
  local address pid run
  address=$(ours) || return 0
  pid=$(cat "$state/run/pid")
  run=$(readlink "$state/run")
  docker --host "$address" ps --all --quiet | xargs --no-run-if-empty docker --host "$address" rm --force --volumes >/dev/null
  kill "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  umount "$run"/exec/netns/* 2>/dev/null || true # dockerd leaves the default one mounted
  rm -rf "$run" "$state/run"
}

case ${1-} in
  up) up ;;
  down) down ;;
  run)
    shift
    trap 'down || say "could not stop the engine"' EXIT
    # A process of its own, since `set -e` does not hold inside a condition.
    if exports=$(tools/engine.sh up); then
      eval "$exports"
    elif [ "${CI-}" = true ]; then
      say "CI must run the container tests"
      exit 1
    fi
    "$@"
    ;;
  *) say "usage: tools/engine.sh up | down | run COMMAND…"; exit 2 ;;
esac
