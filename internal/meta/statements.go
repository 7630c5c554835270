package meta

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// A statement names one of the texts below. All SQL of the program but the
// migrations is here; Open prepares every text, so one that does not fit the
// schema is found at the first start.
type statement int

const (
	regionGet statement = iota
	regionPut
	regionStop
	regionStopped
	accountInsert
	accountSetToken
	accountGet
	accountByToken
	accountList
	chainInsert
	chainGet
	chainByOrigin
	chainsByOrigin
	chainsOfKey
	chainSetProven
	volumeInsert
	volumeGet
	volumeByName
	volumeByOrigin
	volumesOfKey
	keyringGet
	keyringPut
	versionInsert
	versionGet
	versionUpdate
	versionDelete
	versionChildren
	versionNewest
	versionLast
	versionOffspring
	versionsInChain
	versionsOpen
	versionsByDigest
	versionsAll
	versionReserve
	versionSetDue
	versionSetLooked
	versionSetStale
	versionChores
	versionChore
	choreChains
	versionsUnsettled
	gravePut
	graveGet
	graveDelete
	gravesOfChild
	graveList
	holdPut
	holdDrop
	holdList
	holdsOfKind
	segmentInsert
	segmentGet
	segmentsOfVersion
	segmentsOfChain
	segmentPlace
	segmentMarkDead
	segmentDelete
	segmentsDeleteOfVersion
	segmentsOfObject
	segmentPage
	objectInsert
	objectGet
	objectDelete
	objectAddDead
	objectUsed
	objectCondemn
	objectsCondemned
	objectPage
	objectsHollow
	objectsSmall
	objectWriterLives
	objectsWriting
	objectGoLive
	objectDropWriting
	segmentMove
	segmentsOrphaned
	checkpointPut
	checkpointGet
	checkpointDelete
	snapshotInsert
	snapshotGet
	snapshotUpdate
	snapshotDelete
	snapshotPage
	snapshotsOfVersion
	snapshotsOfSet
	copyInsert
	copyGet
	copyUpdate
	copiesOfAccount
	copiesActive
	pinInsert
	pinSeen
	pinGet
	pinByCopy
	pinDelete
	pinsOfSnapshot
	pinsFromRegion
	jobInsert
	jobGet
	jobsOfSubject
	jobsRunning
	jobRunnable
	jobNextRun
	jobClaim
	jobBeat
	jobRequeue
	jobSettle
	jobLease
	jobCancelQueued
	jobCancelStarted
	requestInsert
	requestGet
	usageInsert
	usageOfSubject
	usageOfAccount
	storageGet
	storageSet
	storageAdd
	storageRecord
	storageMove
	storageFirst
	storageRecords
	storageMoves
	storageUncounted
	limitPut
	limitDelete
	limitList
	auditInsert
	auditOfSubject
	volumeMove
	headInsert
	headGet
	headUpdate
	headDelete
	headList
	headsOn
	uploadInsert
	uploadDelete
	uploadList
	uploadDone
	chainList
	jobQueued
	jobHasten
	jobsOfLane
	jobsPrune
	usageVersions
	usageSnapshots
	usageObjects
	catalogueGet
	catalogueBump
	catalogueDumped
	trustedPut
	trustedList
	chainUpdate
	volumeList
	auditTail
	snapshotsAll
	pinsAll
	jobsUnsettled
	jobsFail
	jobsCancel
	pinsForget
	holdsForget
	checkpointsForget
	versionsForget
	gravesForget
	segmentsForget
	objectsForget
	numStatements
)

