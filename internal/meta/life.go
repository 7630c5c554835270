package meta

import (
	"math"
	"time"

	"github.com/snapferry/snapferry"
)

// ReserveRevision gives the next version record of a version its revision:
// above every one that anybody was ever given. It is a Conflict when the stored
// edge revision is not edge, so that nobody writes a record of a state that is
// past. The edge revision stays.
func (tx *Tx) ReserveRevision(id snapferry.VersionID, edge int64) (uint64, error) {
	r, err := get(tx, versionReserve, func(r scanner, n *uint64) error { return r.Scan(n) }, "version", id, hexText(id), edge)
	if snapferry.IsKind(err, snapferry.NotFound) {
		old, err := tx.Version(id)
		if err != nil {
			return 0, err
		}
		return 0, snapferry.Errorf(snapferry.Conflict, "version %s has edge revision %d, not %d", id, old.Edge, edge)
	}
	return r, err
}

// SetDue says whether a ghost must be looked at again; of what is not there
// nothing is said.
func (tx *Tx) SetDue(id snapferry.VersionID, due bool) error {
	return tx.run(versionSetDue, []any{hexText(id), truth(due)}, "mark version %s", id)
}

// SetLooked remembers how many children a ghost had when its difference was
// computed.
func (tx *Tx) SetLooked(id snapferry.VersionID, children int) error {
	return tx.run(versionSetLooked, []any{hexText(id), children}, "mark version %s", id)
}

// SetStale says whether the record of a version must be written again; of what
// is not there nothing is said.
func (tx *Tx) SetStale(id snapferry.VersionID, stale bool) error {
	return tx.run(versionSetStale, []any{hexText(id), truth(stale)}, "mark version %s", id)
}

// Chores returns the versions of a chain with which deletion has something left
// to do: those that are due or stale, and those that are gone but for their
// records, by id.
func (tx *Tx) Chores(chain snapferry.ChainID) ([]snapferry.VersionID, error) {
	return list(tx, versionChores, scanID, "versions", hexText(chain))
}

// HasChores reports whether deletion has something left to do in a chain.
func (tx *Tx) HasChores(chain snapferry.ChainID) (bool, error) {
	some, err := list(tx, versionChore, scanID, "versions", hexText(chain))
	return len(some) > 0, err
}

// ChoreChains returns at most limit (0: all) of the chains that have chores, in
// order, from after on.
func (tx *Tx) ChoreChains(after snapferry.ChainID, limit int) ([]snapferry.ChainID, error) {
	return list(tx, choreChains, func(r scanner, id *snapferry.ChainID) error { return r.Scan(hexColumn{id[:]}) }, "chains", hexText(after), orAll(limit))
}

func scanID(r scanner, id *snapferry.VersionID) error { return r.Scan(hexColumn{id[:]}) }

// Unsettled returns the complete versions of whose record a revision was
// reserved and not committed, oldest first: a writer is under way, or failed.
func (tx *Tx) Unsettled() ([]Version, error) {
	return list(tx, versionsUnsettled, tx.scanVersion, "versions")
}

func scanGrave(r scanner, g *Grave) error {
	return r.Scan(hexColumn{g.Version[:]}, hexColumn{g.Chain[:]}, &g.Revision, hexColumn{g.Child[:]}, &g.Loose, &g.Kept)
}

// PutGrave remembers that a version is gone.
func (tx *Tx) PutGrave(g Grave) error {
	return tx.run(gravePut, []any{hexOrNull(g.Version), hexText(g.Chain), g.Revision, hexText(g.Child), truth(g.Loose), truth(g.Kept)}, "bury version %s", g.Version)
}

// Grave returns what is known of a version that is gone.
func (tx *Tx) Grave(id snapferry.VersionID) (Grave, error) {
	return get(tx, graveGet, scanGrave, "grave of version", id, hexText(id))
}

// GravesOf returns the versions, not kept, that the record of a child may still
// name.
func (tx *Tx) GravesOf(child snapferry.VersionID) ([]Grave, error) {
	return list(tx, gravesOfChild, scanGrave, "graves", hexText(child))
}

