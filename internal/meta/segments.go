package meta

import (
	"slices"

	"github.com/snapferry/snapferry"
)

// page is how many rows AllSegments and AllObjects read at a time.
const page = 512

func scanSegment(r scanner, s *Segment) error {
	return r.Scan(hexColumn{s.ID[:]}, hexColumn{s.Chain[:]}, hexColumn{s.Version[:]}, &s.Kind, &s.State, &s.Object,
		&s.Offset, &s.Length, &s.Generation, &s.Slots, &s.Dead, &s.DeadSlots, &s.Job, &s.Token, &s.DeadBytes)
}

// InsertSegments registers segments, before their object is written but with
// its name, so that an abort knows what to delete. An empty State is
// SegmentWriting.
func (tx *Tx) InsertSegments(segments []Segment) error {
	for i := range segments {
		s := &segments[i]
		state := s.State
		if state == "" {
			state = SegmentWriting
		}
		err := tx.run(segmentInsert, []any{
			hexOrNull(s.ID), hexOrNull(s.Chain), hexOrNull(s.Version), int64(s.Kind), string(state), s.Object,
			s.Offset, s.Length, s.Generation, s.Slots, s.Dead, blobOrNull(s.DeadSlots), string(s.Job), s.Token, s.DeadBytes,
		}, "add segment %s", s.ID)
		if err != nil {
			return err
		}
	}
	return nil
}

// Segment returns a segment by its id.
func (tx *Tx) Segment(id snapferry.SegmentID) (Segment, error) {
	return get(tx, segmentGet, scanSegment, "segment", id, hexText(id))
}

// SegmentsOf returns the segments that a version wrote, by id.
func (tx *Tx) SegmentsOf(version snapferry.VersionID) ([]Segment, error) {
	return list(tx, segmentsOfVersion, scanSegment, "segments", hexText(version))
}

// SegmentsOfChain returns the segments of a chain, by id.
func (tx *Tx) SegmentsOfChain(chain snapferry.ChainID) ([]Segment, error) {
	return list(tx, segmentsOfChain, scanSegment, "segments", hexText(chain))
}

// PlaceSegments says that segments lie in an object that is durable now: adds
// the object and makes the segments live with their Offset, Length, Generation
// and Slots. It is a Conflict when one of them is not registered as writing.
func (tx *Tx) PlaceSegments(o Object, segments []Segment) error {
	if err := tx.InsertObject(o); err != nil {
		return err
	}
	for i := range segments {
		s := &segments[i]
		n, err := tx.exec(segmentPlace, hexText(s.ID), o.Name, s.Offset, s.Length, s.Generation, s.Slots)
		if err != nil {
			return fail(err, "place segment %s", s.ID)
		}
		if n == 0 {
			return snapferry.Errorf(snapferry.Conflict, "place segment %s: it is not being written any more", s.ID)
		}
	}
	return nil
}

// DeleteSegment forgets a segment. It returns the name of its object when no
// other segment lies there or is to, else "".
func (tx *Tx) DeleteSegment(id snapferry.SegmentID) (object string, err error) {
	n, names, err := tx.deleteSegments(segmentDelete, hexText(id))
	switch {
	case err != nil:
		return "", fail(err, "forget segment %s", id)
	case n == 0:
		return "", notFound("segment", id)
	case len(names) == 0:
		return "", nil
	}
	return names[0], nil
}

// DeleteSegments forgets all segments that a version wrote. It returns the
// names of the objects in which no segment lies any more, in order.
func (tx *Tx) DeleteSegments(version snapferry.VersionID) (objects []string, err error) {
	_, objects, err = tx.deleteSegments(segmentsDeleteOfVersion, hexText(version))
	return objects, fail(err, "forget the segments of version %s", version)
}

func (tx *Tx) deleteSegments(s statement, id string) (n int, free []string, err error) {
	var names []string
	err = tx.each(s, []any{id}, func(r scanner) error {
		var name string
		if err := r.Scan(&name); err != nil {
			return err
		}
		n++
		if name != "" {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return n, nil, err
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		used, err := tx.used(name)
		if err != nil {
			return n, nil, err
		}
		if !used {
			free = append(free, name)
		}
	}
	return n, free, nil
}

// used reports whether a segment lies in an object, or is to.
func (tx *Tx) used(object string) (bool, error) {
	_, err := get(tx, objectUsed, func(r scanner, id *string) error { return r.Scan(id) }, "segment in", object, object)
	if snapferry.IsKind(err, snapferry.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// SegmentsIn returns the segments that lie in an object, or are to, by offset.
func (tx *Tx) SegmentsIn(object string) ([]Segment, error) {
	return list(tx, segmentsOfObject, scanSegment, "segments", object)
}

// AllSegments calls fn for every segment, by id, in bounded memory. fn may use
// the transaction, also to change the segment it was given.
func (tx *Tx) AllSegments(fn func(Segment) error) error {
	return pages(tx, segmentPage, scanSegment, "segments", func(s Segment) string { return s.ID.String() }, fn)
}

func scanObject(r scanner, o *Object) error {
	return r.Scan(&o.Name, &o.Size, &o.CRC, timeColumn{&o.Created}, hexColumn{o.Chain[:]}, &o.State, &o.Dead, timeColumn{&o.Since}, &o.Job, &o.Token)
}

// Object returns an object by its name.
func (tx *Tx) Object(name string) (Object, error) {
	return get(tx, objectGet, scanObject, "object", name, name)
}

// DeleteObject forgets an object; it is a Conflict while segments lie there,
// or are to lie there.
func (tx *Tx) DeleteObject(name string) error {
	left, err := tx.SegmentsIn(name)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return snapferry.Errorf(snapferry.Conflict, "forget object %s: %d segments lie there", name, len(left))
	}
	return tx.one(objectDelete, []any{name}, "object", name)
}

// AllObjects calls fn for every object, by name, in bounded memory. fn may use
// the transaction.
func (tx *Tx) AllObjects(fn func(Object) error) error {
	return pages(tx, objectPage, scanObject, "objects", func(o Object) string { return o.Name }, fn)
}

func pages[T any](tx *Tx, s statement, scan func(scanner, *T) error, noun string, key func(T) string, fn func(T) error) error {
	for after := ""; ; {
		rows, err := list(tx, s, scan, noun, after, page)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := fn(r); err != nil {
				return err
			}
		}
		if len(rows) < page {
			return nil
		}
		after = key(rows[len(rows)-1])
	}
}
