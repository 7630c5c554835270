package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/vault"
)

// Every start of a region makes one object incarnation/NUMBER in its bucket,
// if absent, with the next number; then the metadata has that number. So
// metadata that is older than its bucket, or belongs to another one, is seen
// at the next start, and refused. docs/operations.md describes the object.

const (
	incarnationPrefix = "incarnation/"
	incarnationLimit  = 4096 // bytes
	actionStart       = "StartRegion"
)

// incarnation is the content of such an object.
type incarnation struct {
	Version int                  `json:"version"` // 1
	ID      string               `json:"id"`      // of the region
	Name    snapferry.RegionName `json:"name"`    // of the region, for people
	Number  uint64               `json:"number"`
	Start   string               `json:"start"` // random; the metadata had it before the object was made
}

// encode returns the content of the object.
func (x incarnation) encode() ([]byte, error) {
	p, err := json.Marshal(x)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "encode %s: %w", incarnationName(x.Number), err)
	}
	return append(p, '\n'), nil
}

func incarnationName(n uint64) string { return fmt.Sprintf("%s%020d", incarnationPrefix, n) }

func randomHex(n int) string {
	p := make([]byte, n)
	rand.Read(p)
	return hex.EncodeToString(p)
}

// startRegion makes or reads the region's row and begins its next incarnation.
func startRegion(ctx context.Context, db *meta.DB, bucket *blob.Bucket, name snapferry.RegionName) (meta.Region, error) {
	row, found, err := regionRow(ctx, db)
	if err != nil {
		return row, err
	}
	if found && row.Name != name {
		return row, snapferry.Errorf(snapferry.Conflict, "the metadata belongs to region %s, not %s", row.Name, name).
			WithHint("correct name or directory in the configuration")
	}
	highest, err := highestIncarnation(ctx, bucket)
	if found && (snapferry.IsKind(err, snapferry.Corrupt) || err == nil && highest != nil && highest.ID != row.ID) {
		// One mark that is damaged does not make the bucket another's.
		newest, ours, oerr := ourBucket(ctx, db, bucket, row)
		if oerr != nil {
			return row, oerr
		}
		if ours {
			highest, err = &incarnation{ID: row.ID, Name: row.Name, Number: newest}, nil
		}
	}
	if err != nil {
		return row, err
	}
	if !found {
		if highest != nil && highest.Name == name {
			return row, lostMetadata(*highest)
		}
		if highest != nil {
			return row, foreignBucket(*highest)
		}
		if err := mustBeEmpty(ctx, bucket); err != nil {
			return row, err
		}
		if _, err := bucket.Check(ctx); err != nil {
			return row, err
		}
		if row, err = newRegion(ctx, db, name); err != nil {
			return row, err
		}
	}
	if err := checkIncarnation(row, highest); err != nil {
		return row, err
	}
	return nextIncarnation(ctx, db, bucket, row)
}

// ourBucket reports whether the bucket has a mark that a start of this metadata
// made, to the byte, and returns the number of the newest mark, by its name.
func ourBucket(ctx context.Context, db *meta.DB, bucket *blob.Bucket, row meta.Region) (newest uint64, ours bool, err error) {
	var names []string
	err = bucket.List(ctx, incarnationPrefix, "", func(i blob.Info) error {
		names = append(names, i.Name)
		return nil
	})
	check := &checker{db: db}
	for _, name := range slices.Backward(names) {
		if err != nil {
			return 0, false, err
		}
		n, perr := strconv.ParseUint(strings.TrimPrefix(name, incarnationPrefix), 10, 64)
		if perr != nil {
			continue
		}
		newest = max(newest, n)
		if n > row.Incarnation {
			continue
		}
		p, err := bucket.Get(ctx, name, incarnationLimit)
		if err == nil {
			err = check.mark(ctx, n, p)
		}
		if err == nil {
			return newest, true, nil
		}
		if k := snapferry.KindOf(err); k != snapferry.Corrupt && k != snapferry.NotFound {
			return 0, false, err
		}
	}
	return newest, false, err
}

func regionRow(ctx context.Context, db *meta.DB) (row meta.Region, found bool, err error) {
	err = db.View(ctx, func(tx *meta.Tx) (err error) {
		row, err = tx.Region()
		return err
	})
	if snapferry.IsKind(err, snapferry.NotFound) {
		return row, false, nil
	}
	return row, err == nil, err
}

// newRegion makes the row of a region that starts for the first time.
func newRegion(ctx context.Context, db *meta.DB, name snapferry.RegionName) (meta.Region, error) {
	_, sign, err := ed25519.GenerateKey(nil)
	if err != nil {
		return meta.Region{}, snapferry.Errorf(snapferry.Internal, "make the region's key: %w", err)
	}
	lookup := make([]byte, 32)
	rand.Read(lookup)
	row := meta.Region{Name: name, ID: randomHex(16), SignKey: sign, LookupKey: lookup, Created: time.Now()}
	return row, db.Update(ctx, func(tx *meta.Tx) error { return tx.PutRegion(row) })
}

// highestIncarnation reads the newest incarnation in the bucket; nil when
// there is none.
func highestIncarnation(ctx context.Context, bucket *blob.Bucket) (*incarnation, error) {
	last := ""
	err := bucket.List(ctx, incarnationPrefix, "", func(i blob.Info) error {
		last = i.Name
		return nil
	})
	if err != nil || last == "" {
		return nil, err
	}
	return readIncarnation(ctx, bucket, last)
}

