-- What the contracts told of hosts since some block is asked for before every claim: not by reading the logs of all jobs in it.
CREATE INDEX log_of_no_job_by_block ON log (block) WHERE job IS NULL;
