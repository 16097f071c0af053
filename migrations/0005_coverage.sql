-- What is proven of which blocks is kept by ranges, so that blocks that hold nothing of ours need no row; and logs have keys that
-- arrive in order. Whether a log is canonical is its block's matter alone.

-- Blocks in a row of which the same is proven, from the first block indexed to the cursor, without gap or overlap.
-- 'complete': a bloom or all receipts prove which logs each block has. `reason`: why no more.
CREATE TABLE coverage (
    first   INTEGER PRIMARY KEY,
    last    INTEGER NOT NULL CHECK (last >= first),
    level   TEXT NOT NULL CHECK (level IN ('claimed', 'linked', 'complete')),
    reason  TEXT
) STRICT;
INSERT INTO coverage
    SELECT min(number), max(number), level, unproven FROM (
        SELECT number, level, unproven, number - row_number() OVER (PARTITION BY level, unproven ORDER BY number) AS run
        FROM (SELECT number, unproven, iif(proof = 'absent', 'complete', proof) AS level FROM block WHERE canonical = 1))
    GROUP BY level, unproven, run;

-- Headers: those above the final block, those with logs of ours and the ones after these. An orphan stays as the auditor's trail.
CREATE TABLE header (
    seq        INTEGER PRIMARY KEY,
    hash       BLOB NOT NULL CHECK (length(hash) = 32),
    number     INTEGER NOT NULL,
    parent     BLOB NOT NULL CHECK (length(parent) = 32),
    time       INTEGER NOT NULL,
    canonical  INTEGER NOT NULL CHECK (canonical IN (0, 1))
) STRICT;
INSERT INTO header (hash, number, parent, time, canonical)
    SELECT hash, number, parent, time, canonical FROM block ORDER BY number, canonical;

-- The journal: every log of our contracts, byte for byte. `kind` is null when we could not decode it.
-- `link` chains canonical logs (market/event.rs): equal heads mean equal journals.
CREATE TABLE entry (
    seq        INTEGER PRIMARY KEY,
    block      INTEGER NOT NULL REFERENCES header (seq),
    log_index  INTEGER NOT NULL,
    tx_hash    BLOB NOT NULL CHECK (length(tx_hash) = 32),
    address    BLOB NOT NULL CHECK (length(address) = 20),
    topics     BLOB NOT NULL CHECK (length(topics) % 32 = 0 AND length(topics) <= 128),
    data       BLOB NOT NULL,
    kind       TEXT,
    job        INTEGER,
    link       BLOB NOT NULL CHECK (length(link) = 32),
    UNIQUE (block, log_index)
) STRICT;
INSERT INTO entry (block, log_index, tx_hash, address, topics, data, kind, job, link)
    SELECT header.seq, log_index, tx_hash, address, topics, data, kind, job, link
    FROM log JOIN header ON header.hash = log.block_hash ORDER BY header.seq, log_index;
DROP TABLE log;
DROP TABLE block;
ALTER TABLE header RENAME TO block;
ALTER TABLE entry RENAME TO log;
CREATE UNIQUE INDEX block_canonical ON block (number) WHERE canonical = 1;
CREATE INDEX block_orphaned ON block (number) WHERE canonical = 0;
CREATE INDEX log_job ON log (job) WHERE job IS NOT NULL;

-- Jobs whose canonical logs contradict each other, so that they have no row: something lied, and nothing is done for them.
CREATE TABLE conflict (
    job   INTEGER PRIMARY KEY,
    what  TEXT NOT NULL
) STRICT;

-- The newest block the chain called safe; it only moves forward.
ALTER TABLE finality ADD COLUMN safe INTEGER NOT NULL DEFAULT 0;

-- For people and their queries: canonical logs with their blocks, in chain order by (block, log_index).
CREATE VIEW event AS
    SELECT block.number AS block, log.log_index, block.time, log.kind, log.job, '0x' || lower(hex(log.tx_hash)) AS tx_hash,
           '0x' || lower(hex(log.address)) AS address, '0x' || lower(hex(block.hash)) AS block_hash,
           '0x' || lower(hex(log.topics)) AS topics, '0x' || lower(hex(log.data)) AS data,
           '0x' || lower(hex(log.link)) AS link
    FROM block JOIN log ON log.block = block.seq WHERE block.canonical = 1;
