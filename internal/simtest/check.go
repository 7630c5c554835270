package simtest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/fsck"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
	"github.com/snapferry/snapferry/segment"
)

// TB is what checks need of a test, also of one by package rapid.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
}

// Garbage says what Check may find in the bucket beside what the metadata
// knows.
type Garbage bool

// What a crash may leave, or that there was none.
const (
	NoGarbage  Garbage = false
	MayGarbage Garbage = true
)

// Check proves the region's accounts: every object of the metadata is in the
// bucket and sound; every slot that a version refers to is live and not dead;
// every other slot of a sealed version's segments is dead; every version that
// is real has its record; what each version is said to store is what it has and its
// parent has not; and what is metered of that are days and parts of days, one after
// the other. Without garbage, nothing else is in the bucket.
func (r *Region) Check(tb TB, g Garbage) {
	tb.Helper()
	if err := r.DB.Check(context.Background()); err != nil {
		tb.Errorf("%s: %v", r.Name, err)
	}
	a := accounts{region: r, tb: tb, segments: map[snapferry.SegmentID]meta.Segment{}, objects: map[string]meta.Object{}, used: map[slot]bool{}}
	r.View(func(tx *meta.Tx) (err error) {
		if a.versions, err = tx.AllVersions(); err != nil {
			return err
		}
		if err := tx.AllSegments(func(s meta.Segment) error { a.segments[s.ID] = s; return nil }); err != nil {
			return err
		}
		return tx.AllObjects(func(o meta.Object) error { a.objects[o.Name] = o; return nil })
	})
	states := map[snapferry.VersionID]snapferry.VersionState{}
	for _, v := range a.versions {
		states[v.ID] = v.State
		a.version(v)
	}
	for _, s := range a.segments {
		switch {
		case states[s.Version] == snapferry.VersionOpen:
		case s.State == meta.SegmentLive:
			a.segment(s)
		case g == NoGarbage:
			tb.Errorf("%s: segment %s is garbage, being written by version %s", r.Name, s.ID, s.Version)
		}
	}
	a.bucket(g, states)
	r.deep(tb)
}

type slot struct {
	segment snapferry.SegmentID
	slot    uint16
}

type accounts struct {
	region   *Region
	tb       TB
	versions []meta.Version
	segments map[snapferry.SegmentID]meta.Segment
	objects  map[string]meta.Object
	used     map[slot]bool
}

func (a *accounts) use(at snapferry.Position, ref snapferry.Ref, kind snapferry.FrameKind, ghost bool) {
	a.used[slot{ref.Segment, ref.Slot}] = true
	s, ok := a.segments[ref.Segment]
	if ghost && kind == snapferry.BlockFrame && (!ok || isDead(s, ref.Slot)) {
		return // of a ghost only the nodes are needed
	}
	switch {
	case !ok:
		a.tb.Errorf("%s: %v refers to unknown segment %s", a.region.Name, at, ref)
	case s.State != meta.SegmentLive || s.Kind != kind || int(ref.Slot) >= s.Slots:
		a.tb.Errorf("%s: %v refers to %s, which is %s, of %s, with %d slots", a.region.Name, at, ref, s.State, s.Kind, s.Slots)
	case isDead(s, ref.Slot):
		a.tb.Errorf("%s: %v refers to the dead slot %s", a.region.Name, at, ref)
	}
}

func isDead(s meta.Segment, n uint16) bool {
	return int(n)/8 < len(s.DeadSlots) && s.DeadSlots[n/8]&(1<<(n%8)) != 0
}

// version walks the map of a version that is real.
func (a *accounts) version(v meta.Version) {
	if v.State == snapferry.VersionOpen {
		return
	}
	ctx := context.Background()
	m, err := a.region.Vault.MapOf(ctx, v.ID)
	if err != nil {
		a.tb.Errorf("%s: %v", a.region.Name, err)
		return
	}
	empty := blockmap.Map{Size: m.Size, Nodes: a.region.Vault}
	err = blockmap.DiffNodes(ctx, empty, m, func(at snapferry.Position, n *blockmap.Node) error {
		for i := range n.Presence.All() {
			_, ref, _ := n.Child(i)
			kind := snapferry.NodeFrame
			if at.Level == 0 {
				kind = snapferry.BlockFrame
			}
			a.use(at, ref, kind, v.State == snapferry.VersionGhost)
		}
		return nil
	})
	if err != nil {
		a.tb.Errorf("%s: version %s: %v", a.region.Name, v.ID, err)
	}
	a.stored(ctx, v, m)
	a.record(ctx, v)
}

