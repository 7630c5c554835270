package recovery

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

const (
	actionRecover = "RecoverMetadata"
	// reasonRecovered is why what was under way ended.
	reasonRecovered = "cancelled: the region was recovered"
)

func itoa(n int) string { return strconv.Itoa(n) }

func emptyFooters() map[*body]*segment.Footer { return map[*body]*segment.Footer{} }

// build writes the new metadata, in one transaction, beside the old.
func (r *run) build(ctx context.Context) (err error) {
	r.begin(PhaseMetadata, 1)
	db, err := meta.Open(ctx, meta.Config{Path: r.Path + Suffix})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := r.sealWith(db, r.who.region.LookupKey); err != nil {
		return err
	}
	segments, objects, err := r.layout(ctx)
	if err != nil {
		return err
	}
	err = db.Update(ctx, func(tx *meta.Tx) error {
		*r.report = r.emptied()
		if r.old != nil {
			if err := tx.ForgetBucket(); err != nil {
				return err
			}
		}
		for _, step := range []func(*meta.Tx) error{r.putRegion, r.putKeyring, r.putOwners, r.putVersions, r.putGraves, r.putSnapshots, r.putPins} {
			if err := step(tx); err != nil {
				return err
			}
		}
		for _, o := range objects {
			if err := tx.InsertObject(o); err != nil {
				return err
			}
		}
		if err := tx.InsertSegments(segments); err != nil {
			return err
		}
		r.report.Segments, r.report.Objects = int64(len(segments)), int64(len(objects))
		return r.finish(tx)
	})
	if err != nil {
		return err
	}
	r.report.NotRebuilt = r.notRebuilt()
	r.step(PhaseMetadata, 1)
	return nil
}

// emptied is the report without what a transaction counts, which may run twice.
func (r *run) emptied() Report {
	x := *r.report
	return Report{
		Region: x.Region, Merge: x.Merge, DryRun: x.DryRun, Dump: x.Dump, NewKey: x.NewKey, Records: x.Records, Garbage: x.Garbage,
		Deleted: []snapferry.SnapshotID{}, Missing: []snapferry.SnapshotID{},
	}
}

// layout computes the rows of segments and objects: what no map reached is dead,
// and a segment without anything alive is left out. In a chain of which a
// version is not whole only what is not there is dead: it may be needed yet.
func (r *run) layout(ctx context.Context) (segments []meta.Segment, objects []meta.Object, err error) {
	keys := slices.SortedFunc(maps.Keys(r.inv.segments), lessKey)
	taken := map[snapferry.SegmentID]bool{}
	rows := map[*object]*meta.Object{}
	live := map[*object]int64{}
	for _, k := range keys {
		s := r.inv.segments[k]
		if _, known := r.proven[k.chain]; !known || s.n == 0 && !r.broken[k.chain] {
			continue // of no chain that has a version, or not needed
		}
		if taken[k.segment] {
			r.findings.damage(s.at().object.name, snapferry.VersionID{}, "segment %s is in two chains", k.segment)
			continue
		}
		taken[k.segment] = true
		row, alive, err := r.segmentRow(ctx, k.chain, s)
		if err != nil {
			return nil, nil, err
		}
		segments = append(segments, row)
		o := s.at().object
		live[o] += alive
		if rows[o] == nil {
			rows[o] = &meta.Object{Name: o.name, Size: o.size, Created: r.now, Chain: k.chain, State: meta.ObjectLive}
		}
	}
	for _, o := range r.inv.objects {
		row := rows[o]
		if row == nil {
			r.report.Garbage.Objects++
			r.report.Garbage.Bytes += o.size
			continue
		}
		for _, b := range o.bodies {
			row.Dead += b.Length
		}
		row.Dead -= live[o]
		objects = append(objects, *row)
	}
	slices.SortFunc(objects, func(a, b meta.Object) int { return cmp.Compare(a.Name, b.Name) })
	return segments, objects, nil
}

// segmentRow computes the row of a segment, and how many bytes of its body are
// needed.
func (r *run) segmentRow(ctx context.Context, id snapferry.ChainID, s *seg) (row meta.Segment, alive int64, err error) {
	b := s.at()
	f, err := r.inv.footer(ctx, b)
	if err != nil {
		return row, 0, err
	}
	row = meta.Segment{
		ID: s.id, Chain: id, Version: s.writer, Kind: b.header.Kind, State: meta.SegmentLive, Object: b.object.name,
		Offset: b.Offset, Length: b.Length, Generation: b.Generation, Slots: max(b.last, s.top) + 1,
	}
	if row.Version.IsZero() {
		row.Version = snapferry.VersionID(s.id) // nobody knows: an id that no version has
	}
	var dead slots
	for slot := range row.Slots {
		e, there := f.Find(uint16(slot))
		if s.reached.has(uint16(slot)) || there && r.broken[id] {
			continue
		}
		dead.add(uint16(slot))
		row.Dead++
		if there {
			row.DeadBytes += int64(e.Length)
		}
	}
	row.DeadSlots = dead
	return row, b.Length - row.DeadBytes, nil
}

