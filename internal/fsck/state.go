package fsck

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"math/bits"
	"slices"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
)

// state is one consistent state of the metadata.
type state struct {
	region    meta.Region
	keyring   meta.Keyring // number 0: none
	versions  map[snapferry.VersionID]*version
	order     []*version // parents before children, else as they were made
	chains    map[snapferry.ChainID]meta.Chain
	segments  map[snapferry.SegmentID]*seg
	objects   map[string]*object // registered, or named by a segment
	snapshots []meta.Snapshot
	pins      map[snapferry.SnapshotID][]meta.Pin
	graves    map[snapferry.VersionID]meta.Grave
	trusted   []ed25519.PublicKey
	visible   int64 // snapshots that users see
}

type version struct {
	meta.Version
	parent    *version
	children  []*version
	holds     []meta.Hold
	partial   bool           // open, with a checkpoint
	root      *blockmap.Node // nil: the map is empty, or there is none
	unknown   bool           // the map cannot be told
	snapshots []snapferry.SnapshotID
}

type seg struct {
	meta.Segment
	alive slots // reached by the map of a version that lives; see markAlive
	// expect says of each slot that a map reaches what must be there: see
	// expectation. It is nil before a slot was reached.
	expect []digest.Digest
}

func (s *seg) dead(slot int) bool { return slots(s.DeadSlots).has(slot) }

// slots is a set of slots of one segment.
type slots []byte

func (s slots) has(slot int) bool { return slot/8 < len(s) && s[slot/8]&(1<<(slot%8)) != 0 }

func (s *slots) add(slot int) {
	for len(*s) <= slot/8 {
		*s = append(*s, 0)
	}
	(*s)[slot/8] |= 1 << (slot % 8)
}

type object struct {
	meta.Object
	registered bool
	segments   []*seg // by offset
}

// live reports whether the object must be in the bucket.
func (o *object) live() bool {
	return slices.ContainsFunc(o.segments, func(s *seg) bool { return s.State == meta.SegmentLive })
}

// load reads the metadata.
func (c *checker) load(ctx context.Context) (err error) {
	c.state, err = readState(ctx, c.DB)
	return err
}

func readState(ctx context.Context, db *meta.DB) (*state, error) {
	s := &state{
		versions: map[snapferry.VersionID]*version{}, chains: map[snapferry.ChainID]meta.Chain{},
		segments: map[snapferry.SegmentID]*seg{}, objects: map[string]*object{}, pins: map[snapferry.SnapshotID][]meta.Pin{},
		graves: map[snapferry.VersionID]meta.Grave{},
	}
	err := db.View(ctx, func(tx *meta.Tx) (err error) {
		if s.region, err = tx.Region(); err != nil {
			return err
		}
		if s.trusted, err = tx.TrustedKeys(); err != nil {
			return err
		}
		if s.keyring, err = tx.Keyring(); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
		for _, read := range []func(*meta.Tx) error{s.readVersions, s.readSegments, s.readSnapshots} {
			if err := read(tx); err != nil {
				return err
			}
		}
		return nil
	})
	return s, err
}

func (s *state) readVersions(tx *meta.Tx) error {
	rows, err := tx.AllVersions()
	if err != nil {
		return err
	}
	graves, err := tx.Graves()
	if err != nil {
		return err
	}
	for _, g := range graves {
		s.graves[g.Version] = g
	}
	for _, row := range rows {
		v := &version{Version: row}
		s.versions[row.ID] = v
		if v.holds, err = tx.Holds(row.ID); err != nil {
			return err
		}
		if _, ok := s.chains[row.Chain]; !ok {
			if s.chains[row.Chain], err = tx.Chain(row.Chain); err != nil {
				return err
			}
		}
		if row.State != snapferry.VersionOpen {
			continue
		}
		cp, err := tx.Checkpoint(row.ID)
		if err == nil {
			v.partial, v.Root = true, cp.Root
		} else if !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
	}
	done := map[*version]bool{}
	for _, row := range rows {
		// A chain of parents can be long: no recursion.
		var up []*version
		for v := s.versions[row.ID]; v != nil && !done[v]; v = s.versions[v.Parent] {
			done[v] = true
			up = append(up, v)
		}
		for _, v := range slices.Backward(up) {
			if v.parent = s.versions[v.Parent]; v.parent != nil {
				v.parent.children = append(v.parent.children, v)
			}
			s.order = append(s.order, v)
		}
	}
	return nil
}

