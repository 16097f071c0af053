# The node's image. The stage to ship is the last one; it builds the program from this checkout.
#
#   docker build -t fabstir .
#   docker build -t fabstir --target prebuilt .   with the program already at image/fabstir, built for the same base
#
# `prebuilt` comes before `builder`, so that an engine without BuildKit, which builds every stage above its target,
# needs no compiler for it. PROVER=0 leaves EZKL out (about 300 MB): enough for a node that proves nothing.
ARG BASE_IMAGE=debian:bookworm-slim
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${BASE_IMAGE} AS system
ARG PROVER=1
COPY src/prover/select-v1/requirements.txt /opt/fabstir/
# libgomp: llama.cpp's threads. curl: the health check.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libgomp1 libstdc++6 \
 && if [ "$PROVER" = 1 ]; then \
      apt-get install -y --no-install-recommends python3 python3-venv \
      && python3 -m venv /opt/fabstir/venv \
      && /opt/fabstir/venv/bin/pip install --no-cache-dir -r /opt/fabstir/requirements.txt; \
    fi \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --no-log-init --create-home --home-dir /data fabstir \
 && mkdir -p /etc/fabstir && touch /etc/fabstir/config.toml
# The configuration may come from a file mounted at /etc/fabstir/config.toml, from variables like these, or both.
ENV FABSTIR_DATA_DIR=/data \
    FABSTIR_PYTHON=/opt/fabstir/venv/bin/python \
    API_PORT=8080 \
    P2P_PORT=4001
USER fabstir
# The store, the proving keys and the content the node keeps.
WORKDIR /data
VOLUME /data
EXPOSE 8080 4001 4001/udp
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD curl --silent --show-error --fail "http://127.0.0.1:${API_PORT}/readyz"
# The program turns SIGTERM into an orderly stop and starts no process that it does not reap: no init is needed.
STOPSIGNAL SIGTERM
ENTRYPOINT ["fabstir"]
CMD ["run", "--config", "/etc/fabstir/config.toml"]

FROM system AS prebuilt
COPY image/fabstir /usr/local/bin/fabstir

FROM ${RUST_IMAGE} AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake clang libclang-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# What is shipped cannot be made to fail (src/failpoint.rs).
RUN cargo build --release --locked --bin fabstir \
 && ! grep --quiet FABSTIR_FAILPOINTS target/release/fabstir

FROM system
COPY --from=builder /src/target/release/fabstir /usr/local/bin/fabstir
