-- What a host holds is counted before every claim: not by reading every job that it ever had.
CREATE INDEX job_held ON job (host) WHERE state IN ('claimed', 'committed', 'completed', 'disputed');
