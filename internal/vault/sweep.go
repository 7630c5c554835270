package vault

import (
	"context"
	"errors"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

// Sweeping finds what nobody needs any more and nobody knows. It never goes by
// age, but by one order: whoever writes an object registers its name first. So
// a name that was listed, and that the metadata, asked after that, does not
// have, was given up by whoever registered it, and comes back with nobody,
// because names are random. The other way round, asked first and listed then,
// what came in between would look like garbage.
//
// The bucket can also be ahead of the metadata: when an old state of that was
// brought back. Then all this is wrong, and nothing may be deleted. It shows by
// version records that the metadata does not know, and by objects that are not
// registered and are all that is left of a segment.

// SweepStats tells what was removed.
type SweepStats struct {
	Objects  int   // that were not registered, or given up by who registered them
	Bytes    int64 // of those of them that were listed
	Segments int   // registered for versions that are gone or complete
	Records  int   // of deleted versions, and superseded ones
	Checks   int   // leftovers of checks of the bucket
	// Left are objects that are not registered and cannot be read: nobody can tell
	// what they are. At most 100 are named.
	Left []string
}

const (
	sweepPage    = 512
	checkPrefix  = "check/" // made and removed by Bucket.Check
	keepRevision = 2        // superseded records that are kept of each version
)

// Sweep removes garbage from the bucket: objects that are not registered, those
// of compactions and writers that ended without them, records of versions that
// were deleted, superseded records but the newest two of each version, leftovers
// of bucket checks. First it releases the holds of this process's readers that
// could not be released when they ended.
//
// It can be interrupted anywhere and called again, also by several at once, and
// while the region works. When the bucket has what the metadata cannot have
// forgotten, it stops reclaiming in the region (meta.Tx.StopReclaim) and deletes
// nothing more. Errors: Conflict when the fence fails or reclaiming is stopped;
// those of bucket and metadata.
func (v *Vault) Sweep(ctx context.Context, fence Fence) (SweepStats, error) {
	if fence == nil {
		fence = noFence
	}
	v.endReaders(ctx)
	s := &sweeper{v: v, fence: fence}
	// Names of checks are random: what is there now and when the sweep ends is of
	// none that runs in between.
	checks, err := s.checks(ctx)
	for _, step := range []func(context.Context) error{
		s.survey, // nothing is deleted before all records are known
		s.objects,
		s.writings,
		s.orphans,
		s.records,
		func(ctx context.Context) error { return s.removeChecks(ctx, checks) },
	} {
		if err == nil {
			err = step(ctx)
		}
	}
	return s.stats, err
}

// CheckRecords looks at the names of all version records and stops reclaiming
// in the region when there is one that the metadata does not know: one of a
// version that it neither has nor remembers, or of a revision that it never
// gave out. It is Conflict then, and when it is stopped already. It deletes
// nothing. It is for the start of a region.
func (v *Vault) CheckRecords(ctx context.Context) error {
	s := &sweeper{v: v, fence: noFence}
	return s.survey(ctx)
}

// A sweeper is one run of Sweep.
type sweeper struct {
	v     *Vault
	fence Fence
	stats SweepStats
}

// view reads the metadata, if there may be sweeping.
func (s *sweeper) view(ctx context.Context, fn func(*meta.Tx) error) error {
	return s.v.db.View(ctx, func(tx *meta.Tx) error { return s.guarded(tx, fn) })
}

func (s *sweeper) update(ctx context.Context, fn func(*meta.Tx) error) error {
	return s.v.db.Update(ctx, func(tx *meta.Tx) error { return s.guarded(tx, fn) })
}

func (s *sweeper) guarded(tx *meta.Tx, fn func(*meta.Tx) error) error {
	if err := s.fence(tx); err != nil {
		return err
	}
	if err := Stopped(tx); err != nil {
		return err
	}
	return fn(tx)
}

// stop stops reclaiming in the region and returns the error that says so.
func (s *sweeper) stop(ctx context.Context, format string, args ...any) error {
	return s.v.foundBehind(ctx, s.fence, format, args...)
}

// errPage ends a listing after a page of names.
var errPage = errors.New("the page is full")

// pages lists names with a prefix and calls fn with so many of them at a time,
// each time before it lists on.
func (s *sweeper) pages(ctx context.Context, prefix string, fn func([]blob.Info) error) error {
	for after := ""; ; {
		var page []blob.Info
		err := s.v.bucket.List(ctx, prefix, after, func(i blob.Info) error {
			if page = append(page, i); len(page) == sweepPage {
				return errPage
			}
			return nil
		})
		if err != nil && !errors.Is(err, errPage) {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		if err := fn(page); err != nil {
			return err
		}
		after = page[len(page)-1].Name
	}
}

// objects removes the objects that are not registered.
func (s *sweeper) objects(ctx context.Context) error {
	return s.pages(ctx, ObjectPrefix, func(page []blob.Info) error {
		var unknown []blob.Info
		err := s.view(ctx, func(tx *meta.Tx) error {
			for _, i := range page {
				known, err := tx.KnownObject(i.Name)
				if err != nil {
					return err
				}
				if !known {
					unknown = append(unknown, i)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, i := range unknown {
			if err := s.removeUnknown(ctx, i); err != nil {
				return err
			}
		}
		return nil
	})
}

// removeUnknown removes an object that is not registered, unless it is all that
// is left of a segment: then metadata is older than the bucket.
func (s *sweeper) removeUnknown(ctx context.Context, i blob.Info) error {
	dir, err := s.directory(ctx, i)
	switch {
	case snapferry.IsKind(err, snapferry.NotFound):
		return nil // removed by somebody else
	case snapferry.IsKind(err, snapferry.Corrupt):
		s.v.log.WarnContext(ctx, "an object that nobody registered cannot be read and is left", "object", i.Name, "err", err)
		if len(s.stats.Left) < maxNamed {
			s.stats.Left = append(s.stats.Left, i.Name)
		}
		return nil
	case snapferry.IsKind(err, snapferry.Unsupported):
		return s.stop(ctx, "object %s, which nobody registered, is of a newer version", i.Name)
	case err != nil:
		return err
	}
	checked := map[string]bool{}
	for _, e := range dir {
		var where meta.Segment
		err := s.view(ctx, func(tx *meta.Tx) (err error) {
			where, err = tx.Segment(e.Segment)
			return err
		})
		if snapferry.IsKind(err, snapferry.NotFound) || err == nil && (where.State != meta.SegmentLive || checked[where.Object]) {
			continue
		}
		if err != nil {
			return err
		}
		if lost, err := s.lost(ctx, where); err != nil {
			return err
		} else if lost {
			return s.stop(ctx, "object %s, which nobody registered, has segment %s, and where the metadata has it it is not", i.Name, e.Segment)
		}
		checked[where.Object] = true
	}
	if err := s.v.bucket.Delete(ctx, i.Name); err != nil {
		return err
	}
	s.stats.Objects++
	s.stats.Bytes += i.Size
	return nil
}

// lost reports whether the bucket does not have a segment where the metadata
// does.
func (s *sweeper) lost(ctx context.Context, where meta.Segment) (bool, error) {
	size, err := s.v.bucket.Size(ctx, where.Object)
	if err == nil {
		return size < where.Offset+where.Length, nil
	}
	if !snapferry.IsKind(err, snapferry.NotFound) {
		return false, err
	}
	// It may have been moved, or freed, since.
	var now meta.Segment
	err = s.view(ctx, func(tx *meta.Tx) (err error) {
		now, err = tx.Segment(where.ID)
		return err
	})
	switch {
	case snapferry.IsKind(err, snapferry.NotFound):
		return false, nil
	case err != nil:
		return false, err
	case now.Object != where.Object:
		return s.lost(ctx, now)
	}
	return true, nil
}

// directory reads the directory of an object.
func (s *sweeper) directory(ctx context.Context, i blob.Info) ([]segment.DirEntry, error) {
	tail := make([]byte, min(i.Size, 16<<10))
	if err := s.v.bucket.ReadAt(ctx, i.Name, tail, i.Size-int64(len(tail))); err != nil {
		return nil, err
	}
	n, err := segment.DirectorySpan(tail)
	if err != nil {
		return nil, err
	}
	if n > len(tail) && int64(n) <= i.Size {
		tail = make([]byte, n)
		if err := s.v.bucket.ReadAt(ctx, i.Name, tail, i.Size-int64(n)); err != nil {
			return nil, err
		}
	}
	return segment.DecodeDirectory(tail, i.Size)
}

// writings removes what compactions registered whose job does not run any more.
// The row goes first, so that nobody can make live what is deleted then.
func (s *sweeper) writings(ctx context.Context) error {
	for after := ""; ; {
		var page []meta.Object
		err := s.view(ctx, func(tx *meta.Tx) (err error) {
			page, err = tx.WritingObjects(after, sweepPage)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, o := range page {
			after = o.Name
			dropped := false
			err := s.update(ctx, func(tx *meta.Tx) error {
				dropped = false
				err := tx.CheckLease(o.Job, o.Token)
				if !snapferry.IsKind(err, snapferry.Conflict) {
					return err // its job runs, or nobody knows
				}
				dropped, err = tx.DropWriting(o.Name)
				return err
			})
			if err != nil {
				return err
			}
			if !dropped {
				continue
			}
			if err := s.v.bucket.Delete(ctx, o.Name); err != nil {
				return err
			}
			s.stats.Objects++
		}
	}
}

// orphans removes what was registered for versions that are not open any more,
// and never placed.
func (s *sweeper) orphans(ctx context.Context) error {
	for after := (snapferry.SegmentID{}); ; {
		var page []meta.Segment
		err := s.view(ctx, func(tx *meta.Tx) (err error) {
			page, err = tx.OrphanedSegments(after, sweepPage)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].ID
		var free []string
		n := 0
		err = s.update(ctx, func(tx *meta.Tx) error {
			free, n = nil, 0
			for _, p := range page {
				name, dropped, err := dropOrphan(tx, p.ID)
				if err != nil {
					return err
				}
				if dropped {
					n++
				}
				if name != "" {
					free = append(free, name)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.stats.Segments += n
		for _, name := range free {
			if err := s.v.bucket.Delete(ctx, name); err != nil {
				return err
			}
			s.stats.Objects++
		}
	}
}

// dropOrphan forgets a segment that is being written for no open version, and
// returns the name of its object if that is in nobody's hands then.
func dropOrphan(tx *meta.Tx, id snapferry.SegmentID) (object string, dropped bool, err error) {
	g, err := tx.Segment(id)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && g.State != meta.SegmentWriting {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	ver, err := tx.Version(g.Version)
	if err == nil && ver.State == snapferry.VersionOpen {
		return "", false, nil
	}
	if err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return "", false, err
	}
	if object, err = tx.DeleteSegment(id); err != nil || object == "" {
		return "", err == nil, err
	}
	_, err = tx.Object(object)
	if err == nil {
		return "", true, nil // registered by itself
	}
	if snapferry.IsKind(err, snapferry.NotFound) {
		err = nil
	}
	return object, true, err
}

// checks lists what bucket checks left.
func (s *sweeper) checks(ctx context.Context) (names []string, err error) {
	err = s.v.bucket.List(ctx, checkPrefix, "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	})
	return names, err
}

func (s *sweeper) removeChecks(ctx context.Context, names []string) error {
	now, err := s.checks(ctx)
	if err != nil {
		return err
	}
	for _, name := range now {
		if _, there := slices.BinarySearch(names, name); !there {
			continue
		}
		if err := s.v.bucket.Delete(ctx, name); err != nil {
			return err
		}
		s.stats.Checks++
	}
	return nil
}

// A recordName is the name of a version record.
type recordName struct {
	name     string
	version  snapferry.VersionID
	revision uint64
}

// recordPages lists the version records and calls fn with the records of some
// versions at a time, those of one version together as far as a page goes.
func (s *sweeper) recordPages(ctx context.Context, fn func([]recordName) error) error {
	return s.pages(ctx, record.Prefix(), func(page []blob.Info) error {
		var names []recordName
		for _, i := range page {
			if id, n, err := record.ParseName(i.Name); err == nil {
				names = append(names, recordName{i.Name, id, n})
			}
		}
		return fn(names)
	})
}

// known is what the metadata has of a version.
type known struct {
	version meta.Version // zero: none
	grave   meta.Grave   // zero: none
}

// allowed reports whether a record of a revision can be there.
func (k *known) allowed(revision uint64) bool {
	return !k.version.ID.IsZero() && revision <= k.version.Reserved || !k.grave.Version.IsZero() && revision <= k.grave.Revision
}

func lookUp(tx *meta.Tx, id snapferry.VersionID) (k known, err error) {
	if k.version, err = tx.Version(id); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return k, err
	}
	if k.grave, err = tx.Grave(id); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
		return k, err
	}
	return k, nil
}

// lookUpAll asks the metadata for the versions of records.
func (s *sweeper) lookUpAll(ctx context.Context, names []recordName) (map[snapferry.VersionID]known, error) {
	all := map[snapferry.VersionID]known{}
	err := s.view(ctx, func(tx *meta.Tx) (err error) {
		for _, r := range names {
			if _, ok := all[r.version]; ok {
				continue
			}
			if all[r.version], err = lookUp(tx, r.version); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

// survey looks for records that the metadata does not know.
func (s *sweeper) survey(ctx context.Context) error {
	if err := s.view(ctx, func(*meta.Tx) error { return nil }); err != nil {
		return err
	}
	return s.recordPages(ctx, func(names []recordName) error {
		all, err := s.lookUpAll(ctx, names)
		if err != nil {
			return err
		}
		for _, r := range names {
			k := all[r.version]
			if k.allowed(r.revision) {
				continue
			}
			// A version that was known when the record was listed may have been
			// deleted until the metadata was asked; its records went first.
			_, err := s.v.bucket.Size(ctx, r.name)
			if snapferry.IsKind(err, snapferry.NotFound) {
				continue
			}
			if err != nil {
				return err
			}
			return s.stop(ctx, "the bucket has the version record %s, which the metadata does not know", r.name)
		}
		return nil
	})
}

// records removes the records of versions that were deleted, and superseded ones.
func (s *sweeper) records(ctx context.Context) error {
	var older []recordName // of the version that is listed, below what is committed
	return s.recordPages(ctx, func(names []recordName) error {
		all, err := s.lookUpAll(ctx, names)
		if err != nil {
			return err
		}
		for _, r := range names {
			k := all[r.version]
			if len(older) > 0 && older[0].version != r.version {
				older = nil
			}
			switch {
			case !k.version.ID.IsZero():
				if k.version.State == snapferry.VersionOpen || r.revision >= k.version.Revision {
					continue
				}
				// What it names comes in order: the newest two so far stay.
				if older = append(older, r); len(older) <= keepRevision {
					continue
				}
				r, older = older[0], older[1:]
			case !k.grave.Kept || r.revision > k.grave.Revision:
				continue // Visit buries it, or the next survey finds it
			}
			if err := s.v.bucket.Delete(ctx, r.name); err != nil {
				return err
			}
			s.stats.Records++
		}
		return nil
	})
}
