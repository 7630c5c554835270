package simtest

import (
	"context"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// LitterPrefix begins the names of the objects that Litter leaves. No name that
// is drawn at random begins like that.
const LitterPrefix = "objects/0000000000000000-"

// Litter leaves garbage of every kind in a region: four objects, two segments, a
// record of a version that is gone, what a check of the bucket left. of is a
// version that has segments, and tag tells one litter from another.
func Litter(ctx context.Context, db *meta.DB, bucket *blob.Bucket, of snapferry.VersionID, tag string) error {
	var rows []meta.Segment
	err := db.View(ctx, func(tx *meta.Tx) (err error) {
		rows, err = tx.SegmentsOf(of)
		return err
	})
	if err != nil {
		return err
	}
	body, err := bucket.Get(ctx, rows[0].Object, blob.MaxBody)
	if err != nil {
		return err
	}
	chain, first := rows[0].Chain, LitterPrefix+tag
	buried := meta.Grave{Version: snapferry.NewVersionID(), Chain: chain, Revision: 4, Loose: true, Kept: true}
	for _, name := range []string{
		first + "unregistered", first + "writing", first + "orphan", first + "complete",
		"check/0123" + tag + "/first", record.Name(buried.Version, 3),
	} {
		if err := bucket.Put(ctx, name, body); err != nil {
			return err
		}
	}
	return db.Update(ctx, func(tx *meta.Tx) error {
		if err := tx.PutGrave(buried); err != nil {
			return err
		}
		o := meta.Object{Name: first + "writing", Size: int64(len(body)), Chain: chain, State: meta.ObjectWriting, Job: "job-gone", Token: 3}
		if err := tx.InsertObject(o); err != nil {
			return err
		}
		return tx.InsertSegments([]meta.Segment{
			{ID: snapferry.NewSegmentID(), Chain: chain, Version: snapferry.NewVersionID(), Kind: snapferry.BlockFrame, Object: first + "orphan", Slots: 1},
			{ID: snapferry.NewSegmentID(), Chain: chain, Version: of, Kind: snapferry.BlockFrame, Object: first + "complete", Slots: 1},
		})
	})
}
