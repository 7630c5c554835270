-- +goose Up

-- The catalogue of one region. Ids are text (hexadecimal, or with a prefix),
-- times are milliseconds since 1970 (0 = not set), truth is 0 or 1, JSON is
-- text. Block maps are not here: they are objects in the bucket.

-- Marks the file as ours: "SFMD".
PRAGMA application_id = 1397116228;

-- Who we are. One row.
CREATE TABLE region (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    name        TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    sign_key    BLOB    NOT NULL,  -- Ed25519, signs version records
    lookup_key  BLOB    NOT NULL,  -- HMAC of digests of encrypted content
    created     INTEGER NOT NULL
) STRICT;

-- Who owns everything else.
CREATE TABLE accounts (
    id         TEXT    PRIMARY KEY NOT NULL,
    name       TEXT    NOT NULL UNIQUE,
    token_hash TEXT    UNIQUE,     -- of the bearer token, never the token
    created    INTEGER NOT NULL
) STRICT;

-- Versions that may share frames: one account, at most one data key.
CREATE TABLE chains (
    id            TEXT    PRIMARY KEY NOT NULL,
    account       TEXT    NOT NULL REFERENCES accounts (id),
    algorithm     INTEGER NOT NULL,
    wrapped_key   BLOB,             -- the data key under the master key; NULL = plain
    proven        INTEGER NOT NULL, -- deletion by difference is allowed
    origin_region TEXT    NOT NULL, -- '' = born here, else the chain it is a copy of
    origin_chain  TEXT    NOT NULL,
    created       INTEGER NOT NULL
) STRICT;
CREATE INDEX chains_origin ON chains (account, origin_region, origin_chain);

-- Lineages: the snapshots of one disk, under the name users gave it.
CREATE TABLE volumes (
    id            TEXT    PRIMARY KEY NOT NULL,
    account       TEXT    NOT NULL REFERENCES accounts (id),
    name          TEXT    NOT NULL,
    chain         TEXT    NOT NULL REFERENCES chains (id),
    origin_region TEXT    NOT NULL, -- '' = imported here
    origin_volume TEXT    NOT NULL,
    created       INTEGER NOT NULL,
    UNIQUE (account, name, origin_region, origin_volume)
) STRICT;
CREATE INDEX volumes_origin ON volumes (account, origin_region, origin_volume);

-- The maps of a chain, a forest by parent.
CREATE TABLE versions (
    id        TEXT    PRIMARY KEY NOT NULL,
    chain     TEXT    NOT NULL REFERENCES chains (id),
    volume    TEXT    NOT NULL REFERENCES volumes (id),
    parent    TEXT    REFERENCES versions (id),
    state     TEXT    NOT NULL,  -- open, sealed, ghost
    edge      INTEGER NOT NULL,  -- edge revision, compared and bumped by every change
    size      INTEGER NOT NULL,
    algorithm INTEGER NOT NULL,
    digest    BLOB,              -- of the snapshot, when sealed
    root      BLOB,              -- stored form of the root node; NULL = empty map
    blocks    INTEGER NOT NULL,  -- present blocks
    revision  INTEGER NOT NULL,  -- of the version record in the bucket
    token     INTEGER NOT NULL,  -- fencing token of the job that writes it
    sequence  INTEGER NOT NULL,  -- position in the volume, ascending
    created   INTEGER NOT NULL,
    sealed    INTEGER NOT NULL
) STRICT;
CREATE INDEX versions_chain ON versions (chain, created);
CREATE INDEX versions_parent ON versions (parent);
CREATE INDEX versions_volume ON versions (volume, sequence);
CREATE INDEX versions_digest ON versions (digest);
CREATE INDEX versions_open ON versions (created) WHERE state = 'open';

-- Why a version lives. A held version cannot be deleted from its table.
CREATE TABLE holds (
    version TEXT    NOT NULL REFERENCES versions (id),
    kind    TEXT    NOT NULL,
    owner   TEXT    NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (version, kind, owner)
) STRICT;

-- Segments, registered before their object is written. The version is the one
-- that wrote it and may be gone while later versions still refer to the frames.
CREATE TABLE segments (
    id         TEXT    PRIMARY KEY NOT NULL,
    chain      TEXT    NOT NULL REFERENCES chains (id),
    version    TEXT    NOT NULL,
    kind       INTEGER NOT NULL,  -- 1 blocks, 2 nodes
    state      TEXT    NOT NULL,  -- writing, live
    object     TEXT    NOT NULL,  -- known before it is written, so that an abort can delete it
    "offset"   INTEGER NOT NULL,
    length     INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    slots      INTEGER NOT NULL,
    dead       INTEGER NOT NULL,  -- number of dead slots
    dead_slots BLOB,              -- bitmap of them
    job        TEXT    NOT NULL,
    token      INTEGER NOT NULL
) STRICT;
CREATE INDEX segments_version ON segments (version);
CREATE INDEX segments_chain ON segments (chain);
CREATE INDEX segments_object ON segments (object);

