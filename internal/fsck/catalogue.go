package fsck

import (
	"context"
	"strings"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/record"
)

// checkCatalogue checks what a recovery needs beside version records: the
// objects of the chains and the dumps of the metadata.
func (c *checker) checkCatalogue(ctx context.Context) error {
	described := map[snapferry.ChainID]bool{}
	for _, name := range c.bucket.catalogue {
		if strings.HasPrefix(name, dump.Prefix()) {
			continue
		}
		id, err := c.checkChain(ctx, name)
		switch {
		case err == nil:
			described[id] = true
		case !isFinding(err):
			return err
		default:
			c.damage(onObject(name), "object of a chain: %v", err)
		}
	}
	for _, v := range c.state.order {
		if v.State != snapferry.VersionOpen && !described[v.Chain] {
			described[v.Chain] = true // once
			c.damage(onObject(record.ChainName(v.Chain, 1)), "no object says whose chain %s is; the next start of the region makes it", v.Chain)
		}
	}
	newest := ""
	for _, name := range c.bucket.catalogue {
		if strings.HasPrefix(name, dump.Prefix()) {
			newest = name // they ascend
		}
	}
	return each(ctx, c, c.bucket.catalogue, func(ctx context.Context, name string) error {
		if !strings.HasPrefix(name, dump.Prefix()) {
			return nil
		}
		err := c.checkDump(ctx, name)
		switch {
		case err == nil:
			return nil
		case snapferry.IsKind(err, snapferry.NotFound): // older ones are removed
			return nil
		case !isFinding(err):
			return err
		case name != newest: // sealed under an earlier key, or damaged: there is a newer one
			c.garbage(onObject(name), "dump of the metadata: %v", err)
			return nil
		}
		c.damage(onObject(name), "dump of the metadata: %v", err)
		return nil
	})
}

func (c *checker) checkChain(ctx context.Context, name string) (id snapferry.ChainID, err error) {
	id, n, err := record.ParseChainName(name)
	if err != nil {
		return id, snapferry.Errorf(snapferry.Corrupt, "%w", err)
	}
	p, err := c.Bucket.Get(ctx, name, record.MaxChainSize)
	if err != nil {
		return id, err
	}
	c.bytes.Add(int64(len(p)))
	x, err := record.DecodeChain(p, c.keys())
	if err != nil {
		return id, err
	}
	row, known := c.state.chains[id]
	switch {
	case x.ID != id || x.Number != n:
		return id, snapferry.Errorf(snapferry.Corrupt, "it is number %d of chain %s", x.Number, x.ID)
	case x.Region != c.state.region.Name:
		return id, snapferry.Errorf(snapferry.Corrupt, "it is of region %s", x.Region)
	case known && (x.Account != row.Account || x.OriginRegion != row.OriginRegion || x.OriginChain != row.OriginChain):
		return id, snapferry.Errorf(snapferry.Corrupt, "account or origin are not those of the metadata")
	}
	return id, nil
}

func (c *checker) checkDump(ctx context.Context, name string) error {
	n, err := dump.ParseName(name)
	if err != nil {
		return snapferry.Errorf(snapferry.Corrupt, "%w", err)
	}
	p, err := c.Bucket.Get(ctx, name, dump.MaxSize)
	if err != nil {
		return err
	}
	c.bytes.Add(int64(len(p)))
	if have, err := dump.Number(p); err != nil || have != n {
		if err == nil {
			err = snapferry.Errorf(snapferry.Corrupt, "it has number %d", have)
		}
		return err
	}
	if !c.Deep || c.Dumps == nil {
		return nil
	}
	d, err := dump.Decode(p, c.Dumps)
	if err == nil && d.Region.ID != c.state.region.ID {
		err = snapferry.Errorf(snapferry.Corrupt, "it is of region %s", d.Region.Name)
	}
	return err
}
