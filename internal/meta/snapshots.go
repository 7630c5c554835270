package meta

import (
	"math"
	"time"

	"github.com/snapferry/snapferry"
)

func (tx *Tx) scanSnapshot(r scanner, v *Snapshot) error {
	var source snapferry.CopySource
	var d []byte
	err := r.Scan(&v.ID, &v.Account, &v.Region, &v.VolumeID, &v.Volume, hexColumn{v.Version[:]}, &v.State, &v.Reason, &v.Hint, &v.Name, &v.Description,
		jsonColumn{&v.Tags}, &v.Size, &d, &v.Parent, &source.Region, &source.Snapshot, &v.SourceVolume, &v.Copy,
		jsonColumn{&v.Counts}, timeColumn{&v.RetainUntil}, timeColumn{&v.Created}, timeColumn{&v.Settled}, timeColumn{&v.Deleted}, &v.Set, &v.SetSize, &v.Key)
	if err == nil {
		v.Encrypted = v.Key != ""
		err = tx.sealer(v.Key).openDigest(&v.Digest, "digest of "+string(v.ID), d)
	}
	if source != (snapferry.CopySource{}) {
		v.Source = &source
	}
	return err
}

func tagsText(t snapferry.Tags) string {
	if len(t) == 0 {
		return ""
	}
	return jsonText(t)
}

// InsertSnapshot adds a snapshot.
func (tx *Tx) InsertSnapshot(s Snapshot) error {
	var source snapferry.CopySource
	if s.Source != nil {
		source = *s.Source
	}
	vol, err := tx.Volume(s.VolumeID)
	if err != nil {
		return err
	}
	d, err := tx.sealer(vol.Key).seal("digest of "+string(s.ID), digestBytes(s.Digest))
	if err != nil {
		return err
	}
	return tx.run(snapshotInsert, []any{
		string(s.ID), string(s.Account), string(s.VolumeID), hexOrNull(s.Version), string(s.State), s.Reason, s.Hint, s.Name, s.Description, tagsText(s.Tags),
		s.Size, d, string(s.Parent), string(source.Region), string(source.Snapshot), s.SourceVolume, string(s.Copy),
		jsonText(s.Counts), millis(s.RetainUntil), millis(s.Created), millis(s.Settled), millis(s.Deleted), string(s.Set), s.SetSize,
	}, "add snapshot %s", s.ID)
}

// Snapshot returns a snapshot by its id.
func (tx *Tx) Snapshot(id snapferry.SnapshotID) (Snapshot, error) {
	return get(tx, snapshotGet, tx.scanSnapshot, "snapshot", id, string(id))
}

// UpdateSnapshot writes what can change of a snapshot: all but id, account,
// volume, source, set and creation. It is a Conflict when the move of its state is
// not legal.
func (tx *Tx) UpdateSnapshot(s Snapshot) error {
	old, err := tx.Snapshot(s.ID)
	if err != nil {
		return err
	}
	if old.State != s.State && !old.State.CanBecome(s.State) {
		return snapferry.Errorf(snapferry.Conflict, "snapshot %s is %s and cannot become %s", s.ID, old.State, s.State)
	}
	d, err := tx.sealer(old.Key).seal("digest of "+string(s.ID), digestBytes(s.Digest))
	if err != nil {
		return err
	}
	return tx.one(snapshotUpdate, []any{
		string(s.ID), string(old.State), hexOrNull(s.Version), string(s.State), s.Reason, s.Hint, s.Name, s.Description, tagsText(s.Tags), s.Size, d,
		string(s.Parent), string(s.Copy), jsonText(s.Counts), millis(s.RetainUntil), millis(s.Settled), millis(s.Deleted),
	}, "snapshot", s.ID)
}

// DeleteSnapshotRow forgets a snapshot; it is a Conflict while it has pins.
func (tx *Tx) DeleteSnapshotRow(id snapferry.SnapshotID) error {
	return tx.one(snapshotDelete, []any{string(id)}, "snapshot", id)
}

