package vault

import (
	"cmp"
	"slices"
	"sync"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/segment"
)

// What compaction is after: of an object less than a quarter is dead, and all
// but the newest objects of a chain have at least 8 MiB. docs/decisions/0012
// has the reasons and what it costs.
const (
	// smallObject is the size in bytes below which an object is small. The
	// queries of internal/meta and their indexes have the same number.
	smallObject = 8 << 20
	// newestSmall is how many small objects of a chain, the newest, are left
	// alone while the version that wrote them lives: more like them are to come.
	newestSmall = 64
	// tooManySmall is how many small objects may be there beside the newest
	// before they are merged.
	tooManySmall = 64
	// mergeTarget is about how large a merged object becomes.
	mergeTarget = segment.TargetSize
	// pickLimit is how many objects one round looks at.
	pickLimit = 2048
	// mergeSegments and mergeSlots bound one merged object: its transaction and
	// the memory of its footers.
	mergeSegments = 2048
	mergeSlots    = 128 << 10
)

// hollow reports whether so much of an object is dead that it is to be written
// again: a quarter. What is written is then at most three times what is freed.
func hollow(o meta.Object) bool { return o.Dead*4 >= o.Size }

// plan chooses the objects of one chain whose segments are to be written again,
// oldest first. hollows are hollow objects, small the small ones that are settled.
//
// Of the small ones it takes the largest set in which no
// object is larger than all smaller ones together: so what an object goes into
// is at least twice as large as it was, and a byte is written again at most
// log2(8 MiB / size) times before its object is small no more. What is left is
// a handful, each larger than all before it together.
func plan(hollows, small []meta.Object) []meta.Object {
	victims := slices.DeleteFunc(slices.Clone(hollows), func(o meta.Object) bool { return !hollow(o) })
	old := slices.DeleteFunc(slices.Clone(small), hollow)
	slices.SortFunc(old, func(a, b meta.Object) int { return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.Name, b.Name)) })
	k, sum := 0, int64(0)
	for i, o := range old {
		if o.Size <= sum {
			k = i + 1
		}
		sum += o.Size
	}
	if k > tooManySmall {
		victims = append(victims, old[:k]...)
	}
	slices.SortFunc(victims, func(a, b meta.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return victims
}

// least chooses the one hollow object that takes the least room to be written
// again, if that is less than room: it gives back more than it takes, which
// small objects do not.
func least(victims []meta.Object, room int64) []meta.Object {
	hollows := slices.DeleteFunc(victims, func(o meta.Object) bool { return !hollow(o) || o.Size-o.Dead >= room })
	if len(hollows) == 0 {
		return nil
	}
	return []meta.Object{slices.MinFunc(hollows, func(a, b meta.Object) int {
		return cmp.Or(cmp.Compare(a.Size-a.Dead, b.Size-b.Dead), cmp.Compare(a.Name, b.Name))
	})}
}

// settled leaves out of small objects, newest first, those of the newest that the
// next versions are to join: not merged yet, and of a version that still lives.
func settled(small []meta.Object, lives func(object string) (bool, error)) (old []meta.Object, err error) {
	for i, o := range small {
		if i < newestSmall {
			fresh, err := lives(o.Name)
			if err != nil {
				return nil, err
			}
			if fresh {
				continue
			}
		}
		old = append(old, o)
	}
	return old, nil
}

// share of the bytes that are to be written in one go, so that the last merged
// object is not much smaller than the others.
func mergeShare(victims []meta.Object) int64 {
	total := int64(0)
	for _, o := range victims {
		total += max(o.Size-o.Dead, 0)
	}
	n := (total + mergeTarget - 1) / mergeTarget
	return (total + max(n, 1) - 1) / max(n, 1)
}

// candidates asks the metadata for what plan is to choose from, without the
// objects that skip has.
func candidates(tx *meta.Tx, chain snapferry.ChainID, skip func(string) bool, skipped int) ([]meta.Object, error) {
	hollows, err := tx.HollowObjects(chain, pickLimit+skipped)
	if err != nil {
		return nil, err
	}
	small, err := tx.SmallObjects(chain, newestSmall+pickLimit+skipped)
	if err != nil {
		return nil, err
	}
	drop := func(o meta.Object) bool { return skip(o.Name) }
	old, err := settled(slices.DeleteFunc(small, drop), tx.WriterLives)
	if err != nil {
		return nil, err
	}
	return plan(slices.DeleteFunc(hollows, drop), old), nil
}

// NeedsCompaction reports whether Compact would find something to do in a
// chain. It looks at a bounded number of rows. Objects that Compact found
// damaged, or too large, do not count.
func (v *Vault) NeedsCompaction(tx *meta.Tx, chain snapferry.ChainID) (bool, error) {
	victims, err := candidates(tx, chain, v.spoiled.has, v.spoiled.len())
	return len(victims) > 0, err
}

// spoiled remembers objects that compaction left alone because they are
// damaged, so that nobody starts it for their sake again and again.
type spoiled struct {
	mu    sync.Mutex
	names map[string]struct{}
}

// maxSpoiled is how many are remembered at most.
const maxSpoiled = 4096

func (s *spoiled) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil || len(s.names) >= maxSpoiled {
		s.names = map[string]struct{}{}
	}
	s.names[name] = struct{}{}
}

func (s *spoiled) has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.names[name]
	return ok
}

func (s *spoiled) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names)
}
