-- +goose Up

-- What keeps the deletion of many snapshots cheap.

-- The newest version that a new one can be incremental on.
CREATE INDEX versions_sealed ON versions (volume, sequence, id) WHERE state = 'sealed';

-- How many children a version has, and whether one is open.
DROP INDEX versions_parent;
CREATE INDEX versions_parent ON versions (parent, state);

-- Whether a job is queued already, however many of its kind are done, and when
-- the next one that waits may run.
CREATE INDEX jobs_queued ON jobs (subject, kind, created, id) WHERE state = 'queued';
CREATE INDEX jobs_waiting ON jobs (state, run_after) WHERE state = 'queued';