-- Objects of the bucket that segments point into.
CREATE TABLE objects (
    name    TEXT    PRIMARY KEY NOT NULL,
    size    INTEGER NOT NULL,
    crc     INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT;

-- How far an open version has come: a valid partial root and the finished leaves.
CREATE TABLE checkpoints (
    version  TEXT    PRIMARY KEY NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    root     BLOB,
    finished BLOB,
    counts   TEXT    NOT NULL,
    updated  INTEGER NOT NULL
) STRICT;

-- What users see.
CREATE TABLE snapshots (
    id              TEXT    PRIMARY KEY NOT NULL,
    account         TEXT    NOT NULL REFERENCES accounts (id),
    volume          TEXT    NOT NULL REFERENCES volumes (id),
    version         TEXT    REFERENCES versions (id) ON DELETE SET NULL,
    state           TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    hint            TEXT    NOT NULL,
    name            TEXT    NOT NULL,
    description     TEXT    NOT NULL,
    tags            TEXT    NOT NULL,
    size            INTEGER NOT NULL,
    digest          BLOB,
    parent          TEXT    NOT NULL,
    source_region   TEXT    NOT NULL,
    source_snapshot TEXT    NOT NULL,
    source_volume   TEXT    NOT NULL,
    copy            TEXT    NOT NULL,
    counts          TEXT    NOT NULL,
    retain_until    INTEGER NOT NULL,
    created         INTEGER NOT NULL,
    settled         INTEGER NOT NULL, -- when it became ready or failed
    deleted         INTEGER NOT NULL  -- when its deletion was accepted
) STRICT;
CREATE INDEX snapshots_account ON snapshots (account, created, id);
CREATE INDEX snapshots_volume ON snapshots (volume, created, id);
CREATE INDEX snapshots_version ON snapshots (version);

-- Transfers into this region. A reserved copy is not visible yet.
CREATE TABLE copies (
    id              TEXT    PRIMARY KEY NOT NULL,
    account         TEXT    NOT NULL REFERENCES accounts (id),
    snapshot        TEXT    NOT NULL,
    source_region   TEXT    NOT NULL,
    source_snapshot TEXT    NOT NULL,
    state           TEXT    NOT NULL,
    reserved        INTEGER NOT NULL,
    "full"          INTEGER NOT NULL,
    base            TEXT    NOT NULL, -- version here that the copy is incremental on
    pin             TEXT    NOT NULL, -- id of the pin at the source
    plan            TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    created         INTEGER NOT NULL,
    finished        INTEGER NOT NULL
) STRICT;
CREATE INDEX copies_snapshot ON copies (snapshot);
CREATE INDEX copies_active ON copies (created) WHERE state <> 'done' AND state <> 'failed' AND state <> 'cancelled';

-- Holds that other regions keep here.
CREATE TABLE pins (
    id          TEXT    PRIMARY KEY NOT NULL,
    snapshot    TEXT    NOT NULL REFERENCES snapshots (id),
    version     TEXT    NOT NULL REFERENCES versions (id),
    region      TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    copy        TEXT    NOT NULL,
    created     INTEGER NOT NULL,
    UNIQUE (region, incarnation, copy)
) STRICT;
CREATE INDEX pins_snapshot ON pins (snapshot);
CREATE INDEX pins_version ON pins (version);

-- Durable background work. A running job belongs to its owner as long as the
-- owner bumps beat; token is the fence and goes up with every change of hands.
CREATE TABLE jobs (
    id        TEXT    PRIMARY KEY NOT NULL,
    kind      TEXT    NOT NULL,
    account   TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    state     TEXT    NOT NULL,
    payload   TEXT    NOT NULL,
    progress  TEXT    NOT NULL,
    owner     TEXT    NOT NULL,
    beat      INTEGER NOT NULL,
    token     INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    run_after INTEGER NOT NULL,  -- 0 = at once
    cancel    INTEGER NOT NULL,  -- somebody asked for its end
    error     TEXT    NOT NULL,
    created   INTEGER NOT NULL,
    finished  INTEGER NOT NULL
) STRICT;
CREATE INDEX jobs_state ON jobs (state, created, id, run_after);
CREATE INDEX jobs_subject ON jobs (subject);

-- Answers to repeated requests: one row for each client token.
CREATE TABLE requests (
    account     TEXT    NOT NULL,
    token       TEXT    NOT NULL,
    operation   TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL,
    result      TEXT    NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (account, token)
) STRICT;

-- Metered facts, only ever added.
CREATE TABLE usage (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT    NOT NULL,
    kind    TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    bytes   INTEGER NOT NULL,
    at      INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_subject ON usage (subject);

-- Who did what, only ever added.
CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    account TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_subject ON audit (subject);
