package mutation

const (
	simulated = "internal/simtest"
	simTest   = "TestSimulation"
	linTest   = "TestLinearizable"

	showBegins = "// Snapshot returns a snapshot, with its progress while it is being made.\n"
	showEnds   = "\t\t\tout, err = r.shownIn(tx, s, nil)\n\t\t}\n\t\treturn err\n\t})\n\treturn out, err\n"
)

// orders is how many histories each of these faults has to show itself in.
var orders = []string{"-histories", "400", "-timeout", "10m"}

// worlds is how many worlds each of these faults has to show itself in.
var worlds = []string{"-seeds", "200", "-timeout", "30m"}

// moreWorlds is worlds for a fault that rarely meets the other one that it needs.
var moreWorlds = []string{"-seeds", "300", "-seed", "201", "-timeout", "30m"}

// otherWorlds are for a fault that none of the first ones meets.
var otherWorlds = []string{"-seeds", "200", "-seed", "601", "-timeout", "30m"}

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
		name: "in a world: frames are not compared with their digests", pkg: simulated, test: simTest, args: moreWorlds,
		edits: []edit{{vault + "/leaf.go", "\tif digest.Block(l.plain) != d {\n\t\treturn snapferry.Errorf(snapferry.Corrupt, \"block %d: %w\", at, digest.ErrMismatch)\n\t}\n\tif bytes.Equal(l.plain, zeros[:]) {\n\t\treturn snapferry.Errorf(snapferry.Corrupt, \"block %d is all zero", "\tif bytes.Equal(l.plain, zeros[:]) {\n\t\treturn snapferry.Errorf(snapferry.Corrupt, \"block %d is all zero"}},
	},
	{
		name: "in a world: a copy keeps what its source has no more, and its commit does not compare", pkg: simulated, test: simTest, args: otherWorlds,
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
	{
		name: "in a history: a deletion is answered before it is made", pkg: simulated, test: linTest, args: orders,
		edits: []edit{{ctlSnaps, "\tpinned, err := r.release(ctx, s)\n", "\tvar pinned bool\n\tgo func() { _, _ = r.release(context.WithoutCancel(ctx), s) }()\n"}},
	},
	{
		name: "in a history: two copies come of one token", pkg: simulated, test: linTest, args: orders,
		edits: []edit{{control + "/copies.go", "if err := tx.InsertRequest(q); err != nil {", "if err := tx.InsertRequest(q); err != nil && !snapferry.IsKind(err, snapferry.Exists) {"}},
	},
	{
		name: "in a history: a show is answered from what an earlier one saw", pkg: simulated, test: linTest, args: orders,
		edits: []edit{
			{ctlSnaps, "\t\"slices\"\n\t\"time\"\n", "\t\"slices\"\n\t\"sync\"\n\t\"time\"\n"},
			{ctlSnaps, showBegins, "var shownBefore sync.Map\n\n" + showBegins},
			{ctlSnaps, "\tvar s meta.Snapshot\n\tvar out snapferry.Snapshot\n", "\tif x, ok := shownBefore.LoadAndDelete(id); ok {\n\t\treturn x.(snapferry.Snapshot), nil\n\t}\n\tvar s meta.Snapshot\n\tvar out snapferry.Snapshot\n"},
			{ctlSnaps, showEnds, showEnds[:len(showEnds)-len("\treturn out, err\n")] + "\tif err == nil {\n\t\tshownBefore.Store(id, out)\n\t}\n\treturn out, err\n"},
		},
	},
	{
		name: "in a history: a copy is shown ready before its commit", pkg: simulated, test: linTest, args: orders,
		edits: []edit{{
			ctlSnaps, "\t\tout.Progress, out.Counts = x.show(), x.counts()\n",
			"\t\tout.Progress, out.Counts = x.show(), x.counts()\n\t\tif x.pull != nil && out.Progress.Done+snapferry.BlockSize >= out.Progress.Total {\n\t\t\tout.State = snapferry.SnapshotReady\n\t\t}\n",
		}},
	},
	{
		name: "in a history: a deletion that waits for pins takes effect at once", pkg: simulated, test: linTest, args: orders,
		edits: []edit{
			{ctlSnaps, "case len(pins) > 0:\n", "case len(pins) > 1<<20:\n"},
			{ctlSnaps, "if pinned = len(pins) > 0; pinned {", "if pinned = len(pins) > 1<<20; pinned {"},
		},
	},
	{
		name: "in a history: a cancelled copy becomes ready", pkg: simulated, test: linTest, args: orders,
		edits: []edit{
			{ctlCopyJob, "if err == nil && now.State.Terminal() {\n\t\t\terr = snapferry.Errorf(snapferry.Cancelled, \"copy", "if err == nil && now.State == \"\" {\n\t\t\terr = snapferry.Errorf(snapferry.Cancelled, \"copy"},
			{ctlSnaps, "return s.Version.String(), cancelJobs(tx, string(s.ID))", "return s.Version.String(), nil"},
		},
	},
}
