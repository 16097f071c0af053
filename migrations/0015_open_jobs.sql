-- One index where there were two: each of a job's steps on chain moves its row in every index that names the state.
DROP INDEX job_held;
DROP INDEX job_state;
CREATE INDEX job_state ON job (state, host);
