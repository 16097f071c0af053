-- What keeps this host from claiming, while it finishes what it has: the operator paused it or lets it run dry, or the breaker
-- opened. `told`: the operator was paged about it, where it is the breaker. Lifted by `fabstir resume` alone.
CREATE TABLE hold (
    kind    TEXT PRIMARY KEY CHECK (kind IN ('paused', 'draining', 'breaker')),
    reason  TEXT NOT NULL,
    at      INTEGER NOT NULL,
    told    INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1))
) STRICT;

-- When the operator last said that claiming may go on: the newest block, its time and the last work then. What went wrong up to
-- there does not open the breaker again. At most one row.
CREATE TABLE resumed (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    block  INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    work   INTEGER NOT NULL
) STRICT;

-- What the operator asks of the account's one sender, which takes the row away once it has seen to it.
CREATE TABLE tx_order (
    intent  INTEGER NOT NULL REFERENCES tx_intent (id),
    what    TEXT NOT NULL CHECK (what IN ('bump', 'cancel', 'rebroadcast')),
    at      INTEGER NOT NULL,
    PRIMARY KEY (intent, what)
) STRICT;

-- Wei that a rollup takes for the transaction's data on the chain below, beside gas_used * gas_price; elsewhere 0.
ALTER TABLE tx_receipt ADD COLUMN l1_fee TEXT NOT NULL DEFAULT '0';

-- For the breaker and the ledger, which look at what is recent and at what is ours.
CREATE INDEX tx_receipt_block ON tx_receipt (block_number);
CREATE INDEX tx_intent_of_job ON tx_intent (job, kind);
CREATE INDEX job_host ON job (host, deadline) WHERE host IS NOT NULL;
CREATE INDEX work_abandoned ON work (at, job) WHERE did = 'Abandoned';
