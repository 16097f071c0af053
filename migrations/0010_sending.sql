-- What became of a transaction that was signed and did nothing; what one may cost; and a gas limit that is known before a nonce is given.

-- Every transaction we owe.
-- queued (no nonce) -> signed (nonce and bytes durable, perhaps on the wire) -> mined | reverted
--                                                                            -> cancelled: its nonce went to an empty transaction of ours
--                                                                            -> foreign: its nonce went to a transaction that is not ours
-- A queued one whose reason is gone is dropped; a signed one never changes its nonce.
-- `gas`: its limit, once the call was tried. `cost_max`: the most wei it may cost; null: no limit of its own.
CREATE TABLE intent (
    id        INTEGER PRIMARY KEY,
    key       TEXT NOT NULL UNIQUE,
    job       INTEGER,
    kind      TEXT NOT NULL,
    target    BLOB NOT NULL CHECK (length(target) = 20),
    data      BLOB NOT NULL,
    signer    BLOB NOT NULL CHECK (length(signer) = 20),
    nonce     INTEGER,
    gas       INTEGER,
    cost_max  TEXT,
    state     TEXT NOT NULL CHECK (state IN ('queued', 'signed', 'mined', 'reverted', 'cancelled', 'foreign', 'dropped')),
    note      TEXT,
    at        INTEGER NOT NULL,
    CHECK ((state IN ('queued', 'dropped')) = (nonce IS NULL))
) STRICT;
INSERT INTO intent (id, key, job, kind, target, data, signer, nonce, gas, state, note, at)
    SELECT id, key, job, kind, target, data, signer, nonce, gas, state, note, at FROM tx_intent;

-- Every set of bytes we signed for one; all of one share its nonce. `cancels`: an empty transaction that takes the nonce away.
CREATE TABLE attempt (
    hash       BLOB PRIMARY KEY CHECK (length(hash) = 32),
    intent     INTEGER NOT NULL REFERENCES intent (id),
    raw        BLOB NOT NULL,
    fee_cap    TEXT NOT NULL,
    tip_cap    TEXT NOT NULL,
    signed_at  INTEGER NOT NULL,
    sent_at    INTEGER,
    cancels    INTEGER NOT NULL DEFAULT 0 CHECK (cancels IN (0, 1))
) STRICT;
INSERT INTO attempt (hash, intent, raw, fee_cap, tip_cap, signed_at, sent_at)
    SELECT hash, intent, raw, fee_cap, tip_cap, signed_at, sent_at FROM tx_attempt;

CREATE TABLE receipt (
    hash          BLOB PRIMARY KEY REFERENCES attempt (hash),
    block_hash    BLOB NOT NULL CHECK (length(block_hash) = 32),
    block_number  INTEGER NOT NULL,
    success       INTEGER NOT NULL CHECK (success IN (0, 1)),
    gas_used      INTEGER NOT NULL,
    gas_price     TEXT NOT NULL,
    l1_fee        TEXT NOT NULL DEFAULT '0'
) STRICT;
INSERT INTO receipt SELECT hash, block_hash, block_number, success, gas_used, gas_price, l1_fee FROM tx_receipt;

-- What the operator asked of the sender before this program ran is asked again where it still matters.
DELETE FROM tx_order;

DROP TABLE tx_receipt;
DROP TABLE tx_attempt;
DROP TABLE tx_intent;
ALTER TABLE intent RENAME TO tx_intent;
ALTER TABLE attempt RENAME TO tx_attempt;
ALTER TABLE receipt RENAME TO tx_receipt;

CREATE UNIQUE INDEX tx_intent_nonce ON tx_intent (signer, nonce) WHERE nonce IS NOT NULL;
CREATE INDEX tx_intent_open ON tx_intent (signer, state) WHERE state IN ('queued', 'signed');
CREATE INDEX tx_intent_of_job ON tx_intent (job, kind);
CREATE INDEX tx_attempt_intent ON tx_attempt (intent);
CREATE INDEX tx_receipt_block ON tx_receipt (block_number);
CREATE TRIGGER tx_intent_keeps_its_nonce BEFORE UPDATE OF nonce ON tx_intent
    WHEN OLD.nonce IS NOT NULL AND NEW.nonce IS NOT OLD.nonce
    BEGIN SELECT RAISE(ABORT, 'a signed transaction keeps its nonce'); END;