// stored checks what a version stores, unless nobody has counted it.
func (a *accounts) stored(ctx context.Context, v meta.Version, m blockmap.Map) {
	var stored int64
	var until time.Time
	var usage []meta.Usage
	a.region.View(func(tx *meta.Tx) (err error) {
		if stored, until, err = tx.Stored(v.ID); err != nil {
			return err
		}
		shown, err := tx.SnapshotsOfVersion(v.ID)
		if err == nil && len(shown) > 0 {
			usage, err = tx.Usage(string(shown[0].ID))
		}
		return err
	})
	if until.IsZero() {
		return
	}
	var near []blockmap.Map
	if !v.Parent.IsZero() {
		p, err := a.region.Vault.MapOf(ctx, v.Parent)
		if err != nil {
			a.tb.Errorf("%s: %v", a.region.Name, err)
			return
		}
		near = append(near, p)
	}
	var want int64
	err := blockmap.Only(ctx, m, near, func(_ snapferry.FrameKind, _ snapferry.Position, c blockmap.Child) error {
		if s, ok := a.segments[c.Ref.Segment]; ok && !isDead(s, c.Ref.Slot) {
			want += int64(c.Ref.Length)
		}
		return nil
	})
	if err != nil || stored != want {
		a.tb.Errorf("%s: version %s, %s, is said to store %d bytes, and stores %d, %v", a.region.Name, v.ID, v.State, stored, want, err)
	}
	a.periods(usage, until)
}

// periods checks that what is metered of a snapshot until a time are days and parts
// of days, one after the other.
func (a *accounts) periods(usage []meta.Usage, until time.Time) {
	var last time.Time
	for _, u := range usage {
		if u.Kind != meta.UsageStorage {
			continue
		}
		if !u.From.Before(u.At) || u.At.Add(-1).Format(time.DateOnly) != u.From.Format(time.DateOnly) || u.From.Before(last) || u.At.After(until) {
			a.tb.Errorf("%s: %s is metered from %v until %v, after %v, and all of it until %v", a.region.Name, u.Subject, u.From, u.At, last, until)
		}
		last = u.At
	}
}

// record checks the newest version record of a version.
func (a *accounts) record(ctx context.Context, v meta.Version) {
	p, err := a.region.Bucket.Get(ctx, record.Name(v.ID, v.Revision), 1<<20)
	if err != nil {
		a.tb.Errorf("%s: record of version %s: %v", a.region.Name, v.ID, err)
		return
	}
	rec, err := a.open(ctx, p, v)
	if err != nil {
		a.tb.Errorf("%s: record of version %s: %v", a.region.Name, v.ID, err)
		return
	}
	if rec.Version != v.ID || rec.Chain != v.Chain || rec.Size != v.Size || rec.State != v.State || rec.Digest != v.Digest {
		a.tb.Errorf("%s: record of version %s says %v %d %v, want %v %d %v", a.region.Name, v.ID, rec.State, rec.Size, rec.Digest, v.State, v.Size, v.Digest)
	}
}

// open decodes the record of a version, with the key of its chain.
func (a *accounts) open(ctx context.Context, p []byte, v meta.Version) (*record.Record, error) {
	k, err := a.region.Keys.Record(ctx, v.Chain, v.ID)
	if err != nil {
		return nil, err
	}
	var s record.Sealer
	if k != nil {
		s = k
	}
	return record.Decode(p, a.region.PublicKey(), s)
}

// segment checks the accounts of a segment whose version is real.
func (a *accounts) segment(s meta.Segment) {
	dead := 0
	for i := range s.Slots {
		n := uint16(i)
		if isDead(s, n) {
			dead++
		} else if !a.used[slot{s.ID, n}] {
			a.tb.Errorf("%s: slot %d of segment %s (%s, %s) is neither referred to nor dead", a.region.Name, n, s.ID, s.Kind, s.State)
		}
	}
	if dead != s.Dead {
		a.tb.Errorf("%s: segment %s counts %d dead slots, has %d", a.region.Name, s.ID, s.Dead, dead)
	}
}

