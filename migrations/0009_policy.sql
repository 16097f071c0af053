-- Counts what was chosen lately: each decision asks.
CREATE INDEX work_chosen ON work (at) WHERE did = 'Chosen';
