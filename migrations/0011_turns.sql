-- Which hosts there are is asked at every block; their logs are few among many.
CREATE INDEX log_registration ON log (block) WHERE kind IN ('NodeRegistered', 'NodeUnregistered');
