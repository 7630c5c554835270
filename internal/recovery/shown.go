package recovery

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// putSnapshots writes the snapshots: those that records hold, and what became of
// the others that the old metadata knew.
func (r *run) putSnapshots(tx *meta.Tx) error {
	seen := map[snapferry.SnapshotID]*version{}
	for _, id := range sortedChains(r.forest.order) {
		for _, v := range r.forest.order[id] {
			for _, h := range v.holds {
				if h.Kind != record.HoldSnapshot || v.state != snapferry.VersionSealed {
					continue
				}
				s := snapferry.SnapshotID(h.Owner)
				if other := seen[s]; other != nil {
					r.findings.damage("", v.id, "snapshot %s is that of version %s too", s, other.id)
					continue
				}
				seen[s] = v
				if err := r.putSnapshot(tx, v, h); err != nil {
					return err
				}
			}
		}
	}
	if r.old == nil {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(r.old.snapshots)) {
		if seen[id] != nil {
			continue
		}
		lapse := r.lapse
		if r.missing[id] {
			lapse = r.lapseMissing
		}
		if err := lapse(tx, r.old.snapshots[id]); err != nil {
			return err
		}
	}
	return nil
}

// maxSetSize is more than a set may have.
const maxSetSize = 1 << 16

// putSnapshot shows a version again.
func (r *run) putSnapshot(tx *meta.Tx, v *version, h record.Hold) error {
	row := meta.Snapshot{}
	row.ID, row.Created, row.Settled = snapferry.SnapshotID(h.Owner), h.Created, v.rec.Created
	if row.Created.IsZero() {
		row.Created = v.rec.Created
	}
	healed := false
	if r.old != nil {
		if old, ok := r.old.snapshots[row.ID]; ok {
			row, healed = old, r.old.healed[v.id]
		}
	}
	if !healed {
		row.Name, row.Description, row.Tags, row.RetainUntil = h.Name, h.Description, h.Tags, h.RetainUntil
		row.SourceVolume = h.SourceVolume
		row.Set, row.SetSize = "", 0
		if set := v.rec.Set; set != nil {
			row.Set, row.SetSize = snapferry.SetID(set.ID), int(min(h.SetSize, maxSetSize))
		}
		row.Source = nil
		if h.SourceSnapshot != "" {
			row.Source = &snapferry.CopySource{Region: h.SourceRegion, Snapshot: h.SourceSnapshot}
		}
	}
	row.Account, row.VolumeID, row.Version = r.chains[v.rec.Chain].row.Account, v.volume, v.id
	row.Size, row.Digest, row.Counts.Present = v.rec.Size, v.rec.Digest, int64(v.rec.Blocks)*snapferry.BlockSize
	if row.Parent == "" {
		row.Parent = visibleHold(r.forest.versions[v.parent])
	}
	switch {
	case v.why != "":
		row.State = snapferry.SnapshotFailed
		row.Reason, row.Hint = "corrupt: "+v.why, "bring back what is missing in the bucket and recover again; or delete the snapshot"
		r.report.Failed++
		r.findings.add(Finding{Severity: Damage, Version: v.id.String(), Problem: "snapshot " + string(row.ID) + " failed: " + v.why, Snapshots: []snapferry.SnapshotID{row.ID}})
	case row.State == snapferry.SnapshotDeleting && row.Reason != reasonMissing && r.pinned(v):
		row.Reason = "" // its deletion waits for the pins
		r.report.Snapshots++
	default:
		row.State, row.Reason, row.Hint, row.Deleted = snapferry.SnapshotReady, "", "", time.Time{}
		r.report.Snapshots++
	}
	return tx.PutSnapshot(row)
}

// pinned reports whether other regions keep a version.
func (r *run) pinned(v *version) bool {
	return slices.ContainsFunc(v.holds, func(h record.Hold) bool { return h.Kind == record.HoldPin })
}

// lapse settles a snapshot of the old metadata that no record holds: it was
// deleted since, was never finished, or its record cannot be read.
func (r *run) lapse(tx *meta.Tx, row meta.Snapshot) error {
	_, unusable := r.forest.unusable[row.Version]
	switch {
	case row.State == snapferry.SnapshotFailed:
	case !row.State.Settled():
		row.State, row.Reason, row.Hint = snapferry.SnapshotFailed, reasonRecovered, "import or copy it again"
		row.Settled = r.now
	case row.State == snapferry.SnapshotReady && unusable:
		row.State, row.Reason, row.Hint = snapferry.SnapshotFailed, "corrupt: its version record cannot be read", "bring the record back and recover again"
		r.report.Failed++
		r.findings.add(Finding{
			Severity: Damage, Version: row.Version.String(), Problem: "snapshot " + string(row.ID) + " failed: its version record cannot be read", Snapshots: []snapferry.SnapshotID{row.ID},
		})
	default:
		if row.State == snapferry.SnapshotReady {
			r.report.Deleted = append(r.report.Deleted, row.ID)
		}
		if row.State = snapferry.SnapshotDeleting; row.Deleted.IsZero() {
			row.Deleted = r.now
		}
	}
	row.Version = snapferry.VersionID{}
	return tx.PutSnapshot(row)
}

// putPins writes what other regions keep here.
func (r *run) putPins(tx *meta.Tx) error {
	for _, id := range sortedChains(r.forest.order) {
		for _, v := range r.forest.order[id] {
			for _, h := range v.holds {
				if h.Kind != record.HoldPin || v.state != snapferry.VersionSealed {
					continue
				}
				if err := r.putPin(tx, v, h); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *run) putPin(tx *meta.Tx, v *version, h record.Hold) error {
	row := meta.Pin{ID: h.Owner, Snapshot: h.PinSnapshot, Version: v.id, Region: h.PinRegion, Incarnation: h.PinIncarnation, Copy: h.PinCopy, Created: h.Created}
	if row.Copy == "" && r.old != nil {
		if old, ok := r.old.pins[h.Owner]; ok {
			row = old
			row.Version = v.id
		}
	}
	if row.Copy == "" || row.Region == "" || row.Snapshot == "" {
		r.findings.note("", v.id, "nothing tells who keeps pin %s: it stays", h.Owner)
		return nil
	}
	if _, err := tx.Snapshot(row.Snapshot); err != nil {
		if snapferry.IsKind(err, snapferry.NotFound) {
			r.findings.note("", v.id, "pin %s of region %s is on snapshot %s, which is not there: it stays", h.Owner, row.Region, row.Snapshot)
			return nil
		}
		return err
	}
	r.report.Pins++
	_, err := tx.InsertPin(row)
	return err
}

// copiesOf returns the copies that jobs are about.
func copiesOf(jobs []meta.Job) (ids []snapferry.CopyID) {
	for _, j := range jobs {
		var p struct {
			Copy snapferry.CopyID `json:"copy"`
		}
		id := snapferry.CopyID(j.Payload)
		if json.Unmarshal([]byte(j.Payload), &p) == nil {
			id = p.Copy
		}
		if _, err := snapferry.ParseCopyID(string(id)); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