// SnapshotFilter says which snapshots to list; zero fields do not filter.
type SnapshotFilter struct {
	Volume   string             // name of the lineage
	VolumeID snapferry.VolumeID // the lineage itself
	State    snapferry.SnapshotState
	Set      snapferry.SetID
	Limit    int    // at most so many; 0: all
	After    Cursor // those that follow a place in the list
}

// Cursor is a place in the list of snapshots: that of a snapshot, which need
// not exist any more.
type Cursor struct {
	Created time.Time
	ID      snapferry.SnapshotID
}

// Snapshots lists the snapshots of an account, newest first. Deleted ones are
// left out, but for those whose version is still held by a pin.
func (tx *Tx) Snapshots(account snapferry.AccountID, f SnapshotFilter) ([]Snapshot, error) {
	limit, before := int64(math.MaxInt64), int64(math.MaxInt64)
	if f.Limit > 0 {
		limit = int64(f.Limit)
	}
	if f.After != (Cursor{}) {
		before = millis(f.After.Created)
	}
	return list(tx, snapshotPage, tx.scanSnapshot, "snapshots",
		string(account), f.Volume, string(f.VolumeID), string(f.State), before, string(f.After.ID), limit, string(f.Set))
}

// SnapshotsOfVersion returns the snapshots that show a version, newest first.
func (tx *Tx) SnapshotsOfVersion(version snapferry.VersionID) ([]Snapshot, error) {
	return list(tx, snapshotsOfVersion, tx.scanSnapshot, "snapshots", hexText(version))
}

// SnapshotsOfSet returns the snapshots of a set, in the order in which they were
// taken, those that were deleted too.
func (tx *Tx) SnapshotsOfSet(id snapferry.SetID) ([]Snapshot, error) {
	return list(tx, snapshotsOfSet, tx.scanSnapshot, "snapshots", string(id))
}

func scanCopy(r scanner, c *Copy) error {
	err := r.Scan(&c.ID, &c.Account, &c.Source.Region, &c.Source.Set, &c.Set, jsonColumn{&c.Members}, &c.State, &c.Reserved, &c.Full,
		jsonColumn{&c.Plan}, &c.Reason, timeColumn{&c.Created}, timeColumn{&c.Finished},
		timeColumn{&c.Started}, timeColumn{&c.Deadline}, &c.Late, &c.Rate, &c.Ending, &c.Metered)
	if err != nil {
		return err
	}
	if len(c.Members) == 0 {
		return snapferry.Errorf(snapferry.Corrupt, "copy %s makes no snapshot", c.ID)
	}
	c.Snapshot, c.Source.Snapshot = c.Members[0].Snapshot, c.Members[0].Source
	if c.Source.Set != "" {
		for _, m := range c.Members {
			c.Parts = append(c.Parts, snapferry.CopyPart{Source: m.Source, Snapshot: m.Snapshot})
		}
	}
	return nil
}

func planText(p *snapferry.Plan) string {
	if p == nil {
		return ""
	}
	return jsonText(p)
}

// InsertCopy adds a copy.
func (tx *Tx) InsertCopy(c Copy) error {
	return tx.run(copyInsert, []any{
		string(c.ID), string(c.Account), string(c.Source.Region), string(c.Source.Set), string(c.Set), jsonText(c.Members), string(c.State), truth(c.Reserved), truth(c.Full),
		planText(c.Plan), c.Reason, millis(c.Created), millis(c.Finished),
		millis(c.Started), millis(c.Deadline), truth(c.Late), c.Rate, string(c.Ending), truth(c.Metered),
	}, "add copy %s", c.ID)
}

// Copy returns a copy by its id, be it reserved only.
func (tx *Tx) Copy(id snapferry.CopyID) (Copy, error) {
	return get(tx, copyGet, scanCopy, "copy", id, string(id))
}

