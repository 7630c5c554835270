package mutation

const (
	recovery  = "internal/recovery"
	recoChose = recovery + "/choose.go"
	recoRun   = recovery + "/recovery.go"
	recoBuild = recovery + "/build.go"
	recoOld   = recovery + "/old.go"
	recoShown = recovery + "/shown.go"
	recoLost  = recovery + "/missing.go"
	recoWalk  = recovery + "/walk.go"
	recoSegs  = recovery + "/segments.go"
	recoWho   = recovery + "/identity.go"
)

// recoveryList is the faults of recovery.
var recoveryList = []mutation{
	{
		name: "recovery takes the lowest revision of a record", pkg: recovery, test: "TestFromNothing",
		edits: []edit{{recoChose, "case v.rec == nil || x.record.Token >= v.rec.Token:", "case v.rec == nil:"}},
	},
	{
		name: "recovery takes the highest revision whatever its token", pkg: recovery, test: "TestZombieRecord",
		edits: []edit{{recoChose, "case v.rec == nil || x.record.Token >= v.rec.Token:", "case v.rec == nil || x.record != nil:"}},
	},
	{
		name: "recovery goes below what a newer program wrote", pkg: recovery, test: "TestNewerRecord",
		edits: []edit{{recoChose, "if newer > v.rec.Revision {", "if newer > 1<<60 {"}},
	},
	{
		name: "recovery believes a record whatever its name says", pkg: recovery, test: "TestWrongSignatures",
		edits: []edit{{recoChose, "case r.Version != x.version || r.Revision != x.revision:", "case false:"}},
	},
	{
		name: "recovery ignores signatures", pkg: recovery, test: "TestWrongSignatures",
		edits: []edit{{"record/decode.go", "if ed25519.Verify(k, signed, p[len(signed):]) {", "if ed25519.Verify(k, signed, p[len(signed):]) || true {"}},
	},
	{
		name: "recovery does not follow forwards", pkg: recovery, test: "TestForwards",
		edits: []edit{{recoChose, "\t\tif p.state != record.Forwarded {\n\t\t\tbreak\n", "\t\tif p != nil {\n\t\t\tbreak\n"}},
	},
	{
		name: "recovery leaves records that name who is gone", pkg: recovery, test: "TestForwards",
		edits: []edit{{recoChose, "v.stale = v.stale || v.parent != v.rec.Parent", "v.stale = v.stale || false"}},
	},
	{
		name: "recovery follows forwards in a circle", pkg: recovery, test: "TestLoops", args: []string{"-timeout", "20s"},
		edits: []edit{{recoChose, "case seen[at]:", "case false:"}},
	},
	{
		name: "recovery ignores pins", pkg: recovery, test: "TestFromNothing",
		edits: []edit{{recoRun, "if r.old == nil || h.Kind != record.HoldSnapshot {\n\t\t\treturn false", "if r.old == nil || h.Kind != record.HoldSnapshot {\n\t\t\treturn h.Kind == record.HoldPin"}},
	},
	{
		name: "a chain is proven without a proof", pkg: recovery, test: "TestRecordLost",
		edits: []edit{{recoRun, "r.proven[ids[i]] = !w.broken && !w.twice && !r.forest.unproven[ids[i]]", "r.proven[ids[i]] = !w.broken && !w.twice"}},
	},
	{
		name: "a chain with a broken version is proven", pkg: recovery, test: "TestObjectLost",
		edits: []edit{{recoRun, "r.proven[ids[i]] = !w.broken && !w.twice", "r.proven[ids[i]] = !w.twice"}},
	},
	{
		name: "what no map reaches is not dead", pkg: recovery, test: "TestFromNothing|TestHistories",
		edits: []edit{{recoBuild, "if s.reached.has(uint16(slot)) || there && r.broken[id] {", "if s.reached.has(uint16(slot)) || there {"}},
	},
	{
		name: "a version is believed because a broken one above has the same", pkg: recovery, test: "TestObjectLost",
		edits: []edit{{recoWalk, "v.node.above = p; !p.node.whole {", "v.node.above = p; false {"}},
	},
	{
		name: "a ghost needs the blocks that its deletion freed", pkg: recovery, test: "TestFromNothing|TestHistories", args: []string{"-histories", "40"},
		edits: []edit{{recoWalk, "if kind == snapferry.BlockFrame && spare[c.Ref.Segment].has(c.Ref.Slot) {", "if false && spare[c.Ref.Segment].has(c.Ref.Slot) {"}},
	},
	{
		name: "recovery trusts a directory, not the segment's footer", pkg: recovery, test: "TestDirectoriesThatLie",
		edits: []edit{{recoSegs, "if err == nil && f.Segment != b.Segment {", "if false {"}},
	},
	{
		name: "recovery takes the lowest generation of a segment", pkg: recovery, test: "TestHistories|TestGenerations",
		edits: []edit{{recoSegs, "cmp.Compare(b.Generation, a.Generation)", "cmp.Compare(a.Generation, b.Generation)"}},
	},
	{
		name: "recovery takes the highest generation, has it the slots or not", pkg: recovery, test: "TestGenerations",
		edits: []edit{{recoSegs, "if other == nil {\n\t\t\tvar all bool", "if other == nil && false {\n\t\t\tvar all bool"}},
	},
	{
		name: "of one generation recovery takes any", pkg: recovery, test: "TestSameGeneration",
		edits: []edit{{recoSegs, "if !differ {", "if differ || !differ {"}},
	},
	{
		name: "recovery takes the oldest dump", pkg: recovery, test: "TestDumps",
		edits: []edit{{recoWho, "for _, name := range slices.Backward(r.names.dumps) {", "for _, name := range r.names.dumps {"}},
	},
	{
		name: "recovery believes a dump under any name", pkg: recovery, test: "TestDumps",
		edits: []edit{{recoWho, "err == nil && (d.Number != n || d.Region.ID", "err == nil && (n == 0 || d.Region.ID"}},
	},
	{
		name: "a merge takes owners from a dump older than itself", pkg: recovery, test: "TestDumps",
		edits: []edit{{recoWho, "w.newer = w.dump != nil && w.dump.Number > r.old.catalogue.Dump", "w.newer = w.dump != nil"}},
	},
	{
		name: "earlier keys of the region are forgotten", pkg: recovery, test: "TestTrust",
		edits: []edit{{recoBuild, "range r.who.trusted {", "range r.who.trusted[:0] {"}},
	},
	{
		name: "what cannot be read stops nothing", pkg: recovery, test: "TestRecordLost",
		edits: []edit{{recoBuild, "\tfor id, v := range r.forest.unusable {\n\t\twhy", "\tfor id, v := range map[snapferry.VersionID]*version(nil) {\n\t\twhy"}},
	},
	{
		name: "failed snapshots stop nothing", pkg: recovery, test: "TestGiveUp",
		edits: []edit{{recoBuild, "\tif r.report.Failed > 0 {\n\t\twhy", "\tif r.report.Failed < 0 {\n\t\twhy"}},
	},
	{
		name: "recovery replaces metadata that is there", pkg: recovery, test: "TestTwice",
		edits: []edit{{recoRun, "case !r.Merge:\n\t\treturn snapferry.Errorf(snapferry.Exists", "case false:\n\t\treturn snapferry.Errorf(snapferry.Exists"}},
	},
	{
		name: "a merge with a bucket that is older", pkg: recovery, test: "TestRefusals",
		edits: []edit{{recoRun, "case old.region.Incarnation > r.Incarnation:", "case false:"}},
	},
	{
		name: "a merge brings back what was deleted", pkg: recovery, test: "TestMerge",
		edits: []edit{{recoShown, "if row.State = snapferry.SnapshotDeleting; row.Deleted.IsZero() {", "if row.Deleted.IsZero() && row.State != snapferry.SnapshotReady {"}},
	},
	{
		name: "a late record brings back what was deleted", pkg: recovery, test: "TestMergeMissing",
		edits: []edit{{recoRun, "\t\treturn gone\n", "\t\treturn gone && false\n"}},
	},
	{
		name: "a late record does not bring back what was missing", pkg: recovery, test: "TestMergeMissing",
		edits: []edit{{recoRun, "s.Version.IsZero() && !marked(s)", "s.Version.IsZero()"}},
	},
	{
		name: "a merge ends deletions that wait for pins", pkg: recovery, test: "TestMergeKeepsDeletions",
		edits: []edit{{recoShown, "row.Reason != reasonMissing && r.pinned(v):", "row.Reason != reasonMissing && false:"}},
	},
	{
		name: "what is missing is taken for deleted, and nobody asks", pkg: recovery, test: "TestMergeMissing",
		edits: []edit{{recoBuild, "if n := len(r.report.Missing); n > 0 {", "if n := len(r.report.Missing); n < 0 {"}},
	},
	{
		name: "a second merge forgets what is missing", pkg: recovery, test: "TestMergeMissing",
		edits: []edit{{recoLost, "\t\treturn marked(s)\n", "\t\treturn false\n"}},
	},
	{
		name: "a record without a parent proves a deletion", pkg: recovery, test: "TestMergeProofs",
		edits: []edit{{recoLost, "if !ok || to.IsZero() || ", "if !ok || "}},
	},
	{
		name: "an audit proves that nothing else held a version", pkg: recovery, test: "TestMergeProofs",
		edits: []edit{{recoLost, "&& !marked(s) && r.old.only(s) {", "&& !marked(s) {"}},
	},
	{
		name: "any line of the audit proves a deletion", pkg: recovery, test: "TestMergeProofs",
		edits: []edit{{recoLost, "if a.Action == actionDelete {", "if a.Action != \"\" {"}},
	},
	{
		name: "a merge heals from a past that the bucket is beyond", pkg: recovery, test: "TestMergeDoesNotHealFromThePast",
		edits: []edit{{recoOld, "state == snapferry.VersionOpen || old.Revision < v.highest {", "state == snapferry.VersionOpen {"}},
	},
	{
		name: "a merge goes back to an older record than it knows", pkg: recovery, test: "TestMergeNewestRecordLost",
		edits: []edit{{recoOld, "(v.unsure || old.Revision > v.highest)", "v.unsure"}},
	},
	{
		name: "a merge forgets who may still write records", pkg: recovery, test: "TestMergeKeepsLoose",
		edits: []edit{{recoBuild, "row.Loose = r.old.graves[id].Loose || r.old.versions[id].Loose\n", "_ = row\n"}},
	},
	{
		name: "copies go on over a merge without their versions", pkg: recovery, test: "TestMerge",
		edits: []edit{{recoBuild, "c.State, c.Reason, c.Finished, c.Reserved = snapferry.CopyFailed, reasonRecovered, r.now, false", "c.Finished = r.now"}},
	},
	{
		name: "what was read and proved wrong is not read anew", pkg: recovery, test: "TestWrongInCache",
		edits: []edit{{recovery + "/cache.go", "if err := c.add(name, 0, 0, nil); err != nil {", "if name == \"\" {\n\t\tvar err error"}},
	},
	{
		name: "an interrupted recovery leaves metadata", pkg: recovery, test: "TestResume",
		edits: []edit{{recoBuild, "meta.Config{Path: r.Path + Suffix}", "meta.Config{Path: r.Path}"}},
	},
	{
		name: "a dump of metadata that is behind covers a newer one", pkg: recovery, test: "TestNoDumpWhileBehind",
		edits: []edit{{recovery + "/catalogue.go", "if err != nil || stopped != \"\" {", "if err != nil || stopped == \"no\" {"}},
	},
	{
		name: "the dump is written before the chains' objects", pkg: recovery, test: "TestCatalogue",
		edits: []edit{{recovery + "/catalogue.go", "for i := range d.Chains {\n", "for i := range d.Chains[:0] {\n"}},
	},
	{
		name: "the last lines of the audit are lost at every stop", pkg: recovery, test: "TestCatalogue",
		edits: []edit{{recovery + "/catalogue.go", "\tc.last = time.Time{} // nobody writes one soon\n", ""}},
	},
}
