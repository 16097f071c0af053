-- What is proven of each block, and why no more. Blocks stored before are as an endpoint claimed them.
ALTER TABLE block ADD COLUMN proof TEXT NOT NULL DEFAULT 'claimed'
    CHECK (proof IN ('claimed', 'linked', 'absent', 'complete'));
ALTER TABLE block ADD COLUMN unproven TEXT;
