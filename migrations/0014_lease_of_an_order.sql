-- A reorg can give a job's number to another order, for which what was tried for the one before does not count: `deal` names the order
-- that a lease was taken for. Null: it counts for any.
ALTER TABLE lease ADD COLUMN deal BLOB CHECK (deal IS NULL OR length(deal) = 32);
