package fsck

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

// What is sealed is opened with the key of its chain. A chain whose key may not be
// used, or cannot be asked for, is locked: of it only what needs no key is checked,
// which is that every stored byte is under its checksum.

// locked notes that a chain cannot be opened, and returns nil, when err says that;
// else err.
func (c *checker) locked(chain snapferry.ChainID, err error) error {
	if k := snapferry.KindOf(err); err == nil || k != snapferry.KeyUnusable && k != snapferry.Unavailable && k != snapferry.Denied {
		return err
	}
	c.mu.Lock()
	first := !c.shut[chain]
	c.shut[chain], c.broken[chain] = true, true
	c.mu.Unlock()
	if first {
		c.garbage(target{slot: -1}, "what is sealed in chain %s cannot be proved: %v", chain, err)
	}
	return nil
}

func (c *checker) isLocked(chain snapferry.ChainID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shut[chain]
}

// sealerOf returns what opens a segment; nil for one of a plain or locked chain.
func (c *checker) sealerOf(ctx context.Context, chain snapferry.ChainID, id snapferry.SegmentID) (segment.Sealer, error) {
	if c.Keys == nil || c.isLocked(chain) {
		return nil, nil
	}
	k, err := c.Keys.Segment(ctx, chain, id)
	if err != nil || k == nil {
		return nil, c.locked(chain, err)
	}
	return k, nil
}

// recordSealer returns what opens the records of a version; nil for one of a plain or
// locked chain.
func (c *checker) recordSealer(ctx context.Context, chain snapferry.ChainID, id snapferry.VersionID) (record.Sealer, error) {
	if c.Keys == nil || c.isLocked(chain) {
		return nil, nil
	}
	k, err := c.Keys.Record(ctx, chain, id)
	if err != nil || k == nil {
		return nil, c.locked(chain, err)
	}
	return k, nil
}

// checkKeyrings checks the keyrings in the bucket: the newest must be what the
// metadata has.
func (c *checker) checkKeyrings(ctx context.Context) error {
	newest := uint64(0)
	for _, name := range c.bucket.keyrings {
		n, err := record.ParseKeyringName(name)
		if err != nil {
			c.damage(onObject(name), "keyring: %v", err)
			continue
		}
		newest = max(newest, n)
	}
	if newest < c.state.keyring.Number {
		c.damage(onObject(record.KeyringName(c.state.keyring.Number)), "the keyring is missing; the next start of the region writes it again")
	}
	for _, name := range c.bucket.keyrings {
		n, err := record.ParseKeyringName(name)
		if err != nil {
			continue
		}
		err = c.checkKeyring(ctx, name, n)
		switch {
		case err == nil, snapferry.IsKind(err, snapferry.NotFound) && n < newest: // older ones are removed
		case !isFinding(err):
			return err
		case n < c.state.keyring.Number:
			c.garbage(onObject(name), "keyring: %v", err)
		default:
			c.damage(onObject(name), "keyring: %v", err)
		}
	}
	return nil
}

func (c *checker) checkKeyring(ctx context.Context, name string, number uint64) error {
	p, err := c.Bucket.Get(ctx, name, record.MaxKeyringSize)
	if err != nil {
		return err
	}
	c.bytes.Add(int64(len(p)))
	n, err := record.KeyringNumber(p)
	if err != nil {
		return err
	}
	if n != number {
		return snapferry.Errorf(snapferry.Corrupt, "it has number %d", n)
	}
	if c.Keyring == nil {
		return nil
	}
	k, err := record.DecodeKeyring(p, c.Keyring)
	if err == nil && (k.Region != c.state.region.Name || k.ID != c.state.region.ID) {
		err = snapferry.Errorf(snapferry.Corrupt, "it is of region %s (%s)", k.Region, k.ID)
	}
	return err
}