func (s *state) readSegments(tx *meta.Tx) error {
	err := tx.AllObjects(func(row meta.Object) error {
		s.objects[row.Name] = &object{Object: row, registered: true}
		return nil
	})
	if err != nil {
		return err
	}
	err = tx.AllSegments(func(row meta.Segment) error {
		g := &seg{Segment: row}
		s.segments[row.ID] = g
		o := s.objects[row.Object]
		if o == nil {
			o = &object{Object: meta.Object{Name: row.Object}}
			s.objects[row.Object] = o
		}
		o.segments = append(o.segments, g)
		return nil
	})
	for _, o := range s.objects {
		slices.SortFunc(o.segments, func(a, b *seg) int { return cmp.Compare(a.Offset, b.Offset) })
	}
	return err
}

func (s *state) readSnapshots(tx *meta.Tx) error {
	accounts, err := tx.Accounts()
	if err != nil {
		return err
	}
	for _, a := range accounts {
		list, err := tx.Snapshots(a.ID, meta.SnapshotFilter{})
		if err != nil {
			return err
		}
		for _, n := range list {
			if n.State == snapferry.SnapshotFailed || n.State == snapferry.SnapshotDeleting && n.Version.IsZero() {
				continue // nobody can read it any more
			}
			s.visible++
			s.snapshots = append(s.snapshots, n)
			if s.pins[n.ID], err = tx.PinsOf(n.ID); err != nil {
				return err
			}
			if v := s.versions[n.Version]; v != nil {
				v.snapshots = append(v.snapshots, n.ID)
			}
		}
	}
	return nil
}

// listing is what is in the bucket.
type listing struct {
	objects      map[string]int64               // size by name
	records      map[snapferry.VersionID]uint64 // highest revision
	incarnations []string
	catalogue    []string // dumps, and objects of chains
	keyrings     []string
	others       []string
}

const (
	incarnationPrefix = "incarnation/"
	checkPrefix       = "check/" // made and removed by Bucket.Check
)

// list reads the names in the bucket, once.
func (c *checker) list(ctx context.Context) error {
	c.bucket = listing{objects: map[string]int64{}, records: map[snapferry.VersionID]uint64{}}
	b := &c.bucket
	return c.Bucket.List(ctx, "", "", func(i blob.Info) error {
		switch {
		case strings.HasPrefix(i.Name, vault.ObjectPrefix):
			b.objects[i.Name] = i.Size
		case strings.HasPrefix(i.Name, incarnationPrefix):
			b.incarnations = append(b.incarnations, i.Name)
		case strings.HasPrefix(i.Name, dump.Prefix()), strings.HasPrefix(i.Name, record.ChainPrefix()):
			b.catalogue = append(b.catalogue, i.Name)
		case strings.HasPrefix(i.Name, record.KeyringPrefix()):
			b.keyrings = append(b.keyrings, i.Name)
		case strings.HasPrefix(i.Name, checkPrefix):
		default:
			id, revision, err := record.ParseName(i.Name)
			if err != nil {
				b.others = append(b.others, i.Name)
				break
			}
			b.records[id] = max(b.records[id], revision)
		}
		return nil
	})
}