// UpdateCopy writes what can change of a copy: all but id, account, source and
// creation. It is a Conflict when the move of its state is not legal.
func (tx *Tx) UpdateCopy(c Copy) error {
	old, err := tx.Copy(c.ID)
	if err != nil {
		return err
	}
	if old.State != c.State && !old.State.CanBecome(c.State) {
		return snapferry.Errorf(snapferry.Conflict, "copy %s is %s and cannot become %s", c.ID, old.State, c.State)
	}
	return tx.one(copyUpdate, []any{
		string(c.ID), string(old.State), string(c.Set), jsonText(c.Members), string(c.State), truth(c.Reserved), truth(c.Full), planText(c.Plan), c.Reason, millis(c.Finished),
		millis(c.Started), millis(c.Deadline), truth(c.Late), c.Rate, string(c.Ending), truth(c.Metered),
	}, "copy", c.ID)
}

// CopyFilter says which copies to list; zero fields do not filter.
type CopyFilter struct {
	Active bool // only those that have not ended
	Limit  int  // at most so many; 0: all
	After  Copy // those that follow this one; its time and id matter
}

// Copies lists the copies of an account, newest first. Those that are only
// reserved are left out.
func (tx *Tx) Copies(account snapferry.AccountID, f CopyFilter) ([]Copy, error) {
	before := int64(math.MaxInt64)
	if f.After.ID != "" {
		before = millis(f.After.Created)
	}
	return list(tx, copiesOfAccount, scanCopy, "copies", string(account), before, string(f.After.ID), truth(f.Active), orAll(f.Limit))
}

// ActiveCopies returns the copies that are not in a final state, those that
// are only reserved too, oldest first.
func (tx *Tx) ActiveCopies() ([]Copy, error) {
	return list(tx, copiesActive, scanCopy, "copies")
}

func scanPin(r scanner, p *Pin) error {
	return r.Scan(&p.ID, &p.Snapshot, hexColumn{p.Version[:]}, &p.Region, &p.Incarnation, &p.Copy, timeColumn{&p.Created}, timeColumn{&p.Seen})
}

// InsertPin adds a pin and returns it, or the one that the same copy already
// has on the snapshot.
func (tx *Tx) InsertPin(p Pin) (Pin, error) {
	err := tx.run(pinInsert, []any{
		p.ID, string(p.Snapshot), hexOrNull(p.Version), string(p.Region), p.Incarnation, string(p.Copy), millis(p.Created), millis(p.Seen),
	}, "pin snapshot %s", p.Snapshot)
	if err != nil {
		return Pin{}, err
	}
	return get(tx, pinByCopy, scanPin, "pin of copy", p.Copy, string(p.Region), p.Incarnation, string(p.Copy), string(p.Snapshot))
}

// SeePin notes that the copy which holds a pin was heard of.
func (tx *Tx) SeePin(id string, at time.Time) error {
	return tx.run(pinSeen, []any{id, millis(at)}, "note that pin %s is in use", id)
}

// Pin returns a pin by its id.
func (tx *Tx) Pin(id string) (Pin, error) {
	return get(tx, pinGet, scanPin, "pin", id, id)
}

// DeletePin takes a pin away; what is not there is no error.
func (tx *Tx) DeletePin(id string) error {
	return tx.run(pinDelete, []any{id}, "release pin %s", id)
}

// PinsOf returns the pins on a snapshot, oldest first.
func (tx *Tx) PinsOf(snapshot snapferry.SnapshotID) ([]Pin, error) {
	return list(tx, pinsOfSnapshot, scanPin, "pins", string(snapshot))
}

// PinsFrom returns the pins that a region keeps here, oldest first.
func (tx *Tx) PinsFrom(region snapferry.RegionName) ([]Pin, error) {
	return list(tx, pinsFromRegion, scanPin, "pins", string(region))
}