func (r *run) putRegion(tx *meta.Tx) error {
	if err := tx.PutRegion(r.who.region); err != nil {
		return err
	}
	for _, k := range r.who.trusted {
		if err := tx.TrustKey(k, r.now); err != nil {
			return err
		}
	}
	return nil
}

// putOwners writes accounts, chains and volumes: those of the old metadata are
// there already.
func (r *run) putOwners(tx *meta.Tx) error {
	if err := r.putAccounts(tx); err != nil {
		return err
	}
	if err := r.putChains(tx); err != nil {
		return err
	}
	return r.putVolumes(tx)
}

func (r *run) putAccounts(tx *meta.Tx) error {
	have, used := map[snapferry.AccountID]bool{}, map[string]bool{}
	if r.old != nil {
		for id, a := range r.old.accounts {
			have[id], used[a.Name] = true, true
		}
	}
	if r.who.dump != nil {
		for _, a := range r.who.dump.Accounts {
			if !have[a.ID] {
				if err := tx.InsertAccount(meta.Account(a)); err != nil {
					return err
				}
			} else if r.who.newer && r.old.accounts[a.ID].TokenHash != a.TokenHash {
				if err := tx.SetAccountToken(a.ID, a.TokenHash); err != nil {
					return err
				}
			}
			have[a.ID], used[a.Name] = true, true
		}
	}
	// Without a dump the objects of the chains tell names, the records ids.
	for _, id := range sortedChains(r.chains) {
		account, name, created := r.accountOf(id)
		if account == "" || have[account] {
			continue
		}
		if name == "" || used[name] {
			name = string(account)
		}
		r.findings.note("", snapferry.VersionID{}, "account %s (%s) is back without its token; the configuration gives it one at the next start if it has that name", account, name)
		a := meta.Account{Account: snapferry.Account{ID: account, Name: name}, Created: created}
		if err := tx.InsertAccount(a); err != nil {
			return err
		}
		have[account], used[name] = true, true
	}
	r.report.Accounts = int64(len(have))
	return nil
}

// accountOf returns whose a chain is.
func (r *run) accountOf(id snapferry.ChainID) (account snapferry.AccountID, name string, created time.Time) {
	if c := r.chains[id].object; c != nil {
		return c.Account, c.AccountName, c.Created
	}
	for _, v := range r.forest.order[id] {
		return v.rec.Account, "", v.rec.Created
	}
	return "", "", time.Time{}
}

func sortedChains[T any](m map[snapferry.ChainID]T) []snapferry.ChainID {
	return slices.SortedFunc(maps.Keys(m), func(a, b snapferry.ChainID) int { return bytes.Compare(a[:], b[:]) })
}

func (r *run) putChains(tx *meta.Tx) error {
	rows := map[snapferry.ChainID]meta.Chain{}
	for _, id := range sortedChains(r.chains) {
		account, _, created := r.accountOf(id)
		row := meta.Chain{ID: id, Account: account, Algorithm: digest.SHA256, Created: created}
		if c := r.chains[id].object; c != nil {
			row.OriginRegion, row.OriginChain = c.OriginRegion, c.OriginChain
		}
		if account != "" {
			rows[id] = row
		}
	}
	maps.Copy(rows, r.keys.dumped)
	if r.old != nil {
		maps.Copy(rows, r.old.chains)
	}
	for _, id := range sortedChains(rows) {
		row := rows[id]
		row.WrappedKey = r.keyOf(id).WrappedKey
		proven, walked := r.proven[id]
		row.Proven = proven || !walked // without a version there is nothing to prove
		if err := tx.PutChain(row); err != nil {
			return err
		}
		r.chain(id).row = row
	}
	r.report.Chains = int64(len(rows))
	return nil
}

