package snapferry

import "slices"

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotCreating SnapshotState = "creating" // an import fills it
	SnapshotCopying  SnapshotState = "copying"  // a copy fills it
	SnapshotReady    SnapshotState = "ready"
	SnapshotFailed   SnapshotState = "failed"
	SnapshotDeleting SnapshotState = "deleting" // accepted; waits for pins, or is being freed
)

// CopyState is where a copy is in its life.
type CopyState string

// The states of a copy.
const (
	CopyQueued     CopyState = "queued"
	CopyPlanning   CopyState = "planning"
	CopyMoving     CopyState = "moving"
	CopyCommitting CopyState = "committing"
	CopyDone       CopyState = "done"
	CopyFailed     CopyState = "failed"
	CopyCancelled  CopyState = "cancelled"
)

// VersionState is where a version is in its life.
type VersionState string

// The states of a version.
const (
	VersionOpen   VersionState = "open"   // its map is not complete
	VersionSealed VersionState = "sealed" // complete and immutable
	VersionGhost  VersionState = "ghost"  // no hold left, still needed by the reference rule
	VersionBroken VersionState = "broken" // sealed, but part of it was missing when the metadata was rebuilt
)

// JobState is where a durable job is in its life.
type JobState string

// The states of a job.
const (
	JobQueued    JobState = "queued"
	JobRunning   JobState = "running"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

var (
	snapshotMoves = map[SnapshotState][]SnapshotState{
		SnapshotCreating: {SnapshotReady, SnapshotFailed, SnapshotDeleting},
		SnapshotCopying:  {SnapshotReady, SnapshotFailed, SnapshotDeleting},
		SnapshotReady:    {SnapshotDeleting},
		SnapshotFailed:   {SnapshotDeleting},
		SnapshotDeleting: {},
	}
	copyMoves = map[CopyState][]CopyState{
		CopyQueued:     {CopyPlanning, CopyFailed, CopyCancelled},
		CopyPlanning:   {CopyMoving, CopyFailed, CopyCancelled, CopyQueued},
		CopyMoving:     {CopyCommitting, CopyFailed, CopyCancelled, CopyPlanning},
		CopyCommitting: {CopyDone, CopyFailed, CopyCancelled, CopyPlanning},
		CopyDone:       {},
		CopyFailed:     {},
		CopyCancelled:  {},
	}
	versionMoves = map[VersionState][]VersionState{
		VersionOpen:   {VersionSealed},
		VersionSealed: {VersionGhost},
		VersionGhost:  {},
		VersionBroken: {VersionGhost},
	}
	jobMoves = map[JobState][]JobState{
		JobQueued:    {JobRunning, JobCancelled},
		JobRunning:   {JobQueued, JobDone, JobFailed, JobCancelled},
		JobDone:      {},
		JobFailed:    {},
		JobCancelled: {},
	}
)

// CanBecome reports whether the move from s to t is legal.
func (s SnapshotState) CanBecome(t SnapshotState) bool { return slices.Contains(snapshotMoves[s], t) }

// Settled reports whether nothing fills the snapshot any more.
func (s SnapshotState) Settled() bool { return s != SnapshotCreating && s != SnapshotCopying }

// CanBecome reports whether the move from s to t is legal.
func (s CopyState) CanBecome(t CopyState) bool { return slices.Contains(copyMoves[s], t) }

// Terminal reports whether s is final.
func (s CopyState) Terminal() bool { return len(copyMoves[s]) == 0 }

// CanBecome reports whether the move from s to t is legal.
func (s VersionState) CanBecome(t VersionState) bool { return slices.Contains(versionMoves[s], t) }

// CanBecome reports whether the move from s to t is legal.
func (s JobState) CanBecome(t JobState) bool { return slices.Contains(jobMoves[s], t) }

// Terminal reports whether s is final.
func (s JobState) Terminal() bool { return len(jobMoves[s]) == 0 }
