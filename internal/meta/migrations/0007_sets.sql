-- +goose Up

-- Sets of snapshots that were taken at one moment: the id of that ('' = none), and
-- of how many snapshots it was made.
ALTER TABLE snapshots ADD COLUMN set_id TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN set_size INTEGER NOT NULL DEFAULT 0;
CREATE INDEX snapshots_set ON snapshots (set_id) WHERE set_id <> '';

-- A copy makes one snapshot, or all those of a set. members: JSON, see CopyMember.
-- set_id: the set that it makes; source_set: that which it copies.
ALTER TABLE copies ADD COLUMN set_id TEXT NOT NULL DEFAULT '';
ALTER TABLE copies ADD COLUMN source_set TEXT NOT NULL DEFAULT '';
ALTER TABLE copies ADD COLUMN members TEXT NOT NULL DEFAULT '';
UPDATE copies SET members = '[{"source":"' || source_snapshot || '","snapshot":"' || snapshot || '","volume":"' || volume
    || '","pin":"' || pin || '"}]';
DROP INDEX copies_snapshot;
ALTER TABLE copies DROP COLUMN snapshot;
ALTER TABLE copies DROP COLUMN source_snapshot;
ALTER TABLE copies DROP COLUMN volume;
ALTER TABLE copies DROP COLUMN base;
ALTER TABLE copies DROP COLUMN pin;

-- One copy may pin several snapshots.
CREATE TABLE pins_new (
    id          TEXT    PRIMARY KEY NOT NULL,
    snapshot    TEXT    NOT NULL REFERENCES snapshots (id),
    version     TEXT    NOT NULL REFERENCES versions (id),
    region      TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    copy        TEXT    NOT NULL,
    created     INTEGER NOT NULL,
    seen        INTEGER NOT NULL DEFAULT 0,
    UNIQUE (region, incarnation, copy, snapshot)
) STRICT;
INSERT INTO pins_new SELECT id, snapshot, version, region, incarnation, copy, created, seen FROM pins;
DROP TABLE pins;
ALTER TABLE pins_new RENAME TO pins;
CREATE INDEX pins_snapshot ON pins (snapshot);
CREATE INDEX pins_version ON pins (version);
