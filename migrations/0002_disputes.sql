-- A job may be disputed between its completion and its end. The table is a projection: it is copied, its rows stay true.
CREATE TABLE job_with_disputes (
    id              INTEGER PRIMARY KEY,
    state           TEXT NOT NULL CHECK (state IN
        ('posted', 'claimed', 'committed', 'completed', 'disputed', 'released', 'refunded')),
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
    CHECK ((state IN ('claimed', 'committed', 'completed', 'disputed', 'released')) <= (host IS NOT NULL))
) STRICT;
INSERT INTO job_with_disputes SELECT * FROM job;
DROP TABLE job;
ALTER TABLE job_with_disputes RENAME TO job;
CREATE INDEX job_state ON job (state, id);