// bucket compares the bucket with the metadata and scrubs every object.
func (a *accounts) bucket(g Garbage, states map[snapferry.VersionID]snapferry.VersionState) {
	ctx := context.Background()
	seen := map[string]bool{}
	err := a.region.Bucket.List(ctx, "", "", func(i blob.Info) error {
		seen[i.Name] = true
		if v, _, err := record.ParseName(i.Name); err == nil {
			if states[v] == "" && g == NoGarbage {
				a.tb.Errorf("%s: record %s of no version", a.region.Name, i.Name)
			}
			return nil
		}
		if !strings.HasPrefix(i.Name, vault.ObjectPrefix) {
			return nil
		}
		o, ok := a.objects[i.Name]
		if !ok && g == NoGarbage {
			a.tb.Errorf("%s: object %s is garbage", a.region.Name, i.Name)
		}
		if ok && o.Size != i.Size {
			a.tb.Errorf("%s: object %s has %d bytes, want %d", a.region.Name, i.Name, i.Size, o.Size)
		}
		scrub, err := segment.VerifyObject(objectReader{ctx, a.region.Bucket, i.Name, i.Size}, i.Size, nil)
		if err == nil && o.State == meta.ObjectLive {
			a.dead(o, scrub)
		}
		return err
	})
	if err != nil {
		a.tb.Errorf("%s: bucket: %v", a.region.Name, err)
	}
	for name, o := range a.objects {
		if !seen[name] && o.State == meta.ObjectLive {
			a.tb.Errorf("%s: object %s is missing", a.region.Name, name)
		}
		if o.State == meta.ObjectWriting && g == NoGarbage {
			a.tb.Errorf("%s: object %s is garbage, registered by job %q", a.region.Name, name, o.Job)
		}
	}
}

// dead checks how many bytes of an object, and of the segments there, are
// counted as dead.
func (a *accounts) dead(o meta.Object, scrub *segment.Scrub) {
	total := int64(0)
	for _, b := range scrub.Segments {
		s, ok := a.segments[b.Segment]
		if !ok || s.Object != o.Name {
			total += b.Length
			continue
		}
		if s.Generation != b.Generation || s.Offset != b.Offset || s.Length != b.Length {
			a.tb.Errorf("%s: segment %s has generation %d at %d with %d bytes, want %d at %d with %d",
				a.region.Name, s.ID, b.Generation, b.Offset, b.Length, s.Generation, s.Offset, s.Length)
		}
		n := int64(0)
		for i := range b.Footer.Len() {
			if e := b.Footer.At(i); isDead(s, e.Slot) {
				n += int64(e.Length)
			}
		}
		if n != s.DeadBytes {
			a.tb.Errorf("%s: segment %s counts %d dead bytes, has %d", a.region.Name, s.ID, s.DeadBytes, n)
		}
		total += n
	}
	if total != o.Dead {
		a.tb.Errorf("%s: object %s counts %d dead bytes, has %d", a.region.Name, o.Name, o.Dead, total)
	}
}

type objectReader struct {
	ctx  context.Context
	b    *blob.Bucket
	name string
	size int64
}

func (o objectReader) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), o.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	err := o.b.ReadAt(o.ctx, o.name, p[:n], off)
	if err == nil && n < int64(len(p)) {
		err = io.EOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		n = 0
	}
	return int(n), err
}

// deep runs the region's own check of everything, which must be clean.
func (r *Region) deep(tb TB) {
	tb.Helper()
	report, err := fsck.Run(context.Background(), fsck.Config{
		DB: r.DB, Bucket: r.Bucket, Vault: r.Vault, Region: r.Name, SignPublic: r.PublicKey(), Deep: true, Keys: r.Keys,
	})
	if err != nil {
		tb.Errorf("%s: fsck: %v", r.Name, err)
	} else if !report.Clean {
		tb.Errorf("%s: fsck: %+v", r.Name, report.Findings)
	}
}

// Chores are the versions of all chains with which deletion has something left
// to do.
func Chores(tx *meta.Tx) (all []snapferry.VersionID, err error) {
	chains, err := tx.ChoreChains(snapferry.ChainID{}, 0)
	for _, c := range chains {
		if err == nil {
			var some []snapferry.VersionID
			some, err = tx.Chores(c)
			all = append(all, some...)
		}
	}
	return all, err
}

