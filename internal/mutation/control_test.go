package mutation

const (
	control     = "internal/control"
	ctlUpkeep   = control + "/upkeep.go"
	ctlSnaps    = control + "/snapshots.go"
	ctlHost     = control + "/host.go"
	ctlLive     = control + "/live.go"
	ctlSyncDir  = "\tif err := r.files.FS.SyncDir(\".\"); err != nil {\n\t\treturn err\n\t}\n"
	ctlPinLooks = "\t\tnow, err := own(tx, s.Account, s.ID)\n\t\tif err != nil {\n\t\t\treturn err\n\t\t}\n\t\tif err := checkReady(now); err != nil {\n\t\t\treturn err\n\t\t}\n"
	storage     = "internal/meta/storage.go"
	ctlCopyJob  = control + "/copyjob.go"
	ctlCopyPull = control + "/copypull.go"
	ctlQueue    = control + "/copyqueue.go"
	ctlNobodys  = "if err := run.Check(tx); err != nil {\n\t\t\t\t\treturn err\n\t\t\t\t}\n\t\t\t\treturn r.endCopy"
	// The versions of a set as one, and one by one.
	sealsAll    = "\tfirst.v.reviseAll(ctx, fence, rs, true)\n"
	sealsEach   = "\tfor _, r := range rs {\n\t\tfirst.v.reviseAll(ctx, fence, []*revision{r}, true)\n\t}\n"
	ctlAroundOf = "\t\treturn freeAround(tx, s.Version)\n"
)

