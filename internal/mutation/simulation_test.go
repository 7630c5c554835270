package mutation

const (
	simulated = "internal/simtest"
	simTest   = "TestSimulation"
)

// worlds is how many worlds each of these faults has to show itself in.
var worlds = []string{"-seeds", "200", "-timeout", "30m"}

// simulationList is faults that show only where whole regions live beside one
// another, and that the worlds of the simulation must come upon by chance.
var simulationList = []mutation{
	{
		name: "in a world: a deletion takes what another region reads", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{
			{ctlSnaps, "case len(pins) > 0:\n", "case len(pins) > 1<<20:\n"},
			{ctlSnaps, "if pinned = len(pins) > 0; pinned {", "if pinned = len(pins) > 1<<20; pinned {"},
		},
	},
	{
		name: "in a world: what is being deleted is pinned", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{ctlHost, ctlPinLooks, "\t\tvar err error\n"}},
	},
	{
		name: "in a world: the versions of a set are sealed one by one", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{vault + "/seal.go", sealsAll, sealsEach}},
	},
	{
		name: "in a world: the pin is released before the commit", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{ctlCopyJob, "\terr := transfer.Run(ctx, cfg)\n", "\t_ = from.Release(ctx, handleOf(m.member), \"\")\n\terr := transfer.Run(ctx, cfg)\n"}},
	},
	{
		name: "in a world: a pin whose answer was lost stays", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{ctlCopyJob, "\tif m.Pin == \"\" {\n", "\tif m.Pin == \"\" {\n\t\treturn nil\n\t}\n\tif m.Pin == \"\" {\n"}},
	},
	{
		name: "in a world: a release that the source did not hear is not repeated", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{ctlCopyJob, "\terr = from.Release(ctx, h, c.Ending)\n", "\t_ = from.Release(ctx, h, c.Ending)\n"}},
	},
	{
		name: "in a world: frames are not compared with their digests", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{vault + "/leaf.go", "\tif digest.Block(l.plain) != d {\n\t\treturn snapferry.Errorf(snapferry.Corrupt, \"block %d: %w\", at, digest.ErrMismatch)\n\t}\n\tif bytes.Equal(l.plain, zeros[:]) {\n\t\treturn snapferry.Errorf(snapferry.Corrupt, \"block %d is all zero", "\tif bytes.Equal(l.plain, zeros[:]) {\n\t\treturn snapferry.Errorf(snapferry.Corrupt, \"block %d is all zero"}},
	},
	{
		name: "in a world: a copy keeps what its source has no more, and its commit does not compare", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{
			{"internal/transfer/ahead.go", "return base != nil && base.Presence.Has(i)", "return false"},
			{ctlCopyJob, "\t\t\tWant: m.d.Digest, Also: holds,\n", "\t\t\tAlso: holds,\n"},
		},
	},
	{
		name: "in a world: deletion compares digests, not refs", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{"blockmap/only.go", "ok && SameRef(mine, theirs)", "ok && SameDigest(mine, theirs)"}},
	},
	{
		name: "in a world: a ghost with two children is spliced out", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{visit, "func (f *family) ends() bool {\n\treturn f.self.State == snapferry.VersionGhost && !f.waits() && f.n <= 1", "func (f *family) ends() bool {\n\treturn f.self.State == snapferry.VersionGhost && !f.waits()"}, {visit, "if f.n > 1 {", "if f.n > 1<<20 {"}},
	},
	{
		name: "in a world: a sweep takes what is being written", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{vault + "/sweep.go", "if err == nil && ver.State == snapferry.VersionOpen {", "if err == nil && ver.State == \"\" {"}, {"internal/meta/statements.go", "v.state = 'open') ORDER BY id LIMIT $2", "v.state = 'none') ORDER BY id LIMIT $2"}},
	},
	{
		name: "in a world: a checkpoint counts leaves that are not stored", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{vault + "/writer.go", "\tif err := w.pack.wait(); err != nil {\n\t\treturn err\n\t}\n\tcounts.Stored = w.counts().Stored // with what was being put\n\ttaken := w.pack.take()\n", "\ttaken := w.pack.take()\n"}},
	},
	{
		name: "in a world: progress reaches its end before the commit", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{
			{ctlCopyPull, "return min(done, max(total-snapferry.BlockSize, 0)) }", "return min(done, total) }"},
		},
	},
	{
		name: "in a world: what was received is metered twice", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{control + "/metering.go", "u.Bytes = moved[i]", "u.Bytes = 2 * moved[i]"}},
	},
	{
		name: "in a world: the folder of volumes is not durable", pkg: simulated, test: simTest, args: worlds,
		edits: []edit{{ctlLive, ctlSyncDir, ""}},
	},
}
