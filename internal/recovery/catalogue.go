package recovery

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
)

const (
	// AuditLines is how many of the last lines of the audit a dump has.
	AuditLines = 1000
	// DumpEvery is how often new lines of the audit alone make a dump.
	DumpEvery = time.Minute

	keepDumps  = 3
	retryAfter = 10 * time.Second
	maxDetail  = 4 << 10 // bytes of one text of an audit line in a dump
)

// Chains has the objects of chains in the bucket; *vault.Vault does.
type Chains interface {
	EnsureChain(ctx context.Context, id snapferry.ChainID) error
}

// A Catalogue keeps what a recovery needs beside version records in the bucket:
// the sealed dump of the metadata and the objects of the chains.
type Catalogue struct {
	DB     *meta.DB
	Bucket *blob.Bucket
	Chains Chains
	Key    dump.Sealer
	Log    *slog.Logger // nil: none

	last time.Time // of the last dump of this process
}

// Run writes a dump at every change of an account, a chain or a volume, else
// every DumpEvery when the audit has new lines, until ctx ends. What fails is
// tried again; nothing waits for it.
func (c *Catalogue) Run(ctx context.Context) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	force := !c.readable(ctx)
	for {
		changed := c.DB.Changed()
		again, err := c.step(ctx, force)
		force = force && err != nil
		if err != nil && ctx.Err() == nil {
			c.Log.WarnContext(ctx, "the dump of the metadata could not be written yet", "err", err)
			again = retryAfter
			changed = nil
		}
		t := time.NewTimer(again)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// Finish writes a dump if the metadata has anything that the last one has not:
// for the end of a process, after Run.
func (c *Catalogue) Finish(ctx context.Context) error {
	c.last = time.Time{} // nobody writes one soon
	_, err := c.step(ctx, false)
	return err
}

// readable reports whether the last dump is in the bucket and opens with the
// key that the region has now.
func (c *Catalogue) readable(ctx context.Context) bool {
	var cat meta.Catalogue
	err := c.DB.View(ctx, func(tx *meta.Tx) (err error) {
		cat, err = tx.Catalogue()
		return err
	})
	if err != nil || cat.Dump == 0 {
		return false
	}
	p, err := c.Bucket.Get(ctx, dump.Name(cat.Dump), dump.MaxSize)
	if err == nil {
		_, err = dump.Decode(p, c.Key)
	}
	return err == nil
}

// step writes a dump if one is due, and says when to look again.
func (c *Catalogue) step(ctx context.Context, force bool) (again time.Duration, err error) {
	var cat meta.Catalogue
	stopped := ""
	err = c.DB.View(ctx, func(tx *meta.Tx) (err error) {
		if cat, err = tx.Catalogue(); err != nil {
			return err
		}
		stopped, err = tx.ReclaimStopped()
		return err
	})
	if err != nil || stopped != "" {
		return DumpEvery, err // what is behind the bucket must not cover a newer dump
	}
	since := time.Since(c.last)
	switch {
	case force, cat.Changes != cat.Dumped:
	case cat.Audit == cat.DumpedAudit:
		return DumpEvery, nil
	case since < DumpEvery:
		return DumpEvery - since, nil
	}
	return DumpEvery, c.Write(ctx)
}

// Write writes a dump now and removes old ones.
func (c *Catalogue) Write(ctx context.Context) error {
	d, cat, err := c.read(ctx)
	if err != nil {
		return err
	}
	for i := range d.Chains {
		if err := c.Chains.EnsureChain(ctx, d.Chains[i].ID); err != nil {
			return err
		}
	}
	names, highest, err := c.dumps(ctx)
	if err != nil {
		return err
	}
	for d.Number = max(cat.Dump, highest) + 1; ; d.Number++ {
		p, err := d.Encode(c.Key)
		if err != nil {
			return err
		}
		err = c.Bucket.Put(ctx, dump.Name(d.Number), p)
		if snapferry.IsKind(err, snapferry.Exists) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	c.last = time.Now()
	cat.Dump, cat.Dumped, cat.DumpedAudit = d.Number, cat.Changes, cat.Audit
	if err := c.DB.Update(ctx, func(tx *meta.Tx) error { return tx.SetDumped(cat) }); err != nil {
		return err
	}
	names = append(names, dump.Name(d.Number))
	for _, name := range names[:max(0, len(names)-keepDumps)] {
		if err := c.Bucket.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// dumps lists the dumps in the bucket, in order, and the highest number.
func (c *Catalogue) dumps(ctx context.Context) (names []string, highest uint64, err error) {
	err = c.Bucket.List(ctx, dump.Prefix(), "", func(i blob.Info) error {
		if n, err := dump.ParseName(i.Name); err == nil {
			names, highest = append(names, i.Name), n
		}
		return nil
	})
	return names, highest, err
}

// read reads what a dump has, in one state of the metadata.
func (c *Catalogue) read(ctx context.Context) (d *dump.Dump, cat meta.Catalogue, err error) {
	d = &dump.Dump{}
	err = c.DB.View(ctx, func(tx *meta.Tx) (err error) {
		if cat, err = tx.Catalogue(); err != nil {
			return err
		}
		if err := readRegion(tx, d); err != nil {
			return err
		}
		if err := readRows(tx, d); err != nil {
			return err
		}
		lines, err := tx.LastAudit(AuditLines)
		for _, a := range lines {
			d.Audit = append(d.Audit, dump.Audit{
				At: a.At, Account: a.Account, Action: shortText(a.Action), Subject: shortText(a.Subject), Detail: shortText(a.Detail),
			})
		}
		return err
	})
	return d, cat, err
}

func shortText(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxDetail)], "\uFFFD")
}

func readRegion(tx *meta.Tx, d *dump.Dump) error {
	r, err := tx.Region()
	if err != nil {
		return err
	}
	d.Region = dump.Region{Name: r.Name, ID: r.ID, Incarnation: r.Incarnation, SignKey: r.SignKey, LookupKey: r.LookupKey, Created: r.Created}
	keys, err := tx.TrustedKeys()
	for _, k := range keys {
		d.Region.Trusted = append(d.Region.Trusted, bytes.Clone(k))
	}
	return err
}

func readRows(tx *meta.Tx, d *dump.Dump) error {
	accounts, err := tx.Accounts()
	if err != nil {
		return err
	}
	slices.SortFunc(accounts, func(a, b meta.Account) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for _, a := range accounts {
		d.Accounts = append(d.Accounts, dump.Account(a))
	}
	chains, err := tx.Chains()
	if err != nil {
		return err
	}
	for _, x := range chains {
		d.Chains = append(d.Chains, dump.Chain{
			ID: x.ID, Account: x.Account, Algorithm: x.Algorithm, WrappedKey: x.WrappedKey,
			OriginRegion: x.OriginRegion, OriginChain: x.OriginChain, Created: x.Created,
		})
	}
	volumes, err := tx.Volumes()
	for _, v := range volumes {
		d.Volumes = append(d.Volumes, dump.Volume{
			ID: v.ID, Account: v.Account, Name: v.Name, Chain: v.Chain, OriginRegion: v.OriginRegion, OriginVolume: v.OriginVolume, Created: v.Created,
		})
	}
	return err
}

// publicKey returns the public half of a stored sign key.
func publicKey(sign []byte) (ed25519.PublicKey, error) {
	if len(sign) != ed25519.PrivateKeySize {
		return nil, snapferry.Errorf(snapferry.Corrupt, "the region's signing key has %d bytes", len(sign))
	}
	return ed25519.PrivateKey(sign).Public().(ed25519.PublicKey), nil
}
