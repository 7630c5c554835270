package recovery

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"slices"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// identity is who the region is, and whose signatures count.
type identity struct {
	region  meta.Region
	keys    []ed25519.PublicKey // that records are verified with
	trusted []ed25519.PublicKey // of these, all but that of the region's own key
	dump    *dump.Dump          // nil: none
	newer   bool                // the dump is newer than the old metadata
}

// chain is what is known of a chain beside its versions.
type chain struct {
	object *record.Chain
	row    meta.Chain // as it is to be
}

func (r *run) chain(id snapferry.ChainID) *chain {
	c := r.chains[id]
	if c == nil {
		c = &chain{}
		r.chains[id] = c
	}
	return c
}

const lookupKeySize = 32

// identify finds the region's keys: in the newest dump that opens, in the old
// metadata, or, where the operator says whom to trust, makes new ones.
func (r *run) identify(ctx context.Context) error {
	w := &identity{}
	r.who = w
	if err := r.readDump(ctx); err != nil {
		return err
	}
	trusted := [][]byte{}
	if len(r.Trust) > 0 {
		trusted = append(trusted, r.Trust)
	}
	if r.old != nil {
		w.region = r.old.region
		w.newer = w.dump != nil && w.dump.Number > r.old.catalogue.Dump
		for _, k := range r.old.trusted {
			trusted = append(trusted, k)
		}
	}
	if w.dump != nil {
		trusted = append(trusted, w.dump.Region.Trusted...)
	}
	switch {
	case w.dump != nil && (r.old == nil || w.newer):
		d := w.dump.Region
		if r.old != nil && !bytes.Equal(d.SignKey, r.old.region.SignKey) {
			if k, err := publicKey(r.old.region.SignKey); err == nil {
				trusted = append(trusted, k)
			}
		}
		w.region = meta.Region{Name: d.Name, ID: d.ID, SignKey: d.SignKey, LookupKey: d.LookupKey, Created: d.Created}
	case r.old != nil:
	case len(r.Trust) > 0:
		if err := r.newKeys(); err != nil {
			return err
		}
	default:
		return r.noKeys()
	}
	w.region.Incarnation = r.Incarnation
	own, err := publicKey(w.region.SignKey)
	if err != nil {
		return err
	}
	w.keys = []ed25519.PublicKey{own}
	slices.SortFunc(trusted, bytes.Compare)
	for _, k := range slices.CompactFunc(trusted, bytes.Equal) {
		if len(k) == ed25519.PublicKeySize && !bytes.Equal(k, own) {
			w.keys, w.trusted = append(w.keys, k), append(w.trusted, k)
		}
	}
	return nil
}

func (r *run) newKeys() error {
	_, sign, err := ed25519.GenerateKey(nil)
	if err != nil {
		return snapferry.Errorf(snapferry.Internal, "make the region's key: %w", err)
	}
	lookup := make([]byte, lookupKeySize)
	rand.Read(lookup)
	r.who.region = meta.Region{Name: r.Region, ID: r.ID, SignKey: sign, LookupKey: lookup, Created: r.now}
	r.report.NewKey = true
	return nil
}

func (r *run) noKeys() error {
	why := "the bucket has no dump of the metadata"
	switch {
	case len(r.names.dumps) > 0 && r.dumpKey == nil:
		why = "the region's key is missing, which opens the dumps of the metadata"
	case len(r.names.dumps) > 0:
		why = "no dump of the metadata opens with the region's key"
	}
	return snapferry.Errorf(snapferry.NotFound, "%s: nothing tells whose signatures on version records count", why).
		WithHint("bring the region's key file back (key_file of the configuration); or give the region's public key, which it logs at each start, with --trust")
}

// readDump opens the newest dump that can be.
func (r *run) readDump(ctx context.Context) error {
	if r.dumpKey == nil {
		if len(r.names.dumps) > 0 {
			r.findings.note("", snapferry.VersionID{}, "the dumps of the metadata were not used: there is no key of the region")
		}
		return nil
	}
	for _, name := range slices.Backward(r.names.dumps) {
		p, err := r.Bucket.Get(ctx, name, dump.MaxSize)
		var d *dump.Dump
		if err == nil {
			d, err = dump.Decode(p, r.dumpKey)
		}
		if n, _ := dump.ParseName(name); err == nil && (d.Number != n || d.Region.ID != r.ID || d.Region.Name != r.Region) {
			err = snapferry.Errorf(snapferry.Corrupt, "it is dump %d of region %s (%s)", d.Number, d.Region.Name, d.Region.ID)
		}
		if err == nil {
			r.who.dump, r.report.Dump = d, d.Number
			return nil
		}
		if !isFinding(err) {
			return err
		}
		r.findings.damage(name, snapferry.VersionID{}, "dump of the metadata: %v", err)
	}
	return nil
}
