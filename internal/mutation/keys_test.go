package mutation

const (
	keystore    = "internal/keystore"
	ksStore     = keystore + "/keystore.go"
	kmsRing     = "internal/kms/keyring.go"
	ctlKeys     = control + "/keys.go"
	ctlDonors   = control + "/donors.go"
	vaultPurge  = vault + "/purge.go"
	headFetch   = "internal/head/fetch.go"
	kmsUsable   = "func (k *Keyring) with(ctx context.Context, n Name, fn func(*opened) error) error {\n\tif err := usable(n.Key); err != nil {\n"
	kmsUnusable = "func (k *Keyring) with(ctx context.Context, n Name, fn func(*opened) error) error {\n\tif err := error(nil); err != nil {\n"
)

// keysList is the faults of keys, and of what is done with sealed content.
var keysList = []mutation{
	{
		name: "a key that was disabled opens what is in memory", pkg: "internal/kms", test: "TestShut$",
		edits: []edit{{kmsRing, kmsUsable, kmsUnusable}},
	},
	{
		name: "what a service unwraps is believed", pkg: "internal/kms", test: "TestWrongAnswers",
		edits: []edit{{kmsRing, "n.Wrapped.Check[:]) != 1 {", "n.Wrapped.Check[:]) > 1 {"}},
	},
	{
		name: "a key that was wrapped again is not tried", pkg: "internal/kms", test: "TestRewrap",
		edits: []edit{{kmsRing, "return w, k.Prove(ctx, Name{n.Key, w, n.Context})", "return w, nil"}},
	},
	{
		name: "a keyring is not read back", pkg: keystore, test: "TestReadBack",
		edits: []edit{{ksStore, "if !bytes.Equal(back, p) {", "if len(back) == 0 {"}},
	},
	{
		name: "keys are those of every account", pkg: keystore, test: "TestKeyNames",
		edits: []edit{{keystore + "/keys.go", "if k.Account == account && (string(k.ID)", "if account != \"\" && (string(k.ID)"}},
	},
	{
		name: "an older keyring is put back", pkg: keystore, test: "TestHealing",
		edits: []edit{{ksStore, "(there.ring == nil || known.number > there.number) {", "there.ring == nil {"}},
	},
	{
		name: "secrets that were given up stay in the bucket", pkg: keystore, test: "TestDeletion",
		edits: []edit{{ksStore, "\t\tif n >= number {\n", "\t\tif n > 0 {\n"}},
	},
	{
		name: "a plain copy of what is encrypted is made", pkg: control, test: "TestCopyKeys",
		edits: []edit{{ctlKeys, "\t\tif d.Encrypted {\n", "\t\tif d.Encrypted && d.Size == 0 {\n"}},
	},
	{
		name: "a copy whose key is disabled ends", pkg: control, test: "TestKeyDisabledMeanwhile",
		edits: []edit{{ctlCopyPull, "if !passes(err) && !shut {", "if !passes(err) {"}},
	},
	{
		name: "keys that may not be used lend", pkg: control, test: "TestDonors$",
		edits: []edit{{ctlDonors, "\t\tif err := r.keys.Try(ctx, v.Chain); err != nil {", "\t\tif err := error(nil); err != nil {"}},
	},
	{
		name: "what a donor gives is the source's fault", pkg: transfer, test: "TestDonor$",
		edits: []edit{{xferFill, "if p.lent.Has(i) {", "if p.lent.Has(i) && fr.RawLength == 0 {"}},
	},
	{
		name: "what a donor gives comes before all else of a leaf", pkg: transfer, test: "TestDonor$",
		edits: []edit{{transfer + "/ask.go", "if p.lent != (blockmap.Bitmap{}) {\n", "if p.lent != (blockmap.Bitmap{}) && len(p.frames) == 0 {\n"}},
	},
	{
		name: "a record that could not be sealed is not written later", pkg: control, test: "TestDeleteUnderDisabledKey",
		edits: []edit{{vaultPurge, "\t\treturn tx.SetStale(row.ID, true)\n", "\t\treturn nil\n"}},
	},
	{
		name: "a chain without its key keeps its space", pkg: control, test: "TestPurgeUnderDisabledKey",
		edits: []edit{{vaultPurge, "if err := tx.SetProven(chain, false); err != nil {", "if err := error(nil); err != nil {"}},
	},
	{
		name: "a chain may come after the rotation of its key", pkg: control, test: "TestRotatedMeanwhile",
		edits: []edit{{keystore + "/chains.go", "have != c.Generation {", "have < c.Generation {"}},
	},
	{
		name: "the number of a chain's object is given again", pkg: control, test: "TestRotations",
		edits: []edit{{vault + "/chain.go", "max(highest+1, c.Number+1, least)", "c.Number + 1 + 0*(highest+least)"}},
	},
	{
		name: "an older wrapped key is put above a newer one", pkg: control, test: "TestRotations",
		edits: []edit{{vault + "/chain.go", "err == nil && have > least {", "err == nil && have > least && highest == 0 {"}},
	},
	{
		name: "a merge brings back an older wrapped key", pkg: "cmd/snapferry", test: "TestScripts/recover_keys",
		edits: []edit{{recovery + "/keys.go", "generation(wrapped) > generation(c.WrappedKey)", "len(wrapped) > 0"}},
	},
	{
		name: "who looked just before a block came fetches it again", pkg: "internal/head", test: "TestFetchOnce",
		edits: []edit{{headFetch, "have < snapferry.BlockSize {\n\t\treturn false", "have <= snapferry.BlockSize {\n\t\treturn false"}},
	},
}