// Settle does what deletion has left to do, until nothing is.
func (r *Region) Settle(ctx context.Context) error {
	return r.settle(ctx, func(todo []snapferry.VersionID) error { return r.Vault.VisitAll(ctx, todo, nil, nil) })
}

// SettleSingly is Settle with a visit for each version.
func (r *Region) SettleSingly(ctx context.Context) error {
	return r.settle(ctx, func(todo []snapferry.VersionID) error {
		for _, id := range todo {
			if err := r.Vault.Visit(ctx, id, nil, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *Region) settle(ctx context.Context, visit func([]snapferry.VersionID) error) error {
	for range 1000 {
		var todo []snapferry.VersionID
		err := r.DB.View(ctx, func(tx *meta.Tx) (err error) {
			todo, err = Chores(tx)
			return err
		})
		if err != nil || len(todo) == 0 {
			return err
		}
		if err := visit(todo); err != nil {
			return err
		}
	}
	return errors.New("deletion does not come to its end")
}

// CheckChain fails the test unless the newest object of a chain says what the metadata
// does, or has the same data key, wrapped with the same generation by a process that was
// taken for dead.
func (r *Region) CheckChain(tb TB, c meta.Chain) {
	tb.Helper()
	first := record.ChainName(c.ID, 0)
	newest := ""
	err := r.Bucket.List(context.Background(), first[:len(first)-20], "", func(i blob.Info) error {
		newest = i.Name
		return nil
	})
	var p []byte
	if err == nil {
		p, err = r.Bucket.Get(context.Background(), newest, record.MaxChainSize)
	}
	var there *record.Chain
	if err == nil {
		there, err = record.DecodeChain(p, []ed25519.PublicKey{r.PublicKey()})
	}
	switch {
	case err != nil:
		tb.Errorf("%s: object %q of chain %s: %v", r.Name, newest, c.ID, err)
	case there.ID != c.ID || there.Account != c.Account || !sameDataKey(there.WrappedKey, c.WrappedKey):
		tb.Errorf("%s: object %q of chain %s says something else than the metadata", r.Name, newest, c.ID)
	}
}

func sameDataKey(a, b []byte) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	x, err := seal.DecodeWrapped(a)
	y, err2 := seal.DecodeWrapped(b)
	return err == nil && err2 == nil && x.Key == y.Key && x.Generation == y.Generation && x.Check == y.Check
}

// WantNothing fails the test unless the region's last version is gone and left
// nothing: no version, no segment, no record; objects are condemned.
func (r *Region) WantNothing(tb TB) {
	tb.Helper()
	r.View(func(tx *meta.Tx) error {
		versions, err := tx.AllVersions()
		for _, v := range versions {
			tb.Errorf("%s: version %s is left, %s", r.Name, v.ID, v.State)
		}
		if err != nil {
			return err
		}
		graves, err := tx.Graves()
		for _, g := range graves {
			if !g.Kept {
				tb.Errorf("%s: version %s is not buried", r.Name, g.Version)
			}
		}
		if err != nil {
			return err
		}
		err = tx.AllSegments(func(s meta.Segment) error {
			tb.Errorf("%s: segment %s is left, %d of its %d slots dead", r.Name, s.ID, s.Dead, s.Slots)
			return nil
		})
		if err != nil {
			return err
		}
		return tx.AllObjects(func(o meta.Object) error {
			if o.State != meta.ObjectCondemned {
				tb.Errorf("%s: object %s is left, %s", r.Name, o.Name, o.State)
			}
			return nil
		})
	})
	err := r.Bucket.List(context.Background(), record.Prefix(), "", func(i blob.Info) error {
		tb.Errorf("%s: record %s is left", r.Name, i.Name)
		return nil
	})
	if err != nil {
		tb.Errorf("%s: bucket: %v", r.Name, err)
	}
}

// WantEmpty fails the test unless the bucket has no object of segments and no
// record.
func (r *Region) WantEmpty(tb TB) {
	tb.Helper()
	for _, prefix := range []string{vault.ObjectPrefix, record.Prefix()} {
		err := r.Bucket.List(context.Background(), prefix, "", func(i blob.Info) error {
			tb.Errorf("%s: %s is left in the bucket", r.Name, i.Name)
			return nil
		})
		if err != nil {
			tb.Errorf("%s: bucket: %v", r.Name, err)
		}
	}
}
