-- +goose Up

-- What rebuilding the metadata from the bucket needs.

-- catalogue counts the changes of accounts, chains and volumes; dump is the
-- number of the last sealed dump of them in the bucket, dumped what catalogue
-- was then, dumped_audit the last audit line in it.
ALTER TABLE region ADD COLUMN catalogue INTEGER NOT NULL DEFAULT 0;
ALTER TABLE region ADD COLUMN dump INTEGER NOT NULL DEFAULT 0;
ALTER TABLE region ADD COLUMN dumped INTEGER NOT NULL DEFAULT -1;
ALTER TABLE region ADD COLUMN dumped_audit INTEGER NOT NULL DEFAULT 0;

-- The public keys of earlier sign keys of the region: what they signed is still
-- true.
CREATE TABLE trusted_keys (
    public BLOB    PRIMARY KEY NOT NULL,
    added  INTEGER NOT NULL
) STRICT;