// controlList is the faults of the control plane.
var controlList = []mutation{
	{
		name: "an export does not hold what it reads", pkg: control, test: "TestDeleteDuringExport",
		edits: []edit{{ctlSnaps, "if release, err = r.vault.Reading(ctx, version, freeAfter(version)); err != nil {", "if release = func() {}; err != nil {"}},
	},
	{
		name: "a deletion does not look at pins", pkg: control, test: "TestDeleteWhilePinned",
		edits: []edit{
			{ctlSnaps, "case len(pins) > 0:\n", "case len(pins) > 1<<20:\n"},
			{ctlSnaps, "if pinned = len(pins) > 0; pinned {", "if pinned = len(pins) > 1<<20; pinned {"},
		},
	},
	{
		name: "why an import failed is forgotten before it is on record", pkg: control, test: "TestReasonOfFailedImport",
		edits: []edit{{control + "/imports.go", "\tr.reasons[id] = err\n", ""}},
	},
	{
		name: "the end of the last pin does not end the deletion that waits", pkg: control, test: "TestDeleteWhilePinned",
		edits: []edit{{ctlHost, "\treturn h.finishDelete(ctx, p.Snapshot)\n", "\treturn nil\n"}},
	},
	{
		name: "a release cut short leaves the deletion that waits", pkg: control, test: "TestReleaseCutShort",
		edits: []edit{
			{ctlHost, "if err := h.finishDelete(ctx, x.Snapshot); err != nil &&", "if err := error(nil); err != nil &&"},
			{ctlUpkeep, "if err := r.finishDeletes(ctx); err != nil {", "if err := error(nil); err != nil {"},
		},
	},
	{
		name: "a pin that is there is made again", pkg: control, test: "TestPinAgainAfterRestart",
		edits: []edit{{ctlHost, "if pinned = err == nil && have.Snapshot == s.ID; pinned {", "if pinned = err != nil && have.Snapshot == s.ID; pinned {"}},
	},
	{
		name: "who pins is not asked for", pkg: control, test: "TestPinsAreTheirRegions",
		edits: []edit{{ctlHost, "err == nil && p.Region != c.Region {", "err == nil && p.Region == \"\" {"}},
	},
	{
		name: "the job of a deletion comes after its answer", pkg: control, test: "TestDeleteFreesAll",
		edits: []edit{{ctlSnaps, ctlAroundOf, "\t\treturn nil\n"}},
	},
	{
		name: "what became due by a deletion is left", pkg: control, test: "TestDeleteFreesNeighbours",
		edits: []edit{{ctlUpkeep, "\t\t\t\terr = verr\n\t\t\t}\n\t\t}\n", "\t\t\t\terr = verr\n\t\t\t}\n\t\t}\n\t\treturn false, err\n"}},
	},
	{
		name: "a start does not take up deletions", pkg: control, test: "TestStartTakesUp",
		edits: []edit{
			{ctlUpkeep, "\tif err == nil {\n\t\terr = r.enqueueAll(ctx)\n\t}\n\treturn err\n", "\treturn err\n"},
			{ctlUpkeep, "\tif err := r.enqueueAll(ctx); err != nil {\n\t\treturn again(err)\n\t}\n", ""},
		},
	},
	{
		name: "naive re-enqueue: a job that runs counts as one to come", pkg: control, test: "TestSweepComesAgain",
		edits: []edit{{
			ctlUpkeep, "if _, err := tx.QueuedJob(j.Kind, j.Subject); !snapferry.IsKind(err, snapferry.NotFound) {\n\t\treturn err\n\t}\n\tj.Lane",
			"all, err := tx.UnsettledJobs()\n\tif err != nil {\n\t\treturn err\n\t}\n\tfor _, x := range all {\n\t\tif x.Kind == j.Kind && x.Subject == j.Subject {\n\t\t\treturn nil\n\t\t}\n\t}\n\tj.Lane",
		}},
	},
	{
		name: "a job of upkeep writes with a lost lease", pkg: control, test: "TestLostLease",
		edits: []edit{{ctlUpkeep, "r.vault.VisitAll(ctx, part, run.Check, st)", "r.vault.VisitAll(ctx, part, nil, st)"}},
	},
	{
		name: "objects go before their grace", pkg: control, test: "TestGrace",
		edits: []edit{{ctlUpkeep, "time.Now().Add(-r.grace), run.Check)", "time.Now(), run.Check)"}, {ctlUpkeep, "RunAfter: first[0].Since.Add(r.grace)}", "RunAfter: first[0].Since}"}},
	},
	{
		name: "copies of one lineage run beside each other", pkg: control, test: "TestQueueOfOneLineage",
		edits: []edit{{ctlQueue, "if first, busy := t.lineages[m.VolumeID]; busy {", "if first, busy := t.lineages[m.VolumeID]; busy && first == \"\" {"}},
	},
	{
		name: "the quota of an account does not count", pkg: control, test: "TestQuotas|TestDeadlineComesFirst",
		edits: []edit{{ctlQueue, "if n := t.running[c.Account]; n >= t.quotas[c.Account].Copies {", "if n := t.running[c.Account]; n > 1<<20 {"}},
	},
	{
		name: "accounts do not take turns", pkg: control, test: "TestCopyQueue",
		edits: []edit{{ctlQueue, "case best < 0 || t.running[c.Account] < t.running[t.waiting[best].Account]:", "case best < 0:"}},
	},
	{
		name: "a deadline does not come first", pkg: control, test: "TestDeadlineComesFirst",
		edits: []edit{{ctlQueue, "return a.Deadline.Compare(b.Deadline)", "return 0"}},
	},
	{
		name: "a refused copy leaves its pin", pkg: control, test: "TestQuotas",
		edits: []edit{{control + "/copies.go", "\t\tif err := r.hasRoom(tx, account); err != nil {\n\t\t\treturn err\n\t\t}\n\t\tif err := r.canPromise", "\t\tif err := r.canPromise"}, {control + "/copies.go", "\t\treturn enqueueDiscard(tx, c.Account, discardPayload{Copy: id})", "\t\treturn nil"}},
	},
	{
		name: "a forced deletion leaves the pins", pkg: control, test: "TestForcedDelete",
		edits: []edit{{ctlSnaps, "case force && len(pins) > 0:", "case force && len(pins) > 1<<20:"}},
	},
	{
		name: "the versions of a set are sealed one by one", pkg: control, test: "TestCopySetCutShort",
		edits: []edit{{vault + "/seal.go", sealsAll, sealsEach}},
	},
	{
		name: "a set of which a snapshot was deleted is copied", pkg: control, test: "TestCopySet",
		edits: []edit{{control + "/host.go", "case len(ids) < size:", "case len(ids) < 1:"}},
	},
	{
		name: "a copy of a set waits for one lineage only", pkg: control, test: "TestCopySetTurn",
		edits: []edit{{ctlQueue, "\tfor _, m := range c.Members {\n\t\tif first, busy", "\tfor _, m := range c.Members[:1] {\n\t\tif first, busy"}},
	},
	{
		name: "deleting a snapshot of a set leaves the others", pkg: control, test: "TestCopySetEnds",
		edits: []edit{{ctlSnaps, "\tfor i, m := range c.Members {\n\t\ts, err := tx.Snapshot", "\tfor i, m := range c.Members[:1] {\n\t\ts, err := tx.Snapshot"}},
	},
	{
		name: "of a set one snapshot is metered", pkg: control, test: "TestCopySet",
		edits: []edit{{control + "/metering.go", "\tfor i, m := range c.Members {\n", "\tfor i, m := range c.Members[:1] {\n"}},
	},
	{
		name: "what was asked before a pin was taken again ends the copy", pkg: control, test: "TestBreakPinSeenLate",
		edits: []edit{{control + "/pins.go", "\tif cause := context.Cause(ctx); endsRun(cause) {\n\t\treturn cause\n\t}\n", ""}},
	},
	{
		name: "a volume does not look why the source is not found", pkg: control, test: "TestReadAfterBrokenPin",
		edits: []edit{{control + "/early.go", "\t\terr = g.blame(ctx, err)\n", ""}},
	},
	{
		name: "what has settled just now is not deleted", pkg: control, test: "TestDeleteOfSettledJustNow",
		edits: []edit{{ctlSnaps, "errors.Is(err, errSettled) {", "errors.Is(err, errSettled) && false {"}},
	},
	{
		name: "a pin that is taken again for a copy that has ended stays", pkg: control, test: "TestPinTakenTooLate",
		edits: []edit{{control + "/pins.go", "if err != nil || !c.State.Terminal() {\n\t\treturn errTakenAgain", "if err != nil || true {\n\t\treturn errTakenAgain"}},
	},
	{
		name: "who is stopped does not give back the pin that it took", pkg: control, test: "TestPinTakenTooLate",
		edits: []edit{{control + "/pins.go", "context.WithTimeout(context.WithoutCancel(ctx), renewTime)", "context.WithTimeout(ctx, renewTime)"}},
	},
	{
		name: "a deletion that nobody finished waits on", pkg: control, test: "TestDeleteAfterRelease",
		edits: []edit{{ctlSnaps, "\t\treturn Host{r}.finishDelete(ctx, id) // whoever", "\t\treturn nil // whoever"}},
	},
	{
		name: "a copy does not renew its pin", pkg: control, test: "TestForcedDeleteUnseen",
		edits: []edit{{control + "/pins.go", "\t\t\tif err := r.renew(ctx, from, &p.copy); err != nil {", "\t\t\tif err := ctx.Err(); err != nil {"}},
	},
	{
		name: "a copy does not look at its pin before its commit", pkg: control, test: "TestForcedDeleteUnseen",
		edits: []edit{{ctlCopyJob, "\tstop()\n\tif err := r.renew(ctx, from, c); err != nil {\n\t\treturn err\n\t}\n", "\tstop()\n"}},
	},
	{
		name: "a copy does not look why its pin is gone", pkg: control, test: "TestBreakPin",
		edits: []edit{{control + "/pins.go", "if !snapferry.IsKind(err, snapferry.NotFound) || ctx.Err() != nil {\n\t\treturn err", "if err != nil {\n\t\treturn err"}},
	},
	{
		name: "who breaks a pin need not be an operator", pkg: control, test: "TestBreakPin",
		edits: []edit{{control + "/pins.go", "if err == nil && !r.operators[a.Name] {", "if err == nil && r.operators[a.Name] {"}},
	},
	{
		name: "a region disowns what it still needs", pkg: control, test: "TestDisown",
		edits: []edit{{control + "/pins.go", "if err == nil && !c.State.Terminal() {", "if err == nil && c.State.Terminal() {"}},
	},
	{
		name: "what a copy moved is metered again", pkg: control, test: "TestMetering",
		edits: []edit{{control + "/metering.go", "if err != nil || c.Metered || !c.State.Terminal()", "if err != nil || !c.State.Terminal()"}},
	},
	{
		name: "a copy that is cancelled is not metered", pkg: control, test: "TestMetering",
		edits: []edit{{control + "/metering.go", "moved[k] += seen.part(k).Moved", "moved[k] += 0 * seen.part(k).Moved"}},
	},
	{
		name: "a lower rate does not reach a copy under way", pkg: control, test: "TestLimitsHold",
		edits: []edit{{control + "/copypace.go", "\t\tb.own.Set(rate)\n", "\t\t_ = b\n"}, {control + "/copypace.go", "\t\t\tl.copies[id].own.Set(active[i].Rate)\n", ""}},
	},
	{
		name: "a promise does not count the promises before it", pkg: control, test: "TestDeadlines",
		edits: []edit{{control + "/copydeadline.go", "\t\tsum += n.bytes\n", "\t\tsum = n.bytes\n"}},
	},
	{
		name: "promises of an account over other links do not count", pkg: control, test: "TestPromises",
		edits: []edit{{control + "/copydeadline.go", "\t\tif x.Account == c.Account {\n", "\t\tif x.Account == c.Account && x.Source.Region == \"\" {\n"}},
	},
	{
		name: "a full bucket uses up no patience", pkg: control, test: "TestCopyIntoFull",
		edits: []edit{{ctlCopyPull, "return m.done() > m.seen.Done })", "return m != nil })"}},
	},
	{
		name: "a copy that has ended keeps its pin", pkg: control, test: "TestCopyAndIncrement|TestCancelByDelete",
		edits: []edit{{ctlCopyJob, "if err != nil || !c.State.Terminal() {\n\t\treturn err", "if err != nil || c.State.Terminal() {\n\t\treturn err"}},
	},
	{
		name: "a failed change of holds is not repaired", pkg: control, test: "TestDeleteThatFails",
		edits: []edit{{ctlSnaps, "if rerr := r.db.Update(context.WithoutCancel(ctx), freeAfter(version)); rerr != nil {", "if rerr := error(nil); rerr != nil {"}},
	},
	{
		name: "a volume that was put back since follows older metadata", pkg: control, test: "TestVolumesAreAdopted",
		edits: []edit{{"internal/head/advance.go", " || old.layers[n-1].number != frozen {", " {"}, {"internal/head/advance.go", "if n <= old.clean ||", "if n < old.clean ||"}},
	},
	{
		name: "snapshots that were to lie on an abandoned copy wait for ever", pkg: control, test: "TestAbandonedCopy",
		edits: []edit{{control + "/early.go", "if err := failUploads(tx, h); err != nil {", "if err := error(nil); err != nil {"}},
	},
	{
		name: "a volume in error is still served when it is gone", pkg: control, test: "TestAbandonedCopy",
		edits: []edit{{control + "/volumes.go", "\tr.stopServing(id, l) // one in error may still have been exported\n", ""}},
	},
	{
		name: "a volume is made of a copy that is given up", pkg: control, test: "TestVolumeOfFailingCopy",
		edits: []edit{{control + "/volumes.go", "case s.Reason != \"\":", "case false:"}},
	},
	{
		name: "a volume is opened as if the layer of its base took the writes", pkg: control, test: "TestNoRoomToBeTold",
		edits: []edit{{control + "/live.go", "frozen = row.Layer //", "frozen = 0 //"}},
	},
	{
		name: "a volume that cannot be told of its base is not opened", pkg: control, test: "TestNoRoomToBeTold",
		edits: []edit{{control + "/live.go", "if !snapferry.IsKind(err, snapferry.Full) {", "if true {"}},
	},
	{
		name: "what was uploaded is not made room of", pkg: control, test: "TestUploadedCountsForBudget",
		edits: []edit{{control + "/uploads.go", "r.files.Caches.Trim() //", "//"}},
	},
	{
		name: "an upload that was interrupted begins anew", pkg: control, test: "TestUploadGoesOn",
		edits: []edit{{"internal/vault/import.go", "if update && w.Finished(leaf) {", "if false {"}},
	},
	{
		name: "what volumes read of a copy before a restart crosses again", pkg: control, test: "TestVolumeOfRunningCopy",
		edits: []edit{{ctlCopyJob, "\t\tdefer r.files.Caches.Hold(m.row.Version, keys)()\n", "\t\t_ = keys\n"}},
	},
	{
		name: "the folder of all volumes is not durable", pkg: control, test: "TestFirstVolumeSurvives",
		edits: []edit{{ctlLive, ctlSyncDir, ""}},
	},
	{
		name: "a pin does not look at its snapshot again", pkg: control, test: "TestPinOfDeleted",
		edits: []edit{{ctlHost, ctlPinLooks, "\t\tvar err error\n"}},
	},
	{
		name: "a pin of what was deleted just now is a conflict", pkg: control, test: "TestDeletedJustNow",
		edits: []edit{{ctlHost, "h.orRepair(ctx, s.Version, h.deleted(ctx, s.ID, err))", "h.orRepair(ctx, s.Version, err)"}},
	},
	{
		name: "a forced deletion is refused when another was faster", pkg: control, test: "TestForcedDeleteTooLate",
		edits: []edit{{control + "/pins.go", "if snapferry.IsKind(verr, snapferry.NotFound) {", "if false {"}},
	},
	{
		name: "a volume is made of what was deleted just now", pkg: control, test: "TestVolumeOfDeleted",
		edits: []edit{{control + "/volumes.go", "\t\tif err := checkReady(now); err != nil {\n\t\t\treturn err\n\t\t}\n\t\trow, err", "\t\t_ = now\n\t\trow, err"}},
	},
	{
		name: "a repeated request fails though the first did not", pkg: control, test: "TestRepeatedMeanwhile",
		edits: []edit{{control + "/copies.go", "if err != nil && req.Token != \"\" {", "if snapferry.IsKind(err, snapferry.Exists) && req.Token != \"\" {"}},
	},
	{
		name: "what is deleted while it begins is not found", pkg: control, test: "TestDeletedWhileItBegins",
		edits: []edit{{ctlSnaps, "\t\treturn r.shown(s), nil\n", "\t\treturn now, err\n"}},
	},
	{
		name: "what changes is not metered until then", pkg: control, test: "TestStorageIsMetered",
		edits: []edit{{storage, "\tif _, err := tx.meterStored(id, now); err != nil {\n\t\treturn err\n\t}\n\treturn tx.run(storageAdd", "\treturn tx.run(storageAdd"}},
	},
	{
		name: "the last part of a day is not metered", pkg: control, test: "TestStorageIsMetered",
		edits: []edit{{ctlSnaps, "tx.MeterStored(s.Version, now); err != nil {", "error(nil); err != nil {"}},
	},
	{
		name: "days that were missed become one", pkg: control, test: "TestStorageIsMetered",
		edits: []edit{{storage, "args := []any{limit, millis(nextDay(first))}", "args := []any{limit, millis(startOfDay(now))}"}},
	},
	{
		name: "a start does not meter the days before", pkg: control, test: "TestStorageIsMetered",
		edits: []edit{{control + "/control.go", "if err := r.MeterDays(ctx, time.Now()); err != nil {", "if err := error(nil); err != nil {"}},
	},
	{
		name: "what a deleted snapshot leaves is nobody's", pkg: control, test: "TestStorageIsMetered",
		edits: []edit{{visit, "tx.HandStored(f.self.ID, grave.Child,", "tx.HandStored(f.self.ID, snapferry.VersionID{},"}},
	},
	{
		name: "what is freed is stored on", pkg: control, test: "TestStorageIsMetered",
		edits: []edit{{visit, "err = tx.AddStored(id, -f.bytes, time.Now())", "err = tx.AddStored(id, 0, time.Now())"}},
	},
	{
		name: "what is not counted becomes counted by what it is given to", pkg: control, test: "TestStorageIsCounted",
		edits: []edit{{storage, "\treturn tx.ForgetStored(to, now)\n", "\treturn nil\n"}},
	},
	{
		name: "what is dead counts as stored", pkg: control, test: "TestStorageIsCounted",
		edits: []edit{{vault + "/stored.go", "\t\tif fresh {\n", "\t\tif fresh || true {\n"}},
	},
	{
		name: "what an earlier run wrote is not stored", pkg: vault, test: "TestResume",
		edits: []edit{{seal, "\t\t\tstored += int64(n)\n\t\t}\n\t}\n\treturn dead, stored, nil", "\t\t}\n\t}\n\treturn dead, w.pack.allFrames(), nil"}},
	},
	{
		name: "what a volume reads when its copy commits is not metered", pkg: control, test: "TestReadAtTheEnd",
		edits: []edit{{ctlCopyJob, "\t\t\t\tm.early.shut()\n", ""}},
	},
	{
		name: "an upload that goes on shows that it begins", pkg: control, test: "TestUploadProgressStays",
		edits: []edit{{control + "/uploads.go", "\t\tshown.Store(done)\n", "\t\t_ = done\n"}},
	},
	{
		name: "an upload shows what is not durable", pkg: control, test: "TestUploadProgressStays",
		edits: []edit{{control + "/uploads.go", "done: shown.Load, counts: counts})", "done: st.Done.Load, counts: counts})"}},
	},
	{
		name: "an upload over another base shows that it begins", pkg: control, test: "TestUploadProgressStays",
		edits: []edit{{control + "/uploads.go", "\t\t\treturn tx.SetUploadDone(s.ID, done)\n", "\t\t\t_ = done\n\t\t\treturn nil\n"}},
	},
	{
		name: "an upload that waits shows nothing", pkg: control, test: "TestUploadProgressStays",
		edits: []edit{{ctlSnaps, "\t\tout.Progress, err = waiting(tx, s)\n", ""}},
	},
}
