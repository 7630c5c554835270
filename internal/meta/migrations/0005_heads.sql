-- +goose Up

-- Live volumes: a lineage that can be written. What was written and is in no
-- version yet is in files beside the metadata, not in the bucket.

-- state: see the states of a volume. base: the version whose content lies below
-- the layers (NULL = none), layer: the layer whose content it has (0 = none).
-- export: how clients find it, JSON ('' = not exported). rate: bytes per second
-- of its hydration (-1 = none is asked for, 0 = without limit). rollback: the
-- snapshot it is being put back to, safety: what it had before, which must be
-- ready first ('' = that is given up).
CREATE TABLE heads (
    volume   TEXT    PRIMARY KEY NOT NULL REFERENCES volumes (id),
    account  TEXT    NOT NULL REFERENCES accounts (id),
    state    TEXT    NOT NULL,
    reason   TEXT    NOT NULL,
    hint     TEXT    NOT NULL,
    size     INTEGER NOT NULL,
    tags     TEXT    NOT NULL,
    snapshot TEXT    NOT NULL,  -- that it was made from
    base     TEXT    REFERENCES versions (id),
    layer    INTEGER NOT NULL,
    export   TEXT    NOT NULL,
    rate     INTEGER NOT NULL,
    rollback TEXT    NOT NULL,
    safety   TEXT    NOT NULL,
    created  INTEGER NOT NULL
) STRICT;
CREATE INDEX heads_account ON heads (account, created, volume);
CREATE INDEX heads_base ON heads (base);

-- Snapshots of live volumes that are not uploaded: what a frozen layer, and those
-- below it, have is to become a version. They are uploaded in the order of layers.
CREATE TABLE uploads (
    snapshot TEXT    PRIMARY KEY NOT NULL REFERENCES snapshots (id),
    volume   TEXT    NOT NULL REFERENCES volumes (id),
    layer    INTEGER NOT NULL
) STRICT;
CREATE INDEX uploads_volume ON uploads (volume, layer);