// Graves returns all versions that are gone and remembered.
func (tx *Tx) Graves() ([]Grave, error) { return list(tx, graveList, scanGrave, "graves") }

// DeleteGrave forgets a version that is gone; what is not there is no error.
func (tx *Tx) DeleteGrave(id snapferry.VersionID) error {
	return tx.run(graveDelete, []any{hexText(id)}, "forget the grave of version %s", id)
}

// DeadSlot is a frame that nobody needs any more.
type DeadSlot struct {
	Slot   uint16
	Length uint32 // stored bytes
}

// MarkDead marks slots of a segment as dead and returns how many were not so
// before, and their stored bytes. It is idempotent: a segment that is gone, or
// a slot that is dead already, is passed over. When the last slot has died the
// segment goes, and its object is condemned when no other lies there.
func (tx *Tx) MarkDead(id snapferry.SegmentID, slots []DeadSlot, now time.Time) (n int, size int64, err error) {
	s, err := tx.Segment(id)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	for _, d := range slots {
		if int(d.Slot) >= s.Slots {
			return 0, 0, snapferry.Errorf(snapferry.Corrupt, "slot %d of segment %s, which has %d, is to be marked dead", d.Slot, id, s.Slots)
		}
		for len(s.DeadSlots) <= int(d.Slot)/8 {
			s.DeadSlots = append(s.DeadSlots, 0)
		}
		if bit := byte(1) << (d.Slot % 8); s.DeadSlots[d.Slot/8]&bit == 0 {
			s.DeadSlots[d.Slot/8] |= bit
			n++
			size += int64(d.Length)
		}
	}
	if n == 0 {
		return 0, 0, nil
	}
	if s.Dead+n == s.Slots {
		free, err := tx.DeleteSegment(id)
		if err != nil {
			return 0, 0, err
		}
		if free != "" {
			return n, size, tx.CondemnObject(free, now)
		}
		return n, size, tx.addDead(s.Object, s.Length-s.DeadBytes)
	}
	err = tx.run(segmentMarkDead, []any{hexText(id), s.Dead + n, s.DeadSlots, s.DeadBytes + size}, "mark slots of segment %s", id)
	if err != nil {
		return 0, 0, err
	}
	return n, size, tx.addDead(s.Object, size)
}

// addDead counts bytes of an object as dead.
func (tx *Tx) addDead(object string, dead int64) error {
	return tx.run(objectAddDead, []any{object, dead}, "count dead bytes of object %s", object)
}

// CondemnObject says that nobody needs an object any more; of one that is not
// there, or condemned already, nothing is said.
func (tx *Tx) CondemnObject(name string, now time.Time) error {
	return tx.run(objectCondemn, []any{name, millis(now)}, "condemn object %s", name)
}

// Condemned returns objects that were condemned until a time, the first ones
// first, at most limit (0: all).
func (tx *Tx) Condemned(until time.Time, limit int) ([]Object, error) {
	n := int64(limit)
	if limit == 0 {
		n = math.MaxInt64
	}
	return list(tx, objectsCondemned, scanObject, "objects", millis(until), n)
}

// InsertObject adds an object.
func (tx *Tx) InsertObject(o Object) error {
	state := o.State
	if state == "" {
		state = ObjectLive
	}
	return tx.run(objectInsert, []any{
		o.Name, o.Size, int64(o.CRC), millis(o.Created), hexText(o.Chain), string(state), o.Dead, millis(o.Since), string(o.Job), o.Token,
	}, "add object %s", o.Name)
}

// StopReclaim stops, with a reason, all that frees space in the region; ""
// lets it go on.
func (tx *Tx) StopReclaim(reason string) error {
	return tx.run(regionStop, []any{reason}, "stop reclaiming")
}

// ReclaimStopped returns why nothing is reclaimed, "" when it is.
func (tx *Tx) ReclaimStopped() (string, error) {
	return get(tx, regionStopped, func(r scanner, s *string) error { return r.Scan(s) }, "region", "in this metadata")
}
