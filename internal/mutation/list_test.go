package mutation

const (
	visit = "internal/vault/visit.go"
	seal  = "internal/vault/seal.go"
	life  = "internal/vault/life.go"
	vault = "internal/vault"
)

// many lets the random histories of a mutation's test be more than usual.
var many = []string{"-histories", "300"}

// list is every fault that the tests are known to catch, each with the test.
var list = []mutation{
	{
		name: "naive re-parenting: a ghost with two children is spliced out", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{visit, "func (f *family) ends() bool {\n\treturn f.self.State == snapferry.VersionGhost && !f.waits() && f.n <= 1", "func (f *family) ends() bool {\n\treturn f.self.State == snapferry.VersionGhost && !f.waits()"}, {visit, "if f.n > 1 {", "if f.n > 1<<20 {"}},
	},
	{
		name: "deletion prunes by digest", pkg: vault, test: "TestLifeAndDeath", args: many,
		edits: []edit{{"blockmap/only.go", "ok && SameRef(mine, theirs)", "ok && SameDigest(mine, theirs)"}},
	},
	{
		name: "deletion does not wait for open children", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{visit, "return f.open > 0 }", "return f.open > 1<<20 }"}},
	},
	{
		name: "deletion does not look at the parent", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{visit, "if !f.parent.ID.IsZero() {\n\t\tneighbours", "if false {\n\t\tneighbours"}},
	},
	{
		name: "nodes of a ghost that stays die with its blocks", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{visit, "\t\t\tnodes.add(c.Ref)\n\t\t\treturn nil\n", "\t\t\tbatch.add(c.Ref)\n\t\t\treturn nil\n"}},
	},
	{
		name: "a splice commits over other neighbours than it computed with", pkg: vault, test: "TestNeighboursChangeInASplice",
		edits: []edit{{visit, "if snapferry.IsKind(err, snapferry.NotFound) || err == nil && now.Edge != self.Edge {", "if snapferry.IsKind(err, snapferry.NotFound) {"}},
	},
	{
		name: "attach without a check of its parent", pkg: vault, test: "TestAttachToWhatGoes",
		edits: []edit{
			{life, "if parent.State != snapferry.VersionSealed || parent.Chain != row.Chain {", "if parent.Chain != row.Chain {"},
			{"internal/meta/versions.go", "if v.State == snapferry.VersionOpen && p.State == snapferry.VersionGhost {", "if false {"},
		},
	},
	{
		name: "sealing without settling", pkg: vault, test: "TestCrashInCopy|TestCheckpoint",
		edits: []edit{{seal, "\t\t\tdead.add(r)\n\t\t\tstored", "\t\t\tstored"}},
	},
	{
		name: "sealing after a restart without settling", pkg: vault, test: "TestCrashInCopy",
		edits: []edit{{seal, "\t\t\tif !live[s.ID].has(slot) {", "\t\t\tif false {"}},
	},
	{
		name: "a ghost is not looked at again when something changed beside it", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{seal, "row.State != snapferry.VersionGhost {\n\t\treturn err\n\t}\n\treturn tx.SetDue(id, true)", "row.State != snapferry.VersionGhost {\n\t\treturn err\n\t}\n\treturn nil"}},
	},
	{
		name: "the last hold drops and nobody is told", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{"internal/vault/holds.go", "\t\tif dead {\n\t\t\tif err := tx.SetDue(id, true)", "\t\tif false {\n\t\t\tif err := tx.SetDue(id, true)"}},
	},
	{
		name: "a version is buried while a record names it", pkg: vault, test: "TestForwardStaysWhileItIsNamed",
		edits: []edit{{visit, "return child.Stale, err", "return false && child.Stale, err"}},
	},
	{
		name: "the forward is written after the splice", pkg: vault, test: "TestForwardComesFirst",
		edits: []edit{{visit, "forwarded: true, forward: s.f.self.Parent,\n", "\n"}},
	},
	{
		name: "a late record of an aborted version is not known to be garbage", pkg: vault, test: "TestZombie",
		edits: []edit{{life, "if row.Reserved == 0 {", "if true {"}},
	},
	{
		name: "a record is written over a state that is past", pkg: "internal/meta", test: "TestConformance",
		edits: []edit{{"internal/meta/statements.go", "ELSE loose END WHERE id = $1 AND edge = $2", "ELSE loose END WHERE id = $1 AND $2 = $2"}},
	},
	{
		name: "a slot dies twice", pkg: "internal/meta", test: "TestConformance",
		edits: []edit{{"internal/meta/life.go", "s.DeadSlots[d.Slot/8]&bit == 0 {", "true {"}},
	},
	{
		name: "the object of the last dead slot is not condemned", pkg: vault, test: "TestLifeAndDeath",
		edits: []edit{{"internal/meta/life.go", "if free != \"\" {", "if false {"}},
	},
	{
		name: "compaction moves a segment from wherever it is", pkg: vault, test: "TestCompactorsRace",
		edits: []edit{{"internal/meta/statements.go", "WHERE id = $1 AND state = 'live' AND object = $2 AND generation = $3`", "WHERE id = $1 AND state = 'live' AND $2 = $2 AND $3 = $3`"}},
	},
	{
		name: "compaction takes objects from open versions", pkg: vault, test: "TestCompactLeavesOpen",
		edits: []edit{{"internal/meta/statements.go", "WHERE s.object = o.name AND v.state = 'open')", "WHERE s.object = o.name AND v.state = 'none')"}},
	},
	{
		name: "a merged object is deleted though its commit came", pkg: vault, test: "TestCrashInCompact",
		edits: []edit{{"internal/vault/compact.go", "live = err == nil && o.State != meta.ObjectWriting", "live = err == nil && o.State == \"\""}},
	},
	{
		name: "compaction does not check what it reads", pkg: vault, test: "TestDamagedIsLeftAlone",
		edits: []edit{{"internal/vault/merge.go", "if e.CRC != old.CRC {", "if e.CRC = old.CRC; false {"}},
	},
	{
		name: "a stale place is not looked up again", pkg: vault, test: "TestStaleAfterCompaction",
		edits: []edit{
			{"internal/vault/fetch.go", "if last || !stale(err) {", "if last || true {"},
			{"internal/vault/locate.go", "if err == nil || !stale(err) {", "if err == nil || true {"},
		},
	},
	{
		name: "the sweep takes what a running compaction has put", pkg: vault, test: "TestSweepRaces",
		edits: []edit{{"internal/vault/sweep.go", "if !snapferry.IsKind(err, snapferry.Conflict) {\n\t\t\t\t\treturn err // its job", "if false {\n\t\t\t\t\treturn err // its job"}},
	},
	{
		name: "the sweep deletes what only old metadata does not know", pkg: vault, test: "TestSweepUnderOldMetadata",
		edits: []edit{{"internal/vault/sweep.go", "} else if lost {", "} else if lost && false {"}},
	},
	{
		name: "an unknown record does not stop the sweep", pkg: vault, test: "TestUnknownRecord",
		edits: []edit{{"internal/vault/sweep.go", "if k.allowed(r.revision) {", "if true || k.allowed(r.revision) {"}},
	},
	{
		name: "what was deleted while a sweep listed is taken for unknown", pkg: vault, test: "TestSweepRaces",
		edits: []edit{{"internal/vault/sweep.go", "_, err := s.v.bucket.Size(ctx, r.name)\n", "var err error\n"}},
	},
	{
		name: "an old metadata aborts what was sealed since", pkg: vault, test: "TestBehindOpen",
		edits: []edit{{"internal/vault/behind.go", "if last > row.Reserved {", "if false {"}},
	},
	{
		name: "a record is written above one that the metadata does not know", pkg: vault, test: "TestBehindHolds",
		edits: []edit{{"internal/vault/revise.go", "if snapferry.IsKind(err, snapferry.Exists) {", "if false {"}},
	},
	{
		name: "records are written while the metadata is known to be behind", pkg: vault, test: "TestBehindHolds",
		edits: []edit{{"internal/vault/revise.go", "\t\treturn notBehind(tx)\n", "\t\treturn nil\n"}},
	},
	{
		name: "leaves that a checkpoint has not count as changed", pkg: vault, test: "TestChangedIsOfLeavesInOrder",
		edits: []edit{
			{"internal/vault/leaf.go", "\treturn l.w.deliver(", "\tl.w.changed.Add(int64(len(l.frames)) * snapferry.BlockSize)\n\treturn l.w.deliver("},
			{"internal/vault/writer.go", "\t\tw.changed.Add(d.changed)\n", ""},
		},
	},
}
