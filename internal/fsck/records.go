package fsck

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// checkRecords checks that each version has its record and that the record
// agrees, and looks for records of versions that nobody knows.
func (c *checker) checkRecords(ctx context.Context) error {
	var unknown []snapferry.VersionID
	for id := range c.bucket.records {
		if c.state.versions[id] == nil {
			unknown = append(unknown, id)
		}
	}
	for _, id := range unknown {
		last := c.bucket.records[id]
		t := onVersion(id).named(record.Name(id, last))
		if g, buried := c.state.graves[id]; buried && last <= g.Revision {
			if g.Kept {
				c.garbage(t, "version record: of a version that was deleted, written by somebody who came too late")
			}
			continue // to be removed
		}
		if _, err := c.readRecord(ctx, t.object, nil); err != nil && isFinding(err) {
			c.damage(t, "version record: %v; whose it is cannot be told, and nothing may be reclaimed: bring it back, or remove it, then stop the region and run: snapferry recover --merge", err)
			continue
		} else if err != nil {
			return err
		}
		c.damage(t, "the metadata does not know this version: it is older than its bucket, and nothing may be reclaimed; stop the region and run: snapferry recover --merge")
	}
	var complete []*version
	for _, v := range c.state.order {
		// An open version may have records: of a seal that did not commit.
		if v.State != snapferry.VersionOpen {
			complete = append(complete, v)
		}
	}
	return each(ctx, c, complete, c.checkRecord)
}

func (c *checker) checkRecord(ctx context.Context, v *version) error {
	name := record.Name(v.ID, v.Revision)
	s, err := c.recordSealer(ctx, v.Chain, v.ID)
	if err != nil && !isFinding(err) {
		return err
	}
	var r *record.Record
	if err == nil {
		r, err = c.readRecord(ctx, name, s)
	}
	switch {
	case err == nil && v.Stale:
		// It is to be written again: only whose it is can be told.
		if r.Version != v.ID || r.Chain != v.Chain {
			c.damage(onVersion(v.ID).named(name), "version record: it is of something else")
		}
	case err != nil && !isFinding(err):
		return err
	case err != nil:
		c.damage(onVersion(v.ID).named(name), "version record: %v", err)
	default:
		if why := c.differs(v, r); why != "" {
			c.damage(onVersion(v.ID).named(name), "version record: %s", why)
		}
	}
	last := c.bucket.records[v.ID]
	if last <= v.Revision {
		return nil
	}
	if last > v.Reserved {
		c.damage(onVersion(v.ID).named(record.Name(v.ID, last)),
			"version record: nobody was allowed to write revision %d: the metadata is older than its bucket; stop the region and run: snapferry recover --merge", last)
		return nil
	}
	// A revision that was written before its commit failed. It must be sound,
	// because a recovery takes the newest.
	name = record.Name(v.ID, last)
	r, err = c.readRecord(ctx, name, s)
	switch {
	case err != nil && !isFinding(err):
		return err
	case err != nil:
		c.damage(onVersion(v.ID).named(name), "version record, newer than the metadata: %v", err)
	case r.Version != v.ID || r.Revision != last || r.Chain != v.Chain || r.Private() && r.Digest != v.Digest:
		c.damage(onVersion(v.ID).named(name), "version record, newer than the metadata: it is of something else")
	default:
		c.garbage(onVersion(v.ID).named(name), "version record: revision %d was not committed, the metadata has %d", last, v.Revision)
	}
	return nil
}

// keys returns the public keys that signed what is in the bucket.
func (c *checker) keys() []ed25519.PublicKey {
	return append([]ed25519.PublicKey{c.SignPublic}, c.state.trusted...)
}

func (c *checker) readRecord(ctx context.Context, name string, s record.Sealer) (*record.Record, error) {
	p, err := c.Bucket.Get(ctx, name, record.MaxSize)
	if err != nil {
		return nil, err
	}
	c.bytes.Add(int64(len(p)))
	return record.DecodeTrusted(p, c.keys(), s)
}

