package mutation

const (
	transfer    = "internal/transfer"
	xferMemory  = transfer + "/memory.go"
	xferRun     = transfer + "/run.go"
	xferFill    = transfer + "/fill.go"
	vaultLeaf   = "internal/vault/leaf.go"
	ctlEstimate = control + "/copyprogress.go"
	xferAlways  = "if !ok && b.asks > 0 {\n"
	xferAlways2 = "func() bool { return b.asks == 0 }"
)

// transferList is the faults of the memory that copies share.
var transferList = []mutation{
	{
		name: "a copy that has nothing waits for memory", pkg: transfer, test: "TestMemory$",
		edits: []edit{{xferMemory, xferAlways, "if !ok {\n"}, {xferMemory, xferAlways2, "func() bool { return false }"}},
	},
	{
		name: "what has come of a leaf has what the rest of it waits for", pkg: transfer, test: "TestSharedMemory",
		edits: []edit{{xferRun, "if err := d.hand(ctx, p.leaf); err != nil {", "if err := ctx.Err(); err != nil {"}},
	},
	{
		name: "memory is given back before what is in it is stored", pkg: transfer, test: "TestSharedMemory",
		edits: []edit{{xferFill, "\t\tfilled = append(filled, p)\n", "\t\tr.used([]*part{p})\n"}},
	},
	{
		name: "who has more than a share does not wait for who has less", pkg: transfer, test: "TestMemoryPoorFirst",
		edits: []edit{{xferMemory, "m.beyond+more <= m.room() && (poor || others == 0), poor", "m.beyond+more <= m.room() && (poor || others <= 1<<20), poor"}},
	},
	{
		name: "who gives up waiting keeps others waiting", pkg: transfer, test: "TestMemoryCancel",
		edits: []edit{{xferMemory, "\t\t\tif poor {\n\t\t\t\tm.poor--\n\t\t\t\tm.change()\n\t\t\t}\n\t\t\treturn context.Cause", "\t\t\treturn context.Cause"}},
	},
	{
		name: "a copy that ends keeps its memory", pkg: transfer, test: "TestMemory$",
		edits: []edit{{xferMemory, "\tb.add(-b.used)\n", ""}},
	},
	{
		name: "a copy that ends keeps its chunks", pkg: transfer, test: "TestMemoryChunks",
		edits: []edit{{xferMemory, "\t\tm.put(p)\n\t}\n\tb.lent = nil\n", "\t\t_ = p\n\t}\n\tb.lent = nil\n"}},
	},
	{
		name: "blocks that have their places before the end of a leaf do not count", pkg: vault, test: "TestFlush",
		edits: []edit{{vaultLeaf, "\tl.stored += len(l.frames)\n", "\tl.stored = len(l.frames)\n"}},
	},
	{
		name: "time in which nothing came yet counts for the rate", pkg: control, test: "TestEstimatorBegin",
		edits: []edit{{ctlEstimate, "(e.first.at.IsZero() || bytes <= e.first.bytes)", "e.first.at.IsZero()"}},
	},
}
