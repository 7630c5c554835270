package recovery

import (
	"context"
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/record"
)

// oldState is what the metadata knew that a merge goes on from.
type oldState struct {
	region    meta.Region
	keyring   meta.Keyring // number 0: none
	catalogue meta.Catalogue
	trusted   []ed25519.PublicKey
	audited   time.Time // the last line of the audit
	versions  map[snapferry.VersionID]meta.Version
	holds     map[snapferry.VersionID][]meta.Hold
	snapshots map[snapferry.SnapshotID]meta.Snapshot
	pins      map[string]meta.Pin
	graves    map[snapferry.VersionID]meta.Grave
	accounts  map[snapferry.AccountID]meta.Account
	chains    map[snapferry.ChainID]meta.Chain
	volumes   map[snapferry.VolumeID]meta.Volume
	healed    map[snapferry.VersionID]bool // taken from here: the record is damaged
}

// readOld reads metadata; NotFound when it is of no region.
func readOld(ctx context.Context, db *meta.DB) (*oldState, error) {
	s := &oldState{
		versions: map[snapferry.VersionID]meta.Version{}, holds: map[snapferry.VersionID][]meta.Hold{}, snapshots: map[snapferry.SnapshotID]meta.Snapshot{},
		pins: map[string]meta.Pin{}, graves: map[snapferry.VersionID]meta.Grave{}, accounts: map[snapferry.AccountID]meta.Account{},
		chains: map[snapferry.ChainID]meta.Chain{}, volumes: map[snapferry.VolumeID]meta.Volume{}, healed: map[snapferry.VersionID]bool{},
	}
	return s, db.View(ctx, func(tx *meta.Tx) (err error) {
		if s.region, err = tx.Region(); err != nil {
			return err
		}
		if s.catalogue, err = tx.Catalogue(); err != nil {
			return err
		}
		if s.trusted, err = tx.TrustedKeys(); err != nil {
			return err
		}
		if s.keyring, err = tx.Keyring(); err != nil && !snapferry.IsKind(err, snapferry.NotFound) {
			return err
		}
		last, err := tx.LastAudit(1)
		if err != nil {
			return err
		}
		for _, a := range last {
			s.audited = a.At
		}
		for _, read := range []func(*meta.Tx) error{s.readVersions, s.readSnapshots, s.readOwners} {
			if err := read(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *oldState) readVersions(tx *meta.Tx) error {
	rows, err := tx.AllVersions()
	if err != nil {
		return err
	}
	for _, v := range rows {
		s.versions[v.ID] = v
		if s.holds[v.ID], err = tx.Holds(v.ID); err != nil {
			return err
		}
	}
	graves, err := tx.Graves()
	for _, g := range graves {
		s.graves[g.Version] = g
	}
	return err
}

func (s *oldState) readSnapshots(tx *meta.Tx) error {
	rows, err := tx.AllSnapshots()
	if err != nil {
		return err
	}
	for _, n := range rows {
		s.snapshots[n.ID] = n
	}
	pins, err := tx.AllPins()
	for _, p := range pins {
		s.pins[p.ID] = p
	}
	return err
}

func (s *oldState) readOwners(tx *meta.Tx) error {
	accounts, err := tx.Accounts()
	if err != nil {
		return err
	}
	for _, a := range accounts {
		s.accounts[a.ID] = a
	}
	chains, err := tx.Chains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		s.chains[c.ID] = c
	}
	volumes, err := tx.Volumes()
	for _, v := range volumes {
		s.volumes[v.ID] = v
	}
	return err
}

// heal takes a version from the old metadata whose record of that very state is
// damaged, or missing above older ones: the metadata has all that a record has.
func (s *oldState) heal(f *forest, fs *findings) {
	for id, v := range f.unusable {
		if old, ok := s.versions[id]; ok && !v.newer && s.take(v, old) {
			delete(f.unusable, id)
			f.versions[id] = v
			fs.note("", id, "taken from the old metadata; its record is written again")
		}
	}
	for id, v := range f.versions {
		if old, ok := s.versions[id]; ok && (v.unsure || old.Revision > v.highest) && old.Revision > v.rec.Revision && s.take(v, old) {
			fs.note("", id, "taken from the old metadata; its record is written again")
		}
	}
}

// take makes a record of what the metadata has. It is refused for what the
// metadata does not know whole, or when the bucket has had a newer revision.
func (s *oldState) take(v *version, old meta.Version) bool {
	state := old.State
	if state == snapferry.VersionBroken {
		state = snapferry.VersionSealed
	}
	if state == snapferry.VersionOpen || old.Revision < v.highest {
		return false
	}
	v.rec = &record.Record{
		Version: old.ID, Revision: old.Revision, Chain: old.Chain, Parent: old.Parent, State: state, Region: s.region.Name,
		Account: s.chains[old.Chain].Account, Volume: old.Volume, Token: old.Token, Algorithm: old.Algorithm, Size: old.Size,
		Blocks: old.Blocks, Created: old.Created, Root: old.Root, Digest: old.Digest,
	}
	for _, h := range s.holds[old.ID] {
		if durable[record.HoldKind(h.Kind)] {
			v.rec.Holds = append(v.rec.Holds, record.Hold{Kind: record.HoldKind(h.Kind), Owner: h.Owner, Created: h.Created})
		}
	}
	v.highest = max(v.highest, old.Reserved)
	v.state, v.parent, v.holds, v.volume, v.stale = state, old.Parent, v.rec.Holds, old.Volume, true
	s.healed[old.ID] = true
	return true
}

// durable are the kinds of holds that records have.
var durable = map[record.HoldKind]bool{
	record.HoldSnapshot: true, record.HoldVolume: true, record.HoldPin: true, record.HoldLock: true, record.HoldBin: true,
}

// bury leaves out what the old metadata knows to be gone: records that somebody
// wrote too late, and that nobody names.
func (s *oldState) bury(f *forest) {
	named := map[snapferry.VersionID]bool{}
	for _, v := range f.versions {
		named[v.rec.Parent], named[v.rec.Forward] = true, true
	}
	for _, all := range []map[snapferry.VersionID]*version{f.versions, f.unusable} {
		for id, v := range all {
			g, ok := s.graves[id]
			if ok && v.highest <= g.Revision && !named[id] && v.state != record.Forwarded {
				delete(all, id)
			}
		}
	}
}

// visibleHold returns the first snapshot that a version has.
func visibleHold(v *version) snapferry.SnapshotID {
	if v == nil {
		return ""
	}
	i := slices.IndexFunc(v.holds, func(h record.Hold) bool { return h.Kind == record.HoldSnapshot })
	if i < 0 {
		return ""
	}
	return snapferry.SnapshotID(v.holds[i].Owner)
}
