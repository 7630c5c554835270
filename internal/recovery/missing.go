package recovery

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// A snapshot of the old metadata of whose version the bucket has no record was
// deleted since, or its record was lost. Both look the same. Proofs of the
// deletion are a line of the audit in a dump, and the record of a version below
// that was written since and names as its parent one further up: the version was
// spliced out. Without one the snapshot is taken for deleted, but marked, and
// nothing is reclaimed until its record is back or the operator says so.

const (
	actionDelete = "DeleteSnapshot"

	// missingMark begins the reason of a snapshot that is taken for deleted
	// without a proof.
	missingMark    = "missing: "
	reasonMissing  = missingMark + "the bucket has no version record of it"
	reasonMissing2 = reasonMissing + "; it was being deleted, and waited for pins"
)

// marked reports whether a snapshot was taken for deleted without a proof.
func marked(s meta.Snapshot) bool {
	return s.State == snapferry.SnapshotDeleting && s.Version.IsZero() && strings.HasPrefix(s.Reason, missingMark)
}

// findMissing finds the snapshots of which nothing proves that they were
// deleted.
func (r *run) findMissing(ctx context.Context) error {
	r.missing = map[snapferry.SnapshotID]bool{}
	if r.old == nil {
		return nil
	}
	held := r.forest.held()
	spliced := r.old.spliced(r.forest)
	var unproven []meta.Snapshot
	for _, id := range slices.Sorted(maps.Keys(r.old.snapshots)) {
		if s := r.old.snapshots[id]; !held[id] && r.lacks(s) && !spliced[s.Version] {
			unproven = append(unproven, s)
		}
	}
	if len(unproven) == 0 {
		return nil
	}
	deleted, err := r.deletions(ctx)
	if err != nil {
		return err
	}
	for _, s := range unproven {
		// Who else held the version is not in the audit. And what had no proof
		// once has none now.
		if deleted[s.ID] && !marked(s) && r.old.only(s) {
			continue
		}
		r.missing[s.ID] = true
		if !r.AcceptDeleted {
			r.findings.add(Finding{
				Severity: Damage, Version: versionText(s.Version), Snapshots: []snapferry.SnapshotID{s.ID},
				Problem: "snapshot " + string(s.ID) + " is missing: the bucket has no version record of it, and nothing proves that it was deleted",
			})
		}
	}
	return nil
}

// lacks reports whether a snapshot was whole, or as whole as it got, and the
// bucket has no record of its version, good or not.
func (r *run) lacks(s meta.Snapshot) bool {
	if s.Version.IsZero() {
		return marked(s)
	}
	switch r.old.versions[s.Version].State {
	case snapferry.VersionSealed, snapferry.VersionBroken:
		return r.forest.versions[s.Version] == nil && r.forest.unusable[s.Version] == nil
	}
	return false
}

// held returns the snapshots that versions hold.
func (f *forest) held() map[snapferry.SnapshotID]bool {
	held := map[snapferry.SnapshotID]bool{}
	for _, v := range f.versions {
		for _, h := range v.holds {
			if h.Kind == record.HoldSnapshot {
				held[snapferry.SnapshotID(h.Owner)] = true
			}
		}
	}
	return held
}

// only reports whether nothing but a snapshot kept its version.
func (s *oldState) only(n meta.Snapshot) bool {
	return !slices.ContainsFunc(s.holds[n.Version], func(h meta.Hold) bool { return durable[record.HoldKind(h.Kind)] && h.Owner != string(n.ID) })
}

// spliced returns versions that the records of those below have been spliced
// past since. A record that names no parent proves nothing: a recovery writes
// one when the parent's record was lost.
func (s *oldState) spliced(f *forest) map[snapferry.VersionID]bool {
	gone := map[snapferry.VersionID]bool{}
	for id, v := range f.versions {
		old, ok := s.versions[id]
		to := v.rec.Parent
		if v.state == record.Forwarded {
			to = v.rec.Forward
		}
		if !ok || to.IsZero() || v.rec.Revision <= old.Reserved {
			continue
		}
		var past []snapferry.VersionID
		at := old.Parent
		for !at.IsZero() && at != to && len(past) < len(s.versions) {
			past = append(past, at)
			at = s.versions[at].Parent
		}
		if at == to {
			for _, id := range past {
				gone[id] = true
			}
		}
	}
	return gone
}

// deletions returns the snapshots of whose deletion the audits in the dumps
// tell.
func (r *run) deletions(ctx context.Context) (map[snapferry.SnapshotID]bool, error) {
	deleted := map[snapferry.SnapshotID]bool{}
	if r.dumpKey == nil {
		return deleted, nil
	}
	for _, name := range r.names.dumps {
		p, err := r.Bucket.Get(ctx, name, dump.MaxSize)
		var d *dump.Dump
		if err == nil {
			d, err = dump.Decode(p, r.dumpKey)
		}
		if err != nil && !isFinding(err) {
			return nil, err
		}
		if err != nil || d.Region.ID != r.ID {
			continue
		}
		for _, a := range d.Audit {
			if a.Action == actionDelete {
				deleted[snapferry.SnapshotID(a.Subject)] = true
			}
		}
	}
	return deleted, nil
}

// lapseMissing takes a snapshot that is missing for deleted.
func (r *run) lapseMissing(tx *meta.Tx, row meta.Snapshot) error {
	if row.Deleted.IsZero() {
		row.Deleted = r.now
	}
	switch {
	case r.AcceptDeleted:
		r.report.Deleted = append(r.report.Deleted, row.ID)
		row.Reason, row.Hint = "", ""
		// From the next dump on this is the proof.
		err := tx.AddAudit(meta.Audit{At: r.now, Account: row.Account, Action: actionDelete, Subject: string(row.ID), Detail: "accepted in a merge"})
		if err != nil {
			return err
		}
	case !marked(row):
		r.report.Missing = append(r.report.Missing, row.ID)
		waited := row.State == snapferry.SnapshotDeleting
		if row.Reason, row.Hint = reasonMissing, ""; waited {
			row.Reason = reasonMissing2
		}
	default:
		r.report.Missing = append(r.report.Missing, row.ID)
	}
	row.State, row.Version = snapferry.SnapshotDeleting, snapferry.VersionID{}
	return tx.PutSnapshot(row)
}