// differs says in what a record does not agree with the metadata.
func (c *checker) differs(v *version, r *record.Record) string {
	state := v.State
	if state == snapferry.VersionBroken {
		state = snapferry.VersionSealed
	}
	for _, f := range []struct {
		what      string
		got, want any
	}{
		{"version", r.Version, v.ID},
		{"revision", r.Revision, v.Revision},
		{"chain", r.Chain, v.Chain},
		{"parent", r.Parent, v.Parent},
		{"state", r.State, state},
		{"region", r.Region, c.state.region.Name},
		{"account", r.Account, c.state.chains[v.Chain].Account},
		{"lineage", r.Volume, v.Volume},
		{"size", r.Size, v.Size},
		{"blocks", r.Blocks, v.Blocks},
	} {
		if f.got != f.want {
			return fmt.Sprintf("%s is %v, the metadata has %v", f.what, f.got, f.want)
		}
	}
	if !r.Private() {
		return ""
	}
	var got, want []string
	for _, h := range r.Holds {
		got = append(got, string(h.Kind)+" "+h.Owner)
	}
	for _, h := range v.holds {
		want = append(want, h.Kind+" "+h.Owner)
	}
	slices.Sort(got)
	slices.Sort(want)
	switch {
	case r.Digest != v.Digest:
		return fmt.Sprintf("digest is %s, the metadata has %s", r.Digest, v.Digest)
	case !bytes.Equal(r.Root, v.Root):
		return "the root is not that of the metadata"
	case !slices.Equal(got, want):
		return fmt.Sprintf("holds are %q, the metadata has %q", got, want)
	}
	return ""
}

// checkIncarnations checks the objects that each start of the region leaves:
// one for each number up to the metadata's, which name the region first.
func (c *checker) checkIncarnations(ctx context.Context) error {
	have := map[string]bool{}
	for _, name := range c.bucket.incarnations {
		have[name] = true
	}
	for n := uint64(1); n <= c.state.region.Incarnation; n++ {
		name := fmt.Sprintf("%s%020d", incarnationPrefix, n)
		if !have[name] {
			if _, err := c.Bucket.Size(ctx, name); snapferry.IsKind(err, snapferry.NotFound) {
				c.damage(onObject(name), "the mark of a start of this region is missing")
			} else if err != nil {
				return err
			}
		}
		delete(have, name)
	}
	for name := range have {
		c.damage(onObject(name), "the metadata tells of %d starts of this region: it is older than its bucket", c.state.region.Incarnation)
	}
	return each(ctx, c, c.bucket.incarnations, func(ctx context.Context, name string) error {
		p, err := c.Bucket.Get(ctx, name, blob.MaxBody)
		if err != nil && !isFinding(err) {
			return err
		}
		c.bytes.Add(int64(len(p)))
		if err == nil {
			err = c.checkMark(ctx, name, p)
		}
		if err != nil && !isFinding(err) {
			return err
		}
		if err != nil {
			c.damage(onObject(name), "%v", err)
		}
		return nil
	})
}

func (c *checker) checkMark(ctx context.Context, name string, p []byte) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, incarnationPrefix), 10, 64)
	switch {
	case err != nil:
		return snapferry.Errorf(snapferry.Corrupt, "the name is not that of a start of the region")
	case !strings.Contains(string(p), c.state.region.ID):
		return snapferry.Errorf(snapferry.Corrupt, "is the mark of another region, or damaged")
	case c.Mark != nil && n <= c.state.region.Incarnation: // of later ones the metadata knows nothing
		return c.Mark(ctx, n, p)
	}
	return nil
}

// checkNames looks for what is in the bucket and nobody registered.
func (c *checker) checkNames(context.Context) error {
	for name, size := range c.bucket.objects {
		if c.state.objects[name] == nil {
			c.garbage(onObject(name), "%d bytes that nobody registered", size)
		}
	}
	for _, name := range c.bucket.others {
		c.garbage(onObject(name), "the name means nothing here")
	}
	for _, o := range c.state.objects {
		if o.registered && len(o.segments) == 0 && o.State == meta.ObjectLive {
			c.garbage(onObject(o.Name), "registered, but no segment lies there")
		}
	}
	return nil
}