// checkVersions checks what the metadata alone tells of versions and segments.
func (c *checker) checkVersions(context.Context) error {
	for _, v := range c.state.order {
		open := v.State == snapferry.VersionOpen
		if open && !v.partial {
			v.unknown = true
			continue
		}
		if err := v.decodeRoot(open); err != nil {
			v.unknown = true
			c.setBroken(v.Chain)
			c.damage(onVersion(v.ID), "metadata: %v", err)
		}
		switch {
		case v.State == snapferry.VersionSealed && len(v.holds) == 0:
			c.garbage(onVersion(v.ID), "sealed, but nothing holds it")
		case v.State == snapferry.VersionBroken:
			c.damage(onVersion(v.ID), "part of it was missing when the metadata was rebuilt; the snapshot failed")
		case v.State == snapferry.VersionGhost && len(v.holds) > 0:
			c.damage(onVersion(v.ID), "given up for deletion, but %d holds are on it", len(v.holds))
		}
	}
	for _, s := range c.state.segments {
		n := 0
		for _, b := range s.DeadSlots {
			n += bits.OnesCount8(b)
		}
		if n != s.Dead {
			c.damage(c.onSegment(s), "metadata counts %d dead slots and marks %d", s.Dead, n)
		}
		v := c.state.versions[s.Version]
		switch {
		case s.State == meta.SegmentWriting && (v == nil || v.State != snapferry.VersionOpen):
			c.garbage(c.onSegment(s), "registered as being written, but no open version writes it")
		case v != nil && v.Chain != s.Chain:
			c.damage(c.onSegment(s), "is of chain %s, but the version that wrote it is not", s.Chain)
		}
	}
	return nil
}

// decodeRoot decodes the root and, of a complete version, checks it against
// digest and count.
func (v *version) decodeRoot(open bool) error {
	m := blockmap.Map{Size: v.Size}
	if len(v.Root) > 0 {
		n, err := blockmap.Decode(v.Root)
		if err != nil {
			return err
		}
		if n.Level != blockmap.RootLevel {
			return snapferry.Errorf(snapferry.Corrupt, "the root is a node of level %d", n.Level)
		}
		if err := n.Check(0, v.Size); err != nil {
			return err
		}
		m.Root = n
	}
	switch {
	case open:
	case m.Digest() != v.Digest:
		return snapferry.Errorf(snapferry.Corrupt, "the root makes digest %s, not %s", m.Digest(), v.Digest)
	case m.Blocks() != v.Blocks:
		return snapferry.Errorf(snapferry.Corrupt, "the root counts %d blocks, not %d", m.Blocks(), v.Blocks)
	}
	v.root = m.Root
	return nil
}

// checkSnapshots checks that what is ready has its version, held.
func (c *checker) checkSnapshots(context.Context) error {
	for _, n := range c.state.snapshots {
		c.checkPins(n)
		if n.State != snapferry.SnapshotReady {
			continue
		}
		problem := ""
		v := c.state.versions[n.Version]
		switch {
		case v == nil:
			problem = "has no version"
		case v.State != snapferry.VersionSealed:
			problem = "its version is " + string(v.State)
		case v.Digest != n.Digest || v.Size != n.Size:
			problem = "digest or size are not those of its version"
		case !v.held(vault.HoldSnapshot, string(n.ID)):
			problem = "does not hold its version"
		default:
			continue
		}
		c.add(&finding{
			target: onVersion(n.Version), severity: Damage, problem: "metadata: snapshot " + string(n.ID) + " is ready, but " + problem,
			snapshots: []snapferry.SnapshotID{n.ID},
		})
	}
	return nil
}

// checkPins checks that the pins on a snapshot hold its version, and that a
// deletion waits for nothing but pins.
func (c *checker) checkPins(n meta.Snapshot) {
	pins := c.state.pins[n.ID]
	if n.State == snapferry.SnapshotDeleting && len(pins) == 0 {
		c.garbage(onVersion(n.Version), "metadata: snapshot %s is being deleted, but nothing pins it any more", n.ID)
	}
	for _, p := range pins {
		if v := c.state.versions[p.Version]; v == nil || !v.held(vault.HoldPin, p.ID) {
			c.add(&finding{
				target: onVersion(p.Version), severity: Damage, problem: "metadata: pin " + p.ID + " of region " + string(p.Region) + " does not hold its version",
				snapshots: []snapferry.SnapshotID{n.ID},
			})
		}
	}
}

func (v *version) held(kind, owner string) bool {
	return slices.ContainsFunc(v.holds, func(h meta.Hold) bool { return h.Kind == kind && h.Owner == owner })
}

func (c *checker) setBroken(id snapferry.ChainID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken[id] = true
}
