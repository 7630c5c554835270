-- +goose Up

-- The queue of copies. volume: the lineage here that a copy belongs to ('' = it is
-- only reserved). started: when its turn came, and it got its job (0 = it waits).
-- deadline: 0 = none. late: it is expected to miss it, or has. rate: bytes per
-- second that may cross for it (0 = no limit of its own). ending: why it ended.
-- metered: what it moved stands in the usage records.
ALTER TABLE copies ADD COLUMN volume TEXT NOT NULL DEFAULT '';
ALTER TABLE copies ADD COLUMN started INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN deadline INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN rate INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN ending TEXT NOT NULL DEFAULT '';
ALTER TABLE copies ADD COLUMN metered INTEGER NOT NULL DEFAULT 0;
UPDATE copies SET metered = 1 WHERE state = 'done' OR state = 'failed' OR state = 'cancelled';
UPDATE copies SET volume = COALESCE((SELECT s.volume FROM snapshots s WHERE s.id = copies.snapshot), '');
UPDATE copies SET ending = state WHERE state = 'done' OR state = 'failed' OR state = 'cancelled';
UPDATE copies SET started = created WHERE EXISTS (SELECT 1 FROM jobs j WHERE j.subject = copies.snapshot AND j.kind = 'copy');
CREATE INDEX copies_account ON copies (account, created, id);

-- What may cross between regions: JSON by scope, 'link/REGION' or 'account/ID'.
CREATE TABLE limits (
    scope TEXT    PRIMARY KEY NOT NULL,
    value TEXT    NOT NULL,
    set_at INTEGER NOT NULL
) STRICT;

-- When the copy that holds a pin was last heard of.
ALTER TABLE pins ADD COLUMN seen INTEGER NOT NULL DEFAULT 0;
UPDATE pins SET seen = created;

-- The copy that a metered fact is about, and how that ended ('' = nothing of the
-- kind); count: of requests, where they are counted.
ALTER TABLE usage ADD COLUMN copy TEXT NOT NULL DEFAULT '';
ALTER TABLE usage ADD COLUMN "count" INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN outcome TEXT NOT NULL DEFAULT '';
CREATE INDEX usage_account ON usage (account, id);
