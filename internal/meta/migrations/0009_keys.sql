-- +goose Up

-- Master keys, and what is sealed with them.

-- The keyring of the region as it is in the bucket, so that either heals the other.
-- One row.
CREATE TABLE keyring (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL,
    sealed BLOB    NOT NULL
) STRICT;

-- key: the master key of the data key ('' = the chain is not encrypted);
-- generation: of it.
ALTER TABLE chains ADD COLUMN "key" TEXT NOT NULL DEFAULT '';
ALTER TABLE chains ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
CREATE INDEX chains_key ON chains ("key") WHERE "key" <> '';

-- lookup: of the digest of encrypted content, which is sealed.
ALTER TABLE versions ADD COLUMN lookup BLOB;
CREATE INDEX versions_lookup ON versions (lookup) WHERE lookup IS NOT NULL;

-- A lineage has one key: copies of one disk under two keys are two lineages. The
-- table is made again, because what is unique in it changes; the rows that refer
-- to it find theirs again before the transaction ends.
PRAGMA defer_foreign_keys = ON;
CREATE TABLE volumes_before AS SELECT * FROM volumes;
DROP TABLE volumes;
CREATE TABLE volumes (
    id            TEXT    PRIMARY KEY NOT NULL,
    account       TEXT    NOT NULL REFERENCES accounts (id),
    name          TEXT    NOT NULL,
    chain         TEXT    NOT NULL REFERENCES chains (id),
    origin_region TEXT    NOT NULL, -- '' = imported here
    origin_volume TEXT    NOT NULL,
    created       INTEGER NOT NULL,
    "key"         TEXT    NOT NULL, -- that of the chain
    UNIQUE (account, name, origin_region, origin_volume, "key")
) STRICT;
INSERT INTO volumes SELECT id, account, name, chain, origin_region, origin_volume, created, '' FROM volumes_before;
DROP TABLE volumes_before;
CREATE INDEX volumes_origin ON volumes (account, origin_region, origin_volume, "key");
CREATE INDEX volumes_chain ON volumes (chain);
CREATE UNIQUE INDEX volumes_local ON volumes (account, name) WHERE origin_region = '';
