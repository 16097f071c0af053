-- What a host holds is counted before every claim: not by reading every job that it ever had.
CREATE INDEX job_held ON job (host) WHERE state IN ('claimed', 'committed', 'completed', 'disputed');
-- What is open is asked for at every turn. An index is of use where the question has its very condition.
CREATE INDEX tx_intent_queued ON tx_intent (signer, id) WHERE state = 'queued';
CREATE INDEX tx_intent_signed ON tx_intent (signer, nonce) WHERE state = 'signed';
