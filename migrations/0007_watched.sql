-- The contracts whose logs this file holds: one that is named later makes every block be read again, one that is named no more
-- is refused.
CREATE TABLE watched (
    address  BLOB PRIMARY KEY CHECK (length(address) = 20)
) STRICT;
