-- What a host holds is counted before every claim: not by reading every job that it ever had.
CREATE INDEX job_held ON job (host) WHERE state IN ('claimed', 'committed', 'completed', 'disputed');
-- What is open is asked for at every turn. An index is of use where the question has its very condition.
CREATE INDEX tx_intent_queued ON tx_intent (signer, id) WHERE state = 'queued';
CREATE INDEX tx_intent_signed ON tx_intent (signer, nonce) WHERE state = 'signed';
-- Results whose receipts nobody has yet, so that not all results there ever were are looked through for them.
CREATE TABLE unannounced (job INTEGER PRIMARY KEY) STRICT;
INSERT INTO unannounced SELECT DISTINCT job FROM work WHERE did = 'Inferred'
    AND NOT EXISTS (SELECT 1 FROM work AS told WHERE told.job = work.job AND told.did = 'Announced');
CREATE TRIGGER work_to_announce AFTER INSERT ON work WHEN new.did = 'Inferred' BEGIN
    INSERT OR IGNORE INTO unannounced SELECT new.job
    WHERE NOT EXISTS (SELECT 1 FROM work WHERE job = new.job AND did = 'Announced');
END;
CREATE TRIGGER work_announced AFTER INSERT ON work WHEN new.did = 'Announced' BEGIN
    DELETE FROM unannounced WHERE job = new.job;
END;
