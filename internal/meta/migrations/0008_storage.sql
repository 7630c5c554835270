-- +goose Up

-- What versions store, over time. stored: bytes of the frames that a version has
-- and its parent has not, but for dead ones. metered: until when that stands in
-- the usage records (0 = nobody has counted it: that of an open version, and of
-- one whose metadata was made by an older program or rebuilt from the bucket).
ALTER TABLE versions ADD COLUMN stored INTEGER NOT NULL DEFAULT 0;
ALTER TABLE versions ADD COLUMN metered INTEGER NOT NULL DEFAULT 0;
CREATE INDEX versions_metered ON versions (metered, id);

-- When the time began that a fact is about, which ends at "at" (0 = it is about a
-- moment).
ALTER TABLE usage ADD COLUMN began INTEGER NOT NULL DEFAULT 0;

-- How far the upload of a snapshot was shown to be, in plain bytes, before it was
-- begun again over another base.
ALTER TABLE uploads ADD COLUMN done INTEGER NOT NULL DEFAULT 0;
