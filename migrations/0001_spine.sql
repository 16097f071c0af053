-- Two kinds of state, never mixed: the projection (rebuildable from the chain's logs: block, log, job, host, cursor)
-- and our intent (not rebuildable: work, reservation, lease, tx_*, peer_receipt).
-- Hashes and addresses are blobs, amounts decimal text (they pass 64 bits), times Unix seconds.

-- What this file belongs to; opening it for another chain or marketplace is refused.
CREATE TABLE identity (
    only         INTEGER PRIMARY KEY CHECK (only = 1),
    chain_id     INTEGER NOT NULL,
    marketplace  BLOB NOT NULL CHECK (length(marketplace) = 20)
) STRICT;

-- Headers we linked, parent by parent. An orphan stays as the auditor's trail.
CREATE TABLE block (
    hash       BLOB PRIMARY KEY CHECK (length(hash) = 32),
    number     INTEGER NOT NULL,
    parent     BLOB NOT NULL CHECK (length(parent) = 32),
    time       INTEGER NOT NULL,
    canonical  INTEGER NOT NULL CHECK (canonical IN (0, 1))
) STRICT;
CREATE UNIQUE INDEX block_canonical ON block (number) WHERE canonical = 1;

-- The newest block whose logs are all in `log`. At most one row.
CREATE TABLE cursor (
    only    INTEGER PRIMARY KEY CHECK (only = 1),
    number  INTEGER NOT NULL,
    hash    BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- The journal: every log of our contracts, byte for byte. `kind` is null when we could not decode it.
-- `link` chains canonical logs (market/event.rs): equal heads mean equal journals.
CREATE TABLE log (
    seq           INTEGER PRIMARY KEY,
    block_hash    BLOB NOT NULL CHECK (length(block_hash) = 32),
    block_number  INTEGER NOT NULL,
    log_index     INTEGER NOT NULL,
    tx_hash       BLOB NOT NULL CHECK (length(tx_hash) = 32),
    address       BLOB NOT NULL CHECK (length(address) = 20),
    topics        BLOB NOT NULL CHECK (length(topics) % 32 = 0 AND length(topics) <= 128),
    data          BLOB NOT NULL,
    kind          TEXT,
    job           INTEGER,
    link          BLOB NOT NULL CHECK (length(link) = 32),
    canonical     INTEGER NOT NULL CHECK (canonical IN (0, 1)),
    UNIQUE (block_hash, log_index)
) STRICT;
CREATE INDEX log_job ON log (job, block_number, log_index) WHERE canonical = 1;
CREATE INDEX log_place ON log (block_number, log_index) WHERE canonical = 1;

-- The fold of each job's canonical logs.
CREATE TABLE job (
    id              INTEGER PRIMARY KEY,
    state           TEXT NOT NULL CHECK (state IN ('posted', 'claimed', 'committed', 'completed', 'released', 'refunded')),
    renter          BLOB NOT NULL CHECK (length(renter) = 20),
    host            BLOB CHECK (length(host) = 20),
    model           TEXT NOT NULL,
    input           TEXT NOT NULL,
    max_tokens      INTEGER NOT NULL,
    token           BLOB NOT NULL CHECK (length(token) = 20),
    payment         TEXT NOT NULL,
    deadline        INTEGER NOT NULL,
    requires_proof  INTEGER NOT NULL CHECK (requires_proof IN (0, 1)),
    posted_block    INTEGER NOT NULL,
    tokens          INTEGER,
    output          TEXT,
    paid            TEXT,
    CHECK ((state = 'posted') <= (host IS NULL)),
    CHECK ((state IN ('claimed', 'committed', 'completed', 'released')) <= (host IS NOT NULL))
) STRICT;
CREATE INDEX job_state ON job (state, id);

-- What we did for a job (market/job.rs, `Work`), in order. Survives reorgs: an inference cannot be un-run.
CREATE TABLE work (
    seq   INTEGER PRIMARY KEY,
    job   INTEGER NOT NULL,
    did   TEXT NOT NULL,
    body  TEXT NOT NULL,
    at    INTEGER NOT NULL
) STRICT;
CREATE INDEX work_job ON work (job, seq);

-- Capacity is rows, so that a restart cannot over-commit: one row takes one engine slot.
CREATE TABLE reservation (
    job  INTEGER PRIMARY KEY,
    at   INTEGER NOT NULL
) STRICT;

-- A worker's hold on a duty. While `until` is ahead nobody else works on it; after a failure nobody before `not_before`.
CREATE TABLE lease (
    job         INTEGER NOT NULL,
    duty        TEXT NOT NULL,
    until       INTEGER NOT NULL,
    not_before  INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    last_error  TEXT,
    PRIMARY KEY (job, duty)
) STRICT;

-- A transaction we owe. queued (no nonce) -> signed (nonce and bytes durable, perhaps on the wire) -> mined | reverted.
-- A queued one whose reason is gone is dropped; a signed one never changes its nonce.
CREATE TABLE tx_intent (
    id      INTEGER PRIMARY KEY,
    key     TEXT NOT NULL UNIQUE,
    job     INTEGER,
    kind    TEXT NOT NULL,
    target  BLOB NOT NULL CHECK (length(target) = 20),
    data    BLOB NOT NULL,
    signer  BLOB NOT NULL CHECK (length(signer) = 20),
    nonce   INTEGER,
    gas     INTEGER,
    state   TEXT NOT NULL CHECK (state IN ('queued', 'signed', 'mined', 'reverted', 'dropped')),
    note    TEXT,
    at      INTEGER NOT NULL,
    CHECK ((state IN ('signed', 'mined', 'reverted')) = (nonce IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX tx_intent_nonce ON tx_intent (signer, nonce) WHERE nonce IS NOT NULL;
CREATE INDEX tx_intent_state ON tx_intent (state);
CREATE TRIGGER tx_intent_keeps_its_nonce BEFORE UPDATE OF nonce ON tx_intent
    WHEN OLD.nonce IS NOT NULL AND NEW.nonce IS NOT OLD.nonce
    BEGIN SELECT RAISE(ABORT, 'a signed transaction keeps its nonce'); END;

-- Every set of bytes we signed for an intent; all of one intent share its nonce.
CREATE TABLE tx_attempt (
    hash      BLOB PRIMARY KEY CHECK (length(hash) = 32),
    intent    INTEGER NOT NULL REFERENCES tx_intent (id),
    raw       BLOB NOT NULL,
    fee_cap   TEXT NOT NULL,
    tip_cap   TEXT NOT NULL,
    signed_at INTEGER NOT NULL,
    sent_at   INTEGER
) STRICT;
CREATE INDEX tx_attempt_intent ON tx_attempt (intent);

-- The chain's receipt of an attempt, kept while its block is canonical.
CREATE TABLE tx_receipt (
    hash          BLOB PRIMARY KEY REFERENCES tx_attempt (hash),
    block_hash    BLOB NOT NULL CHECK (length(block_hash) = 32),
    block_number  INTEGER NOT NULL,
    success       INTEGER NOT NULL CHECK (success IN (0, 1)),
    gas_used      INTEGER NOT NULL,
    gas_price     TEXT NOT NULL
) STRICT;

-- Receipts of results that reached us by gossip, signature verified; `agreed` once the chain said the same.
CREATE TABLE peer_receipt (
    job     INTEGER NOT NULL,
    host    BLOB NOT NULL CHECK (length(host) = 20),
    body    TEXT NOT NULL,
    peer    TEXT NOT NULL,
    agreed  INTEGER NOT NULL CHECK (agreed IN (0, 1)),
    at      INTEGER NOT NULL,
    PRIMARY KEY (job, host)
) STRICT;