// The columns of the tables, in the order of the scan functions.
const (
	accountColumns    = `id, name, token_hash, created`
	chainColumns      = `id, account, algorithm, wrapped_key, proven, origin_region, origin_chain, created, "key", generation`
	headColumns       = `h.volume, v.name, v.chain, h.account, h.state, h.reason, h.hint, h.size, h.tags, h.snapshot, h.base, h.layer, h.export, h.rate, h.rollback, h.safety, h.created`
	volumeColumns     = `id, account, name, chain, origin_region, origin_volume, created, "key"`
	versionColumns    = `v.id, v.chain, v.volume, v.parent, v.state, v.edge, v.size, v.algorithm, v.digest, v.root, v.blocks, v.revision, v.token, v.sequence, v.created, v.sealed, v.reserved, v.loose, v.due, v.looked, v.stale, (SELECT c."key" FROM chains c WHERE c.id = v.chain)`
	segmentColumns    = `id, chain, version, kind, state, object, "offset", length, generation, slots, dead, dead_slots, job, token, dead_bytes`
	checkpointColumns = `version, root, finished, counts, updated`
	snapshotColumns   = `s.id, s.account, COALESCE((SELECT name FROM region), ''), s.volume, v.name, s.version, s.state, s.reason, s.hint, s.name, s.description, s.tags, s.size, s.digest, ` +
		`s.parent, s.source_region, s.source_snapshot, s.source_volume, s.copy, s.counts, s.retain_until, s.created, s.settled, s.deleted, s.set_id, s.set_size, v."key"`
	copyColumns = `id, account, source_region, source_set, set_id, members, state, reserved, "full", plan, reason, created, finished, ` +
		`started, deadline, late, rate, ending, metered`
	graveColumns  = `version, chain, revision, child, loose, kept`
	objectColumns = `name, size, crc, created, chain, state, dead, since, job, token`
	usageColumns  = `id, account, kind, subject, bytes, at, copy, outcome, "count", began`
	pinColumns    = `id, snapshot, version, region, incarnation, copy, created, seen`
	// storageInsert records what versions v stored until $2: for the snapshot that shows
	// one or, if none does, as what others keep of a deleted one, for its lineage.
	storageInsert = `INSERT INTO usage (account, kind, subject, bytes, at, began)
		SELECT c.account, CASE WHEN EXISTS (SELECT 1 FROM snapshots s WHERE s.version = v.id) THEN 'storage' ELSE 'retained' END,
			COALESCE((SELECT s.id FROM snapshots s WHERE s.version = v.id ORDER BY s.created, s.id LIMIT 1), v.volume), v.stored, CAST($2 AS BIGINT), v.metered
		FROM versions v JOIN chains c ON c.id = v.chain WHERE `
	// storageDue is at most $1 versions that are metered until before $2.
	storageDue = `SELECT d.id FROM versions d WHERE d.metered > 0 AND d.metered < $2 ORDER BY d.metered, d.id LIMIT $1`
	// notOpen says of an object o that no segment there is of an open version.
	notOpen    = `NOT EXISTS (SELECT 1 FROM segments s JOIN versions v ON v.id = s.version WHERE s.object = o.name AND v.state = 'open')`
	jobColumns = `id, kind, account, subject, state, payload, progress, owner, beat, token, attempts, run_after, cancel, error, created, finished, lane`
)