// putVolumes writes the lineages: those of the dump, then those that only
// records tell of.
func (r *run) putVolumes(tx *meta.Tx) error {
	rows := map[snapferry.VolumeID]meta.Volume{}
	for _, id := range sortedChains(r.forest.order) {
		for _, v := range r.forest.order[id] {
			row, ok := rows[v.volume]
			if !ok {
				row = meta.Volume{ID: v.volume, Account: r.chains[id].row.Account, Chain: id, Created: v.rec.Created}
			}
			rows[v.volume] = described(row, v)
		}
	}
	if r.who.dump != nil {
		for _, v := range r.who.dump.Volumes {
			rows[v.ID] = meta.Volume{
				ID: v.ID, Account: v.Account, Name: v.Name, Chain: v.Chain, OriginRegion: v.OriginRegion, OriginVolume: v.OriginVolume, Created: v.Created,
			}
		}
	}
	r.report.Volumes = int64(len(rows))
	if r.old != nil {
		for id := range r.old.volumes {
			if _, ok := rows[id]; !ok {
				r.report.Volumes++
			}
			delete(rows, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(rows)) {
		row := rows[id]
		if row.Name == "" {
			row.Name = string(id)
			r.findings.note("", snapferry.VersionID{}, "nothing tells the name of volume %s", id)
		}
		err := tx.InsertVolume(row)
		if snapferry.IsKind(err, snapferry.Exists) {
			r.findings.note("", snapferry.VersionID{}, "there are two volumes %s; %s is called %s-%s", row.Name, id, row.Name, id)
			row.Name += "-" + string(id)
			err = tx.InsertVolume(row)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// described adds what the holds of a version tell of its lineage.
func described(row meta.Volume, v *version) meta.Volume {
	for _, h := range v.holds {
		if h.Kind != record.HoldSnapshot {
			continue
		}
		if h.VolumeName != "" {
			row.Name = h.VolumeName
		}
		if h.SourceLineage != "" {
			row.OriginRegion, row.OriginVolume = h.SourceRegion, h.SourceLineage
		}
	}
	return row
}

func (r *run) putVersions(tx *meta.Tx) error {
	for _, id := range sortedChains(r.forest.order) {
		for _, v := range r.forest.order[id] {
			if err := r.putVersion(tx, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) putVersion(tx *meta.Tx, v *version) error {
	state := v.state
	if state == snapferry.VersionSealed && v.why != "" {
		state = snapferry.VersionBroken
	}
	r.report.Versions++
	switch {
	case v.why != "":
		r.report.Broken++
	case state == snapferry.VersionGhost:
		r.report.Ghosts++
	}
	rec := v.rec
	err := tx.InsertVersion(meta.Version{
		ID: v.id, Chain: rec.Chain, Volume: v.volume, Parent: v.parent, State: state, Size: rec.Size, Algorithm: rec.Algorithm, Digest: rec.Digest,
		Root: rec.Root, Blocks: rec.Blocks, Revision: rec.Revision, Reserved: v.highest, Token: rec.Token, Sequence: v.sequence,
		Created: rec.Created, Sealed: rec.Created,
	})
	if err != nil {
		return err
	}
	if v.stale {
		if err := tx.SetStale(v.id, true); err != nil {
			return err
		}
	}
	if state == snapferry.VersionGhost {
		return tx.SetDue(v.id, true)
	}
	for _, h := range v.holds {
		err := tx.PutHold(meta.Hold{Version: v.id, Kind: string(h.Kind), Owner: h.Owner, Created: h.Created})
		if err != nil {
			return err
		}
	}
	return nil
}

// putGraves remembers whose records are still to be removed.
func (r *run) putGraves(tx *meta.Tx) error {
	r.report.Forwarded = int64(len(r.forest.graves))
	if r.old != nil {
		for id, g := range r.old.graves {
			if r.forest.versions[id] == nil && r.forest.unusable[id] == nil {
				g.Child = snapferry.VersionID{}
				if err := tx.PutGrave(g); err != nil {
					return err
				}
			}
		}
	}
	for id, g := range r.forest.graves {
		row := meta.Grave{Version: id, Chain: g.v.rec.Chain, Revision: g.v.highest, Child: g.child}
		if r.old != nil {
			row.Loose = r.old.graves[id].Loose || r.old.versions[id].Loose
		}
		if err := tx.PutGrave(row); err != nil {
			return err
		}
	}
	return nil
}

// finish writes what remains: what was under way has ended, the audit, and why
// nothing is reclaimed, if so.
func (r *run) finish(tx *meta.Tx) error {
	if r.old != nil {
		if err := r.endWork(tx); err != nil {
			return err
		}
	}
	if err := r.putAudit(tx); err != nil {
		return err
	}
	for _, a := range r.Starts {
		have, err := tx.AuditOf(a.Subject)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(have, func(x meta.Audit) bool { return x.Action == a.Action && x.Detail == a.Detail }) {
			continue
		}
		if err := tx.AddAudit(a); err != nil {
			return err
		}
	}
	how := "from nothing"
	if r.Merge {
		how = "merged"
	}
	err := tx.AddAudit(meta.Audit{At: r.now, Action: actionRecover, Subject: string(r.Region), Detail: how})
	if err != nil {
		return err
	}
	number := uint64(0)
	if n := len(r.names.dumps); n > 0 {
		number, _ = dump.ParseName(r.names.dumps[n-1])
	}
	if err := tx.SetDumped(meta.Catalogue{Dump: number, Dumped: -1}); err != nil {
		return err
	}
	return tx.StopReclaim(r.stopReason())
}

// putAudit adds what the dump has of the audit beyond the old metadata: also
// later merges over that metadata need what it tells of deletions.
func (r *run) putAudit(tx *meta.Tx) error {
	if r.who.dump == nil || r.old != nil && !r.who.newer {
		return nil
	}
	for _, a := range r.who.dump.Audit {
		if r.old != nil && !a.At.After(r.old.audited) {
			continue
		}
		if err := tx.AddAudit(meta.Audit{At: a.At, Account: a.Account, Action: a.Action, Subject: a.Subject, Detail: a.Detail}); err != nil {
			return err
		}
	}
	return nil
}

// stopReason says why nothing may be reclaimed, "" when it may. A version whose
// record cannot be read may need anything. What a failed snapshot lacks, and the
// record of one that is missing, may be brought back, when nobody must take for
// garbage what belongs to it.
func (r *run) stopReason() string {
	var why []string
	for id, v := range r.forest.unusable {
		why = append(why, fmt.Sprintf("%d versions have records that cannot be read, one is %s; bring them back, or remove them, and recover again",
			len(r.forest.unusable), record.Name(id, v.highest)))
		break
	}
	if r.report.Failed > 0 {
		why = append(why, fmt.Sprintf("%d snapshots failed when the metadata was rebuilt; bring back what is missing, or delete them, and recover again", r.report.Failed))
	}
	if n := len(r.report.Missing); n > 0 {
		why = append(why, fmt.Sprintf("%d snapshots are missing and taken for deleted, one is %s; if they were deleted, stop the region and run: "+
			"snapferry recover --merge --accept-deleted; if not, bring their version records back first, and run it without --accept-deleted", n, r.report.Missing[0]))
	}
	return strings.Join(why, ". ")
}

// endWork ends the copies and jobs of the old metadata that were under way.
func (r *run) endWork(tx *meta.Tx) error {
	copies, err := tx.ActiveCopies()
	if err != nil {
		return err
	}
	jobs, err := tx.UnsettledJobs()
	if err != nil {
		return err
	}
	var release []meta.Copy
	for _, c := range copies {
		c.State, c.Reason, c.Finished, c.Reserved = snapferry.CopyFailed, reasonRecovered, r.now, false
		c.Ending, c.Metered = snapferry.EndedFailed, true
		if err := tx.UpdateCopy(c); err != nil {
			return err
		}
		release = append(release, c)
	}
	for _, id := range copiesOf(jobs) {
		c, err := tx.Copy(id)
		if snapferry.IsKind(err, snapferry.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(release, func(x meta.Copy) bool { return x.ID == c.ID }) {
			release = append(release, c)
		}
	}
	if err := tx.EndJobs(reasonRecovered, r.now); err != nil {
		return err
	}
	for _, c := range release {
		if r.Release == nil {
			break
		}
		if err := r.Release(tx, c.Account, c.ID); err != nil {
			return err
		}
	}
	return nil
}

// notRebuilt says in words what is not as it was.
func (r *run) notRebuilt() []string {
	all := []string{
		"imports and copies that were under way: they failed, and their objects are garbage that the region removes",
		"readers that kept deleted snapshots: they ended with the region",
		"counts of what snapshots moved, read and stored: only the bytes present are known",
		"the copy that made a snapshot, and the client tokens of requests: a request that is repeated is a new one",
		"the history of jobs",
		"usage records",
		"deletions that waited for the copies of other regions: these snapshots are ready again",
		"whether the content of blocks is sound: run fsck --deep",
	}
	if r.Merge {
		all = []string{
			"imports and copies that were under way: they failed, and their objects are garbage that the region removes",
			"of what happened after the metadata that was merged: counts of snapshots, client tokens of requests, the history of jobs, and usage records",
			"whether the content of blocks is sound: run fsck --deep",
		}
	}
	switch d := r.who.dump; {
	case d == nil && !r.Merge:
		all = append(all, "the tokens of accounts, names of volumes without a snapshot, and the audit: no dump was used")
	case d != nil && len(d.Audit) > 0:
		all = append(all, "lines of the audit after "+d.Audit[len(d.Audit)-1].At.UTC().Format(time.RFC3339)+", when the dump was written")
	}
	return all
}
