-- +goose Up

-- What deletion, compaction and sweeping need to know.

-- reserved: the highest revision of the version record that anybody was allowed
-- to write; above revision while a writer is under way, or after one failed.
-- loose: a revision was reserved while another was under way; its record may come
-- at any time. due: a ghost that must be looked at again. looked: how many children it had
-- when its difference was last computed. stale: the record in the bucket is
-- behind the metadata and must be written again.
ALTER TABLE versions ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN loose INTEGER NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN due INTEGER NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN looked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN stale INTEGER NOT NULL DEFAULT 0;
UPDATE versions SET reserved = revision;
UPDATE versions SET due = 1 WHERE state = 'ghost';
CREATE INDEX versions_due ON versions (chain) WHERE due <> 0;
CREATE INDEX versions_stale ON versions (chain) WHERE stale <> 0;

-- Versions that are gone and whose records may still be in the bucket: up to
-- this revision they are garbage. They are removed when the record of the child
-- does not name the version any more. If a writer was still allowed to write one
-- (loose = 1) the grave is kept for ever (kept = 1).
CREATE TABLE graves (
    version  TEXT    PRIMARY KEY NOT NULL,
    chain    TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    child    TEXT    NOT NULL,  -- '' = nobody names it
    loose    INTEGER NOT NULL,
    kept     INTEGER NOT NULL
) STRICT;
CREATE INDEX graves_open ON graves (chain) WHERE kept = 0;
CREATE INDEX graves_child ON graves (child) WHERE kept = 0;

-- Stored bytes of the dead slots.
ALTER TABLE segments ADD COLUMN dead_bytes INTEGER NOT NULL DEFAULT 0;

-- state: writing (a compaction is to write it), live, condemned (no segment lies
-- there any more; removed from the bucket later). dead: stored bytes in it that
-- nobody needs. since: when it was condemned. job and token: who writes it.
ALTER TABLE objects ADD COLUMN chain TEXT NOT NULL DEFAULT '';
ALTER TABLE objects ADD COLUMN state TEXT NOT NULL DEFAULT 'live';
ALTER TABLE objects ADD COLUMN dead INTEGER NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN job TEXT NOT NULL DEFAULT '';
ALTER TABLE objects ADD COLUMN token INTEGER NOT NULL DEFAULT 0;
UPDATE objects SET chain = COALESCE((SELECT s.chain FROM segments s WHERE s.object = objects.name LIMIT 1), '');
CREATE INDEX objects_chain ON objects (chain, state);
CREATE INDEX objects_small ON objects (chain, created) WHERE state = 'live' AND size < 8388608;
CREATE INDEX objects_hollow ON objects (chain) WHERE state = 'live' AND dead * 4 >= size;
CREATE INDEX objects_writing ON objects (name) WHERE state = 'writing';
CREATE INDEX segments_writing ON segments (id) WHERE state = 'writing';
CREATE INDEX objects_condemned ON objects (since) WHERE state = 'condemned';

-- Why nothing is reclaimed in this region ('' = it is): the bucket has version
-- records that the metadata does not know.
ALTER TABLE region ADD COLUMN stopped TEXT NOT NULL DEFAULT '';

-- Upkeep (1) has workers of its own, so that it does not wait for long copies.
ALTER TABLE jobs ADD COLUMN lane INTEGER NOT NULL DEFAULT 0;
DROP INDEX jobs_state;
CREATE INDEX jobs_state ON jobs (state, lane, created, id, run_after);
