-- Jobs of which the contracts say otherwise than the logs stored here (tasks/sweep.rs), and how: nothing is done for them until
-- both say the same.
CREATE TABLE doubt (
    job   INTEGER PRIMARY KEY,
    what  TEXT NOT NULL
) STRICT;

-- Finds what concerns no job: of hosts, of governance.
CREATE INDEX log_of_no_job ON log (kind) WHERE job IS NULL;