// statementText holds the texts. They keep to what SQLite and PostgreSQL both
// have: $n placeholders, ON CONFLICT, RETURNING, no functions of one engine.
var statementText = [numStatements]string{
	regionGet: `SELECT name, id, incarnation, sign_key, lookup_key, created FROM region`,
	regionPut: `INSERT INTO region (one, name, id, incarnation, sign_key, lookup_key, created) VALUES (1, $1, $2, $3, $4, $5, $6)
		ON CONFLICT (one) DO UPDATE SET name = $1, id = $2, incarnation = $3, sign_key = $4, lookup_key = $5, created = $6`,

	regionStop:    `UPDATE region SET stopped = $1`,
	regionStopped: `SELECT stopped FROM region`,

	accountInsert:   `INSERT INTO accounts (` + accountColumns + `) VALUES ($1, $2, $3, $4)`,
	accountSetToken: `UPDATE accounts SET token_hash = $2 WHERE id = $1`,
	accountGet:      `SELECT ` + accountColumns + ` FROM accounts WHERE id = $1`,
	accountByToken:  `SELECT ` + accountColumns + ` FROM accounts WHERE token_hash = $1`,
	accountList:     `SELECT ` + accountColumns + ` FROM accounts ORDER BY name`,

	chainInsert:    `INSERT INTO chains (` + chainColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
	chainGet:       `SELECT ` + chainColumns + ` FROM chains WHERE id = $1`,
	chainByOrigin:  `SELECT ` + chainColumns + ` FROM chains WHERE account = $1 AND origin_region = $2 AND origin_chain = $3 AND "key" = $4 ORDER BY created, id LIMIT 1`,
	chainsByOrigin: `SELECT ` + chainColumns + ` FROM chains WHERE account = $1 AND origin_region = $2 AND origin_chain = $3 ORDER BY created, id`,
	chainsOfKey:    `SELECT ` + chainColumns + ` FROM chains WHERE "key" <> '' AND "key" = $1 ORDER BY id`,

	keyringGet: `SELECT number, sealed FROM keyring`,
	keyringPut: `INSERT INTO keyring (one, number, sealed) VALUES (1, $1, $2) ON CONFLICT (one) DO UPDATE SET number = $1, sealed = $2`,

	chainSetProven: `UPDATE chains SET proven = $2 WHERE id = $1`,

	volumeInsert:   `INSERT INTO volumes (` + volumeColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, (SELECT c."key" FROM chains c WHERE c.id = $4))`,
	volumeGet:      `SELECT ` + volumeColumns + ` FROM volumes WHERE id = $1`,
	volumeByName:   `SELECT ` + volumeColumns + ` FROM volumes WHERE account = $1 AND name = $2 AND origin_region = '' ORDER BY created, id LIMIT 1`,
	volumeByOrigin: `SELECT ` + volumeColumns + ` FROM volumes WHERE account = $1 AND origin_region = $2 AND origin_volume = $3 AND "key" = $4 ORDER BY created, id LIMIT 1`,
	volumesOfKey:   `SELECT ` + volumeColumns + ` FROM volumes WHERE chain IN (SELECT c.id FROM chains c WHERE c."key" <> '' AND c."key" = $1) ORDER BY id`,

	versionInsert: `INSERT INTO versions (id, chain, volume, parent, state, edge, size, algorithm, digest, root, blocks, revision, token, sequence, created, sealed, reserved, lookup)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`,
	versionGet: `SELECT ` + versionColumns + ` FROM versions v WHERE v.id = $1`,
	versionUpdate: `UPDATE versions SET parent = $3, state = $4, edge = edge + 1, size = $5, digest = $6, root = $7, blocks = $8, revision = $9, token = $10, sealed = $11, lookup = $12
		WHERE id = $1 AND edge = $2`,
	versionDelete:    `DELETE FROM versions WHERE id = $1`,
	versionChildren:  `SELECT ` + versionColumns + ` FROM versions v WHERE v.parent = $1 ORDER BY v.created, v.id`,
	versionNewest:    `SELECT ` + versionColumns + ` FROM versions v WHERE v.volume = $1 AND v.state = 'sealed' ORDER BY v.sequence DESC, v.id DESC LIMIT 1`,
	versionLast:      `SELECT COALESCE(MAX(sequence), 0) FROM versions WHERE volume = $1`,
	versionOffspring: `SELECT COUNT(*), COUNT(CASE WHEN state = 'open' THEN 1 END) FROM versions WHERE parent = $1`,
	versionsInChain:  `SELECT ` + versionColumns + ` FROM versions v WHERE v.chain = $1 ORDER BY v.created, v.id`,
	versionsOpen:     `SELECT ` + versionColumns + ` FROM versions v WHERE v.state = 'open' ORDER BY v.created, v.id`,
	versionsByDigest: `SELECT ` + versionColumns + ` FROM versions v JOIN chains c ON c.id = v.chain WHERE (v.digest = $2 OR v.lookup = $3) AND c.account = $1 ORDER BY v.created DESC, v.id DESC`,
	versionsAll:      `SELECT ` + versionColumns + ` FROM versions v ORDER BY v.created, v.id`,

	versionReserve:   `UPDATE versions SET reserved = reserved + 1, loose = CASE WHEN reserved > revision THEN 1 ELSE loose END WHERE id = $1 AND edge = $2 RETURNING reserved`,
	versionSetDue:    `UPDATE versions SET due = $2 WHERE id = $1 AND due <> $2`,
	versionSetLooked: `UPDATE versions SET looked = $2 WHERE id = $1`,
	versionSetStale:  `UPDATE versions SET stale = $2 WHERE id = $1 AND stale <> $2`,
	versionChores: `SELECT id FROM versions WHERE due <> 0 AND chain = $1 UNION SELECT id FROM versions WHERE stale <> 0 AND chain = $1
		UNION SELECT version FROM graves WHERE kept = 0 AND chain = $1 ORDER BY 1`,
	versionChore: `SELECT id FROM versions WHERE due <> 0 AND chain = $1 UNION ALL SELECT id FROM versions WHERE stale <> 0 AND chain = $1
		UNION ALL SELECT version FROM graves WHERE kept = 0 AND chain = $1 LIMIT 1`,
	choreChains: `SELECT chain FROM versions WHERE due <> 0 AND chain > $1 UNION SELECT chain FROM versions WHERE stale <> 0 AND chain > $1
		UNION SELECT chain FROM graves WHERE kept = 0 AND chain > $1 ORDER BY 1 LIMIT $2`,
	versionsUnsettled: `SELECT ` + versionColumns + ` FROM versions v WHERE v.reserved > v.revision AND v.state <> 'open' ORDER BY v.created, v.id`,
	gravePut:          `INSERT INTO graves (` + graveColumns + `) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (version) DO UPDATE SET revision = $3, child = $4, loose = $5, kept = $6`,
	graveGet:          `SELECT ` + graveColumns + ` FROM graves WHERE version = $1`,
	graveDelete:       `DELETE FROM graves WHERE version = $1`,
	gravesOfChild:     `SELECT ` + graveColumns + ` FROM graves WHERE child = $1 AND kept = 0 ORDER BY version`,
	graveList:         `SELECT ` + graveColumns + ` FROM graves ORDER BY version`,

	holdPut:  `INSERT INTO holds (version, kind, owner, created) VALUES ($1, $2, $3, $4) ON CONFLICT (version, kind, owner) DO NOTHING`,
	holdDrop: `DELETE FROM holds WHERE version = $1 AND kind = $2 AND owner = $3`,
	holdList: `SELECT version, kind, owner, created FROM holds WHERE version = $1 ORDER BY created, kind, owner`,

	holdsOfKind: `SELECT version, kind, owner, created FROM holds WHERE kind = $1 ORDER BY created, version, owner`,

	segmentInsert:     `INSERT INTO segments (` + segmentColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
	segmentGet:        `SELECT ` + segmentColumns + ` FROM segments WHERE id = $1`,
	segmentsOfVersion: `SELECT ` + segmentColumns + ` FROM segments WHERE version = $1 ORDER BY id`,
	segmentsOfChain:   `SELECT ` + segmentColumns + ` FROM segments WHERE chain = $1 ORDER BY id`,
	segmentPlace: `UPDATE segments SET state = 'live', object = $2, "offset" = $3, length = $4, generation = $5, slots = $6
		WHERE id = $1 AND state = 'writing'`,
	segmentMarkDead:         `UPDATE segments SET dead = $2, dead_slots = $3, dead_bytes = $4 WHERE id = $1`,
	segmentDelete:           `DELETE FROM segments WHERE id = $1 RETURNING object`,
	segmentsDeleteOfVersion: `DELETE FROM segments WHERE version = $1 RETURNING object`,
	segmentsOfObject:        `SELECT ` + segmentColumns + ` FROM segments WHERE object = $1 ORDER BY "offset"`,
	segmentPage:             `SELECT ` + segmentColumns + ` FROM segments WHERE id > $1 ORDER BY id LIMIT $2`,

	objectInsert:     `INSERT INTO objects (` + objectColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
	objectGet:        `SELECT ` + objectColumns + ` FROM objects WHERE name = $1`,
	objectAddDead:    `UPDATE objects SET dead = dead + $2 WHERE name = $1`,
	objectUsed:       `SELECT id FROM segments WHERE object = $1 LIMIT 1`,
	objectCondemn:    `UPDATE objects SET state = 'condemned', since = $2, dead = size WHERE name = $1 AND state <> 'condemned'`,
	objectsCondemned: `SELECT ` + objectColumns + ` FROM objects WHERE state = 'condemned' AND since <= $1 ORDER BY since, name LIMIT $2`,
	objectDelete:     `DELETE FROM objects WHERE name = $1`,
	objectPage:       `SELECT ` + objectColumns + ` FROM objects WHERE name > $1 ORDER BY name LIMIT $2`,

	// The conditions of the first two are those of partial indexes.
	objectsHollow: `SELECT ` + objectColumns + ` FROM objects o WHERE chain = $1 AND state = 'live' AND dead * 4 >= size AND ` + notOpen + ` ORDER BY name LIMIT $2`,
	objectsSmall: `SELECT ` + objectColumns + ` FROM objects o WHERE chain = $1 AND state = 'live' AND size < 8388608 AND ` + notOpen + `
		ORDER BY created DESC, name DESC LIMIT $2`,
	objectWriterLives: `SELECT v.id FROM segments s JOIN versions v ON v.id = s.version WHERE s.object = $1 AND s.generation = 0 LIMIT 1`,
	objectsWriting:    `SELECT ` + objectColumns + ` FROM objects WHERE state = 'writing' AND name > $1 ORDER BY name LIMIT $2`,
	objectGoLive:      `UPDATE objects SET state = 'live', dead = $2 WHERE name = $1 AND state = 'writing'`,
	objectDropWriting: `DELETE FROM objects WHERE name = $1 AND state = 'writing'`,
	segmentMove: `UPDATE segments SET object = $4, "offset" = $5, length = $6, generation = generation + 1, dead_bytes = $7
		WHERE id = $1 AND state = 'live' AND object = $2 AND generation = $3`,
	segmentsOrphaned: `SELECT ` + segmentColumns + ` FROM segments s WHERE state = 'writing' AND id > $1 AND
		NOT EXISTS (SELECT 1 FROM versions v WHERE v.id = s.version AND v.state = 'open') ORDER BY id LIMIT $2`,

	checkpointPut: `INSERT INTO checkpoints (` + checkpointColumns + `) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (version) DO UPDATE SET root = $2, finished = $3, counts = $4, updated = $5`,
	checkpointGet: `SELECT p.version, p.root, p.finished, p.counts, p.updated, c."key" FROM checkpoints p JOIN versions v ON v.id = p.version
		JOIN chains c ON c.id = v.chain WHERE p.version = $1`,
	checkpointDelete: `DELETE FROM checkpoints WHERE version = $1`,

	snapshotInsert: `INSERT INTO snapshots (id, account, volume, version, state, reason, hint, name, description, tags, size, digest,
		parent, source_region, source_snapshot, source_volume, copy, counts, retain_until, created, settled, deleted, set_id, set_size)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)`,
	snapshotGet: `SELECT ` + snapshotColumns + ` FROM snapshots s JOIN volumes v ON v.id = s.volume WHERE s.id = $1`,
	snapshotUpdate: `UPDATE snapshots SET version = $3, state = $4, reason = $5, hint = $6, name = $7, description = $8, tags = $9, size = $10, digest = $11,
		parent = $12, copy = $13, counts = $14, retain_until = $15, settled = $16, deleted = $17 WHERE id = $1 AND state = $2`,
	snapshotDelete: `DELETE FROM snapshots WHERE id = $1`,
	snapshotPage: `SELECT ` + snapshotColumns + ` FROM snapshots s JOIN volumes v ON v.id = s.volume
		WHERE s.account = $1 AND (s.deleted = 0 OR s.version IS NOT NULL) AND ($2 = '' OR v.name = $2) AND ($3 = '' OR s.volume = $3) AND ($4 = '' OR s.state = $4) AND (s.created < $5 OR (s.created = $5 AND s.id < $6))
		AND ($8 = '' OR s.set_id = $8) ORDER BY s.created DESC, s.id DESC LIMIT $7`,
	snapshotsOfVersion: `SELECT ` + snapshotColumns + ` FROM snapshots s JOIN volumes v ON v.id = s.volume WHERE s.version = $1 ORDER BY s.created DESC, s.id DESC`,

	snapshotsOfSet: `SELECT ` + snapshotColumns + ` FROM snapshots s JOIN volumes v ON v.id = s.volume WHERE s.set_id <> '' AND s.set_id = $1 ORDER BY s.created, s.id`,

	copyInsert: `INSERT INTO copies (` + copyColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
		$15, $16, $17, $18, $19)`,
	copyGet: `SELECT ` + copyColumns + ` FROM copies WHERE id = $1`,
	copyUpdate: `UPDATE copies SET set_id = $3, members = $4, state = $5, reserved = $6, "full" = $7, plan = $8, reason = $9, finished = $10,
		started = $11, deadline = $12, late = $13, rate = $14, ending = $15, metered = $16 WHERE id = $1 AND state = $2`,
	copiesOfAccount: `SELECT ` + copyColumns + ` FROM copies WHERE account = $1 AND reserved = 0 AND (created < $2 OR created = $2 AND id < $3)
		AND ($4 = 0 OR state <> 'done' AND state <> 'failed' AND state <> 'cancelled') ORDER BY created DESC, id DESC LIMIT $5`,
	copiesActive: `SELECT ` + copyColumns + ` FROM copies WHERE state <> 'done' AND state <> 'failed' AND state <> 'cancelled' ORDER BY created, id`,

	pinInsert:      `INSERT INTO pins (` + pinColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (region, incarnation, copy, snapshot) DO NOTHING`,
	pinSeen:        `UPDATE pins SET seen = $2 WHERE id = $1`,
	pinGet:         `SELECT ` + pinColumns + ` FROM pins WHERE id = $1`,
	pinByCopy:      `SELECT ` + pinColumns + ` FROM pins WHERE region = $1 AND incarnation = $2 AND copy = $3 AND snapshot = $4`,
	pinDelete:      `DELETE FROM pins WHERE id = $1`,
	pinsOfSnapshot: `SELECT ` + pinColumns + ` FROM pins WHERE snapshot = $1 ORDER BY created, id`,
	pinsFromRegion: `SELECT ` + pinColumns + ` FROM pins WHERE region = $1 ORDER BY created, id`,

	jobInsert:     `INSERT INTO jobs (` + jobColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
	jobGet:        `SELECT ` + jobColumns + ` FROM jobs WHERE id = $1`,
	jobsOfSubject: `SELECT ` + jobColumns + ` FROM jobs WHERE subject = $1 ORDER BY created DESC, id DESC`,
	jobsRunning:   `SELECT ` + jobColumns + ` FROM jobs WHERE state = 'running' ORDER BY created, id`,
	jobRunnable:   `SELECT id FROM jobs WHERE state = 'queued' AND lane = $2 AND run_after <= $1 ORDER BY created, id LIMIT 1`,
	jobNextRun:    `SELECT run_after FROM jobs WHERE state = 'queued' AND run_after > $1 ORDER BY run_after LIMIT 1`,
	jobClaim: `UPDATE jobs SET state = 'running', owner = $2, token = token + 1, beat = beat + 1
		WHERE id = $1 AND state = 'queued' RETURNING ` + jobColumns,
	jobBeat: `UPDATE jobs SET beat = beat + 1, progress = CASE WHEN $3 = '' THEN progress ELSE $3 END
		WHERE id = $1 AND token = $2 AND state = 'running' RETURNING cancel`,
	jobRequeue: `UPDATE jobs SET state = 'queued', owner = '', token = token + 1, run_after = 0
		WHERE id = $1 AND token = $2 AND beat = $3 AND state = 'running'`,
	jobSettle: `UPDATE jobs SET state = $3, owner = '', attempts = $4, run_after = $5, error = $6, progress = $7, finished = $8
		WHERE id = $1 AND token = $2 AND state = 'running'`,
	jobLease:         `SELECT id FROM jobs WHERE id = $1 AND token = $2 AND state = 'running'`,
	jobCancelQueued:  `UPDATE jobs SET state = 'cancelled', cancel = 1, finished = $2 WHERE id = $1 AND state = 'queued' AND token = 0`,
	jobCancelStarted: `UPDATE jobs SET cancel = 1, run_after = 0 WHERE id = $1 AND (state = 'running' OR state = 'queued')`,

	requestInsert: `INSERT INTO requests (account, token, operation, fingerprint, result, created) VALUES ($1, $2, $3, $4, $5, $6)`,
	requestGet:    `SELECT account, token, operation, fingerprint, result, created FROM requests WHERE account = $1 AND token = $2`,

	usageInsert:    `INSERT INTO usage (account, kind, subject, bytes, at, copy, outcome, "count", began) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
	usageOfSubject: `SELECT ` + usageColumns + ` FROM usage WHERE subject = $1 ORDER BY id`,
	usageOfAccount: `SELECT ` + usageColumns + ` FROM usage WHERE account = $1 AND id > $2 ORDER BY id LIMIT $3`,

	storageGet:     `SELECT stored, metered FROM versions WHERE id = $1`,
	storageSet:     `UPDATE versions SET stored = $2, metered = $3 WHERE id = $1`,
	storageAdd:     `UPDATE versions SET stored = stored + $2 WHERE id = $1 AND metered > 0`,
	storageRecord:  storageInsert + `v.id = $1 AND v.metered > 0 AND v.metered < $2 AND v.stored > 0`,
	storageMove:    `UPDATE versions SET metered = $2 WHERE id = $1 AND metered > 0 AND metered < $2`,
	storageFirst:   `SELECT metered FROM versions WHERE metered > 0 AND metered < $1 ORDER BY metered, id LIMIT 1`,
	storageRecords: storageInsert + `v.stored > 0 AND v.id IN (` + storageDue + `)`,
	storageMoves:   `UPDATE versions SET metered = $2 WHERE id IN (` + storageDue + `)`,
	storageUncounted: `SELECT ` + versionColumns + ` FROM versions v WHERE v.metered = 0 AND (v.state = 'sealed' OR v.state = 'ghost' AND v.due = 0) AND v.id > $1
		ORDER BY v.id LIMIT $2`,

	limitPut:       `INSERT INTO limits (scope, value, set_at) VALUES ($1, $2, $3) ON CONFLICT (scope) DO UPDATE SET value = excluded.value, set_at = excluded.set_at`,
	limitDelete:    `DELETE FROM limits WHERE scope = $1`,
	limitList:      `SELECT scope, value, set_at FROM limits ORDER BY scope`,
	auditInsert:    `INSERT INTO audit (at, account, action, subject, detail) VALUES ($1, $2, $3, $4, $5)`,
	auditOfSubject: `SELECT id, at, account, action, subject, detail FROM audit WHERE subject = $1 ORDER BY id`,

	volumeMove: `UPDATE volumes SET chain = $2, "key" = (SELECT c."key" FROM chains c WHERE c.id = $2) WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM versions v WHERE v.volume = volumes.id)
		AND NOT EXISTS (SELECT 1 FROM heads h WHERE h.volume = volumes.id)`,

	headInsert: `INSERT INTO heads (volume, account, state, reason, hint, size, tags, snapshot, base, layer, export, rate, rollback, safety, created)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
	headGet: `SELECT ` + headColumns + ` FROM heads h JOIN volumes v ON v.id = h.volume WHERE h.volume = $1`,
	headUpdate: `UPDATE heads SET state = $2, reason = $3, hint = $4, size = $5, tags = $6, base = $7, layer = $8, export = $9, rate = $10, rollback = $11, safety = $12
		WHERE volume = $1`,
	headDelete: `DELETE FROM heads WHERE volume = $1`,
	headList: `SELECT ` + headColumns + ` FROM heads h JOIN volumes v ON v.id = h.volume WHERE $1 = '' OR h.account = $1
		ORDER BY h.created DESC, h.volume DESC`,
	headsOn:      `SELECT ` + headColumns + ` FROM heads h JOIN volumes v ON v.id = h.volume WHERE h.base = $1 ORDER BY h.volume`,
	uploadInsert: `INSERT INTO uploads (snapshot, volume, layer) VALUES ($1, $2, $3)`,
	uploadDelete: `DELETE FROM uploads WHERE snapshot = $1`,
	uploadDone:   `UPDATE uploads SET done = $2 WHERE snapshot = $1 AND done < $2`,
	uploadList:   `SELECT snapshot, volume, layer, done FROM uploads WHERE volume = $1 ORDER BY layer`,
	chainList:    `SELECT ` + chainColumns + ` FROM chains ORDER BY id`,
	jobQueued:    `SELECT id FROM jobs WHERE subject = $1 AND kind = $2 AND state = 'queued' ORDER BY created, id LIMIT 1`,
	jobHasten:    `UPDATE jobs SET run_after = 0 WHERE subject = $1 AND kind = $2 AND state = 'queued' RETURNING id`,
	jobsOfLane:   `SELECT ` + jobColumns + ` FROM jobs WHERE (state = 'running' OR state = 'queued') AND lane = $1 ORDER BY created, id LIMIT $2`,
	jobsPrune:    `DELETE FROM jobs WHERE (state = 'done' OR state = 'cancelled') AND lane = $1 AND finished < $2`,

	usageVersions: `SELECT v.state, COUNT(*), COALESCE(SUM(v.blocks), 0) FROM versions v JOIN chains c ON c.id = v.chain
		WHERE $1 = '' OR c.account = $1 GROUP BY v.state`,
	usageSnapshots: `SELECT s.state, COUNT(*), COALESCE(SUM(v.blocks), 0) FROM snapshots s LEFT JOIN versions v ON v.id = s.version
		WHERE ($1 = '' OR s.account = $1) AND (s.deleted = 0 OR s.version IS NOT NULL) GROUP BY s.state`,
	usageObjects: `SELECT o.state, COUNT(*), COALESCE(SUM(o.size), 0), COALESCE(SUM(o.dead), 0), COALESCE(SUM(CASE WHEN o.size < 8388608 THEN 1 ELSE 0 END), 0)
		FROM objects o LEFT JOIN chains c ON c.id = o.chain WHERE $1 = '' OR c.account = $1 GROUP BY o.state`,
	catalogueGet:    `SELECT catalogue, COALESCE((SELECT MAX(id) FROM audit), 0), dump, dumped, dumped_audit FROM region`,
	catalogueBump:   `UPDATE region SET catalogue = catalogue + 1`,
	catalogueDumped: `UPDATE region SET dump = $1, dumped = $2, dumped_audit = $3`,
	trustedPut:      `INSERT INTO trusted_keys (public, added) VALUES ($1, $2) ON CONFLICT (public) DO NOTHING`,
	trustedList:     `SELECT public FROM trusted_keys ORDER BY public`,
	chainUpdate:     `UPDATE chains SET wrapped_key = $2, proven = $3, "key" = $4, generation = $5 WHERE id = $1`,
	volumeList:      `SELECT ` + volumeColumns + ` FROM volumes ORDER BY id`,
	auditTail: `SELECT id, at, account, action, subject, detail FROM
		(SELECT id, at, account, action, subject, detail FROM audit ORDER BY id DESC LIMIT $1) tail ORDER BY id`,
	snapshotsAll:  `SELECT ` + snapshotColumns + ` FROM snapshots s JOIN volumes v ON v.id = s.volume ORDER BY s.id`,
	pinsAll:       `SELECT ` + pinColumns + ` FROM pins ORDER BY id`,
	jobsUnsettled: `SELECT ` + jobColumns + ` FROM jobs WHERE state = 'queued' OR state = 'running' ORDER BY created, id`,
	jobsFail: `UPDATE jobs SET state = 'failed', owner = '', token = token + 1, error = $1, finished = $2
		WHERE state = 'running' OR (state = 'queued' AND token > 0)`,
	jobsCancel:        `UPDATE jobs SET state = 'cancelled', cancel = 1, finished = $1 WHERE state = 'queued'`,
	pinsForget:        `DELETE FROM pins`,
	holdsForget:       `DELETE FROM holds`,
	checkpointsForget: `DELETE FROM checkpoints`,
	versionsForget:    `DELETE FROM versions`,
	gravesForget:      `DELETE FROM graves`,
	segmentsForget:    `DELETE FROM segments`,
	objectsForget:     `DELETE FROM objects`,
}

// reads reports whether the statement only reads.
func (s statement) reads() bool { return strings.HasPrefix(statementText[s], "SELECT ") }

// sqliteText is the text as SQLite wants it: ?1 where PostgreSQL has $1.
func (s statement) sqliteText() string { return strings.ReplaceAll(statementText[s], "$", "?") }

type statements [numStatements]*sql.Stmt

// prepare prepares the texts that a pool of connections may use.
func prepare(ctx context.Context, d *sql.DB, may func(statement) bool) (p statements, err error) {
	for s := range numStatements {
		if !may(s) {
			continue
		}
		if p[s], err = d.PrepareContext(ctx, s.sqliteText()); err != nil {
			return p, fmt.Errorf("prepare %q: %w", statementText[s], err)
		}
	}
	return p, nil
}
