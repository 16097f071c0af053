-- The newest block that the chain called final; it only moves forward. `violated` says how an endpoint contradicted it: then
-- nothing is rewound, claimed or sent until the endpoint has the final block again. At most one row.
CREATE TABLE finality (
    only      INTEGER PRIMARY KEY CHECK (only = 1),
    number    INTEGER NOT NULL,
    hash      BLOB NOT NULL CHECK (length(hash) = 32),
    violated  TEXT
) STRICT;