func readIncarnation(ctx context.Context, bucket *blob.Bucket, name string) (*incarnation, error) {
	p, err := bucket.Get(ctx, name, incarnationLimit)
	if err != nil {
		return nil, err
	}
	var x incarnation
	d := json.NewDecoder(strings.NewReader(string(p)))
	if err := d.Decode(&x); err != nil || x.ID == "" {
		return nil, snapferry.Errorf(snapferry.Corrupt, "object %s does not say whose bucket this is", name).
			WithHint("it is damaged; when no other mark of this region's starts is there, move it away and run: snapferry recover")
	}
	if x.Version > 1 {
		return nil, snapferry.Errorf(snapferry.Unsupported, "object %s has version %d, this program knows 1", name, x.Version).
			WithHint("start the region with the newer snapferry")
	}
	if x.Version < 1 || incarnationName(x.Number) != name {
		return nil, snapferry.Errorf(snapferry.Corrupt, "object %s says that it is incarnation %d", name, x.Number)
	}
	return &x, nil
}

// mustBeEmpty refuses to begin a region in a bucket that has what a region
// keeps, though no mark says whose it is.
func mustBeEmpty(ctx context.Context, bucket *blob.Bucket) error {
	for _, prefix := range []string{"versions/", "chain/", "dump/", vault.ObjectPrefix} {
		err := bucket.List(ctx, prefix, "", func(i blob.Info) error {
			return snapferry.Errorf(snapferry.Conflict, "the bucket is not empty: it has %s, but no mark of the region that made it", i.Name).
				WithHint("bring its objects %s… back and rebuild the metadata with snapferry recover; or give this region another bucket", incarnationPrefix)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func foreignBucket(x incarnation) error {
	return snapferry.Errorf(snapferry.Conflict, "the bucket belongs to region %s (%s), and this metadata does not", x.Name, x.ID).
		WithHint("correct name, directory or bucket in the configuration")
}

// lostMetadata refuses to begin anew over the bucket of this region.
func lostMetadata(x incarnation) error {
	return snapferry.Errorf(snapferry.Conflict, "the bucket belongs to region %s (%s), whose metadata is missing", x.Name, x.ID).
		WithHint("rebuild the metadata from the bucket: snapferry recover --config FILE; or correct directory or bucket in the configuration")
}

// checkIncarnation refuses metadata that does not belong to its bucket or is
// older. The next number may be taken already: see nextIncarnation.
func checkIncarnation(row meta.Region, highest *incarnation) error {
	switch {
	case highest == nil && row.Incarnation == 0:
		return nil
	case highest == nil || highest.ID == row.ID && highest.Number < row.Incarnation:
		return snapferry.Errorf(snapferry.Conflict, "the bucket is not the one of this metadata, or lost objects: incarnation %d is not in it", row.Incarnation).
			WithHint("correct directory or bucket in the configuration, or bring the bucket back")
	case highest.ID != row.ID:
		return foreignBucket(*highest)
	case highest.Number > row.Incarnation+1:
		return tooOld(row, highest.Number)
	}
	return nil
}

func tooOld(row meta.Region, number uint64) error {
	return snapferry.Errorf(snapferry.Conflict, "the metadata is older than its bucket: it knows incarnation %d, the bucket has %d", row.Incarnation, number).
		WithHint("bring the newest metadata back, or catch up with the bucket: snapferry recover --merge --config FILE")
}

// nextIncarnation makes the object of the next incarnation, then the metadata
// know it. An object that is there already is ours if the metadata knows its
// start: then only the last step was lost.
func nextIncarnation(ctx context.Context, db *meta.DB, bucket *blob.Bucket, row meta.Region) (meta.Region, error) {
	x := incarnation{Version: 1, ID: row.ID, Name: row.Name, Number: row.Incarnation + 1, Start: randomHex(16)}
	name := incarnationName(x.Number)
	body, err := x.encode()
	if err != nil {
		return row, err
	}
	err = db.Update(ctx, func(tx *meta.Tx) error {
		return tx.AddAudit(meta.Audit{At: time.Now(), Action: actionStart, Subject: name, Detail: x.Start})
	})
	if err != nil {
		return row, err
	}
	if err := bucket.Put(ctx, name, body); snapferry.IsKind(err, snapferry.Exists) {
		if err := ourIncarnation(ctx, db, bucket, row, name); err != nil {
			return row, err
		}
	} else if err != nil {
		return row, err
	}
	row.Incarnation = x.Number
	return row, db.Update(ctx, func(tx *meta.Tx) error { return tx.PutRegion(row) })
}

// ourIncarnation reports whether an incarnation that is in the bucket was made
// by a start that this metadata knows.
func ourIncarnation(ctx context.Context, db *meta.DB, bucket *blob.Bucket, row meta.Region, name string) error {
	there, err := readIncarnation(ctx, bucket, name)
	if err != nil {
		return err
	}
	if there.ID != row.ID {
		return foreignBucket(*there)
	}
	var starts []meta.Audit
	err = db.View(ctx, func(tx *meta.Tx) (err error) {
		starts, err = tx.AuditOf(name)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range starts {
		if s.Action == actionStart && s.Detail == there.Start {
			return nil
		}
	}
	return tooOld(row, there.Number)
}
