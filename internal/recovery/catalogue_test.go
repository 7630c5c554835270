package recovery_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/seal"
)

// dumped waits until the dump has what the metadata has, but for the audit.
func (r *region) dumped(above uint64) meta.Catalogue {
	r.t.Helper()
	end := time.NewTimer(30 * time.Second)
	defer end.Stop()
	for {
		changed := r.db.Changed()
		var c meta.Catalogue
		r.view(func(tx *meta.Tx) (err error) {
			c, err = tx.Catalogue()
			return err
		})
		if c.Dumped == c.Changes && c.Dump > above {
			return c
		}
		select {
		case <-changed:
		case <-end.C:
			r.t.Fatalf("no dump came: %+v", c)
		}
	}
}

func TestCatalogue(t *testing.T) {
	r := newRegion(t)
	ctx, stop := context.WithCancel(r.ctx)
	ended := make(chan error, 1)
	run := func() { go func() { ended <- r.catalogue().Run(ctx) }() }
	run()
	last := r.dumped(0)
	for i := range 4 {
		r.update(func(tx *meta.Tx) error {
			return tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: snapferry.NewAccountID(), Name: string(rune('a' + i))}, Created: time.Now()})
		})
		last = r.dumped(last.Dump)
	}
	stop()
	r.must(<-ended)
	names := r.names(dump.Prefix())
	if len(names) != 3 || names[2] != dump.Name(last.Dump) {
		t.Errorf("dumps: %v, want the last three up to %d", names, last.Dump)
	}
	d, err := dump.Decode(r.body(names[2]), r.dumpKey)
	if err != nil || len(d.Accounts) != 5 || len(d.Volumes) != 1 || !bytes.Equal(d.Region.SignKey, r.key) {
		t.Errorf("dump: %+v, %v", d, err)
	}
	if n := len(r.names(record.ChainPrefix())); n != 1 {
		t.Errorf("%d objects of chains, want 1", n)
	}
	// A line of the audit alone has time, but not beyond the end of the process.
	c := r.catalogue()
	r.must(c.Write(r.ctx))
	r.update(func(tx *meta.Tx) error { return tx.AddAudit(meta.Audit{At: time.Now(), Action: "x", Subject: "late"}) })
	for range 2 {
		r.must(c.Finish(r.ctx))
	}
	names = r.names(dump.Prefix())
	n, err := dump.ParseName(names[len(names)-1])
	if err != nil || n != last.Dump+2 {
		t.Errorf("after the end: dump %d, want %d", n, last.Dump+2)
	}
	last.Dump = n
	// With another key all is written again.
	r.dumpKey, err = seal.NewDumpKey(make([]byte, seal.KeySize))
	r.must(err)
	ctx, stop = context.WithCancel(r.ctx)
	run()
	last = r.dumped(last.Dump)
	stop()
	r.must(<-ended)
	if _, err := dump.Decode(r.body(dump.Name(last.Dump)), r.dumpKey); err != nil {
		t.Errorf("the dump under the new key: %v", err)
	}
	// Metadata that is behind its bucket does not cover a newer dump.
	r.update(func(tx *meta.Tx) error { return tx.StopReclaim("behind") })
	r.update(func(tx *meta.Tx) error { return tx.SetAccountToken(r.account, "other") })
	ctx, stop = context.WithCancel(r.ctx)
	stop()
	run()
	r.must(<-ended)
	if names := r.names(dump.Prefix()); names[len(names)-1] != dump.Name(last.Dump) {
		t.Errorf("dumps: %v, want none after %d", names, last.Dump)
	}
}

// Metadata that is known to be behind the bucket writes no dump: it would cover
// that of later times.
func TestNoDumpWhileBehind(t *testing.T) {
	r := newRegion(t)
	r.take("a", "", disk(map[uint64]int{0: 1}))
	r.dump()
	before := len(r.names(dump.Prefix()))
	for _, why := range []string{"behind", ""} {
		r.update(func(tx *meta.Tx) error {
			if err := tx.StopReclaim(why); err != nil {
				return err
			}
			return tx.AddAudit(meta.Audit{At: time.Now(), Account: r.account, Action: "DeleteSnapshot", Subject: "snap-1" + why})
		})
		last := r.names(dump.Prefix())[before-1]
		r.must(r.catalogue().Finish(r.ctx))
		names := r.names(dump.Prefix())
		if wrote := names[len(names)-1] != last; wrote != (why == "") {
			t.Errorf("stopped %q: a dump was written: %v", why, wrote)
		}
	}
}
