package mutation

const layer = "internal/layer"

// layerList is the faults of the layers of live volumes.
var layerList = []mutation{
	{
		name: "a page is encrypted under its number in the file", pkg: layer, test: "TestEncryptedFiles",
		edits: []edit{{layer + "/sealed.go", "first: uint64(stripe) * stripePages}", "first: 0}"}},
	},
	{
		name: "a hole of an encrypted layer is decrypted", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sealed.go", "\t\t\t\tholes |= 1 << i\n", "\t\t\t\tholes |= 0\n"}},
	},
	{
		name: "an encrypted layer is copied as it is", pkg: layer, test: "TestAbsorb",
		edits: []edit{{layer + "/write.go", "copier, ok := f.File.(Copier)", "copier, ok := f.File.(Copier)\n\tif x, is := f.File.(*sealedFile); is {\n\t\tcopier, ok = x.File.(Copier)\n\t}\n\tif x, is := from.File.(*sealedFile); is {\n\t\tfrom = &file{File: x.File}\n\t}"}},
	},
	{
		name: "a layer in the clear is taken for an encrypted one", pkg: layer, test: "TestKeyFile",
		edits: []edit{{layer + "/sealed.go", "case !has && slices.ContainsFunc(names, isContent):", "case false:"}},
	},
	{
		name: "a volume that is closed takes calls", pkg: "internal/head", test: "TestCloseBesideAll",
		edits: []edit{{"internal/head/volume.go", "\tv.closed = true\n", ""}},
	},
	{
		name: "a volume is closed under calls", pkg: "internal/head", test: "TestCloseBesideAll",
		edits: []edit{{"internal/head/volume.go", "\tv.use.Lock()\n\tv.closed = true\n\tv.use.Unlock()\n", "\tv.closed = true\n"}},
	},
	{
		name: "states are durable before their data", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\tif err := l.syncFiles((*stripe).dataFile); err != nil {\n\t\treturn err\n\t}\n", ""}, {layer + "/sync.go", "\treturn l.syncFiles((*stripe).mapFile)\n", "\tif err := l.syncFiles((*stripe).mapFile); err != nil {\n\t\treturn err\n\t}\n\treturn l.syncFiles((*stripe).dataFile)\n"}},
	},
	{
		name: "a sync forgets all stripes but two", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\t\tif f := of(s); f != nil &&", "\t\tif f := of(s); s.number < 2 && f != nil &&"}},
	},
	{
		name: "a sync forgets one map file", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\t\tif f := of(s); f != nil &&", "\t\tif f := of(s); f != nil && !(s.number == 255 && f == s.states.Load()) &&"}},
	},
	{
		name: "a sync forgets the directory of new files", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "if l.unlisted.Swap(false) {", "if false {"}},
	},
	{
		name: "the directory is synced after the maps", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\tif l.unlisted.Swap(false) {\n\t\tif err := l.fs.SyncDir(l.dir); err != nil {\n\t\t\treturn l.breaks(err)\n\t\t}\n\t}\n", ""}, {layer + "/sync.go", "\treturn l.syncFiles((*stripe).mapFile)\n", "\tif err := l.syncFiles((*stripe).mapFile); err != nil {\n\t\treturn err\n\t}\n\treturn l.fs.SyncDir(l.dir)\n"}},
	},
	{
		name: "a bitmap changes while a sync reads it", pkg: layer, test: "TestContainer|TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "c.frozen = true", "c.frozen = false"}},
	},
	{
		name: "states set during the data sync are written", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "maps[n].c.encode(", "first.stripe.maps[maps[n].number].Load().encode("}},
	},
	{
		name: "what is written during a sync of a file counts as synced", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "f.written.Swap(false) {\n\t\t\tif err := f.Datasync(); err != nil {\n\t\t\t\treturn l.breaks(err)\n\t\t\t}\n", "f.written.Load() {\n\t\t\tif err := f.Datasync(); err != nil {\n\t\t\t\treturn l.breaks(err)\n\t\t\t}\n\t\t\tf.written.Store(false)\n"}},
	},
	{
		name: "a file counts as written before the write", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/write.go", "\t\tn, err := f.WriteAt(p[done:done+k], at%StripeSize)\n\t\tf.wrote()\n", "\t\tf.wrote()\n\t\tn, err := f.WriteAt(p[done:done+k], at%StripeSize)\n"}},
	},
	{
		name: "a file counts as written before a patch", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/write.go", "\t\t_, err = f.WriteAt(p[:k], in)\n\t\tf.wrote()\n", "\t\tf.wrote()\n\t\t_, err = f.WriteAt(p[:k], in)\n"}},
	},
	{
		name: "a page is data before it is written", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/write.go", "\t\tn, err := f.WriteAt(p[done:done+k], at%StripeSize)\n", "\t\tl.mark(at/PageSize, int64(k/PageSize), Data, nil)\n\t\tn, err := f.WriteAt(p[done:done+k], at%StripeSize)\n"}},
	},
	{
		name: "a hole is punched before the page is durably below", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/write.go", "\tif err := l.Sync(); err != nil {\n\t\treturn err\n\t}\n\tfor _, e := range pages {\n\t\tif err := l.punch(e); err != nil {\n\t\t\treturn err\n\t\t}\n\t}\n\treturn nil\n", "\tfor _, e := range pages {\n\t\tif err := l.punch(e); err != nil {\n\t\t\treturn err\n\t\t}\n\t}\n\treturn l.Sync()\n"}},
	},
	{
		name: "what an earlier process wrote counts as synced", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/open.go", "\topen.written.Store(true)\n", ""}},
	},
	{
		name: "names that an earlier process made count as synced", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/open.go", "\tl.unlisted.Store(true)\n", ""}},
	},
	{
		name: "maps that could not be written are forgotten", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\tif failed {", "\tif false {"}},
	},
	{
		name: "a failed sync of the system is tried again", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\tl.broken.Store(&broken)\n", ""}},
	},
	{
		name: "a map that changes during its sync counts as written", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\ts.changed[i/64].And(^(uint64(1) << (i % 64)))\n", ""}, {layer + "/sync.go", "\tif failed {\n\t\tm.stripe.changed[m.number/64].Or(1 << (m.number % 64))\n\t}\n", "\tif !failed {\n\t\tm.stripe.changed[m.number/64].And(^(uint64(1) << (m.number % 64)))\n\t}\n"}},
	},
	{
		name: "maps are taken after the data sync", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/sync.go", "\tmaps := l.take()\n\terr := l.syncTaken(maps)", "\tvar maps []taken\n\terr := l.syncTaken(maps)"}, {layer + "/sync.go", "\tif err := l.writeMaps(maps); err != nil {", "\tmaps = l.take()\n\tif err := l.writeMaps(maps); err != nil {"}},
	},
	{
		name: "a caller shares a sync that began before its call", pkg: layer, test: "TestGroup",
		edits: []edit{{layer + "/sync.go", "\tr := g.next\n\tif r == nil {", "\tr := g.next\n\tif g.busy && r == nil && g.cur != nil {\n\t\tr = g.cur\n\t\tg.mu.Unlock()\n\t\t<-r.done\n\t\treturn r.err\n\t}\n\tif r == nil {"}, {layer + "/sync.go", "\tg.next = nil // who", "\tg.cur = g.next\n\tg.next = nil // who"}, {layer + "/sync.go", "\tnext *round //", "\tcur *round\n\tnext *round //"}},
	},
	{
		name: "a map page of one state is written as nothing", pkg: layer, test: "TestContainer",
		edits: []edit{{layer + "/container.go", "\t\t\tbinary.LittleEndian.PutUint64(p[8*i:], spread(c.uniform))", "\t\t\tbinary.LittleEndian.PutUint64(p[8*i:], 0)"}},
	},
	{
		name: "absorbing leaves zeros out", pkg: layer, test: "TestAbsorb",
		edits: []edit{{layer + "/write.go", "\t\tif s == Zero {\n\t\t\tif err := l.Zero(first, n); err != nil {\n\t\t\t\treturn err\n\t\t\t}\n", "\t\tif s == Zero {\n"}},
	},
	{
		name: "absorbing ends before the lower layer is durable", pkg: layer, test: "TestAbsorb",
		edits: []edit{{layer + "/write.go", "\t\tif !ok {\n\t\t\treturn l.Sync()\n\t\t}", "\t\tif !ok {\n\t\t\treturn nil\n\t\t}"}},
	},
	{
		name: "a new layer can be lost", pkg: layer, test: "TestPowerCuts",
		edits: []edit{{layer + "/layer.go", "\tif err := fsys.SyncDir(path.Dir(dir)); err != nil {\n\t\treturn nil, err\n\t}\n", "\t_ = path.Dir\n"}},
	},
	{
		name: "a descriptor is closed twice", pkg: layer, test: "TestCloseOnce",
		edits: []edit{{layer + "/osfs.go", "\t\tn := h.users.Load()\n\t\tif n < 0 {\n\t\t\treturn false\n\t\t}\n\t\tif h.users.CompareAndSwap(n, n+1) {\n\t\t\treturn true\n\t\t}\n", "\t\tif h.users.Add(1) > 0 {\n\t\t\treturn true\n\t\t}\n\t\th.leave()\n\t\treturn false\n"}},
	},
	{
		name: "a layer cannot be told from one of another size", pkg: layer, test: "TestCorrupt",
		edits: []edit{{layer + "/open.go", "; page >= end {", "; page >= 1<<40 {"}},
	},
	{
		name: "a data file that is too short is taken", pkg: layer, test: "TestCorrupt",
		edits: []edit{{layer + "/open.go", "size < (last+1)*PageSize {", "size < last {"}},
	},
}
